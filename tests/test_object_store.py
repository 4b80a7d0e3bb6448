"""Scans on object stores that misbehave: real local servers in processes of their own, real kills."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_s3 import DENIED, Endpoint, faulty_s3, free_port, wait_for_port
from plugin_scans import NumbersScan
from processes import kill, rows, start_driver, wait_for
from synthetic import write_scan
from test_filesystems import read_all

import raysense
from raysense.engine.runtime import cluster
from raysense.errors import UsageError
from raysense.options import RunOptions
from raysense.query.connection import open_results
from raysense.store import retries
from raysense.store.compaction import compact
from raysense.store.files import Directory
from raysense.store.filesystems import open_filesystem
from raysense.store.lock import CLAIMS, running
from raysense.store.store import Store

KIND = NumbersScan.kind
ALL_FAULTS = {"share": 0.08, "hangs": 1, "hang": 20}
BIG = pa.table({"x": np.random.default_rng(0).random(4_000_000)})
"""32 MB that cannot be compressed: three parts of an upload and a bit."""


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAYSENSE_STORE_TIMEOUT", "1")
    with faulty_s3() as endpoint:
        yield endpoint
    patch.undo()


@pytest.fixture
def s3(server: Endpoint) -> Iterator[Endpoint]:
    server.inject()
    yield server
    server.inject()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filesystem itself tries nothing again, and we do so quickly."""
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.02)
    monkeypatch.setenv("RAYSENSE_STORE_ATTEMPTS", "0")


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--port", str(port), "--in-memory"]
    emulator = subprocess.Popen(
        [*command, "--default-bucket", "runs"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        wait_for_port(port)
        yield "gs://anonymous@runs"
    finally:
        patch.undo()
        emulator.kill()
        emulator.wait()


@pytest.fixture(scope="module")
def ray(server: Endpoint, google: str) -> Iterator[None]:
    """One local Ray, whose workers know both servers."""
    with cluster(RunOptions()):
        yield


def squares(location: str, items: int) -> None:
    assert {n: row["square"] for n, row in rows(location, "squares", "number").items()} == {
        n: n * n for n in range(items)
    }


@pytest.mark.usefixtures("ray")
def test_scan_kill_resume_query_report_and_export_on_a_store_that_fails(s3: Endpoint, tmp_path: Path) -> None:
    out = "s3://runs/first"
    s3.inject(**ALL_FAULTS)
    driver = start_driver("scan", kind=KIND, out=out, run={"workers": 2}, items=100, seconds=0.1)
    wait_for(lambda: _committed(out) >= 4)
    # Through another process of this machine: the owner lives, so the prefix is taken.
    with pytest.raises(UsageError, match=f"another driver \\(process {driver.pid} on"):
        raysense.resume(out)
    assert raysense.status(out).running
    kill(driver)
    driver.wait()
    assert 4 <= _committed(out) < 25
    assert raysense.resume(out, run={"workers": 1}).committed == 25
    squares(out, 100)
    with open_results([out]) as database:
        query = "SELECT sum(square) AS total FROM squares"
        assert database.query(query).rows()[0]["total"] == sum(n * n for n in range(100))
    written = raysense.write_report(out, "s3://runs/reports/first.html")
    assert written == ["s3://runs/reports/first.html"]
    assert b"Scan first" in Directory("s3://runs/reports").read("first.html")
    raysense.export_tables(out, "s3://runs/exported", "parquet")
    with Directory("s3://runs/exported").filesystem.open_input_file("runs/exported/squares.parquet") as file:
        assert sorted(pq.read_table(file)["square"].to_pylist()) == [n * n for n in range(100)]
    with pytest.raises(UsageError, match=r"cannot be written \(.*NO_SUCH_BUCKET"):
        raysense.export_tables(out, "s3://nowhere/exported", "parquet")
    assert raysense.status(out).committed == 25
    with pytest.raises(UsageError, match="already holds a scan"):
        raysense.scan(KIND, out)
    assert list(Directory(out).list(CLAIMS)) == []
    counts = s3.counts()
    assert set(counts["injected"]) == {"error", "slow_down", "hang", "cut", "lost"}
    assert sum(counts["injected"].values()) > 20


RACE = """
import sys
from raysense.store.files import Directory
from raysense.store.lock import DriverLock
from raysense.errors import UsageError
for location in iter(sys.stdin.readline, ""):
    try:
        with DriverLock(Directory(location.strip())) as lock:
            print("held", flush=True)
            sys.stdin.readline()
            assert not lock.lost
    except UsageError as error:
        print("refused" if "is being scanned by another driver" in str(error) else error, flush=True)
        sys.stdin.readline()
"""


def test_of_drivers_that_start_in_the_same_moment_one_wins(s3: Endpoint) -> None:
    s3.inject(delay=0.01)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(3)
    ]
    for number in ("warm-up", *range(4)):
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"s3://runs/race-{number}\n")
        outcomes = sorted(racer.stdout.readline() for racer in racers if racer.stdout)
        assert outcomes == ["held\n", "refused\n", "refused\n"]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("next\n")
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    assert running(Directory("s3://runs/race-1")) is None


