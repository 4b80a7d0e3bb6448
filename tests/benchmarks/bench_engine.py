"""The engine beside the computation: overhead per unit, units per second, two workers against one.

Times come from the table ``units``, from the start of the first unit to the end of the last, so that starting Ray and
loading the model do not count.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from plugin_scans import NumbersScan
from stored import read_table

from raysense.api import scan
from raysense.digits import load_digits
from raysense.engine.worker import Worker, bind_scan
from raysense.options import ComputeOptions
from raysense.store.store import Store

TESTS = Path(__file__).resolve().parents[1]
WORKERS = 2
OVERHEAD_TARGET = 0.020
SCALING_TARGET = 1.7
UNIT_SIZE = 16
_OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Phase:
    """What the table ``units`` says of a finished scan.

    Attributes:
        units: How many.
        wall: Seconds from the start of the first unit to the end of the last.
        occupied: Seconds from a worker's first start to its last end, summed over the workers.
        computing: Seconds inside ``compute``, summed over the units.
    """

    units: int
    wall: float
    occupied: float
    computing: float


class Trials:
    """Runs scans, each into a new folder, and keeps their phases by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._latest: Store
        self._count = 0
        self.phases: dict[str, list[Phase]] = {}

    def on_ray(self, name: str, kind: str, workers: int, **spec: Any) -> None:
        """A scan as the command runs it, Ray's start and end included."""
        out = self._new_folder()
        outcome = scan(kind, out, run={"workers": workers, "batch_size": UNIT_SIZE, "device": "cpu"}, **spec)
        if not outcome.complete or outcome.failed:
            raise AssertionError(f"the scan did not end well: {outcome}")
        self._latest = Store.open(out)
        self._keep(name, self._latest)

    def without_ray(self, name: str) -> None:
        """The units of the latest scan once more, by one worker in this process."""
        out = self._new_folder()
        store = Store.create(out, self._latest.document(), self._latest.listing())
        worker = Worker("alone")
        if problem := worker.open(str(out), ComputeOptions(device="cpu")):
            raise AssertionError(problem)
        bound, prepared = bind_scan(store)
        for unit in bound.units(prepared):
            if not worker.compute(unit, 1).committed:
                raise AssertionError(f"unit {unit.id} failed")
        self._keep(name, store)

    def measured(self, what: Callable[[Phase], float]) -> dict[str, list[float]]:
        """A figure of every phase but the warm-up's."""
        return {name: [what(phase) for phase in phases[1:]] for name, phases in self.phases.items()}

    def _new_folder(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)

    def _keep(self, name: str, store: Store) -> None:
        self.phases.setdefault(name, []).append(phase(store))


def phase(store: Store) -> Phase:
    """Read the table ``units`` of a finished scan."""
    table = read_table(store, "units")
    starts = table["started"].cast(pa.int64()).to_numpy() / 1e6
    seconds = table["seconds"].to_numpy()
    ends = starts + seconds
    worker = table["worker"].to_numpy()
    spans = [float(ends[worker == name].max() - starts[worker == name].min()) for name in np.unique(worker)]
    return Phase(table.num_rows, float(ends.max() - starts.min()), sum(spans), float(seconds.sum()))


def overhead(folder: Path, units: int, milliseconds: float, rounds: int) -> list[Verdict]:
    """Time per unit and worker beyond computing, which here is sleeping: dispatch, replies, writing and committing."""
    ray, alone = f"Ray, {WORKERS} workers", "no Ray, 1 worker"
    print_title(f"Overhead per unit: {units} units of {milliseconds:g} ms, {rounds} interleaved rounds")
    trials = Trials(folder)
    spec = {"items": units, "unit_size": 1, "seconds": milliseconds / 1e3}
    interleaved(
        {
            ray: lambda: trials.on_ray(ray, NumbersScan.kind, WORKERS, **spec),
            alone: lambda: trials.without_ray(alone),
        },
        rounds,
    )
    workers = {ray: WORKERS, alone: 1}
    beyond = {
        name: [(phase.wall * workers[name] - phase.computing) / phase.units for phase in phases[1:]]
        for name, phases in trials.phases.items()
    }
    print("  wall x workers - computing:")
    print_sides(beyond, 1, "ms/unit")
    print("  the same, each worker from its own first unit to its own last:")
    print_sides(trials.measured(lambda phase: (phase.occupied - phase.computing) / phase.units), 1, "ms/unit")
    middle = median(beyond[ray])
    return [
        print_verdict("overhead per unit", f"{1e3 * middle:.1f} ms", "< 20 ms", middle < OVERHEAD_TARGET),
    ]


