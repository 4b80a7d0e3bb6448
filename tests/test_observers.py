"""What a run says of itself, and that it does not depend on being heard."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_scans import NumbersScan

import raysense
from raysense.cli import _finish
from raysense.commands.status import describe
from raysense.engine.crew import Reply
from raysense.engine.events import event_log
from raysense.engine.progress import Progress
from raysense.engine.ray_crew import RayCrew
from raysense.engine.run import Outcome
from raysense.engine.runtime import Placement
from raysense.errors import UsageError
from raysense.scan_status import Status
from raysense.scans.base import Unit
from raysense.store.files import Directory
from raysense.store.store import Store


def test_a_log_on_a_full_disk_is_given_up_once(caplog: pytest.LogCaptureFixture) -> None:
    with event_log("/dev/full", "scan") as log:
        assert log is not None
        for _ in range(3):
            log.committed(Unit("0", 0, 4), Reply(True, 1.0), "w1", 1)
    assert [record.message for record in caplog.records] == [
        "the log cannot be written any more ([Errno 28] No space left on device); going on without"
    ]


def test_a_log_that_cannot_be_written_is_found_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"log .* cannot be written"):
        raysense.scan(NumbersScan.kind, tmp_path / "s", run={"log": str(tmp_path / "missing" / "log")}, items=4)
    assert not (tmp_path / "s").exists()


def test_a_scan_that_is_not_complete_has_failed() -> None:
    """Also where no unit was given up on, as when somebody removed commits meanwhile."""
    assert _finish(Outcome(units=3, committed=2), "out", quiet=True) == 1
    assert _finish(Outcome(units=3, committed=3), "out", quiet=True) == 0


def test_a_driver_behind_a_ray_client_is_not_told_of_machines_that_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    crew = RayCrew(Store(Directory(tmp_path)), Placement(1, 1, 0, 1))
    assert crew.wait(0.0) == []


def test_events_are_json_whatever_they_say(tmp_path: Path) -> None:
    with event_log(str(tmp_path / "log"), "scan") as log:
        assert log is not None
        log.charged(Unit("0", 0, 4), "error", 'ValueError: "\n\x00\u2028\udcff', 1)
        log.draining("w1", "n", None)
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first["error"] == 'ValueError: "\n\x00\u2028\udcff'
    assert "seconds_left" not in second


def test_who_waits_for_ever_is_told_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No machine comes, or the first units hang: nothing ends this by itself."""
    times = [0.0]
    monkeypatch.setattr("raysense.engine.progress.time.monotonic", lambda: times[-1])
    shown = Progress(100, 0)
    for seconds in (1.0, 50.0, 70.0, 200.0):
        times.append(seconds)
        shown.state(25, 0, 0, 8)
    said = capsys.readouterr().err
    assert said.count("none of 8 requested workers has started in 1:10") == 1
    assert "0/100 samples  starting workers, 0 of 8 are there" in said
    for seconds in (210.0, 400.0, 830.0, 900.0):
        times.append(seconds)
        shown.state(17, 8, 8, 8)
    said = capsys.readouterr().err
    assert said.count("no unit is done after 10:20") == 1
    assert "--unit-timeout" in said


def test_what_is_to_be_typed_next_can_be_copied() -> None:
    """Whatever the shell would make of the directory's name."""
    for directory in ("runs/my first", "s3://bucket/run?region=us-east-1&scheme=http"):
        now = Status("influence", 4, 2, (), 8, 4, None, None, None)
        last = describe(directory, now).splitlines()[-1]
        assert shlex.split(last.partition(": ")[2]) == ["raysense", "resume", directory]


def test_threads_of_workers_do_not_spin_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenMP reads once is set before a worker imports torch."""
    code = "import sys, os, raysense.engine.actor; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for setting, found in ({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None"):
        environment = {**os.environ, **setting}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", found]
