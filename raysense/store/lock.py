"""One driver per scan directory, by claims: exclusive also on object stores without conditional writes."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import psutil

from raysense.errors import UsageError, first_line
from raysense.store.files import Directory
from raysense.store.local_lock import KernelLock, host_identity, is_running

Purpose = Literal["scan", "compact"]

CLAIMS = "drivers"
LOCK_FILE = "driver.json"
"""What earlier versions wrote instead of claims."""
KERNEL_LOCK_FILE = ".driver.lock"
LEFTOVERS = frozenset({CLAIMS, LOCK_FILE, KERNEL_LOCK_FILE, ".compact.lock"})
"""What a driver may leave in a directory before there is a scan in it."""
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0

_LOG = logging.getLogger("raysense")
_CLAIM = re.compile(r"((scan|compact)-[0-9a-f]{32})\.json")
_MEETING_SECONDS = 10.0
"""How long drivers that meet sort out which of them takes the directory."""
_PATIENCE = 20.0
"""Heartbeats are tried again for so long, s: later, the next one is due anyway."""
_READS = 3
_OWN: set[str] = set()
"""Claims of this process that it has not withdrawn, though the file of one that it has may stay, where the store failed."""
_LATEST_TIME = 2**33
"""Times are below this, s since the epoch."""


@dataclass(frozen=True)
class Claim:
    """A driver's claim as it was listed.

    Attributes:
        owner: Name of the claim, which begins with its purpose.
        modified: When it was last written, by the store's clock, seconds since the epoch; None where that is not known.
        document: What it says; empty where it cannot be read.
    """

    owner: str
    modified: float | None
    document: Mapping[str, Any]

    @property
    def holding(self) -> bool:
        """Whether its driver took the directory, rather than being about to."""
        return bool(self.document.get("holding"))

    def alive(self, now: float | None) -> bool:
        """Whether its driver still runs: on this machine by its process, elsewhere by its heartbeat.

        Args:
            now: The store's time; None to go by this machine's clock.
        """
        pid, started = self.document.get("pid"), self.document.get("process_started")
        if self.document.get("host") == host_identity() and isinstance(pid, int) and isinstance(started, int | float):
            if pid == os.getpid() and _CLAIM.fullmatch(f"{self.owner}.json"):
                return self.owner in _OWN
            return is_running(pid, started)
        if self.modified is not None:
            return (time.time() if now is None else now) - self.modified < STALE_SECONDS
        heartbeat = self.document.get("heartbeat")
        return isinstance(heartbeat, int | float) and time.time() - heartbeat < STALE_SECONDS


class DriverLock:
    """Holds a scan directory for this process while used as a context manager.

    Every driver writes a claim of its own, ``drivers/<owner>.json``, and then lists the claims. It holds the directory if
    it sees no other live one: of two drivers, whichever wrote last sees the other, since listings are consistent. Where
    drivers meet before any of them holds it, the one whose name is first waits for the others to withdraw.

    An owner on this machine is alive if its process is, an owner elsewhere if it renewed its claim within a minute, by the
    store's clock. So the directory of a killed driver is free at once on the same machine, and after a minute from another
    one. A driver that was taken for dead, and comes back, finds its claim gone and is `lost`. On a local disk a kernel
    file lock is held in addition.

    Args:
        directory: The scan directory; it need not exist yet.
        purpose: What it is held for. Purposes do not exclude each other.
    """

    def __init__(self, directory: Directory, purpose: Purpose = "scan") -> None:
        self._directory = directory.hurried(_PATIENCE)
        self._purpose: Purpose = purpose
        self._owner = f"{purpose}-{uuid.uuid4().hex}"
        process = psutil.Process()
        self._identity = {
            "owner": self._owner,
            "purpose": purpose,
            "host": host_identity(),
            "pid": process.pid,
            "process_started": process.create_time(),
            "taken": time.time(),
        }
        self._progress: Mapping[str, Any] = {}
        self._displaced: tuple[str, ...] = ()
        self._kernel_lock = KernelLock(directory, KERNEL_LOCK_FILE if purpose == "scan" else f".{purpose}.lock")
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="raysense-heartbeat", daemon=True)

    def __enter__(self) -> DriverLock:
        """Take the lock.

        Raises:
            UsageError: another driver holds it, or the directory cannot be written.
        """
        try:
            if not self._kernel_lock.acquire():
                holder = _first_alive(self._others(self._list()), None)
                raise self._refusal(holder.document if holder else {})
            self._check_earlier_version()
            self._claim()
        except OSError as error:
            self._kernel_lock.release()
            raise UsageError(
                f"directory {self._directory.location!r} cannot be written ({error.strerror or first_line(error)}); "
                "name a directory you may write to"
            ) from error
        except BaseException:
            self._kernel_lock.release()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._stop.set()
        self._thread.join()
        self._withdraw()
        self._kernel_lock.release()

    @property
    def lost(self) -> bool:
        """Whether another driver took the directory over, because this one did not beat for a minute."""
        return self._lost.is_set()

    def publish(self, progress: Mapping[str, Any]) -> None:
        """Have the next heartbeats tell how far the driver is; values are those of JSON."""
        self._progress = dict(progress)

    # -- taking it -----------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        try:
            self._contend()
        except BaseException:
            self._withdraw()
            raise

    def _contend(self) -> None:
        deadline = time.monotonic() + _MEETING_SECONDS
        while True:
            _OWN.add(self._owner)
            self._write(holding=False)
            rival = self._settle(deadline)
            if rival is None:
                return
            self._withdraw()
            if rival.holding or time.monotonic() > deadline:
                raise self._refusal(rival.document)
            time.sleep(random.uniform(0.2, 1.0))

    def _settle(self, deadline: float) -> Claim | None:
        """Take the directory if no other live claim is there, waiting where this one is the first; else the other claim."""
        while True:
            claims = self._list()
            own = claims.get(self._owner)
            others = self._others(claims)
            rival = _first_alive(others, own.modified if own else None)
            if rival is None and own is not None and time.monotonic() < deadline + _MEETING_SECONDS:
                # Named, so that one of them that comes back is known to be too late.
                self._displaced = tuple(claim.owner for claim in others)
                self._write(holding=True)
                for claim in others:
                    self._directory.delete(f"{CLAIMS}/{claim.owner}.json")
                return None
            if rival is None:  # somebody took this driver for dead
                return Claim(self._owner, None, {})
            if rival.holding or rival.owner < self._owner or time.monotonic() > deadline:
                return rival
            time.sleep(random.uniform(0.05, 0.2))

    def _check_earlier_version(self) -> None:
        """Respect a live driver of an earlier version of raysense, and remove the lock file of a dead one."""
        if self._purpose != "scan":
            return
        holder = _earlier_holder(self._directory)
        if holder is None:
            return
        if holder.alive(None):
            raise self._refusal(holder.document)
        self._directory.delete(LOCK_FILE)

    # -- keeping it ----------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_lost():
                    self._lost.set()
                    self._withdraw()
                    return
                self._write(holding=True)
            except OSError as error:
                _LOG.warning(
                    "heartbeat of %s was not written (%s); trying again", self._directory.root, first_line(error)
                )

    def _is_lost(self) -> bool:
        claims = self._list()
        own = claims.get(self._owner)
        return own is None or any(
            claim.holding and claim.owner not in self._displaced and claim.alive(own.modified)
            for claim in self._others(claims)
        )

    def _withdraw(self) -> None:
        _OWN.discard(self._owner)
        try:
            self._directory.delete(f"{CLAIMS}/{self._owner}.json")
        except OSError as error:
            _LOG.warning("%s: the claim was not removed (%s)", self._directory.root, first_line(error))

    def _write(self, holding: bool) -> None:
        document = {**self._identity, "heartbeat": time.time(), "holding": holding, "displaced": self._displaced}
        self._directory.write_json(f"{CLAIMS}/{self._owner}.json", {**document, "progress": self._progress})

    def _list(self) -> dict[str, Claim]:
        return {claim.owner: claim for claim in read_claims(self._directory, self._purpose, unread=self._owner)}

    def _others(self, claims: Mapping[str, Claim]) -> list[Claim]:
        return [claim for owner, claim in claims.items() if owner != self._owner]

    def _refusal(self, holder: Mapping[str, Any]) -> UsageError:
        host = str(holder.get("host", "?")).split("/")[0]
        doing = "scanned" if self._purpose == "scan" else "compacted"
        return UsageError(
            f"directory {self._directory.location!r} is being {doing} by another driver (process {holder.get('pid', '?')} "
            f"on {host}); wait for it, or stop it first"
        )


def read_claims(directory: Directory, purpose: Purpose = "scan", unread: str = "") -> list[Claim]:
    """All claims of a kind, dead ones too. Costs a listing, and a read for each but the one whose owner is ``unread``."""
    claims = []
    for entry in directory.list(CLAIMS):
        match = _CLAIM.fullmatch(entry.name)
        if match is None or match[2] != purpose:
            continue
        try:
            document = {} if match[1] == unread else _read(directory, f"{CLAIMS}/{entry.name}")
        except FileNotFoundError:  # withdrawn meanwhile
            continue
        claims.append(Claim(match[1], entry.modified.timestamp() if entry.modified else None, document))
    return claims


def running(directory: Directory, now: float | None = None) -> dict[str, Any] | None:
    """What the live driver of a directory says; None where there is none.

    Args:
        directory: The scan directory.
        now: The store's time; None to go by this machine's clock.

    Returns:
        Its ``host``, ``pid``, when it took the directory (``taken``) and last said so (``heartbeat``, both in seconds since
        the epoch, by its clock), and the ``progress`` it published.
    """
    claims = [claim for claim in read_claims(directory) if claim.holding]
    earlier = _earlier_holder(directory)
    holder = _first_alive([*claims, earlier] if earlier else claims, now)
    if holder is None:
        return None
    taken = holder.document.get("taken")
    if not (isinstance(taken, int | float) and 0 <= taken < _LATEST_TIME):
        taken = 0.0
    return {**holder.document, "taken": float(taken)}


def _first_alive(claims: list[Claim], now: float | None) -> Claim | None:
    """The live claim to reckon with: one that holds, or else the first by name."""
    alive = sorted((claim for claim in claims if claim.alive(now)), key=lambda claim: (not claim.holding, claim.owner))
    return alive[0] if alive else None


def _earlier_holder(directory: Directory) -> Claim | None:
    """The driver of an earlier version of raysense as if it had a claim; it is dated by its own clock."""
    try:
        document = _read(directory, LOCK_FILE)
    except FileNotFoundError:
        return None
    return Claim(LOCK_FILE, None, {**document, "holding": True})


def _read(directory: Directory, relative: str) -> dict[str, Any]:
    """What a claim says; empty where it cannot be read, as when it is renewed, longer than before, while it is read."""
    document: Any = None
    for _ in range(_READS):
        try:
            document = directory.read_json(relative)
            break
        except ValueError:
            continue
    return document if isinstance(document, dict) else {}