def throughput(folder: Path, units: int, rounds: int) -> None:
    """Units per second when a unit computes nothing: what is left is dispatch and three synced files per unit."""
    ray, alone = f"Ray, {WORKERS} workers", "no Ray, 1 worker"
    print_title(f"Empty units: {units} units, {rounds} interleaved rounds")
    trials = Trials(folder)
    interleaved(
        {
            ray: lambda: trials.on_ray(ray, NumbersScan.kind, WORKERS, items=units, unit_size=1),
            alone: lambda: trials.without_ray(alone),
        },
        rounds,
    )
    print_sides(trials.measured(lambda phase: phase.units / phase.wall), 1, "units/s")


def scaling(folder: Path, images: int, rounds: int) -> list[Verdict]:
    """The exact influence of a ResNet-20 of ten classes on 32 x 32 images, on one and on two cores."""
    data = folder / "data.npz"
    write_images(data, images)
    spec = {
        "model": f"{TESTS / 'zoo' / 'cifar_resnet.py'}:resnet?depth=20",
        "data": f"npz:{data}",
        "unit_size": UNIT_SIZE,
    }
    one, threads, two = "1 worker of 1 thread", "1 worker of 2 threads", "2 workers of 1 thread"
    print_title(f"Two workers against one: {images} images, exact influence, {rounds} interleaved rounds")
    trials = Trials(folder)

    def on(name: str, cpus: int, workers: int) -> None:
        with ray_of(cpus):
            trials.on_ray(name, "influence", workers, **spec)

    whole = interleaved(
        {one: lambda: on(one, 1, 1), threads: lambda: on(threads, 2, 1), two: lambda: on(two, 2, 2)},
        rounds,
    )
    seconds = trials.measured(lambda phase: phase.wall)
    print_sides(seconds)
    verdicts = print_ratio(seconds, one, two, SCALING_TARGET)
    print_ratio(seconds, threads, two)
    print("  whole call, with starting and ending Ray and loading the model:")
    print_sides(whole)
    print_ratio(whole, one, two)
    return verdicts


def write_images(path: Path, count: int) -> None:
    """The bundled digits, enlarged to 32 x 32 pixels of three channels, as often as it takes."""
    digits = load_digits("train")
    rows = np.arange(count) % len(digits.labels)
    small = (255 * digits.images[rows, 0].numpy()).astype(np.uint8)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    np.savez(path, x=np.stack([large] * 3, axis=-1), y=digits.labels[rows].numpy())


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    """A Ray that has so many CPUs to give, on any machine; the engine divides them among the threads of its workers."""
    import ray  # not above: raysense.engine must have set Ray's environment first

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print all comparisons; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of each comparison")
    parser.add_argument("--units", type=int, default=400, help="units of 20 ms")
    parser.add_argument("--empty-units", type=int, default=2000, help="units that compute nothing")
    parser.add_argument("--images", type=int, default=2400, help="images of the scan on one and on two workers")
    parser.add_argument("--folder", help="where to write; on a file system in memory no disk is waited for")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        verdicts = overhead(folder / "overhead", options.units, 20.0, options.rounds)
        throughput(folder / "empty", options.empty_units, options.rounds)
        (folder / "scaling").mkdir()
        verdicts += scaling(folder / "scaling", options.images, options.rounds)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
