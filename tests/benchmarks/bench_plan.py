"""`raysense plan` against real scans, of units that sleep and of a network; the speed of its simulation; the dispatcher.

A simulated scan is driven by the dispatcher of real ones; so its speed, its memory and its rules are measured here too,
at sizes that no machine at hand has.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench_engine import TESTS, phase, write_images
from harness import Verdict, print_title, print_verdict
from plugin_scans import NumbersScan
from rich.console import Console
from stored import read_table
from test_simulation import check_faulty_run, equal_units

import raysense
from raysense.engine.crew import Reply
from raysense.engine.observers import Observer
from raysense.options import RunOptions
from raysense.planning.costs import Interval, fit_line
from raysense.planning.display import print_plan
from raysense.planning.fleet import ClusterModel
from raysense.planning.plan import Plan
from raysense.planning.scaling import Scenario, scaling_curve
from raysense.planning.simulation import simulate, work_of
from raysense.scans import Unit
from raysense.store.store import Store

FAULTY_UNITS, FAULTY_WORKERS = 10_000, 64
CURVE_TARGET = 20.0
REALITY_TARGET = 0.10
COMPUTED_TARGET = 0.15
UNIT_SIZE = 128
_HOUR = 3600.0
_MODEL = f"{TESTS / 'zoo' / 'cifar_resnet.py'}:resnet?depth=20"
HERE = {"startup": 0, "loss_rate": 0, "straggler": "0:1", "latency": 0, "idle": 0}
"""A cluster that is there, and that nothing happens to: this machine."""


def reality(folder: Path, units: int, milliseconds: float, rounds: int) -> list[Verdict]:
    """The wall time of real scans on 1 and 2 workers against the plan's, made beforehand, from their first unit on."""
    print_title(f"Simulated against real: {units} units of {milliseconds:g} ms, {rounds} rounds on real workers")
    spec = {"items": 10 * units, "unit_size": 10, "seconds": milliseconds / 1e3}
    verdicts = []
    plan: Plan = raysense.plan(NumbersScan.kind, gpus=(1, 2), options=HERE, **spec)
    for point in plan.asked:
        walls = []
        for number in range(rounds):
            out = folder / f"{point.gpus}.{number}"
            raysense.scan(NumbersScan.kind, out, run={"workers": point.gpus, "device": "cpu"}, **spec)
            walls.append(phase(Store.open(out)).wall)
        ends = [value - plan.cluster.opening for value in (point.wall.low, point.wall.value, point.wall.high)]
        simulated, real = ends[1], median(walls)
        print(f"  {point.gpus} workers: simulated {simulated:.2f} s ({ends[0]:.2f} .. {ends[2]:.2f}), ", end="")
        print(f"real {real:.2f} s ({min(walls):.2f} .. {max(walls):.2f})")
        gap = abs(simulated / real - 1)
        what = f"simulated wall time on {point.gpus} workers"
        verdicts.append(print_verdict(what, f"{gap:.1%} off", f"< {REALITY_TARGET:.0%}", gap < REALITY_TARGET))
    return verdicts


def example(folder: Path, images: int) -> None:
    """The plan that README.md shows."""
    print_title(f"A plan: {images} images of 32 x 32 pixels through a ResNet-20, one thread a worker")
    data = folder / "example.npz"
    write_images(data, images)
    options = {"worker_cpus": 1}
    plan: Plan = raysense.plan("influence", gpus=(64, 8), price=0.05, options=options, model=_MODEL, data=f"npz:{data}")
    print_plan(plan, Console(width=120))


