"""Simulated workers on a virtual clock, driven by the very dispatcher that drives real ones."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from raysense.engine.crew import Draining, Event, Lost, Opened, Replied, Reply
from raysense.errors import UsageError
from raysense.options import ComputeOptions
from raysense.planning.fleet import Clock, ClusterModel, Fleet, Machine, varied
from raysense.scans.base import Unit


@dataclass
class Work:
    """What is to be computed: for each unit, by its number, how long it takes.

    A unit may stand for a group of real units, which are committed one by one: where its worker is lost, those that were
    finished stay finished.

    Attributes:
        units: The units; their ids are their numbers.
        seconds: Time to compute each, s.
        parts: Real units that each stands for.
        fixed: Part of a real unit's time that does not depend on its items, s.
    """

    units: list[Unit]
    seconds: list[float]
    parts: list[int]
    fixed: float = 0.0


@dataclass(frozen=True)
class Faults:
    """What goes wrong with units and workers, besides machines, with which probability at each attempt.

    Attributes:
        error: A unit raises.
        crash: A unit takes its process down.
        memory: A unit takes its process down for lack of memory.
        hang: A unit never ends.
        refusal: A worker cannot open the scan.
        raising: Numbers of the units that always raise.
        killing: Numbers of the units that always take their process down.
        hanging: Numbers of the units that always hang.
    """

    error: float = 0.0
    crash: float = 0.0
    memory: float = 0.0
    hang: float = 0.0
    refusal: float = 0.0
    raising: frozenset[int] = frozenset()
    killing: frozenset[int] = frozenset()
    hanging: frozenset[int] = frozenset()

    def fate(self, number: int, rng: random.Random) -> str:
        """What becomes of an attempt: "" where it succeeds, else the name of a fault."""
        for fault, always in (("error", self.raising), ("crash", self.killing), ("hang", self.hanging)):
            if number in always:
                return fault
        draw = rng.random()
        for fault, share in (
            ("error", self.error),
            ("crash", self.crash),
            ("memory", self.memory),
            ("hang", self.hang),
        ):
            if draw < share:
                return fault
            draw -= share
        return ""


@dataclass
class Spent:
    """Seconds of workers, by what they were spent on.

    Attributes:
        computing: On items of units whose commit counts.
        overhead: On those units besides their items, publishing included.
        opening: On starting workers.
        lost: On attempts that failed, were cut off, or came second.
    """

    computing: float = 0.0
    overhead: float = 0.0
    opening: float = 0.0
    lost: float = 0.0


@dataclass(eq=False, slots=True)
class _Member:
    """A worker: the units sent to it, and since when it computes the first; ``alive`` while its process lives."""

    name: str
    machine: Machine
    alive: bool = True
    opened: bool = False
    began: float = 0.0
    sent: deque[Unit] = field(default_factory=deque)


class SimulatedCrew:
    """A `raysense.engine.crew.Crew` whose time is virtual.

    Args:
        work: How long units take; a unit that stands for several loses its finished parts.
        model: What is assumed of the cluster.
        seed: Of everything random.
        faults: What goes wrong with units; None for nothing.
        patience: Time that passes at the least where nothing happens, s, whatever the dispatcher asks for: it need not
            look for hung units a thousand times while one is computed.
        most_machines: Machines that may be ordered.
    """

    poll = math.inf

    def __init__(
        self,
        work: Work,
        model: ClusterModel,
        seed: int = 0,
        faults: Faults | None = None,
        patience: float = 0.0,
        most_machines: float = math.inf,
    ) -> None:
        self._work = work
        self._model = model
        self._rng = random.Random(seed)
        self._faults = faults
        self._patience = patience
        self._most_machines = most_machines
        self._clock = Clock()
        self._events: list[Event] = []
        self._members: dict[str, _Member] = {}
        self.fleet = Fleet(model, self._clock, seed, self._up, self._announced, self._machine_lost)
        self.spent = Spent()
        self.commits: dict[str, int] = {}
        """How often each unit was committed."""
        self.last_commit = 0.0
        """When the latest commit that counts was published, s."""

    @property
    def size(self) -> int:
        """Workers that were hired and not dismissed."""
        return len(self._members)

    def now(self) -> float:
        """Virtual time, s."""
        return self._clock.now

    def hire(self, worker: str, compute: ComputeOptions) -> None:
        """Request a worker: it opens once its machine is up.

        Raises:
            UsageError: more machines were lost than a scan that gets anywhere loses.
        """
        machine = self.fleet.place(worker)
        member = self._members[worker] = _Member(worker, machine)
        if self.fleet.ordered > self._most_machines:
            raise UsageError(
                f"loss_rate {self._model.loss_rate:g}: the scan would hardly end, {self.fleet.lost:,} simulated machines "
                "were taken away before it had; assume fewer losses, or plan with a smaller unit_size"
            )
        if machine.up is not None:
            self._open(member)

    def send(self, worker: str, unit: Unit, attempt: int, upcoming: Unit | None) -> None:
        """Have a worker compute a unit, after those sent before."""
        member = self._members[worker]
        self._clock.now += self._model.dispatch * self._work.parts[int(unit.id)]
        member.sent.append(unit)
        if member.alive and len(member.sent) == 1:
            self._begin(member)

    def dismiss(self, worker: str) -> None:
        """End a worker, whatever it does."""
        member = self._members.pop(worker)
        if member.alive:
            self._cut_off(member)
            self.fleet.leave(worker, member.machine)

    def committed(self, worker: str, unit: Unit) -> bool:
        """Whether a unit is committed."""
        return unit.id in self.commits

    def wait(self, timeout: float) -> Sequence[Event]:
        """Let time pass until something happens.

        Raises:
            RuntimeError: nothing will ever happen: the dispatcher waits for something that cannot come.
        """
        clock = self._clock
        deadline = clock.now + max(timeout, self._patience)
        while not self._events or clock.next_time <= clock.now:
            if clock.next_time > deadline:
                if math.isinf(deadline):
                    raise RuntimeError("nothing will happen any more, but units are left")
                clock.now = deadline
                break
            clock.step()
        events, self._events = self._events, []
        return events

    # -- workers -------------------------------------------------------------------------------------------------------

    def _up(self, machine: Machine) -> None:
        for name in machine.residents:
            self._open(self._members[name])

    def _open(self, member: _Member) -> None:
        seconds = varied(self._model.opening, self._model.opening_spread, member.machine.rng) * member.machine.factor
        member.began = self._clock.now
        self._clock.after(seconds, self._opened, member)

    def _opened(self, member: _Member) -> None:
        if not member.alive:
            return
        member.opened = True
        self.spent.opening += self._clock.now - member.began
        problem = ""
        if self._faults is not None and self._rng.random() < self._faults.refusal:
            problem = "a simulated worker that cannot open the scan"
        self._events.append(Opened(member.name, member.machine.name, problem))

    def _announced(self, machine: Machine, deadline: float) -> None:
        self._events += [Draining(name, machine.name, deadline) for name in machine.residents]

    def _machine_lost(self, machine: Machine) -> None:
        for name in machine.residents:
            member = self._members[name]
            self._cut_off(member)
            self._clock.after(self._model.detection, self._tell_lost, member, "its machine was taken away", True)
        machine.residents.clear()

    def _process_lost(self, member: _Member, out_of_memory: bool) -> None:
        if member.alive:
            self._cut_off(member)
            self.fleet.leave(member.name, member.machine)
            self._tell_lost(member, "its process died", False, out_of_memory)

    def _tell_lost(self, member: _Member, reason: str, machine: bool, out_of_memory: bool = False) -> None:
        if member.name in self._members:
            self._events.append(Lost(member.name, reason, "", machine, out_of_memory))

    def _cut_off(self, member: _Member) -> None:
        """A worker ends now: what it did of the unit it computes is lost, except for parts that were committed."""
        member.alive = False
        if not member.opened:
            if member.machine.up is not None:
                self.spent.opening += self._clock.now - member.began
            return
        if not member.sent:
            return
        number, elapsed = int(member.sent[0].id), self._clock.now - member.began
        parts = self._work.parts[number]
        whole = self._work.seconds[number] * member.machine.factor + parts * self._model.publishing
        done = min(parts - 1, math.floor(parts * elapsed / whole)) if whole > 0 and self._faults is None else 0
        if done:
            finished = self._work.seconds[number] * done / parts
            self._count_useful(finished, done, member.machine.factor)
            self._work.seconds[number] -= finished
            self._work.parts[number] -= done
        self.spent.lost += max(0.0, elapsed - whole * done / parts)

    # -- units ---------------------------------------------------------------------------------------------------------

    def _begin(self, member: _Member) -> None:
        member.began = self._clock.now
        number = int(member.sent[0].id)
        seconds = self._work.seconds[number] * member.machine.factor
        fate = "" if self._faults is None else self._faults.fate(number, self._rng)
        if fate == "":
            publishing = self._work.parts[number] * self._model.publishing
            self._clock.after(seconds + publishing, self._finish, member, seconds, publishing)
        elif fate == "error":
            self._clock.after(seconds * self._rng.random(), self._failed, member)
        elif fate != "hang":
            self._clock.after(seconds * self._rng.random(), self._process_lost, member, fate == "memory")

    def _finish(self, member: _Member, seconds: float, publishing: float) -> None:
        if not member.alive:
            return
        unit = member.sent.popleft()
        count = self.commits.get(unit.id, 0)
        self.commits[unit.id] = count + 1
        if count:
            self.spent.lost += seconds + publishing
        else:
            number = int(unit.id)
            self.last_commit = self._clock.now
            self._count_useful(seconds / member.machine.factor, self._work.parts[number], member.machine.factor)
        self._clock.after(self._model.reply, self._tell_reply, member, Reply(True, seconds, publishing=publishing))
        if member.sent:
            self._begin(member)

    def _failed(self, member: _Member) -> None:
        if not member.alive:
            return
        member.sent.popleft()
        self.spent.lost += self._clock.now - member.began
        reply = Reply(False, self._clock.now - member.began, "ValueError: simulated", "simulated")
        self._clock.after(self._model.reply, self._tell_reply, member, reply)
        if member.sent:
            self._begin(member)

    def _tell_reply(self, member: _Member, reply: Reply) -> None:
        if member.alive:
            self._events.append(Replied(member.name, reply))

    def _count_useful(self, seconds: float, parts: int, factor: float) -> None:
        fixed = min(seconds, parts * self._work.fixed)
        self.spent.computing += (seconds - fixed) * factor
        self.spent.overhead += fixed * factor + parts * self._model.publishing
