"""Who is told what a run does: the progress line, the log, the metrics, the file that other machines read."""

from __future__ import annotations

from collections.abc import Sequence

from raysense.engine.crew import Reply
from raysense.scans.base import Unit


class Observer:
    """Told of everything that happens in a run; does nothing about it unless a subclass does."""

    def opened(self, worker: str, node: str) -> None:
        """A worker is ready."""

    def refused(self, worker: str, problem: str) -> None:
        """A worker could not open the scan."""

    def lost(self, worker: str, reason: str) -> None:
        """A worker died, was taken away, or hung and was ended; its units go to others."""

    def draining(self, worker: str, node: str, seconds: float | None) -> None:
        """A worker's machine will be taken away, in so many seconds; None where nobody knows."""

    def released(self, worker: str) -> None:
        """A worker was let go, since nothing is left for it."""

    def duplicated(self, unit: Unit, worker: str) -> None:
        """A slow unit was given to a second worker."""

    def replied(self, unit: Unit, reply: Reply) -> None:
        """A worker is done with an attempt at a unit; told of all, also where another worker has committed it."""

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        """A unit is committed."""

    def found(self, unit: Unit) -> None:
        """A unit turned out to be committed already, by a worker that was lost or by an earlier run."""

    def charged(self, unit: Unit, kind: str, message: str, attempt: int) -> None:
        """An attempt failed; ``kind`` is ``error`` or ``loss``."""

    def given_up(self, unit: Unit, message: str) -> None:
        """A unit has failed for good."""

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        """Units that wait and that are computed; workers that are ready and that were requested. Told often."""


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = tuple(observers)

    def opened(self, worker: str, node: str) -> None:
        """A worker is ready."""
        for each in self._all:
            each.opened(worker, node)

    def refused(self, worker: str, problem: str) -> None:
        """A worker could not open the scan."""
        for each in self._all:
            each.refused(worker, problem)

    def lost(self, worker: str, reason: str) -> None:
        """A worker is gone."""
        for each in self._all:
            each.lost(worker, reason)

    def draining(self, worker: str, node: str, seconds: float | None) -> None:
        """A worker's machine will be taken away."""
        for each in self._all:
            each.draining(worker, node, seconds)

    def released(self, worker: str) -> None:
        """A worker was let go."""
        for each in self._all:
            each.released(worker)

    def duplicated(self, unit: Unit, worker: str) -> None:
        """A slow unit was given to a second worker."""
        for each in self._all:
            each.duplicated(unit, worker)

    def replied(self, unit: Unit, reply: Reply) -> None:
        """A worker is done with an attempt at a unit."""
        for each in self._all:
            each.replied(unit, reply)

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        """A unit is committed."""
        for each in self._all:
            each.committed(unit, reply, worker, attempt)

    def found(self, unit: Unit) -> None:
        """A unit turned out to be committed already."""
        for each in self._all:
            each.found(unit)

    def charged(self, unit: Unit, kind: str, message: str, attempt: int) -> None:
        """An attempt failed."""
        for each in self._all:
            each.charged(unit, kind, message, attempt)

    def given_up(self, unit: Unit, message: str) -> None:
        """A unit has failed for good."""
        for each in self._all:
            each.given_up(unit, message)

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        """How many units and workers there are."""
        for each in self._all:
            each.state(pending, running, ready, requested)