def test_what_is_committed_costs_listings_only(s3: Endpoint) -> None:
    document = {"kind": "test", "spec": {}, "facts": {}, "unit_size": 1, "units": 2, "items": 2, "schemas": {}}
    store = Store.create("s3://runs/listed", document, None)
    for number in range(30):
        store.commit(f"u{number:02}", {"t": pa.table({"x": [number]})}, {})
    s3.inject()
    assert len(store.committed()) == 30
    assert s3.counts()["requests"].keys() == {"LIST"}
    assert s3.counts()["requests"]["LIST"] <= 3
    s3.inject()
    store.commit("u99", {"t": pa.table({"x": [1]})}, {})
    assert s3.counts()["requests"] == {"PUT": 2}


@pytest.mark.usefixtures("impatient")
def test_what_fails_for_a_moment_is_tried_again_and_logged(s3: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    directory = Directory("s3://runs/moments")
    directory.write("a", b"1")
    for kind in ("error", "slow_down", "cut", "lost", "hang"):
        for what in (lambda: directory.write("a", b"1"), lambda: list(directory.list("")), lambda: directory.read("a")):
            if kind == "hang" and "write" in what.__code__.co_names:
                continue  # 8 s; the scan above has it
            s3.inject(share=1, kinds=[kind], limit=1, hang=20)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "raysense"):
                what()
            assert s3.counts()["injected"] == {kind: 1}
            assert len(caplog.records) == 1
            assert "trying again in" in caplog.text
    assert directory.read("a") == b"1"


