"""Repeated simulations: how wall time and money grow with the number of GPUs, and which unit size is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raysense.planning.costs import Floats, Interval, Line, interval
from raysense.planning.fleet import ClusterModel
from raysense.planning.simulation import Run, simulate, work_of

LADDER = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Numbers of GPUs of the curve."""

FEWEST_RUNS = 9
"""Simulations that tell an interval: between the outermost of nine another one lies with a probability of 80%."""

_UNITS_PER_POINT = 60_000
_RUNS = (FEWEST_RUNS, 24)
_UNITS_PER_SIZE = 30_000
_RUNS_OF_SIZE = (3, 12)
_ALIKE = 1.02
_HOUR = 3600.0


@dataclass(frozen=True)
class Scenario:
    """What is simulated, but for the number of GPUs and the size of units.

    Attributes:
        seconds: Time of a unit.
        residuals: Measured times relative to `seconds`, with mean 1; each unit gets one at random.
        model: What is assumed of the cluster.
        price: Of a GPU hour; None where none is known.
        seed: Of everything random.
    """

    seconds: Line
    residuals: Floats
    model: ClusterModel
    price: float | None
    seed: int


@dataclass(frozen=True)
class Shares:
    """What the paid GPU hours go to; they sum to 1.

    Attributes:
        computing: The items.
        overhead: What each unit takes besides its items, publishing included.
        starting: Machines that boot, and workers that load the model.
        lost: Work that was cut off, failed or done twice.
        waiting: Workers without a unit, and machines without workers until they are let go.
    """

    computing: float
    overhead: float
    starting: float
    lost: float
    waiting: float


@dataclass(frozen=True)
class Point:
    """A scan on so many GPUs, over repeated simulations.

    Attributes:
        gpus: Number of GPUs (of workers, on a CPU).
        wall: Time from the start to the last commit, s.
        gpu_hours: GPU hours paid.
        money: Their price; None where none was given.
        efficiency: Share of the paid time that computing the units takes on machines of usual speed.
        shares: What the paid hours go to.
        losses: Machines taken away, on the mean.
        runs: How many simulations.
    """

    gpus: int
    wall: Interval
    gpu_hours: Interval
    money: Interval | None
    efficiency: float
    shares: Shares
    losses: float
    runs: int


@dataclass(frozen=True)
class SizePoint:
    """A scan in units of at most so many items, on the GPUs asked for.

    Attributes:
        unit_size: Items of a unit at the most.
        units: How many units.
        point: What comes of it.
    """

    unit_size: int
    units: int
    point: Point


def simulated_point(
    scenario: Scenario,
    sizes: Sequence[int],
    gpus: int,
    budget: int = _UNITS_PER_POINT,
    allowed: tuple[int, int] = _RUNS,
) -> Point:
    """Simulate a scan on some GPUs as often as the budget allows.

    Args:
        scenario: What is assumed.
        sizes: Items of each unit.
        gpus: Number of GPUs.
        budget: Units that all the runs may have together.
        allowed: Runs that there are at the least and at the most.
    """
    simulated = len(work_of(sizes, np.zeros(len(sizes)), gpus).units)
    fewest, most = allowed
    count = min(most, max(fewest, budget // simulated))
    runs = list(_runs(scenario, sizes, gpus, count))
    hours = interval([run.paid / _HOUR for run in runs])
    return Point(
        gpus,
        interval([run.wall for run in runs]),
        hours,
        None if scenario.price is None else hours.scaled(scenario.price),
        float(np.mean([run.efficiency for run in runs])),
        _shares(runs),
        float(np.mean([run.losses for run in runs])),
        count,
    )


def scaling_curve(scenario: Scenario, sizes: Sequence[int], asked: Iterable[int]) -> Iterator[Point]:
    """Points for the usual numbers of GPUs and those asked for, ascending."""
    for gpus in sorted({*LADDER, *asked}):
        yield simulated_point(scenario, sizes, gpus)


def best_size(points: Sequence[SizePoint], current: int) -> SizePoint:
    """The unit size with the least wall time.

    Of sizes that are within 2% of it, the present one is preferred, then that with the fewest GPU hours.
    """
    least = min(point.point.wall.value for point in points)
    good = [point for point in points if point.point.wall.value <= _ALIKE * least]
    present = [point for point in good if point.unit_size == current]
    return min(present or good, key=lambda each: each.point.gpu_hours.value)


def size_sweep(scenario: Scenario, sizes: Mapping[int, Sequence[int]], gpus: int) -> Iterator[SizePoint]:
    """Points for unit sizes.

    Args:
        scenario: What is assumed.
        sizes: Items of each unit, by unit size.
        gpus: Number of GPUs.
    """
    for unit_size, items in sizes.items():
        point = simulated_point(scenario, items, gpus, _UNITS_PER_SIZE, _RUNS_OF_SIZE)
        yield SizePoint(unit_size, len(items), point)


def _runs(scenario: Scenario, sizes: Sequence[int], gpus: int, count: int) -> Iterator[Run]:
    """Runs over fits that are spread evenly over those that the calibration allows, cheapest first."""
    line, items = scenario.seconds, np.asarray(sizes, np.float64)
    totals = line.draws @ np.array([len(items), items.sum()])
    order = np.argsort(totals)
    for number in range(count):
        fixed, each = line.draws[order[int((number + 0.5) / count * len(order))]]
        rng = np.random.default_rng((scenario.seed, number))
        seconds = (fixed + each * items) * rng.choice(scenario.residuals, len(items))
        work = work_of(sizes, seconds, gpus, float(fixed))
        yield simulate(work, gpus, scenario.model, scenario.seed * 1000 + number)


def _shares(runs: Sequence[Run]) -> Shares:
    paid = sum(run.paid for run in runs) or 1.0
    computing = sum(run.spent.computing for run in runs) / paid
    overhead = sum(run.spent.overhead for run in runs) / paid
    starting = sum(run.booting + run.spent.opening for run in runs) / paid
    lost = sum(run.spent.lost for run in runs) / paid
    return Shares(computing, overhead, starting, lost, max(0.0, 1 - computing - overhead - starting - lost))