def computed(folder: Path, images: int) -> list[Verdict]:
    """A network's scan on 1 and 2 workers of one thread each against the plan's, made beforehand, from their first unit."""
    print_title(f"Planned against real: exact influence of a ResNet-20, {images} images in units of {UNIT_SIZE}")
    write_images(folder / "data.npz", images)
    spec = {"model": _MODEL, "data": f"npz:{folder / 'data.npz'}", "unit_size": UNIT_SIZE}
    plan: Plan = raysense.plan("influence", gpus=(1, 2), options={**HERE, "worker_cpus": 1}, **spec)
    estimate, done = plan.estimate, plan.calibration
    work = [_HOUR * (value - estimate.publishing) for value in (estimate.hours.value, *_ends(estimate.hours))]
    loading = done.starting + done.opening
    print(f"  calibrated on {done.device} with {len(done.pieces)} pieces in {done.seconds:.1f} s")
    verdicts, walls = [], []
    for point in plan.asked:
        out = folder / f"computed.{point.gpus}"
        raysense.scan("influence", out, run={"workers": point.gpus, "device": "cpu", "worker_cpus": 1}, **spec)
        store = Store.open(out)
        real = phase(store)
        walls.append(real.wall)
        wall, low, high = (value - loading for value in (point.wall.value, *_ends(point.wall)))
        name = f"{point.gpus} {'worker' if point.gpus == 1 else 'workers'}"
        print(
            f"  {name}: computing planned {work[0]:.1f} s ({work[1]:.1f} .. {work[2]:.1f}), real {real.computing:.1f} s"
        )
        print(f"  {name}: wall time planned {wall:.1f} s ({low:.1f} .. {high:.1f}), real {real.wall:.1f} s")
        gap = abs(wall / real.wall - 1)
        what = f"planned wall time of a network's scan on {name}"
        verdicts.append(print_verdict(what, f"{gap:.1%} off", f"< {COMPUTED_TARGET:.0%}", gap < COMPUTED_TARGET))
    planned = plan.asked[0].wall.value - loading, plan.asked[1].wall.value - loading
    print(f"  2 workers against 1: planned {planned[0] / planned[1]:.2f} times as fast, real {walls[0] / walls[1]:.2f}")
    passes = 0.0 if estimate.passes is None else estimate.passes.value
    print(f"  passes: planned {passes:,.0f}, real {sum(read_table(store, 'units')['passes'].to_pylist()):,}")
    written = {
        table: sum(path.stat().st_size for path in (out / "tables" / table).iterdir()) for table in store.schemas()
    }
    for table, size in written.items():
        print(f"  bytes of table {table}: planned {estimate.table_sizes[table].value:,.0f}, written {size:,}")
    whole = sum(written.values()) + (out / "listing.arrow").stat().st_size
    gap = abs(estimate.size.value / whole - 1)
    print(f"  bytes out with the listing: planned {estimate.size.value:,.0f}, written {whole:,}")
    return [*verdicts, print_verdict("planned bytes", f"{gap:.2%} off", "< 2%", gap < 0.02)]


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def faults(seeds: int) -> list[Verdict]:
    """Errors, crashes, hangs, lost and slow machines: every unit is committed or given up on by the rules."""
    print_title(f"The dispatcher through {FAULTY_UNITS} units on {FAULTY_WORKERS} simulated workers, {seeds} seeds")
    seconds = []
    for seed in range(seeds):
        began = time.perf_counter()
        check_faulty_run(FAULTY_UNITS, FAULTY_WORKERS, seed)
        seconds.append(time.perf_counter() - began)
    each = 1e6 * median(seconds) / FAULTY_UNITS
    return [
        print_verdict("time of dispatcher and simulation", f"{each:.0f} us a unit", "< 500 us", each < 500),
        print_verdict("rules kept", f"{seeds} of {seeds} seeds", "all", True),
    ]


