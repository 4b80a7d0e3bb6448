"""The store: nothing half-written is read, nothing foreign is overwritten, one driver at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysense.engine.files import Directory
from raysense.engine.lock import LOCK_FILE, DriverLock, running_since
from raysense.engine.store import Store
from raysense.errors import UsageError

LISTING = pa.table({"number": [0, 1]})
DOCUMENT = {"kind": "test", "spec": {}, "facts": {}, "unit_size": 1, "units": 2, "items": 2, "schemas": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "scan", DOCUMENT, LISTING)


def test_a_unit_exists_only_with_its_commit(store: Store) -> None:
    table = pa.table({"x": [1, 2, 3]})
    store.directory.write_table(store.table_file("numbers", "u1"), table)
    assert store.committed() == {}
    store.commit("u1", {"numbers": table}, {"attempt": 1})
    assert list(store.committed()) == ["u1"]
    assert store.directory.read_table(store.table_file("numbers", "u1")).equals(table)
    assert store.directory.read_json("commits/u1.json")["rows"] == {"numbers": 3}
    store.commit("u1", {"numbers": table}, {"attempt": 2})
    assert list(store.committed()) == ["u1"]


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


def test_a_missed_heartbeat_is_made_up_for_and_a_takeover_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysense.engine.lock.HEARTBEAT_SECONDS", 0.05)
    write, failing = Directory.write_json, [True]

    def unreliable(self: Directory, relative: str, document: object) -> None:
        if failing[0] and relative == LOCK_FILE and store.directory.exists(LOCK_FILE):
            raise OSError("the network blinked")
        write(self, relative, document)

    monkeypatch.setattr(Directory, "write_json", unreliable)
    with DriverLock(store.directory) as lock:
        first = store.directory.read_json(LOCK_FILE)
        time.sleep(0.3)
        assert store.directory.read_json(LOCK_FILE) == first
        failing[0] = False
        time.sleep(0.3)
        assert store.directory.read_json(LOCK_FILE)["heartbeat"] > first["heartbeat"]
        assert not lock.lost
        write(store.directory, LOCK_FILE, {**first, "owner": "another"})
        time.sleep(0.3)
        assert lock.lost


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


HOLD = """
import sys, time
from raysense.engine.lock import DriverLock
from raysense.engine.store import Store
with DriverLock(Store.open(sys.argv[1]).directory):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_until_the_first_is_gone(store: Store) -> None:
    assert not running_since(store.directory)
    with subprocess.Popen([sys.executable, "-c", HOLD, store.location], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert running_since(store.directory)
        with pytest.raises(UsageError, match=f"another driver \\(process {first.pid}"), DriverLock(store.directory):
            pass
        first.kill()
        first.wait()
    assert not running_since(store.directory)
    with DriverLock(store.directory):
        assert running_since(store.directory)
    assert not running_since(store.directory)


def test_a_driver_elsewhere_counts_while_its_heart_beats(store: Store) -> None:
    holder = {
        "owner": "x",
        "host": "elsewhere",
        "pid": 1,
        "process_started": 0.0,
        "taken": 0.0,
        "heartbeat": time.time() - 30,
    }
    store.directory.write_json(LOCK_FILE, holder)
    with pytest.raises(UsageError, match="on elsewhere"), DriverLock(store.directory):
        pass
    store.directory.write_json(LOCK_FILE, {**holder, "heartbeat": time.time() - 90})
    with DriverLock(store.directory):
        pass


def test_of_many_drivers_that_start_together_one_wins(store: Store) -> None:
    script = HOLD.replace("time.sleep(60)", "time.sleep(3)")
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", script, store.location], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [driver.communicate()[0] for driver in drivers]
    assert outputs.count("held\n") == 1
