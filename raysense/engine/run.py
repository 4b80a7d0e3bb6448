"""One run of a driver over a scan directory: what is left, on Ray, until it is done or stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from raysense.engine.dispatch import Dispatcher
from raysense.engine.lock import DriverLock
from raysense.engine.progress import Progress
from raysense.engine.runtime import Placement, cluster, place
from raysense.engine.store import Store
from raysense.engine.worker import bind_scan
from raysense.options import ComputeOptions, RunOptions

_MOST_LOADERS = 8


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        units: Units of the scan.
        committed: Units in the store, of this and earlier runs.
        failed: Ids of the units this run gave up on.
        interrupted: Whether it was stopped (Ctrl-C, SIGTERM) before the end.
    """

    units: int
    committed: int
    failed: tuple[str, ...]
    interrupted: bool

    @property
    def complete(self) -> bool:
        """Whether every unit is committed."""
        return self.committed == self.units


def run_scan(store: Store, options: RunOptions, quiet: bool = False) -> Outcome:
    """Compute every unit of the scan that is not committed yet.

    Raises:
        UsageError: another driver works on the directory, or the cluster cannot be reached.
        ScanFailed: no worker can be started.
    """
    scan, prepared = bind_scan(store)
    units = scan.units(prepared)
    with DriverLock(store):
        store.directory.sweep_temporary_files()
        committed = store.committed()
        left = [unit for unit in units if unit.id not in committed]
        failed: list[str] = []
        stopped = False
        if left:
            done = sum(unit.size for unit in units) - sum(unit.size for unit in left)
            progress = Progress(sum(unit.size for unit in units), done, quiet)
            with _stop_signals() as stop, progress, cluster(options):
                placement = place(options, len(left))
                dispatcher = Dispatcher(store, options, _compute_options(options, placement), placement, progress)
                failed = dispatcher.run(left, stop)
                stopped = stop()
        return Outcome(len(units), len(store.committed()), tuple(failed), stopped)


def _compute_options(options: RunOptions, placement: Placement) -> ComputeOptions:
    """Loader processes from the actor's share of the CPUs: one core is kept for the worker itself."""
    # An actor that was given a GPU still looks whether torch sees it: Ray's idea of GPUs can be a configured number.
    return ComputeOptions(
        device=options.device if placement.num_gpus else "cpu",
        batch_size=options.batch_size,
        threads=placement.threads,
        loaders=max(1, min(_MOST_LOADERS, int(placement.num_cpus) - 1)),
    )


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """While active, the first SIGINT or SIGTERM asks for a stop after the units in work; the second interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