class _Memory(Observer):
    """Bytes that the engine's own code holds when a quarter, a half, and three quarters of the units are done."""

    def __init__(self, units: int) -> None:
        self._left = [units // 4, units // 2, 3 * units // 4]
        self._done = 0
        self.held: list[int] = []

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        self._done += 1
        if self._left and self._done >= self._left[0]:
            self._left.pop(0)
            gc.collect()
            filters = [tracemalloc.Filter(True, "*/raysense/engine/*")]
            taken = tracemalloc.take_snapshot().filter_traces(filters).statistics("filename")
            self.held.append(sum(entry.size for entry in taken))


def memory() -> list[Verdict]:
    """What the dispatcher holds does not grow with what is done."""
    print_title(f"Memory of the dispatcher, {FAULTY_UNITS} units on {FAULTY_WORKERS} simulated workers")
    work = equal_units(FAULTY_UNITS, 20.0)
    watching = _Memory(FAULTY_UNITS)
    tracemalloc.start()
    try:
        simulate(work, FAULTY_WORKERS, ClusterModel(loss_rate=2.0, startup=60), 0, observer=watching)
    finally:
        tracemalloc.stop()
    first, _, last = watching.held
    print(f"  held at 25%, 50%, 75%: {', '.join(f'{held / 1024:.0f} KiB' for held in watching.held)}")
    return [print_verdict("growth from 25% to 75%", f"{last / first - 1:+.0%}", "< +10%", last < 1.1 * first)]


def theory(seeds: int) -> None:
    """Losses without notice cost half a unit each, and what the machines take to come."""
    print_title("Losses against theory: 4000 units of 60 s on 20 workers, 2 losses per machine hour, no notice")
    model = ClusterModel(loss_rate=2.0, notice=0, startup=120, startup_spread=0)
    options = RunOptions(duplicates=False)
    runs = [simulate(equal_units(4000, 60.0), 20, model, seed, options=options) for seed in range(seeds)]
    losses = sum(run.losses for run in runs)
    lost = sum(run.spent.lost for run in runs)
    # A machine lives for half an hour on the mean; another is there after its start-up, once the loss is noticed.
    expected = sum(20 * (run.wall - 120) / (1800 + 120 + model.detection) for run in runs)
    print(f"  losses: {losses}, expected {expected:.0f}")
    print(f"  lost per loss: {lost / losses:.1f} s, expected 30 s")


def curve(units: int) -> list[Verdict]:
    """From 1 to 1000 GPUs, for a data set as large as ImageNet's training set, in units of 256 images."""
    print_title(f"Curve to 1000 GPUs: {units} units of 256 images, about 20 s each")
    sizes, places = [256, 64, 256, 128] * 3, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    rng = np.random.default_rng(0)
    line = fit_line(sizes, [0.5 + 0.08 * size * rng.lognormal(0, 0.05) for size in sizes], places, 0)
    model = ClusterModel(
        startup=180, opening=12, loss_rate=0.02, straggler_share=0.02, straggler_factor=2, idle=300, publishing=0.15
    )
    scenario = Scenario(line, rng.lognormal(0, 0.1, 12), model, 2.5, 0)
    print(f"  assumed: {model}")
    began = time.process_time()
    for point in scaling_curve(scenario, [256] * units, ()):
        wall, hours = point.wall, point.gpu_hours.value
        print(
            f"  {point.gpus:5d} GPUs  {wall.value / 3600:8.3f} h ({wall.low / 3600:.3f} .. {wall.high / 3600:.3f})"
            f"  {hours:7.1f} GPU hours  efficiency {point.efficiency:4.0%}  {point.runs} runs"
        )
    seconds = time.process_time() - began
    return [print_verdict("curve to 1000 GPUs", f"{seconds:.1f} s of one core", "< 20 s", seconds < CURVE_TARGET)]


def grouping(seeds: int) -> None:
    """Many units are simulated in groups that shrink towards the end; one by one they take the same time."""
    print_title("Groups of units against units one by one: 20000 units on 50 workers")
    model = ClusterModel(startup=180, opening=10, loss_rate=0.1, straggler_share=0.02, straggler_factor=3)
    gaps = []
    for seed in range(seeds):
        seconds = 20 * np.random.default_rng(seed).lognormal(0, 0.2, 20_000)
        whole = equal_units(20_000, 0.0)
        whole.seconds = seconds.tolist()
        grouped = work_of([1] * 20_000, seconds, 50)
        size = len(grouped.units)
        gaps.append(simulate(grouped, 50, model, seed).wall / simulate(whole, 50, model, seed).wall - 1)
    print(f"  {size} groups; wall time {min(gaps):+.2%} .. {max(gaps):+.2%}, median {median(gaps):+.2%}")


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print all comparisons; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="real scans of each number of workers")
    parser.add_argument("--seeds", type=int, default=10, help="runs of the simulations that are repeated")
    parser.add_argument("--units", type=int, default=5000, help="units of the curve")
    parser.add_argument("--images", type=int, default=4096, help="images of the network's scan")
    parser.add_argument("--example-images", type=int, default=50_000, help="images of the plan that is printed")
    options = parser.parse_args(arguments)
    verdicts = faults(options.seeds) + memory()
    theory(options.seeds)
    grouping(options.seeds)
    verdicts += curve(options.units)
    with tempfile.TemporaryDirectory() as name:
        verdicts += reality(Path(name), 100, 100.0, options.rounds)
        verdicts += computed(Path(name), options.images)
        example(Path(name), options.example_images)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
