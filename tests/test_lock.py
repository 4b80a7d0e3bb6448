"""One driver at a time, on a local disk and where only claims can decide."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import wait_for

from raysense.errors import UsageError
from raysense.store import lock as locks
from raysense.store.files import Directory
from raysense.store.lock import CLAIMS, KERNEL_LOCK_FILE, LOCK_FILE, DriverLock, read_claims, running
from raysense.store.store import Store

ELSEWHERE = {"host": "elsewhere/boot/space", "pid": 1, "process_started": 0.0, "taken": 7.0, "holding": True}

HOLD = """
import sys, time
from raysense.store import lock
from raysense.store.files import Directory
location, host, heartbeat, stale, seconds = sys.argv[1:]
if host:
    lock.host_identity = lambda: host
lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS = float(heartbeat), float(stale)
with lock.DriverLock(Directory(location)) as held:
    print("held", flush=True)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end and not held.lost:
        time.sleep(0.01)
    print("lost" if held.lost else "kept", flush=True)
"""


@contextlib.contextmanager
def driver(
    location: str, host: str = "", heartbeat: float = 10, stale: float = 60, seconds: float = 60
) -> Iterator[subprocess.Popen[str]]:
    """A process that takes a directory, as if on another machine where it has a host."""
    arguments = [location, host, str(heartbeat), str(stale), str(seconds)]
    command = [sys.executable, "-c", HOLD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def local(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "scan")


@pytest.fixture
def memory() -> Directory:
    """A directory without kernel locks."""
    return Directory(f"memory://{uuid.uuid4().hex}/scan")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)


def claim(directory: Directory, age: float = 0.0, **changes: object) -> Path:
    """Write the claim of a driver elsewhere into a local directory, as old as is said."""
    owner = f"scan-{uuid.uuid4().hex}"
    directory.write_json(f"{CLAIMS}/{owner}.json", {**ELSEWHERE, "owner": owner, **changes})
    path = Path(directory.path(f"{CLAIMS}/{owner}.json"))
    os.utime(path, (time.time() - age,) * 2)
    return path


def refused(directory: Directory, pattern: str) -> None:
    before = {claim.owner for claim in read_claims(directory)}
    with pytest.raises(UsageError, match=pattern), DriverLock(directory):
        pass
    assert {claim.owner for claim in read_claims(directory)} == before


def test_a_second_driver_is_refused_until_the_first_is_gone(local: Directory) -> None:
    assert running(local) is None
    with driver(local.location) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        held = running(local)
        assert held is not None
        assert (held["pid"], held["purpose"]) == (first.pid, "scan")
        assert abs(held["taken"] - time.time()) < 60
        message = rf"is being scanned by another driver \(process {first.pid} on .+\); wait for it, or stop it first"
        refused(local, message)
        # Also where the file system has no locks, by its claim alone.
        Path(local.path(KERNEL_LOCK_FILE)).unlink()
        refused(local, message)
        first.kill()
        first.wait()
    assert running(local) is None
    with DriverLock(local):
        assert running(local) is not None
        assert len(read_claims(local)) == 1  # that of the killed one is removed
    assert running(local) is None
    assert list(local.list(CLAIMS)) == []


def test_a_driver_elsewhere_counts_while_its_heart_beats(local: Directory) -> None:
    path = claim(local, age=30)
    refused(local, r"\(process 1 on elsewhere\)")
    os.utime(path, (time.time() - 90,) * 2)
    assert running(local) is None
    with DriverLock(local):
        assert not path.exists()


def test_clocks_of_other_machines_do_not_matter(local: Directory) -> None:
    path = claim(local, age=30, heartbeat=time.time() - 10_000)
    refused(local, "on elsewhere")
    os.utime(path, (time.time() - 90,) * 2)
    local.write_json(f"{CLAIMS}/{path.name}", {**ELSEWHERE, "heartbeat": time.time() + 10_000})
    os.utime(path, (time.time() - 90,) * 2)
    with DriverLock(local):
        pass


def test_foreign_and_damaged_claims(local: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_MEETING_SECONDS", 0.2)
    for name, content in (("notes.txt", "mine"), ("scan-1.json", "{}"), (f"compact-{'0' * 32}.json", "{}")):
        local.write(f"{CLAIMS}/{name}", content.encode())
    local.write(f"{CLAIMS}/scan-{'1' * 32}.json", b'{"host": 3, "pid": "x", "holding": true')
    assert running(local) is None
    refused(local, r"process \? on \?")
    local.write(f"{CLAIMS}/scan-{'1' * 32}.json", b"[]")
    refused(local, r"process \? on \?")
    os.utime(local.path(f"{CLAIMS}/scan-{'1' * 32}.json"), (0, 0))
    with DriverLock(local):
        assert len(list(local.list(CLAIMS))) == 4


@pytest.mark.parametrize("error", [OSError("the network blinked"), KeyboardInterrupt()])
def test_who_fails_to_take_the_directory_leaves_no_claim(
    memory: Directory, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Directory, folder: str) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "list", failing)
        with pytest.raises((UsageError, KeyboardInterrupt)), DriverLock(memory):
            pass
    assert read_claims(memory) == []
    with DriverLock(memory):
        pass


def test_a_claim_that_could_not_be_withdrawn_does_not_hold(memory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Directory, file: str) -> None:
        raise OSError("the network blinked")

    with monkeypatch.context() as patch, DriverLock(memory):
        patch.setattr(Directory, "delete", failing)
    assert len(read_claims(memory)) == 1
    assert running(memory) is None
    with DriverLock(memory):
        assert len(read_claims(memory)) == 1


def test_a_claim_that_is_renewed_while_it_is_read(local: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store, where its size is asked for first, a longer one is then cut off."""
    claim(local)
    reads, read = iter([12]), Directory.read
    monkeypatch.setattr(Directory, "read", lambda self, file: read(self, file)[: next(reads, None)])
    assert (running(local) or {})["pid"] == 1


