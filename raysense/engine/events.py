"""A structured log: one JSON object a line for everything that happens to units and workers."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from raysense.engine.crew import Reply
from raysense.engine.observers import Observer
from raysense.errors import UsageError, first_line
from raysense.scans.base import Unit

_LOG = logging.getLogger("raysense")


def event_line(event: str, **fields: Any) -> str:
    """An event as one line of JSON: time (UTC, ISO 8601), event, then its fields; those that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    return json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **known})


def attempt_fields(unit: Unit, reply: Reply, worker: str, attempt: int) -> dict[str, Any]:
    """What an event says of an attempt at a unit."""
    return {
        "unit": unit.id,
        "worker": worker,
        "attempt": attempt,
        "items": unit.size,
        "seconds": reply.seconds,
        "publishing": reply.publishing,
        "passes": reply.passes,
        "bytes": reply.size,
    }


def write_line(stream: TextIO, line: str) -> bool:
    """Write a line; returns whether that could be done. A log that cannot be written (a full disk) is not worth a unit."""
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError) as error:  # ValueError where it is closed
        _LOG.warning("the log cannot be written any more (%s); going on without", first_line(error))
        return False
    return True


class EventLog(Observer):
    """Writes an event a line, with the scan it belongs to; goes on without once that fails.

    Args:
        stream: Where to; flushed after every line.
        scan: Location of the scan.
    """

    def __init__(self, stream: TextIO, scan: str) -> None:
        self._stream = stream
        self._scan = scan
        self._broken = False

    def write(self, event: str, **fields: Any) -> None:
        """One event."""
        if not self._broken:
            self._broken = not write_line(self._stream, event_line(event, scan=self._scan, **fields))

    def opened(self, worker: str, node: str) -> None:
        """A worker is ready."""
        self.write("worker_opened", worker=worker, node=node)

    def refused(self, worker: str, problem: str) -> None:
        """A worker could not open the scan."""
        self.write("worker_refused", worker=worker, error=problem)

    def lost(self, worker: str, reason: str) -> None:
        """A worker is gone."""
        self.write("worker_lost", worker=worker, error=reason)

    def draining(self, worker: str, node: str, seconds: float | None) -> None:
        """A worker's machine will be taken away."""
        self.write("node_draining", worker=worker, node=node, seconds_left=seconds)

    def released(self, worker: str) -> None:
        """A worker was let go."""
        self.write("worker_released", worker=worker)

    def duplicated(self, unit: Unit, worker: str) -> None:
        """A slow unit was given to a second worker."""
        self.write("unit_duplicated", unit=unit.id, worker=worker)

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        """A unit is committed."""
        self.write("unit_committed", **attempt_fields(unit, reply, worker, attempt), bad_items=reply.bad_items)

    def found(self, unit: Unit) -> None:
        """A unit turned out to be committed already."""
        self.write("unit_found", unit=unit.id, items=unit.size)

    def charged(self, unit: Unit, kind: str, message: str, attempt: int) -> None:
        """An attempt failed."""
        self.write("attempt_failed", unit=unit.id, kind=kind, error=message, attempt=attempt)

    def given_up(self, unit: Unit, message: str) -> None:
        """A unit has failed for good."""
        self.write("unit_failed", unit=unit.id, items=unit.size, error=message)


@contextmanager
def event_log(where: str | None, scan: str) -> Iterator[EventLog | None]:
    """The log that an option names: a file to append to, ``-`` for standard error, None for none.

    Raises:
        UsageError: the file cannot be written.
    """
    if where is None or where == "-":
        yield None if where is None else EventLog(sys.stderr, scan)
        return
    stream = open_log(where)
    try:
        yield EventLog(stream, scan)
    finally:
        with suppress(OSError):  # what could not be written before cannot be written now; that was said
            stream.close()


def check_log(where: str | None) -> None:
    """Raise UsageError unless the log that an option names can be written."""
    if where is not None and where != "-":
        open_log(where).close()


def open_log(where: str) -> TextIO:
    """A log file, to append to.

    Raises:
        UsageError: it cannot be written.
    """
    if "://" in where:
        raise UsageError(f"log {where!r} is not a local file, and object stores cannot append; name a file, or -")
    try:
        return open(os.path.expanduser(where), "a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"log {where!r} cannot be written ({error.strerror}); name another file, or -") from error
