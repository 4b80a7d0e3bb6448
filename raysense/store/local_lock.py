"""What one machine knows of the processes that work on a directory."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

import psutil

from raysense.errors import UsageError, first_line
from raysense.store.files import Directory

_LOG = logging.getLogger("raysense")


class KernelLock:
    """A lock on a file of a local directory, which the kernel releases when the process ends.

    On a filesystem without such locks, and on one that is not local, it is always free.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; returns whether it was.

        Raises:
            UsageError: the directory cannot be written.
        """
        if not self._directory.is_local:
            return True
        try:
            os.makedirs(self._directory.root, exist_ok=True)
            path = self._directory.path(self._name)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"directory {self._directory.location!r} cannot be written ({error.strerror}); change its permissions"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError as error:  # a network file system without locks: the claims alone must do
            _LOG.warning("%s has no file locks (%s); the claims guard it", self._directory.root, first_line(error))
        return True

    def release(self) -> None:
        """Let it go, if it is held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_running(pid: int, started: float) -> bool:
    """Whether a process of this machine still runs, rather than another one that got its number."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two: a claim may say anything
        return False


def host_identity() -> str:
    """Host name with the boot and process-number space, so that equal names of two containers do not collide."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts.append(boot.read_text().strip())
    if os.path.exists("/proc/self/ns/pid"):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)