@pytest.mark.parametrize("said", [{"pid": -1}, {"pid": 10**40}, {"process_started": 1e300}, {"taken": 1e300}])
def test_claims_of_this_machine_that_say_what_cannot_be(local: Directory, said: dict[str, object]) -> None:
    claim(local, **{"host": locks.host_identity(), **said})
    holder = running(local)
    assert holder is None or holder["taken"] == 0
    claim(local, **said)
    assert (running(local) or {})["taken"] in (0.0, 7.0)


def test_compacting_excludes_only_compacting(memory: Directory) -> None:
    with DriverLock(memory), DriverLock(memory, purpose="compact"):
        with pytest.raises(UsageError, match="is being compacted by another driver"), DriverLock(memory, "compact"):
            pass
        with pytest.raises(UsageError, match="is being scanned by another driver"), DriverLock(memory):
            pass
        driver = running(memory)
        assert driver is not None
        assert driver["purpose"] == "scan"


def test_drivers_of_earlier_versions(local: Directory) -> None:
    with DriverLock(local):
        (own,) = read_claims(local)
        mine = {**own.document, "heartbeat": time.time()}
    local.write_json(LOCK_FILE, mine)
    refused(local, f"process {os.getpid()} on")
    assert running(local) is not None
    local.write_json(LOCK_FILE, {**ELSEWHERE, "heartbeat": time.time() - 30})
    refused(local, "process 1 on elsewhere")
    local.write_json(LOCK_FILE, {**ELSEWHERE, "heartbeat": time.time() - 90})
    assert running(local) is None
    with DriverLock(local):
        assert not local.exists(LOCK_FILE)


@pytest.mark.usefixtures("quick")
def test_progress_is_published_with_the_next_heartbeat(memory: Directory) -> None:
    with DriverLock(memory) as lock:
        assert (running(memory) or {})["progress"] == {}
        lock.publish({"done": 3})
        wait_for(lambda: (running(memory) or {})["progress"] == {"done": 3}, timeout=5)