@pytest.mark.usefixtures("impatient")
def test_what_fails_for_good_is_reported_at_once(s3: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, nowhere = Directory("s3://runs/moments"), Directory("s3://nowhere/run")
    for missing in (directory, nowhere):
        s3.inject()
        with pytest.raises(FileNotFoundError):
            missing.read("missing")
        assert s3.counts()["requests"] == {"HEAD": 1}
    s3.inject()
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        nowhere.write("x", b"")
    assert s3.counts()["requests"] == {"PUT": 1}
    with pytest.raises(UsageError, match=r"cannot be written \(.*NO_SUCH_BUCKET"):
        raysense.scan(KIND, "s3://nowhere/run")
    monkeypatch.setenv("RAYSENSE_STORE_PATIENCE", "0.1")
    s3.inject(share=1, kinds=["slow_down"])
    with pytest.raises(OSError, match="HTTP status 503"):
        Directory("s3://runs/moments").read("a")


@pytest.mark.usefixtures("impatient")
def test_refusals_are_believed_unless_the_like_was_granted_before(
    s3: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a machine's credentials cannot be fetched, requests are not signed, and answered as those without a right."""
    directory = Directory("s3://runs/moments")
    actions = {
        "write": lambda: directory.write("a", b"1"), "list": lambda: list(directory.list("")),
        "read": lambda: directory.read("a"), "look": lambda: directory.exists("a"),
    }  # fmt: skip
    for act in actions.values():
        s3.inject(share=1, kinds=[DENIED])
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            act()
        assert s3.counts()["injected"] == {DENIED: 1}
        s3.inject()
        act()
        s3.inject(share=1, kinds=[DENIED], limit=2)
        act()
        assert s3.counts()["injected"] == {DENIED: 2}
    monkeypatch.setattr(retries, "LAPSE_PATIENCE", 0.1)
    s3.inject(share=1, kinds=[DENIED])
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        directory.read("a")
    with pytest.raises(UsageError, match=r"'s3://runs/moments' cannot be read \(.*ACCESS_DENIED.*see to the address"):
        Store.open("s3://runs/moments")
    # What datasets read through.
    s3.inject()
    path = directory.path("a")
    assert directory.filesystem.open_input_file(path).read() == b"1"
    monkeypatch.setattr(retries, "LAPSE_PATIENCE", 10)
    s3.inject(share=1, kinds=[DENIED], limit=1)
    file = directory.filesystem.open_input_file(path)
    s3.inject(share=1, kinds=[DENIED], limit=1)
    assert file.read() == b"1"
    assert s3.counts()["injected"] == {DENIED: 1}


@pytest.mark.usefixtures("impatient")
def test_big_tables_go_in_parts_and_appear_whole(s3: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Directory("s3://runs/big")
    s3.inject(share=1, kinds=["error"], methods=["PUT"], containing="partNumber=2", limit=1)
    size = directory.write_table("whole.arrow", BIG)
    counts = s3.counts()
    assert counts["injected"] == {"error": 1}
    assert counts["requests"]["PUT"] >= 2 * size // 2**24
    assert counts["requests"]["POST"] == 3  # two uploads begun, one of them completed
    assert directory.read_table("whole.arrow").equals(BIG)
    monkeypatch.setenv("RAYSENSE_STORE_PATIENCE", "0")
    s3.inject(share=1, kinds=["cut"], methods=["PUT"], containing="partNumber=2")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        Directory("s3://runs/big").write_table("broken.arrow", BIG)
    s3.inject()
    assert [entry.name for entry in directory.list("")] == ["whole.arrow"]


WRITE_BIG = """
import numpy as np, pyarrow as pa
from raysense.store.files import Directory
Directory("s3://runs/killed").write_table("x.arrow", pa.table({"x": np.random.default_rng(0).random(4_000_000)}))
"""


def test_a_writer_killed_in_between_leaves_nothing_that_can_be_seen(s3: Endpoint) -> None:
    s3.inject(share=1, kinds=["hang"], methods=["PUT"], containing="partNumber=3", hang=60)
    writer = subprocess.Popen([sys.executable, "-c", WRITE_BIG])
    wait_for(lambda: s3.counts()["injected"])
    kill(writer)
    writer.wait()
    s3.inject()
    directory = Directory("s3://runs/killed")
    assert not directory.exists("x.arrow")
    assert list(directory.list("")) == []
    # What a lifecycle rule of the bucket has to end.
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    assert "killed/x.arrow" in [upload["Key"] for upload in client.list_multipart_uploads(Bucket="runs")["Uploads"]]
    directory.write_table("x.arrow", BIG)
    assert directory.read_table("x.arrow").num_rows == BIG.num_rows


def test_options_in_the_uri_create_buckets(s3: Endpoint) -> None:
    uri = f"s3://fresh/run?scheme=http&endpoint_override={s3.address}&allow_bucket_creation=true&region=us-east-1"
    filesystem, path = open_filesystem(uri, "out")
    filesystem.create_dir("fresh")
    Directory(uri).write("a", b"1")
    with filesystem.open_input_file(f"{path}/a") as file:
        assert file.read() == b"1"


def test_data_on_a_store_that_fails(s3: Endpoint, tmp_path: Path) -> None:
    pixels = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    np.savez(tmp_path / "data.npz", x=pixels, y=np.array([0, 1, 0]))
    store = Directory("s3://runs/data")
    store.write("data.npz", (tmp_path / "data.npz").read_bytes())
    s3.inject(share=0.5, seed=3, kinds=["error", "slow_down", "cut"])
    assert read_all("npz:s3://runs/data/data.npz") == read_all(f"npz:{tmp_path}/data.npz")
    assert s3.counts()["injected"]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("protocol", ["gs", "dir"])
def test_scans_on_other_filesystems(protocol: str, google: str, tmp_path: Path) -> None:
    out = f"{google}/scan" if protocol == "gs" else f"dir::file://{tmp_path}/scan"
    raysense.scan(KIND, out, run={"workers": 2, "max_attempts": 1}, items=40, raising=(3,))
    status = raysense.status(out)
    assert (status.committed, len(status.failed), status.running) == (9, 1, False)
    with pytest.raises(UsageError, match="already holds a scan"):
        raysense.scan(KIND, out)
    assert not raysense.resume(out, run={"workers": 2, "max_attempts": 1}).complete
    assert len(rows(out, "squares", "number")) == 36
    with open_results([out]) as database:
        assert database.query("SELECT count(*) AS n FROM squares").rows()[0]["n"] == 36
    raysense.write_report(out, f"{out}/report.html")
    assert raysense.export_tables(out, out.replace("scan", "exported"), "parquet")["squares"] == 36
    assert list(Directory(out).list(CLAIMS)) == []


def test_compaction_on_a_store_that_fails_while_readers_read(s3: Endpoint) -> None:
    out = "s3://runs/compacted"
    truth = write_scan(out, splits={"train": 60}, unit_size=5)
    sql = "SELECT count(*) AS n, sum(fi) AS total FROM influence JOIN samples USING (scan, sample_id)"
    first = truth.store.snapshot()
    twice = {name: truth.store.directory.read_table(first.files(name)[3]) for name in truth.store.schemas()}
    truth.store.commit(first.units[3], twice, {"attempt": 2})
    with open_results(out) as early:
        expected = early.query(sql).rows()
        s3.inject(share=0.05, kinds=["error", "slow_down", "lost"])
        assert compact(out).added == 12
        with open_results(out) as database:
            assert database.query(sql).rows()[0]["total"] == pytest.approx(expected[0]["total"], rel=1e-12)
        assert early.query(sql).rows()[0]["n"] == expected[0]["n"] == 60
    cleaned = compact(out, 0)
    assert (cleaned.superseded, cleaned.removed) == (0, 4 * 13)
    counts = s3.counts()
    assert counts["injected"]
    # Of a scan that has ended, the files of units go folder by folder.
    assert counts["requests"]["POST"] >= 3
    assert counts["requests"]["DELETE"] < 10
    s3.inject()
    with open_results(out) as database:
        assert database.query(sql).rows()[0]["n"] == 60
    # scan.json twice, manifests and commits listed once each, the manifest, and what the table's one part takes.
    assert s3.counts()["requests"]["LIST"] == 2
    assert sum(s3.counts()["requests"].values()) < 25
    assert raysense.status(out).committed == 12


def test_files_of_others_stay_where_folders_are_emptied(s3: Endpoint) -> None:
    out = "s3://runs/foreign"
    directory = write_scan(out, splits={"train": 10}, unit_size=5).store.directory
    directory.write("commits/notes.txt", b"mine")
    compact(out)
    compact(out, 0)
    assert directory.names("commits") == ["notes.txt"]
    assert directory.names("tables/samples") == []


def test_a_statement_that_stops_early_lets_the_process_end(s3: Endpoint) -> None:
    """Threads that were still reading for it would have it aborted, or wait for ever."""
    out = "s3://runs/early"
    write_scan(out, splits={"train": 40}, unit_size=1)
    s3.inject(delay=0.05)
    call = "from raysense.cli import main; main()"
    command = [sys.executable, "-c", call, "sql", out, "SELECT split FROM samples LIMIT 1", "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr, done.returncode) == (['"split"', '"train"'], "", 0)


def _committed(out: str) -> int:
    time.sleep(0.2)
    try:
        return len(Store.open(out).committed())
    except UsageError:
        return 0
