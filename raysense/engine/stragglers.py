"""Units that are slow or hang, and idle workers that may compute a slow one too. Only looks; the dispatcher acts."""

from __future__ import annotations

from collections.abc import Iterator

from raysense.engine.pace import Pace
from raysense.engine.roster import Member, Roster
from raysense.engine.unit_queue import UnitQueue
from raysense.scans.base import Unit


class Stragglers:
    """Looks after the units that workers have.

    Args:
        queue: The units.
        roster: The workers.
        pace: What units take.
        duplicates: Whether slow units may be computed twice.
    """

    def __init__(self, queue: UnitQueue, roster: Roster, pace: Pace, duplicates: bool) -> None:
        self._queue = queue
        self._roster = roster
        self._pace = pace
        self._duplicates = duplicates

    def hung(self, now: float) -> Iterator[tuple[Member, float]]:
        """Workers whose unit hangs, and after how many seconds it counts as hung. They may be ended meanwhile."""
        for member in self._roster:
            limit = self._pace.hung(member.sent[0]) if member.sent else None
            if limit is not None and now - member.began > limit and self._roster.get(member.name) is member:
                yield member, limit

    def slow(self, now: float) -> list[Unit]:
        """Units that idle workers may compute too: those queued behind slow ones, then these, the slowest first."""
        if not self._duplicates or not self._roster.n_idle:
            return []
        slow = []
        for member in self._roster.busy:
            limit = self._pace.slow(member.sent[0])
            if limit is not None and now - member.began > limit:
                slow += [(place == 0, member.began, unit) for place, unit in enumerate(member.sent)]
        slow.sort(key=lambda entry: entry[:2])
        return [unit for *_, unit in slow if self._queue.is_open(unit) and len(self._queue.holders(unit)) == 1]

    def may_need(self, member: Member, now: float) -> bool:
        """Whether a slow unit may yet need an idle worker, which is kept for as long as a unit takes to turn slow."""
        some = self._roster.first_busy()
        if not self._duplicates or some is None or self._roster.n_idle > self._queue.open:
            return False
        limit = self._pace.slow(some.sent[0])
        return limit is not None and now - member.idle_since <= limit and self._queue.single
