"""One driver per scan directory."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from raysense.engine.files import Directory
from raysense.errors import UsageError, first_line

LOCK_FILE = "driver.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
KERNEL_LOCK_FILE = ".driver.lock"
_SETTLE_SECONDS = 1.0
_LOG = logging.getLogger("raysense")


class DriverLock:
    """Holds a scan directory for this process while used as a context manager.

    On a local disk a kernel file lock decides between drivers that start in the same moment. Everywhere, a file says the
    owner's host, process and heartbeat: an owner on this host is alive if its process is, an owner elsewhere if its
    heartbeat is younger than a minute. So the directory of a killed driver is free at once on the same machine, and after
    a minute from another one.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        process = psutil.Process()
        self._identity = {
            "owner": uuid.uuid4().hex,
            "host": _host(),
            "pid": process.pid,
            "process_started": process.create_time(),
            "taken": time.time(),
        }
        self._file: int | None = None
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="raysense-heartbeat", daemon=True)

    def __enter__(self) -> DriverLock:
        """Take the lock.

        Raises:
            UsageError: another driver holds it.
        """
        holder = self._read()
        if holder is not None and _alive(holder):
            raise self._refusal(holder)
        if self._directory.is_local:
            self._lock_file(holder)
            self._write()
        else:
            # No exclusive creation here: of two drivers that start in the same moment the last writer wins.
            self._write()
            time.sleep(_SETTLE_SECONDS)
            holder = self._read()
            if holder is None or holder["owner"] != self._identity["owner"]:
                raise self._refusal(holder or {})
        self._thread.start()
        return self

    def _lock_file(self, holder: dict[str, Any] | None) -> None:
        try:
            os.makedirs(self._directory.root, exist_ok=True)
            path = self._directory.path(KERNEL_LOCK_FILE)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"directory {self._directory.location!r} cannot be written ({error.strerror}); change its permissions"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise self._refusal(self._read() or holder or {}) from None
        except OSError as error:  # a network file system without locks: the heartbeat alone must do
            _LOG.warning(
                "%s has no file locks (%s); the heartbeat file guards it", self._directory.root, first_line(error)
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock if it is still ours."""
        self._stop.set()
        self._thread.join()
        holder = self._read()
        if holder is not None and holder["owner"] == self._identity["owner"]:
            self._directory.delete(LOCK_FILE)
        if self._file is not None:
            os.close(self._file)

    @property
    def lost(self) -> bool:
        """Whether another driver took the directory over, because this one did not beat for a minute."""
        return self._lost.is_set()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                holder = self._read()
                if holder is not None and holder["owner"] != self._identity["owner"]:
                    self._lost.set()
                    return
                self._write()
            except OSError as error:
                _LOG.warning(
                    "heartbeat of %s was not written (%s); trying again", self._directory.root, first_line(error)
                )

    def _write(self) -> None:
        self._directory.write_json(LOCK_FILE, {**self._identity, "heartbeat": time.time()})

    def _read(self) -> dict[str, Any] | None:
        return read_holder(self._directory)

    def _refusal(self, holder: dict[str, Any]) -> UsageError:
        host = str(holder.get("host", "?")).split("/")[0]
        return UsageError(
            f"directory {self._directory.location!r} is being scanned by another driver (process {holder.get('pid', '?')} "
            f"on {host}); wait for it, or stop it first"
        )


def read_holder(directory: Directory) -> dict[str, Any] | None:
    """The lock file's content, or None where there is no lock."""
    try:
        holder: dict[str, Any] = directory.read_json(LOCK_FILE)
    except (FileNotFoundError, ValueError):
        return None
    return holder


def running_since(directory: Directory) -> float | None:
    """When the live driver of a directory took it (seconds since the epoch); None where there is none."""
    holder = read_holder(directory)
    return float(holder["taken"]) if holder is not None and _alive(holder) else None


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != _host():
        return bool(time.time() - holder["heartbeat"] < STALE_SECONDS)
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["process_started"]) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _host() -> str:
    """Host name with the boot and process-number space, so that equal names of two containers do not collide."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts.append(boot.read_text().strip())
    if os.path.exists("/proc/self/ns/pid"):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)
