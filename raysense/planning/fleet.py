"""Simulated machines on a virtual clock: they boot, are lost with or without notice, idle, and are paid for."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ClusterModel:
    """What a simulation assumes of a cluster and its workers. All times are in seconds.

    Attributes:
        gpus_per_node: GPUs of a machine, one worker each; they come and go together.
        startup: Median time from ordering a machine to its being up.
        startup_spread: Standard deviation of the logarithm of that time.
        opening: Median time in which a worker starts and opens the scan.
        opening_spread: Standard deviation of the logarithm of that time.
        loss_rate: Machines taken away, per machine and hour.
        notice: Warning before a machine is taken away.
        notice_share: Share of the losses that are announced.
        detection: Time until a loss without notice is noticed.
        straggler_share: Share of the machines that are slow.
        straggler_factor: How many times longer these take.
        idle: Time that a machine without workers is kept.
        publishing: Time to publish a unit's files, after it is computed.
        reply: Time that a message takes from a worker to the driver.
        dispatch: Time that the driver is busy with a unit.
    """

    gpus_per_node: int = 1
    startup: float = 0.0
    startup_spread: float = 0.2
    opening: float = 0.0
    opening_spread: float = 0.2
    loss_rate: float = 0.0
    notice: float = 120.0
    notice_share: float = 0.8
    detection: float = 2.0
    straggler_share: float = 0.0
    straggler_factor: float = 1.0
    idle: float = 0.0
    publishing: float = 0.0
    reply: float = 0.001
    dispatch: float = 0.0005


class Clock:
    """Virtual time, s, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen; what is to happen at the same time happens in the order of these calls."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now + seconds, self._count, action, arguments))

    @property
    def next_time(self) -> float:
        """When the next thing happens; infinite where nothing will."""
        return self._agenda[0][0] if self._agenda else math.inf

    def step(self) -> None:
        """Let the next thing happen. Time does not go back where the driver was busy beyond it."""
        time, _, action, arguments = heapq.heappop(self._agenda)
        self.now = max(self.now, time)
        action(*arguments)


@dataclass(eq=False, slots=True)
class Machine:
    """A machine with places for workers.

    Attributes:
        name: Unique name.
        ordered: When it was asked for, from when on it is paid.
        free: Places without a worker.
        factor: How many times longer it takes than others.
        up: When it came up; None while it boots.
        going: Whether it is announced to be taken away.
        ended: When it was taken away or let go; None while it is there.
        idle_from: Since when it has had no worker; None where it has some.
        residents: Names of its workers.
        rng: Source of all that chance does to it and its workers: the same for the n-th machine of every run with a seed,
            so that runs of other unit sizes meet the same machines.
    """

    name: str
    ordered: float
    free: int
    factor: float
    rng: random.Random
    up: float | None = None
    going: bool = False
    ended: float | None = None
    idle_from: float | None = None
    residents: dict[str, None] = field(default_factory=dict)


class Fleet:
    """Machines that an autoscaler starts and ends as workers need places.

    Args:
        model: What is assumed.
        clock: The simulation's clock.
        seed: Of everything random.
        on_up: Called with a machine that came up.
        on_notice: Called with a machine that will be taken away, and when.
        on_loss: Called with a machine that is gone, while it still knows its residents.
    """

    def __init__(
        self,
        model: ClusterModel,
        clock: Clock,
        seed: int,
        on_up: Callable[[Machine], None],
        on_notice: Callable[[Machine, float], None],
        on_loss: Callable[[Machine], None],
    ) -> None:
        self._model = model
        self._clock = clock
        self._seed = seed
        self._on_up, self._on_notice, self._on_loss = on_up, on_notice, on_loss
        self._with_places: dict[str, Machine] = {}
        self._alive: dict[str, Machine] = {}
        self._paid = 0.0
        self._booting = 0.0
        self.ordered = 0
        self.lost = 0

    def place(self, worker: str) -> Machine:
        """A place for a worker: on a machine that is there or on its way, else on a new one."""
        machine = next(iter(self._with_places.values()), None) or self._order()
        machine.free -= 1
        machine.residents[worker] = None
        machine.idle_from = None
        if not machine.free:
            del self._with_places[machine.name]
        return machine

    def leave(self, worker: str, machine: Machine) -> None:
        """A worker has ended; the machine may have a place for another, or idle."""
        del machine.residents[worker]
        if machine.ended is not None:
            return
        machine.free += 1
        if not machine.going:
            self._with_places[machine.name] = machine
            if not machine.residents and machine.up is not None:
                self._idle(machine)

    def paid_seconds(self) -> float:
        """GPU seconds paid up to now; machines that are still there are kept for the idle time, and paid for it."""
        now = self._clock.now
        running = 0.0
        for machine in self._alive.values():
            idle_from = now if machine.idle_from is None else machine.idle_from
            running += max(now, idle_from + self._model.idle) - machine.ordered
        return (self._paid + running) * self._model.gpus_per_node

    def booting_seconds(self) -> float:
        """GPU seconds between ordering machines and their being up."""
        waiting = sum(self._clock.now - machine.ordered for machine in self._alive.values() if machine.up is None)
        return (self._booting + waiting) * self._model.gpus_per_node

    def _order(self) -> Machine:
        self.ordered += 1
        rng = random.Random(f"{self._seed} {self.ordered}")
        factor = self._model.straggler_factor if rng.random() < self._model.straggler_share else 1.0
        machine = Machine(f"m{self.ordered}", self._clock.now, self._model.gpus_per_node, factor, rng)
        self._alive[machine.name] = self._with_places[machine.name] = machine
        self._clock.after(varied(self._model.startup, self._model.startup_spread, rng), self._booted, machine)
        return machine

    def _booted(self, machine: Machine) -> None:
        machine.up = self._clock.now
        self._booting += machine.up - machine.ordered
        if self._model.loss_rate > 0:
            self._clock.after(machine.rng.expovariate(self._model.loss_rate / 3600.0), self._doomed, machine)
        if machine.residents:
            self._on_up(machine)
        else:
            self._idle(machine)

    def _doomed(self, machine: Machine) -> None:
        if machine.ended is not None:
            return
        if self._model.notice <= 0 or machine.rng.random() >= self._model.notice_share:
            self._gone(machine)
            return
        machine.going = True
        self._with_places.pop(machine.name, None)
        self._clock.after(self._model.notice, self._gone, machine)
        self._on_notice(machine, self._clock.now + self._model.notice)

    def _gone(self, machine: Machine) -> None:
        self.lost += 1
        self._end(machine)
        self._on_loss(machine)

    def _idle(self, machine: Machine) -> None:
        machine.idle_from = self._clock.now
        self._clock.after(self._model.idle, self._let_go, machine, machine.idle_from)

    def _let_go(self, machine: Machine, since: float) -> None:
        if machine.ended is None and not machine.going and machine.idle_from == since:
            self._end(machine)

    def _end(self, machine: Machine) -> None:
        machine.ended = self._clock.now
        self._paid += machine.ended - machine.ordered
        del self._alive[machine.name]
        self._with_places.pop(machine.name, None)


def varied(median: float, spread: float, rng: random.Random) -> float:
    """A time around its median, log-normally spread; no draw is made where there is no spread."""
    return median * math.exp(rng.gauss(0.0, spread)) if median > 0 and spread > 0 else median
