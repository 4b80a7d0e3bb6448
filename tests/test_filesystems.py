"""Filesystems by URI, what is tried again, and fsspec's filesystems as scan directories."""

from __future__ import annotations

import errno
import logging
import os
import socket
import uuid
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image

from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.store import retries
from raysense.store.files import Directory
from raysense.store.filesystems import open_filesystem
from raysense.store.retries import is_refused, is_transient, is_unreachable, patiently
from raysense.store.store import Store

TABLE = pa.table({"number": [0, 1]})
ENDPOINT = "endpoint_override=127.0.0.1:9&scheme=http"


@pytest.fixture
def memory() -> Directory:
    return Directory(f"memory://{uuid.uuid4().hex}/scan")


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "kind", "path"),
    [
        ("relative/x/", "local", f"{os.getcwd()}/relative/x"),
        ("file:///tmp/x/", "local", "/tmp/x"),
        ("file:///tmp/y/../x%23/./z", "local", "/tmp/x#/z"),
        ("/", "local", "/"),
        (f"s3://bucket/run/?{ENDPOINT}", "s3", "bucket/run"),
        (f"s3://bucket/a%20b?{ENDPOINT}&allow_bucket_creation=true&region=eu-west-1", "s3", "bucket/a b"),
        (f"s3://bucket/run?{ENDPOINT}&tls_verify_certificates=false", "s3", "bucket/run"),
        (f"gs://anonymous@bucket/run?{ENDPOINT}", "gcs", "bucket/run"),
        ("gs://bucket/run/", "gcs", "bucket/run"),
        ("abfss://container@account.dfs.core.windows.net/run", "abfs", "container/run"),
        (f"s3://bucket/a:b/c@d?{ENDPOINT}", "s3", "bucket/a:b/c@d"),
        ("memory://a/b/", "py::fsspec+memory", "/a/b"),
        ("dir::file:///tmp/x", "py::fsspec+('file', 'local')", "/tmp/x"),
    ],
)
def test_filesystems_by_uri(location: str, kind: str, path: str) -> None:
    filesystem, inside = open_filesystem(location, "out")
    assert (filesystem.type_name, inside) == (kind, path)


def test_options_of_s3_reach_the_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    build = pafs.S3FileSystem

    def record(**options: Any) -> pafs.FileSystem:
        made.append(options)
        return build(**options)

    monkeypatch.setattr(pafs, "S3FileSystem", record)
    monkeypatch.setenv("RAYSENSE_STORE_TIMEOUT", "7")
    uri = f"s3://bucket/run?{ENDPOINT}&region=eu-west-1&allow_bucket_creation=TRUE&allow_bucket_deletion=false"
    open_filesystem(uri, "out")
    (options,) = made
    assert options.pop("retry_strategy").max_attempts == 10
    assert options == {
        "endpoint_override": "127.0.0.1:9",
        "scheme": "http",
        "region": "eu-west-1",
        "allow_bucket_creation": True,
        "allow_bucket_deletion": False,
        "allow_delayed_open": True,
        "connect_timeout": 5.0,
        "request_timeout": 7.0,
    }


def test_the_region_of_a_bucket_is_looked_up_as_pyarrow_does_but_for_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.01)
    answers = [OSError(f"{AWS}UNKNOWN (HTTP status 503) during HeadBucket operation: No response body."), "ap-south-1"]

    def resolve(bucket: str) -> str:
        assert bucket == "far-away"
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    monkeypatch.setattr(pafs, "resolve_s3_region", resolve)
    assert open_filesystem("s3://far-away/run", "out")[0].region == "ap-south-1"
    assert open_filesystem("s3://far-away/run?region=eu-west-1", "out")[0].region == "eu-west-1"


