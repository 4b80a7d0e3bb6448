"""A scan on a simulated cluster: wall time and GPU hours for a number of GPUs, and the best size of a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysense.engine.dispatch import Dispatcher
from raysense.engine.observers import Observer, Observers
from raysense.options import ComputeOptions, RunOptions
from raysense.planning.costs import Floats
from raysense.planning.crew import Faults, SimulatedCrew, Spent, Work
from raysense.planning.fleet import ClusterModel
from raysense.scans.base import Unit

_GROUP_SHARE = 12
_FEWEST_GROUPS = 150
_WAKES = 4000
_MACHINES = 300
_MACHINES_PER_WORKER = 30


@dataclass(frozen=True)
class Run:
    """How one simulated scan went.

    Attributes:
        wall: Time from the start to the last commit, s.
        paid: GPU seconds from ordering each machine to its end.
        booting: Of these, before machines were up.
        spent: Of these, by what workers did. What is left they waited, or their machines idled.
        ideal: Seconds that computing the units takes on one worker as fast as most.
        machines: Machines that were ordered.
        losses: Machines that were taken away.
        duplicates: Slow units that were given to a second worker.
        failed: Units given up on.
        commits: How often each unit was committed, by its number.
    """

    wall: float
    paid: float
    booting: float
    spent: Spent
    ideal: float
    machines: int
    losses: int
    duplicates: int
    failed: tuple[str, ...]
    commits: dict[str, int]

    @property
    def efficiency(self) -> float:
        """Share of the paid time that computing takes."""
        return self.ideal / self.paid if self.paid else 1.0


def simulate(
    work: Work,
    workers: int,
    model: ClusterModel,
    seed: int = 0,
    faults: Faults | None = None,
    options: RunOptions | None = None,
    observer: Observer | None = None,
) -> Run:
    """Have the dispatcher run units on simulated workers; takes some ten microseconds a unit.

    Args:
        work: The units; consumed, since the finished parts of interrupted ones are taken off.
        workers: How many to request.
        model: What is assumed of the cluster.
        seed: Of all chance events.
        faults: What goes wrong besides machines.
        options: The dispatcher's; the defaults of a scan if None.
        observer: Told of everything.

    Raises:
        ScanFailed: no simulated worker could open the scan.
        UsageError: machines are taken away so fast that the scan would hardly ever end.
    """
    options = options or RunOptions()
    ideal = sum(work.seconds)
    patience = 0.0 if faults else (ideal / workers + model.startup + model.opening) / _WAKES
    most_machines = _MACHINES + _MACHINES_PER_WORKER * workers + sum(work.parts)
    crew = SimulatedCrew(work, model, seed, faults, patience, most_machines)
    counter = _Duplicates()
    told = counter if observer is None else Observers([counter, observer])
    dispatcher = Dispatcher(crew, _Journal(), options, ComputeOptions(), workers, told)
    failed = dispatcher.run(work.units, lambda: False)
    fleet = crew.fleet
    return Run(
        crew.last_commit,
        fleet.paid_seconds(),
        fleet.booting_seconds(),
        crew.spent,
        ideal,
        fleet.ordered,
        fleet.lost,
        counter.count,
        tuple(failed),
        crew.commits,
    )


def work_of(sizes: Sequence[int], seconds: Floats, workers: int, fixed: float = 0.0) -> Work:
    """Units as work; where they are very many for each worker, they are put together in groups.

    A group is a small part of a worker's share of what is left, so that groups shrink to single units before the end.

    Args:
        sizes: Items of each unit, in their order.
        seconds: Time that each takes.
        workers: For how many.
        fixed: Part of each unit's time that does not depend on its items.
    """
    share = max(_FEWEST_GROUPS, _GROUP_SHARE * workers)
    left, groups = len(sizes), []
    while left >= 2 * share:
        groups.append(left // share)
        left -= groups[-1]
    parts = np.array(groups + [1] * left, np.int64)
    starts = np.concatenate([[0], np.cumsum(parts)[:-1]])
    items = np.add.reduceat(np.asarray(sizes, np.int64), starts)
    stops = np.cumsum(items)
    units = [
        Unit(str(number), start, stop)
        for number, (start, stop) in enumerate(zip((stops - items).tolist(), stops.tolist(), strict=True))
    ]
    return Work(units, np.add.reduceat(seconds, starts).tolist(), parts.tolist(), fixed)


class _Journal:
    """Attempts of simulated units are recorded nowhere."""

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        pass

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        pass

    def clear_failure(self, unit: str) -> None:
        pass


class _Duplicates(Observer):
    """Counts the copies of slow units."""

    def __init__(self) -> None:
        self.count = 0

    def duplicated(self, unit: Unit, worker: str) -> None:
        self.count += 1