@pytest.mark.usefixtures("quick")
def test_a_missed_heartbeat_is_made_up_for(local: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failing = Directory.write_json, threading.Event()

    def unreliable(self: Directory, relative: str, document: object) -> None:
        if failing.is_set():
            raise OSError("the network blinked")
        write(self, relative, document)

    monkeypatch.setattr(Directory, "write_json", unreliable)
    with DriverLock(local) as lock:
        failing.set()
        time.sleep(0.1)
        (first,) = read_claims(local)
        time.sleep(0.2)
        assert [claim.document for claim in read_claims(local)] == [first.document]
        failing.clear()
        wait_for(lambda: read_claims(local)[0].document["heartbeat"] > first.document["heartbeat"], timeout=5)
        assert not lock.lost


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("take_over", [lambda local: claim(local), lambda local: remove_claims(local)])
def test_a_driver_notices_that_another_took_over(local: Directory, take_over: Callable[[Directory], object]) -> None:
    with DriverLock(local) as lock:
        time.sleep(0.2)
        assert not lock.lost
        mine = read_claims(local)[0].owner
        take_over(local)
        wait_for(lambda: lock.lost, timeout=5)
        wait_for(lambda: mine not in {claim.owner for claim in read_claims(local)}, timeout=5)


def remove_claims(directory: Directory) -> None:
    for entry in directory.list(CLAIMS):
        directory.delete(f"{CLAIMS}/{entry.name}")


@pytest.mark.usefixtures("quick")
def test_who_took_over_keeps_the_directory_though_the_other_comes_back(local: Directory) -> None:
    late = claim(local, age=90)
    with DriverLock(local) as lock:
        local.write_json(f"{CLAIMS}/{late.name}", ELSEWHERE)
        time.sleep(0.3)
        assert not lock.lost
        claim(local, holding=False)  # one that is only about to try
        time.sleep(0.3)
        assert not lock.lost


def test_a_paused_driver_finds_itself_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines that share nothing but the files, with a minute that lasts a second."""
    location = f"dir::file://{tmp_path}/scan"
    monkeypatch.setattr(locks, "STALE_SECONDS", 1.0)
    with driver(location, host="first/boot/space", heartbeat=0.2, stale=1.0) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(UsageError, match="on first"), DriverLock(Directory(location)):
            pass
        wait_for(lambda: running(Directory(location)) is None, timeout=10)
        with driver(location, host="second/boot/space", heartbeat=0.2, stale=1.0, seconds=3) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "held\n"
            first.send_signal(signal.SIGCONT)
            assert first.stdout.readline() == "lost\n"
            assert second.stdout.readline() == "kept\n"


def test_of_many_drivers_that_start_together_one_wins(local: Directory) -> None:
    with contextlib.ExitStack() as stack:
        drivers = [stack.enter_context(driver(local.location, seconds=3)) for _ in range(4)]
        outputs = [driver.communicate()[0] for driver in drivers]
    assert sorted(outputs) == ["", "", "", "held\nkept\n"]


def test_claims_alone_are_exclusive(memory: Directory) -> None:
    """Threads that meet at every step of the protocol."""
    for _ in range(3):
        _contend(memory, drivers=5)
    assert list(memory.list(CLAIMS)) == []


def _contend(directory: Directory, drivers: int) -> None:
    outcomes: list[str] = []
    decided = threading.Event()

    def drive() -> None:
        try:
            with DriverLock(directory) as lock:
                outcomes.append("held")
                decided.wait(30)
                assert not lock.lost
        except UsageError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=drive) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(outcomes) == drivers, timeout=30)
    decided.set()
    for thread in threads:
        thread.join()
    assert outcomes.count("held") == 1
    assert sum("is being scanned by another driver" in outcome for outcome in outcomes) == drivers - 1


def test_what_a_driver_leaves_does_not_block_a_new_scan(local: Directory) -> None:
    claim(local, age=90)
    Path(local.path(KERNEL_LOCK_FILE)).touch()
    Store.check_free(local)
    Path(local.path("photo.jpg")).touch()
    with pytest.raises(UsageError, match="not a raysense scan"):
        Store.check_free(local)


def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="cannot be written"), DriverLock(Directory("/proc/scan")):
        pass