@pytest.mark.parametrize("query", ["", "?region=eu-west-1&scheme=http", "?endpoint_override=127.0.0.1:8"])
def test_s3_is_opened_as_pyarrow_does_but_for_patience(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    uri = f"s3://bucket/run{query}"
    ours, plain = (
        found.__reduce__()[1][0] for found in (open_filesystem(uri, "out")[0], pafs.FileSystem.from_uri(uri)[0])
    )
    changed = {name for name in plain if ours[name] != plain[name]}
    assert changed == {"connect_timeout", "request_timeout", "allow_delayed_open"}


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nosuchscheme://bucket/x", "out 'nosuchscheme://bucket/x' cannot be opened .*called nosuchscheme"),
        ("nosuch::memory://x", "cannot be opened .*called nosuch"),
        ("s3:///run?region=eu-west-1", "cannot be opened .*bucket"),
        ("s3://bucket/a b?region=eu-west-1", "cannot be opened .*URI"),
        ("s3://bucket/run?region=eu-west-1&colour=blue", "cannot be opened .*colour"),
        ("s3://bucket/run?region=eu-west-1&allow_bucket_creation=perhaps", "cannot be opened .*perhaps"),
        ("gdrive://folder", "needs a package that is not installed .*gdrive.*install it on every machine"),
        ("simplecache::memory://x", "is a cache.*name the filesystem behind it"),
        (f"s3://bucket/a#b?{ENDPOINT}", "out .* cannot be opened .*write it as %23"),
        (f"s3://bucket/a/../b?{ENDPOINT}", "out .* has a part that is empty, . or .."),
        (f"s3://bucket/./b?{ENDPOINT}", "out .* has a part that is empty, . or .."),
        (f"s3://bucket/a//b?{ENDPOINT}", "out .* has a part that is empty, . or .."),
        ("memory://a/../b/..", "out .* has a part that is empty, . or .."),
        ("  ", "out is empty"),
    ],
)
def test_locations_that_cannot_be_opened(location: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Directory(location)


@pytest.mark.parametrize(
    "location",
    [
        "s3://KEY:HIDDEN@bucket/run",
        "s3://HIDDEN@bucket/run",
        "s3://KEY:HID/HIDDEN/DEN@bucket/run",
        "simplecache::s3://KEY:HIDDEN@bucket/run",
        "s3://bucket/run?access_key=HIDDEN&secret_key=HIDDEN",
        "s3://bucket/run?region=eu-west-1&session_token=HIDDEN",
        "abfss://container:HIDDEN@account.dfs.core.windows.net/run",
        "abfs://account@container/run?sas_token=HIDDEN",
        "sftp://user:HIDDEN@host/run",
        "https://bucket.s3.amazonaws.com/run?X-Amz-Signature=HIDDEN",
    ],
)
def test_credentials_in_a_location_are_refused_and_not_repeated(location: str) -> None:
    for open_it in (Directory, lambda location: open_data(f"npz:{location}").list()):
        with pytest.raises(UsageError, match="which would be written into scans") as caught:
            open_it(location)
        assert "HIDDEN" not in str(caught.value)


def test_settings_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("RAYSENSE_STORE_PATIENCE", text)
        with pytest.raises(UsageError, match=f"RAYSENSE_STORE_PATIENCE is '{text}'"):
            Directory("memory://x")


# -- trying again ------------------------------------------------------------------------------------------------------

AWS = "When reading information for key 'k' in bucket 'b': AWS Error "


class Status(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


@pytest.mark.parametrize(
    "error",
    [  # The messages are those of pyarrow 26, recorded against a server that misbehaves.
        OSError(f"{AWS}UNKNOWN (HTTP status 500) during HeadObject operation: No response body."),
        OSError(f"{AWS}UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
        OSError(f"{AWS}INTERNAL_FAILURE during PutObject operation: Injected."),
        OSError(f"{AWS}SLOW_DOWN during ListObjectsV2 operation: Injected."),
        OSError(
            "AWS Error INTERNAL_FAILURE during GetObject operation: Failed to flush response stream (eof: 0, bad: 1)"
        ),
        OSError(f"{AWS}NETWORK_CONNECTION during HeadObject operation: curlCode: 52, Server returned nothing"),
        OSError(f"{AWS}NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"),
        OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of PerformWork()"),
        OSError(
            f"{AWS}UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: "
            "KMS.ThrottlingException Message: rate exceeded"
        ),
        OSError(errno.EBUSY, "SlowDown"),
        OSError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("Read timed out"),
        ConnectionResetError(),
        TimeoutError(),
        pa.ArrowException("Unknown error: GetProperties failed: 503 Server Busy"),
        Status(503),
    ],
)
def test_what_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "Path does not exist 'b/k'"),
        PermissionError(errno.EACCES, "Forbidden"),
        OSError(f"{AWS}ACCESS_DENIED during HeadObject operation: No response body."),
        OSError(f"{AWS}NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist"),
        OSError(f"{AWS}UNKNOWN (HTTP status 400) during CreateBucket operation: Unable to parse InvalidBucketName"),
        OSError("google::cloud::Status(PERMISSION_DENIED: Permanent error, with a last message of ..."),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("wrong"),
        pa.ArrowInvalid("not an Arrow file; connection closed"),
        ValueError("timed out"),
        NotImplementedError(),
        KeyboardInterrupt(),
        Status(403),
    ],
)
def test_what_is_not_tried_again(error: BaseException) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(f"{AWS}ACCESS_DENIED during HeadObject operation: No response body."), True),
        (OSError(f"{AWS}INVALID_ACCESS_KEY_ID during PutObject operation: The AWS Access Key Id you provided"), True),
        (OSError(f"{AWS}UNKNOWN (HTTP status 400) during HeadObject operation: No response body."), True),
        (OSError("google::cloud::Status(UNAUTHENTICATED: Permanent error, with a last message of ..."), True),
        (PermissionError(errno.EACCES, "Forbidden"), True),
        (OSError(f"{AWS}NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist"), False),
        (FileNotFoundError(errno.ENOENT, "Path does not exist 'b/k'"), False),
        (ValueError("AWS Error ACCESS_DENIED"), False),
    ],
)
def test_what_is_a_refusal(error: Exception, refused: bool) -> None:
    assert is_refused(error) == refused
    assert not is_transient(error)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(retries, "STRANGER_PATIENCE", 0.0)
    attempts: list[int] = []

    def failing(error: Exception, times: int) -> str:
        attempts.append(1)
        if len(attempts) <= times:
            raise error
        return "done"

    def tries(error: Exception, times: int, patience: float, reached: bool = True) -> int:
        attempts.clear()
        assert patiently(lambda: failing(error, times), "writing x", patience, reached) == "done"
        return len(attempts)

    with caplog.at_level(logging.WARNING, "raysense"):
        assert tries(TimeoutError("slow"), 3, patience=10) == 4
    assert [
        record.getMessage().startswith("writing x failed (slow); trying again in ") for record in caplog.records
    ] == [True] * 3
    with pytest.raises(TimeoutError):
        tries(TimeoutError("slow"), 1000, patience=0.2)
    assert 2 < len(attempts) < 1000
    for error, reached in (
        (FileNotFoundError(), True),
        # An address that never answered is likely to be wrong.
        (ConnectionRefusedError(), False),
        (OSError(f"{AWS}NETWORK_CONNECTION: curlCode: 6, Could not resolve hostname"), False),
    ):
        with pytest.raises(OSError):  # noqa: PT011
            tries(error, 1000, patience=10, reached=reached)
        assert len(attempts) == 1
    assert tries(ConnectionRefusedError(), 2, patience=10) == 3
    assert is_unreachable(socket.gaierror())
    with pytest.raises(OSError, match="Azure is angry"):
        patiently(lambda: (_ for _ in ()).throw(pa.ArrowException("Azure is angry")), "x", 10)


