"""Real driver processes for the tests of the engine, and ways to kill what they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from stored import read_table

from raysense.store.store import Store

ROOT = Path(__file__).resolve().parents[1]

_DRIVER = """
import json, sys
import raysense
call = json.loads(sys.argv[1])
outcome = getattr(raysense, call.pop("function"))(**call)
print(json.dumps({"committed": outcome.committed, "units": outcome.units, "failed": outcome.failed}))
"""


def start_driver(function: str, **arguments: Any) -> subprocess.Popen[str]:
    """Call `raysense.scan` or `raysense.resume` in a process of its own, in a process group of its own."""
    call = json.dumps({"function": function, **arguments})
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, call],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip


def finish(driver: subprocess.Popen[str], timeout: float = 120) -> dict[str, Any]:
    output, errors = driver.communicate(timeout=timeout)
    assert driver.returncode == 0, errors
    outcome: dict[str, Any] = json.loads(output.splitlines()[-1])
    return outcome


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def committed(location: Path | str) -> int:
    folder = Path(location) / "commits"
    return len({path.name.partition("~")[0] for path in folder.glob("[!.]*.json")}) if folder.exists() else 0


def worker_processes(driver_pid: int) -> list[psutil.Process]:
    """Ray's actor processes of a driver that started Ray locally."""
    found = []
    for process in psutil.Process(driver_pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::Worker"):
            found.append(process)
    return found


def kill(process: psutil.Process | subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)


def rows(location: Path | str, table: str, key: str) -> dict[Any, dict[str, Any]]:
    """Rows of a table of the committed units by their key, which must be unique."""
    found: dict[Any, dict[str, Any]] = {}
    for row in read_table(Store.open(location), table).to_pylist():
        assert row[key] not in found, f"{row[key]} is there twice"
        found[row[key]] = row
    return found
