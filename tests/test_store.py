"""The store: nothing half-written is read, nothing foreign is overwritten."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysense.errors import RaysenseError, UsageError
from raysense.store.files import Directory, Entry
from raysense.store.naming import table_file
from raysense.store.store import Store

TOKEN = "0" * 12
LISTING = pa.table({"number": [0, 1]})
DOCUMENT = {"kind": "test", "spec": {}, "facts": {}, "unit_size": 1, "units": 2, "items": 2, "schemas": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "scan", DOCUMENT, LISTING)


def test_a_unit_exists_only_with_its_commit(store: Store) -> None:
    table = pa.table({"x": [1, 2, 3]})
    store.directory.write_table(table_file("numbers", "u1", TOKEN), table)
    assert store.committed() == {}
    store.commit("u1", {"numbers": table}, {"attempt": 1})
    assert list(store.committed()) == ["u1"]
    snapshot = store.snapshot()
    (file,) = snapshot.files("numbers")
    assert store.directory.read_table(file).equals(table)
    (record,) = store.records(snapshot.loose)
    assert (record["unit"], record["rows"], record["attempt"]) == ("u1", {"numbers": 3}, 1)
    store.commit("u1", {"numbers": table}, {"attempt": 2})
    assert store.snapshot() == snapshot


def written(store: Store, worker: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """The files that a commit writes, in their order, instead of writing them."""
    files: list[tuple[str, bytes]] = []
    with monkeypatch.context() as patch:
        patch.setattr(Directory, "write", lambda self, file, data: files.append((file, bytes(data))))
        tables = {name: pa.table({"worker": [worker], "table": [name]}) for name in ("a", "b")}
        store.commit("u1", tables, {"worker": worker})
    return files


@pytest.mark.parametrize("order", [order for order in itertools.product("AB", repeat=6) if order.count("A") == 3])
def test_two_commits_of_a_unit_never_mix_in_whatever_order_they_write(
    store: Store, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {worker: written(store, worker, monkeypatch) for worker in "AB"}
    first = ""
    for moment, worker in enumerate(order):
        file, data = left[worker].pop(0)
        store.directory.write(file, data)
        os.utime(store.directory.path(file), (moment, moment))
        first = first or (worker if not left[worker] else "")
        snapshot = store.snapshot()
        assert snapshot.units == (["u1"] if first else [])
        found = [store.directory.read_table(*snapshot.files(name)).to_pylist() for name in ("a", "b") if first]
        assert found == [[{"worker": first, "table": name}] for name in ("a", "b") if first]


def test_a_token_counts_once_a_unit(store: Store) -> None:
    for _ in range(2):
        store.commit("u1", {"numbers": LISTING}, {}, TOKEN)
    store.commit("u2", {"numbers": LISTING}, {}, TOKEN)
    names = [entry.name for entry in store.directory.list("commits")]
    assert len(names) == 3
    assert {f"u1~{TOKEN}.json", f"u2~{TOKEN}.json"} < set(names)
    assert store.is_committed("u1", TOKEN)
    assert not store.is_committed("u1", "1" * 12)
    with pytest.raises(ValueError, match="12 hexadecimal digits"):
        store.commit("u3", {}, {}, "../../../x")


def test_who_slept_while_it_committed_writes_again_what_was_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(self: Directory, file: str, table: pa.Table, compression: str | None) -> int:
        size = write(self, file, table, compression)
        if next(calls) == 0:
            self.delete(file)
        return size

    write, calls = Directory.write_table, itertools.count()
    monkeypatch.setattr(Directory, "write_table", removed)
    monkeypatch.setattr("raysense.store.store._SLOW_COMMIT_SECONDS", -1.0)
    store.commit("u1", {"a": LISTING, "b": LISTING}, {})
    assert [store.directory.read_table(*store.snapshot().files(name)).num_rows for name in ("a", "b")] == [2, 2]


def test_who_slept_before_the_commit_writes_again_what_was_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: Directory, file: str, document: object) -> None:
        self.delete(table_file("a", "u1", TOKEN))
        monkeypatch.setattr("raysense.store.store._SLOW_COMMIT_SECONDS", -1.0)
        write(self, file, document)

    write = Directory.write_json
    monkeypatch.setattr(Directory, "write_json", late)
    store.commit("u1", {"a": LISTING, "b": LISTING}, {}, TOKEN)
    assert [store.directory.read_table(*store.snapshot().files(name)).num_rows for name in ("a", "b")] == [2, 2]


def test_failures_that_are_forgotten_while_they_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in ("u1", "u2", "u3"):
        store.failures.write_attempts(unit, [{"attempt": 1, "error": unit}])
        store.failures.write_failure(unit, [{"attempt": 1, "error": unit}])
    store.commit("u3", {"a": LISTING}, {})
    names = Directory.list

    def forgotten(self: Directory, folder: str) -> Iterator[Entry]:
        listed = list(names(self, folder))
        if folder == "failures":
            store.failures.clear_failure("u1")
        return iter(listed)

    monkeypatch.setattr(Directory, "list", forgotten)
    assert [record["unit"] for record in store.failures.given_up(store.snapshot())] == ["u2"]
    assert list(store.failures.attempts()) == ["u1", "u2", "u3"]


@pytest.mark.parametrize("content", ["{", "[3]", "7", '{"unit": "u2", "attempts": [{"error": ""}]}', "[" * 100_000])
def test_records_that_are_none(store: Store, content: str) -> None:
    records, nothing = store.failures, store.snapshot()
    for folder, read in {"failures": lambda: records.given_up(nothing), "attempts": records.attempts}.items():
        store.directory.write(f"{folder}/u1.json", content.encode())
        with pytest.raises(RaysenseError, match=r"u1\.json is .*; remove it"):
            read()


@pytest.mark.parametrize(
    ("key", "value"), [("units", "x"), ("items", 1e300), ("unit_size", -1), ("items", 10**40), ("units", None)]
)
def test_a_document_with_numbers_that_are_none(store: Store, key: str, value: object) -> None:
    store.directory.write_json("scan.json", {**store.document(), key: value})
    with pytest.raises(UsageError, match="stands where a count belongs"):
        Store.open(store.location)


@pytest.mark.parametrize("schemas", [[], {"a": 3}, {"a": "AAAA"}, {"a": "/////wAAAAA="}, {"../a": ""}, None])
def test_schemas_that_are_none(store: Store, schemas: object) -> None:
    store.directory.write_json("scan.json", {**store.document(), "schemas": schemas})
    with pytest.raises(RaysenseError, match=r"scan\.json: .*; start a new scan"):
        Store.open(store.location).schemas()


def test_a_failed_write_leaves_no_trace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.commit("u1", {"numbers": LISTING}, {})
    assert [path for path in Path(store.location).rglob("*u1*") if path.is_file()] == []


def test_half_written_files_are_swept_and_never_listed(store: Store) -> None:
    stale = Path(store.location) / "commits" / ".u9.json.123.tmp"
    stale.parent.mkdir()
    stale.write_text("{")
    assert store.committed() == {}
    assert store.directory.sweep_temporary_files() == 1
    assert not stale.exists()


def test_listing_and_document_survive(store: Store) -> None:
    again = Store.open(store.location)
    assert again.listing().equals(LISTING)
    assert again.document()["kind"] == "test"
    assert again.name == "scan"


@given(st.text(min_size=1, max_size=30))
def test_unit_ids_cannot_leave_the_directory(unit: str) -> None:
    plain = all(c.isascii() and (c.isalnum() or c in "_.=+-") for c in unit) and unit[0].isalnum()
    if not plain:
        with pytest.raises(ValueError, match="plain file name"):
            Store(Directory("/nowhere")).is_committed(unit)


def refused(location: Path | str, pattern: str) -> None:
    with pytest.raises(UsageError, match=pattern):
        Store.create(location, {}, LISTING)


def test_directories_that_cannot_be_used(tmp_path: Path, store: Store) -> None:
    refused(store.location, "already holds a scan.*raysense resume")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    refused(tmp_path / "photos", "not a raysense scan; name a new or empty directory")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "below", "cannot be written")
    refused(tmp_path / "file", "cannot be written")
    refused("/proc/scan", "cannot be written")
    refused("nosuchscheme://bucket/x", "cannot be opened.*local path or a URI")
    refused("", "empty")
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    Store.check_free(Directory(tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()


def test_a_directory_of_folders_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    refused(tmp_path / "photos", "not a raysense scan")


def test_an_empty_or_half_started_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "empty", {}, LISTING)
    Directory(tmp_path / "half").write_table("listing.arrow", LISTING)
    (tmp_path / "half" / ".listing.arrow.123.tmp").touch()
    Store.create(tmp_path / "half", {}, LISTING)


def test_opening_what_is_no_scan(tmp_path: Path) -> None:
    for name, content in (
        ("missing", None),
        ("broken", "{"),
        ("newer", '{"format": 99}'),
        ("foreign", "[]"),
        ("bare", '{"format": 1}'),
    ):
        if content is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "scan.json").write_text(content)
        with pytest.raises(UsageError):
            Store.open(tmp_path / name)