# -- fsspec ------------------------------------------------------------------------------------------------------------


def test_a_store_in_memory(memory: Directory) -> None:
    Store.check_free(memory)
    assert list(memory.list("commits")) == []
    memory.write_table("tables/t/b.arrow", TABLE)
    memory.write_json("tables/t/a.json", [1])
    memory.write_json("tables/t/a.json", [2])
    entries = list(memory.list("tables/t"))
    assert [entry.name for entry in entries] == ["a.json", "b.arrow"]
    assert all(entry.modified is not None and entry.modified.tzinfo for entry in entries)
    assert [memory.exists(name) for name in ("tables/t/a.json", "tables/t", "tables/t/c")] == [True, False, False]
    assert memory.read_json("tables/t/a.json") == [2]
    assert memory.read_table("tables/t/b.arrow").equals(TABLE)
    assert memory.names() == ["tables"]
    memory.delete("tables/t/a.json")
    memory.delete("tables/t/a.json")
    with pytest.raises(FileNotFoundError):
        memory.read("tables/t/a.json")
    with pytest.raises(NotADirectoryError):
        list(memory.list("tables/t/b.arrow"))
    assert (memory.name, memory.is_local) == ("scan", False)


@pytest.mark.parametrize("name", ["run[1]", "run*", "ru?"])
def test_names_are_no_patterns(memory: Directory, tmp_path: Path, name: str) -> None:
    for base in (memory.location, f"dir::file://{tmp_path}"):
        odd, plain = Directory(f"{base}/{name}"), Directory(f"{base}/run1")
        for directory in (plain, odd):
            directory.write("x", directory.root.encode())
        assert [entry.name for entry in odd.list("")] == ["x"]
        assert odd.read("x") == odd.root.encode()
        odd.delete("x")
        assert not odd.exists("x")
        assert plain.read("x") == plain.root.encode()


