"""The engine: every unit exactly once, whatever raises, hangs or dies. Real Ray, real SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugin_scans import NumbersScan
from processes import committed, finish, kill, rows, start_driver, wait_for, worker_processes

import raysense
from raysense.errors import RaysenseError, ScanFailed, UsageError
from raysense.store.store import Store

KIND = NumbersScan.kind
TWO = {"workers": 2}


def given_up(location: Path) -> list[dict[str, Any]]:
    store = Store.open(location)
    return store.failures.given_up(store.snapshot())


def squares(location: Path | str, items: int) -> None:
    found = rows(location, "squares", "number")
    assert {number: row["square"] for number, row in found.items()} == {n: n * n for n in range(items)}


@pytest.mark.usefixtures("no_ray")
def test_every_actor_gets_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it leaves a token in the home directory, and in this process
    ray.init(address="local", num_cpus=4, num_gpus=3, include_dashboard=False, log_to_driver=False)
    try:
        assert raysense.scan(KIND, tmp_path / "s", items=200, seconds=0.2).complete
    finally:
        ray.shutdown()
    devices = {(row["worker"], row["device"]) for row in rows(tmp_path / "s", "units", "unit").values()}
    assert {device for _, device in devices} == {"gpu 0", "gpu 1", "gpu 2"}
    assert len(devices) == 3


@pytest.mark.usefixtures("no_ray")
def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        raysense.scan(KIND, tmp_path / "s", run={"workers": 1, "address": "127.0.0.1:1"}, items=8)


@pytest.mark.usefixtures("local_ray")
class TestOneCluster:
    def test_every_unit_once(self, tmp_path: Path) -> None:
        outcome = raysense.scan(KIND, tmp_path / "s", run=TWO, items=403)
        assert (outcome.units, outcome.committed, outcome.failed, outcome.complete) == (101, 101, (), True)
        squares(tmp_path / "s", 403)
        workers = {row["worker"] for row in rows(tmp_path / "s", "units", "unit").values()}
        assert workers <= {"w1", "w2"}

    def test_resuming_what_is_complete_does_nothing(self, tmp_path: Path) -> None:
        raysense.scan(KIND, tmp_path / "s", run=TWO, items=8)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
        assert raysense.resume(tmp_path / "s").complete
        after = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
        assert after == before

    def test_a_unit_that_raises_is_retried_and_given_up_on(self, tmp_path: Path) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        outcome = raysense.scan(
            KIND, tmp_path / "s", run=TWO, items=80, raising=(3,), raising_once=(5,), marks=str(marks)
        )
        assert outcome.failed == ("0000000012-0000000016",)
        assert (outcome.committed, outcome.complete, outcome.interrupted) == (19, False, False)
        (record,) = given_up(tmp_path / "s")
        assert [attempt["error"] for attempt in record["attempts"]] == ["ValueError: unit 3 always fails"] * 3
        assert "raise ValueError" in record["attempts"][0]["traceback"]
        assert rows(tmp_path / "s", "units", "unit")["0000000020-0000000024"]["attempt"] == 2
        assert set(rows(tmp_path / "s", "squares", "number")) == set(range(80)) - {12, 13, 14, 15}
        status = raysense.status(tmp_path / "s")
        assert (status.committed, len(status.failed), status.left, status.running) == (19, 1, 0, False)

    def test_a_unit_that_kills_its_worker_takes_no_other_down(self, tmp_path: Path) -> None:
        outcome = raysense.scan(KIND, tmp_path / "s", run={**TWO, "max_losses": 3}, items=80, killing=(4,))
        assert outcome.failed == ("0000000016-0000000020",)
        (record,) = given_up(tmp_path / "s")
        assert [attempt["kind"] for attempt in record["attempts"]] == ["loss"] * 3
        assert set(rows(tmp_path / "s", "squares", "number")) == set(range(80)) - {16, 17, 18, 19}

    def test_a_hung_unit_is_killed(self, tmp_path: Path) -> None:
        run = {**TWO, "unit_timeout": 4, "max_attempts": 1}
        outcome = raysense.scan(KIND, tmp_path / "s", run=run, items=40, hanging=(4,))
        assert outcome.failed == ("0000000016-0000000020",)
        assert "hung" in given_up(tmp_path / "s")[0]["attempts"][0]["error"]
        assert outcome.committed == 9

    def test_a_failed_unit_is_tried_again_by_resume(self, tmp_path: Path) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        run = {**TWO, "max_attempts": 1}
        first = raysense.scan(KIND, tmp_path / "s", run=run, items=40, raising_once=(2,), marks=str(marks))
        assert len(first.failed) == 1
        assert raysense.resume(tmp_path / "s", run=TWO).complete
        assert raysense.status(tmp_path / "s").failed == ()
        squares(tmp_path / "s", 40)

    def test_a_worker_that_cannot_open_the_scan_ends_it_with_the_reason(self, tmp_path: Path) -> None:
        with pytest.raises(ScanFailed, match="no worker could be started: this scan cannot be opened here"):
            raysense.scan(KIND, tmp_path / "s", run=TWO, items=8, opens=False)

    def test_a_damaged_listing_is_named(self, tmp_path: Path) -> None:
        scan = start_stopped_scan(tmp_path / "s")
        (scan / "listing.arrow").write_bytes(b"broken")
        with pytest.raises(RaysenseError, match=r"listing\.arrow is damaged"):
            raysense.resume(scan)

    def test_spec_of_another_scan_is_refused(self, tmp_path: Path) -> None:
        raysense.scan(KIND, tmp_path / "s", run=TWO, items=8)
        assert raysense.scan(KIND, tmp_path / "s", run=TWO, resume=True, items=8).complete
        with pytest.raises(UsageError, match="items was 8, is 12"):
            raysense.scan(KIND, tmp_path / "s", run=TWO, resume=True, items=12)
        with pytest.raises(UsageError, match="already holds a scan"):
            raysense.scan(KIND, tmp_path / "s", run=TWO, items=8)

    def test_changed_data_are_refused_on_resume(self, tmp_path: Path) -> None:
        scan = start_stopped_scan(tmp_path / "s")
        document = scan / "scan.json"
        document.write_text(document.read_text().replace('"data": "8"', '"data": "9"'))
        with pytest.raises(UsageError, match="data changed since the scan"):
            raysense.resume(scan)

    def test_a_call_that_fails_outside_the_unit_is_charged(self, tmp_path: Path) -> None:
        outcome = raysense.scan(KIND, tmp_path / "s", run=TWO, items=40, unprintable=(1,))
        assert outcome.failed == ("0000000004-0000000008",)
        assert outcome.committed == 9

    def test_workers_that_start_badly_do_not_end_a_scan_that_others_can_do(self, tmp_path: Path) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        outcome = raysense.scan(KIND, tmp_path / "s", run={"workers": 5}, items=200, marks=str(marks), bad_opens=4)
        assert outcome.complete

    def test_more_workers_than_cores(self, tmp_path: Path) -> None:
        assert raysense.scan(KIND, tmp_path / "s", run={"workers": 5}, items=60, seconds=0.4).complete
        assert len({row["worker"] for row in rows(tmp_path / "s", "units", "unit").values()}) > 2

    def test_as_many_workers_as_an_autoscaler_gives(self, tmp_path: Path) -> None:
        assert raysense.scan(KIND, tmp_path / "s", run={"workers": "max"}, items=60).complete


def start_stopped_scan(location: Path) -> Path:
    """A scan with one unit missing."""
    raysense.scan(KIND, location, run=TWO, items=8)
    next((location / "commits").glob("*.json")).unlink()
    return location


def test_terminated_like_a_spot_machine(tmp_path: Path) -> None:
    driver = start_driver("scan", kind=KIND, out=str(tmp_path / "s"), run=TWO, items=400, seconds=0.05)
    wait_for(lambda: committed(tmp_path / "s") >= 5)
    driver.terminate()
    outcome = finish(driver, timeout=40)
    assert 5 <= outcome["committed"] < 100
    assert committed(tmp_path / "s") == outcome["committed"]


def test_killed_workers(tmp_path: Path) -> None:
    chance = random.Random(1)
    driver = start_driver("scan", kind=KIND, out=str(tmp_path / "s"), run=TWO, items=400, seconds=0.03)
    for _ in range(3):
        target = committed(tmp_path / "s") + chance.randint(3, 15)
        wait_for(lambda target=target: committed(tmp_path / "s") >= target)
        time.sleep(0.03 * chance.random())
        workers = worker_processes(driver.pid)
        if workers:
            kill(chance.choice(workers))
    assert finish(driver) == {"committed": 100, "units": 100, "failed": []}
    squares(tmp_path / "s", 400)


@pytest.mark.usefixtures("local_ray")
def test_killed_driver_then_resume(tmp_path: Path) -> None:
    chance = random.Random(1)
    driver = start_driver("scan", kind=KIND, out=str(tmp_path / "s"), run=TWO, items=200, seconds=0.03)
    wait_for(lambda: committed(tmp_path / "s") >= chance.randint(5, 20))
    time.sleep(0.03 * chance.random())
    started = [driver.pid, *(process.pid for process in psutil.Process(driver.pid).children(recursive=True))]
    kill(driver)
    driver.wait()
    assert 0 < committed(tmp_path / "s") < 50
    # The killed driver's Ray lingers a little; its workers may commit one more unit each, which does no harm.
    assert raysense.resume(tmp_path / "s", run={"workers": 1}).committed == 50
    squares(tmp_path / "s", 200)
    assert not list((tmp_path / "s").rglob("*.tmp"))
    for pid in started:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
