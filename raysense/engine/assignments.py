"""Which worker has which units: they are sent, taken back, and settled when a worker is gone."""

from __future__ import annotations

from raysense.engine.crew import Crew
from raysense.engine.ledger import Ledger
from raysense.engine.observers import Observer
from raysense.engine.roster import Member, Roster
from raysense.engine.unit_queue import UnitQueue
from raysense.scans.base import Unit


class Assignments:
    """Keeps the queue, the roster and the crew in step. Says nothing of who should have what.

    Attributes:
        queue: The units.
        roster: The workers.

    Args:
        crew: The workers themselves.
        ledger: Numbers the attempts, and is told what is done.
        observer: Told of what is found committed, and of whom is let go.
    """

    def __init__(self, crew: Crew, ledger: Ledger, observer: Observer) -> None:
        self.queue = UnitQueue()
        self.roster = Roster()
        self._crew = crew
        self._ledger = ledger
        self._observer = observer

    def send(self, member: Member, unit: Unit) -> None:
        """Have a worker compute a unit, after the one it computes."""
        if not member.sent:
            member.began = self._crew.now()
        member.sent.append(unit)
        self.queue.hold(unit, member.name)
        self.roster.sort(member)
        self._crew.send(member.name, unit, self._ledger.attempt(unit), member.reserved)

    def unreserve(self, member: Member) -> None:
        """What a worker has reserved waits again, before the others."""
        if member.reserved is not None:
            self.queue.put_first([member.reserved])
            member.reserved = None
            self.roster.sort(member)

    def close(self, member: Member) -> None:
        """Let a worker go after the unit it computes; what waits behind it is taken back, and dies with the worker."""
        member.closing = True
        self.unreserve(member)
        back = list(member.sent)[1:]
        for unit in back:
            member.sent.pop()
            self.queue.unhold(unit, member.name)
        self.roster.sort(member)
        self.queue.put_first(back)

    def dismiss(self, member: Member) -> None:
        """End a worker whose units nobody needs any more."""
        self.roster.remove(member)
        for unit in member.sent:
            self.queue.unhold(unit, member.name)
        self.unreserve(member)
        self._crew.dismiss(member.name)

    def release(self, member: Member) -> None:
        """Let go of a worker for which there is nothing left."""
        self.dismiss(member)
        self._observer.released(member.name)

    def withdraw(self, member: Member) -> list[Unit]:
        """End a worker; returns the units sent to it that are still to be computed, and that wait nowhere yet.

        A reply may have been lost with the worker, so the store decides what it committed.
        """
        self.dismiss(member)
        left = []
        for unit in member.sent:
            if not self.queue.is_open(unit):
                continue
            if self._crew.committed(member.name, unit):
                self.done(unit)
                self._observer.found(unit)
            else:
                left.append(unit)
        return left

    def done(self, unit: Unit) -> bool:
        """A unit is committed; returns whether that is news."""
        news = self.queue.close(unit) or self._ledger.gave_up(unit)
        self._ledger.done(unit)
        for name in self.queue.holders(unit):
            other = self.roster.get(name)
            # A copy that goes on is ended where its worker has nothing better to do; where it has, that costs more.
            if other and not self.queue.waiting and not any(map(self.queue.is_open, other.sent)):
                self.release(other)
        return news