def test_files_on_a_foreign_disk_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory(f"dir::file://{tmp_path}/scan")
    stream = directory.filesystem.open_output_stream(directory.path("a/half"))
    stream.write(b"half")
    assert list(directory.list("a")) == []
    assert not directory.exists("a/half")
    (temporary,) = (tmp_path / "scan" / "a").iterdir()
    stream.close()
    assert directory.read("a/half") == b"half"
    assert not temporary.exists()

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    opened = fsspec.implementations.local.LocalFileSystem.open
    monkeypatch.setattr(
        fsspec.implementations.local.LocalFileSystem, "open", lambda *arguments: [opened(*arguments).close(), Full()][1]
    )
    with pytest.raises(OSError, match="No space left"):
        directory.write("a/half", b"whole")
    monkeypatch.undo()
    assert directory.read("a/half") == b"half"
    assert [path.name for path in (tmp_path / "scan" / "a").iterdir()] == ["half"]


def test_what_killed_writers_leave_is_swept(tmp_path: Path) -> None:
    directory = Directory(f"dir::file://{tmp_path}/scan")
    directory.write("a/.x.json.1.tmp", b"{")
    directory.write("a/x.json", b"{}")
    assert [entry.name for entry in directory.list("a")] == ["x.json"]
    assert directory.sweep_temporary_files() == 1
    assert directory.sweep_temporary_files() == 0
    assert directory.read("a/x.json") == b"{}"


def test_filesystems_that_cannot_be_written(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("scan/a.json", "[1]")
    packed = Directory(f"zip://scan::file://{tmp_path}/x.zip")
    assert packed.read_json("a.json") == [1]
    assert packed.names() == ["a.json"]
    # Whatever an fsspec filesystem raises is an OSError here.
    for directory in (Directory(f"zip://new::file://{tmp_path}/x.zip"), Directory("data://text/plain")):
        with pytest.raises(UsageError, match="cannot be written"):
            Store.check_free(directory)


def test_data_behind_fsspec(tmp_path: Path) -> None:
    """The same samples through a cache in front of a disk, which is no obstacle to reading."""
    pixels = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    for number, image in enumerate(pixels):
        folder = tmp_path / "folder" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    np.savez(tmp_path / "data.npz", x=pixels, y=np.array([0, 1, 0]))
    for form, name in (("folder", "folder"), ("npz", "data.npz")):
        listings = [
            read_all(f"{form}:{start}{tmp_path / name}") for start in ("", "dir::file://", "simplecache::file://")
        ]
        assert listings[0] == listings[1] == listings[2]
    with pytest.raises(UsageError, match="there is nothing at"):
        read_all(f"npz:dir::file://{tmp_path}/missing.npz")


def read_all(reference: str) -> tuple[list[str], list[list[int]]]:
    """Ids and pixels of all samples."""
    source = open_data(reference)
    table = source.list().table
    reader = source.reader(table)
    pixels = [reader.read(row).flatten().tolist() for row in range(len(reader))]
    assert len(pixels) == 3
    return table["sample_id"].to_pylist(), pixels
