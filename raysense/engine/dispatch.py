"""Handing out units to workers: retry, requeue, duplicates of slow units, release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from raysense.batching import SMALLEST_AUTO
from raysense.engine.assignments import Assignments
from raysense.engine.crew import Crew, Draining, Event, Lost, Opened, Replied, Reply
from raysense.engine.ledger import Journal, Ledger
from raysense.engine.observers import Observer
from raysense.engine.pace import Pace
from raysense.engine.roster import Member
from raysense.engine.starts import Starts
from raysense.engine.stragglers import Stragglers
from raysense.options import ComputeOptions, RunOptions
from raysense.scans.base import Unit

_FAILURES_IN_A_ROW = 2
_REST_SECONDS = 60.0
_STOP_SECONDS = 20.0


class Dispatcher:
    """Runs units on workers until every one is committed or given up on.

    A worker holds at most one unit it computes, one queued behind it, and one reserved so that its data are read ahead. A
    lost worker's units are requeued; only the one it was computing is charged with the loss, unless its machine was lost.
    A unit that raises is retried after the others. A machine that is about to be taken away finishes its unit if it can,
    or hands it back. Once nothing waits any more, an idle worker computes a slow unit too, and the first commit of it
    counts; idle workers that no unit may need are let go, so that a cluster can scale down.

    Each event costs about the same however many workers there are, so that a thousand can be driven, or simulated.

    Args:
        crew: The workers.
        journal: Where failed attempts are recorded.
        options: Budgets of attempts and losses, time-out, duplicates.
        compute: How workers compute.
        workers: How many to request at most.
        observer: Told of everything.
    """

    def __init__(
        self,
        crew: Crew,
        journal: Journal,
        options: RunOptions,
        compute: ComputeOptions,
        workers: int,
        observer: Observer,
    ) -> None:
        self._crew = crew
        self._compute = compute
        self._wanted = workers
        self._observer = observer
        self._ledger = Ledger(journal, options.max_attempts, options.max_losses)
        self._pace = Pace(options.unit_timeout)
        self._assignments = Assignments(crew, self._ledger, observer)
        self._queue, self._roster = self._assignments.queue, self._assignments.roster
        self._stragglers = Stragglers(self._queue, self._roster, self._pace, options.duplicates)
        self._hired = 0
        self._starts = Starts()
        self._next_check = 0.0

    def run(self, units: Sequence[Unit], stop: Callable[[], bool]) -> list[str]:
        """Compute the units; returns the ids of those given up on.

        Args:
            units: What is left to do.
            stop: Asked between events; once true, the units being computed are finished and nothing else is begun.

        Raises:
            ScanFailed: no worker can be started.
        """
        self._queue.add(units)
        deadline: float | None = None
        roster = self._roster
        try:
            while self._queue.open:
                now = self._crew.now()
                if stop():
                    deadline = now + _STOP_SECONDS if deadline is None else deadline
                    self._wind_down()
                    if not len(roster) or now >= deadline:
                        break
                else:
                    self._hire(now)
                    while self._queue.waiting and (idle := roster.first_idle()) is not None:
                        self._fill(idle)
                self._observer.state(self._queue.waiting, roster.n_busy, roster.ready, len(roster))
                wake = self._next_check if deadline is None else deadline
                events = self._crew.wait(min(self._crew.poll, max(0.0, wake - now)))
                # As of now all is known that happened: the driver may have been held up since it looked last.
                now = self._crew.now()
                for event in events:
                    self._handle(event)
                if deadline is None and now >= self._next_check:
                    self._check(now)
        finally:
            for member in roster:
                self._assignments.dismiss(member)
            self._observer.state(self._queue.waiting, 0, 0, 0)
        return self._ledger.given_up

    # -- workers -------------------------------------------------------------------------------------------------------

    def _hire(self, now: float) -> None:
        roster = self._roster
        self._starts.check(now, roster.ready, len(roster))
        wanted = min(self._wanted, self._queue.waiting + roster.n_busy)
        for _ in range(self._starts.permitted(now, max(0, wanted - roster.active))):
            self._hired += 1
            member = Member(f"w{self._hired}")
            self._roster.add(member)
            self._crew.hire(member.name, self._compute)

    def _handle(self, event: Event) -> None:
        member = self._roster.get(event.worker)
        if member is None:
            return  # dismissed meanwhile
        match event:
            case Opened():
                self._opened(member, event)
            case Replied():
                self._replied(member, event.reply)
            case Lost():
                self._lost(member, event)
            case Draining():
                self._drained(member, event)

    def _opened(self, member: Member, event: Opened) -> None:
        if event.problem:
            self._refused(member, event.problem, counts=True)
            return
        member.ready = True
        self._roster.sort(member)
        self._starts.succeeded()
        self._observer.opened(member.name, event.node)
        self._fill(member)

    def _refused(self, member: Member, problem: str, counts: bool) -> None:
        self._starts.failed(self._crew.now(), problem, counts)
        self._observer.refused(member.name, problem)
        self._assignments.dismiss(member)

    def _lost(self, member: Member, event: Lost) -> None:
        """What a lost worker committed is done, the unit it computed is charged, the others go back unharmed."""
        if not member.ready:
            self._refused(member, event.reason, counts=not event.machine)
            return
        back = self._assignments.withdraw(member)
        computing = back.pop(0) if back and not event.machine else None
        self._queue.put_first(back)
        self._observer.lost(member.name, event.reason)
        if computing is None or self._queue.holders(computing):
            return  # nobody is to blame, or another worker computes it too
        # The kernel kills what takes too much memory without a word, so a unit lost twice is tried in small batches.
        if event.out_of_memory or self._ledger.losses(computing):
            self._shrink_batches()
        self._charge(computing, "loss", event.reason, event.detail)

    def _drained(self, member: Member, event: Draining) -> None:
        """A machine will go: its worker finishes its unit if there is time, or else it is handed back at once."""
        if member.closing:
            return
        now = self._crew.now()
        left = None if event.deadline is None else max(0.0, event.deadline - now)
        self._observer.draining(member.name, event.node, left)
        self._assignments.close(member)
        expected = self._pace.expected(member.sent[0]) if member.sent else None
        late = expected is not None and event.deadline is not None and member.began + expected > event.deadline
        if late or not member.sent:
            self._queue.put_first(self._assignments.withdraw(member))

    def _wind_down(self) -> None:
        """Stop: keep only workers that compute a unit, until they are done with it."""
        for member in self._roster:
            if not member.closing:
                self._assignments.close(member)
            if not member.sent:
                self._assignments.dismiss(member)

    # -- units ---------------------------------------------------------------------------------------------------------

    def _fill(self, member: Member) -> None:
        """Send a ready worker what it has room for; where there is nothing, it is kept or let go."""
        # Near the end nothing queues behind a unit, so that the last ones spread over all the workers.
        plenty = 2 * self._roster.ready
        depth = 2 if self._queue.waiting > 2 * self._roster.active else 1  # also over those that are yet to come
        while len(member.sent) < depth and (unit := member.reserved or self._queue.take()) is not None:
            member.reserved = self._queue.take() if self._queue.waiting > plenty else None
            self._assignments.send(member, unit)
        self._roster.sort(member)
        if member.sent:
            return
        member.idle_since = self._crew.now()
        if not self._queue.waiting:
            for other in self._roster.reserving:  # what others have only reserved is for this one
                self._assignments.unreserve(other)
        if not self._queue.waiting and not self._stragglers.may_need(member, member.idle_since):
            self._assignments.release(member)

    def _replied(self, member: Member, reply: Reply) -> None:
        unit = member.sent.popleft()
        self._observer.replied(unit, reply)
        self._queue.unhold(unit, member.name)
        self._roster.sort(member)
        member.began = self._crew.now()
        member.failures = 0 if reply.committed else member.failures + 1
        if reply.committed:
            self._pace.add(unit, reply.seconds + reply.publishing)
            attempt = self._ledger.attempt(unit)
            if self._assignments.done(unit):
                self._observer.committed(unit, reply, member.name, attempt)
        elif self._queue.is_open(unit) and not self._queue.holders(unit):  # else another worker computes it too
            self._charge(unit, "error", reply.error, reply.traceback)
        if self._roster.get(member.name) is None:
            return  # what it had queued was done already
        if member.failures >= _FAILURES_IN_A_ROW and self._pace.known:
            self._replace(member)
        elif member.closing:
            if not member.sent:
                self._assignments.dismiss(member)
        elif member.failures >= _FAILURES_IN_A_ROW and self._roster.any_unfailed:
            self._rest(member)
        else:
            self._fill(member)

    def _replace(self, member: Member) -> None:
        """End a worker that fails while others do not: after an error of its GPU, a process fails with every unit."""
        self._queue.put_first(self._assignments.withdraw(member))
        self._observer.lost(member.name, f"it failed {member.failures} times in a row, perhaps by its own fault")

    def _rest(self, member: Member) -> None:
        """Give a worker that fails nothing for a while: before a unit is committed, nobody knows whose fault it is."""
        member.resting = self._crew.now() + _REST_SECONDS
        self._assignments.unreserve(member)
        self._roster.sort(member)

    def _wake(self, now: float) -> None:
        """Go on with workers that rest, once their time is over or all others failed too; replace them if others do not."""
        for member in self._roster.resting:
            if self._pace.known:
                self._replace(member)
            elif now >= (member.resting or 0.0) or not self._roster.any_unfailed:
                member.resting = None
                self._roster.sort(member)

    def _charge(self, unit: Unit, kind: str, message: str, trace: str) -> None:
        record = {"kind": kind, "error": message, "traceback": trace, "time": datetime.now(UTC).isoformat()}
        attempt = self._ledger.attempt(unit)
        again = self._ledger.charge(unit, record)
        self._observer.charged(unit, kind, message, attempt)
        if again:
            self._queue.put_last(unit)
        else:
            self._queue.close(unit)
            self._observer.given_up(unit, message)

    def _shrink_batches(self) -> None:
        size = self._compute.batch_size
        smaller = SMALLEST_AUTO if size == "auto" else max(1, size // 2)
        self._compute = self._compute.model_copy(update={"batch_size": smaller})

    # -- slow and hung units -------------------------------------------------------------------------------------------

    def _check(self, now: float) -> None:
        """Look after workers that fail or hang; near the end, duplicate slow units, and let go of idle workers."""
        self._next_check = now + self._pace.check_seconds()
        self._wake(now)
        for member, limit in self._stragglers.hung(now):
            self._end_hung(member, limit)
        if self._queue.waiting:
            return
        for unit in self._stragglers.slow(now):
            if (helper := self._roster.first_idle()) is None:
                break
            self._assignments.send(helper, unit)
            self._observer.duplicated(unit, helper.name)
        for member in self._roster.idle:
            if not self._stragglers.may_need(member, now):
                self._assignments.release(member)
        if self._roster.n_busy:
            for member in self._roster:
                if not member.ready:
                    self._assignments.release(member)

    def _end_hung(self, member: Member, limit: float) -> None:
        first = member.sent[0]
        back = self._assignments.withdraw(member)
        hung = back.pop(0) if back and back[0] is first else None
        self._queue.put_first(back)
        self._observer.lost(member.name, f"hung for {limit:.0f} s")
        if hung is not None and not self._queue.holders(hung):
            self._charge(hung, "error", f"hung: not done after {limit:.0f} s, its worker was killed", "")
