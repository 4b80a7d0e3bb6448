"""The units of a run: which wait, which are being computed and by whom, which are still to be done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from raysense.scans.base import Unit


class UnitQueue:
    """Units that wait, in order, and the workers that others were sent to.

    A unit is open until it is done or given up on.
    """

    def __init__(self) -> None:
        self._waiting: deque[Unit] = deque()
        self._open: set[str] = set()
        self._holders: dict[str, set[str]] = {}

    def add(self, units: Iterable[Unit]) -> None:
        """Units that are to be computed."""
        for unit in units:
            self._waiting.append(unit)
            self._open.add(unit.id)

    @property
    def waiting(self) -> int:
        """How many units wait for a worker."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """How many units are neither committed nor given up on."""
        return len(self._open)

    @property
    def single(self) -> bool:
        """Whether any unit in work is with one worker only."""
        return any(len(holders) == 1 for holders in self._holders.values())

    def is_open(self, unit: Unit) -> bool:
        """Whether a unit is neither committed nor given up on."""
        return unit.id in self._open

    def close(self, unit: Unit) -> bool:
        """A unit is committed or given up on; returns whether it was open."""
        was = unit.id in self._open
        self._open.discard(unit.id)
        return was

    def take(self) -> Unit | None:
        """The next unit that waits; None where none does."""
        while self._waiting:
            unit = self._waiting.popleft()
            if unit.id in self._open:  # a copy may have been committed while it waited
                return unit
        return None

    def put_last(self, unit: Unit) -> None:
        """A unit waits again, after the others, unless a worker has it."""
        if unit.id in self._open and not self._holders.get(unit.id):
            self._waiting.append(unit)

    def put_first(self, units: Sequence[Unit]) -> None:
        """Units that were not computed wait again, before the others, unless workers have them."""
        for unit in reversed(units):
            if unit.id in self._open and not self._holders.get(unit.id):
                self._waiting.appendleft(unit)

    def holders(self, unit: Unit) -> frozenset[str]:
        """Workers that a unit was sent to and that are not done with it."""
        return frozenset(self._holders.get(unit.id, ()))

    def hold(self, unit: Unit, worker: str) -> None:
        """A unit is sent to a worker."""
        self._holders.setdefault(unit.id, set()).add(worker)

    def unhold(self, unit: Unit, worker: str) -> None:
        """A worker is done with a unit, or gone."""
        holders = self._holders.get(unit.id)
        if holders is not None:
            holders.discard(worker)
            if not holders:
                del self._holders[unit.id]
