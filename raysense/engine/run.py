"""One run of a driver over a scan directory: what is left, on Ray, until it is done or stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from raysense.engine.beat import Beat
from raysense.engine.dispatch import Dispatcher
from raysense.engine.events import event_log
from raysense.engine.metrics import ScanMetrics
from raysense.engine.observers import Observer, Observers
from raysense.engine.progress import Progress
from raysense.engine.ray_crew import RayCrew
from raysense.engine.runtime import Placement, cluster, place
from raysense.errors import RaysenseError
from raysense.options import ComputeOptions, RunOptions
from raysense.scans import Prepared, Scan
from raysense.store.files import Directory
from raysense.store.lock import DriverLock
from raysense.store.store import Store

_MOST_LOADERS = 8


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        units: Units of the scan.
        committed: Units in the store, of this and earlier runs.
        failed: Ids of the units this run gave up on.
        interrupted: Whether it was stopped (Ctrl-C, SIGTERM) before the end.
        items: Items (samples, ...) in the units that this run committed.
        bad_items: How many of them could not be computed; their rows say why in a column ``error``.
        noun: What the items are.
    """

    units: int
    committed: int
    failed: tuple[str, ...] = ()
    interrupted: bool = False
    items: int = 0
    bad_items: int = 0
    noun: str = "samples"

    @property
    def complete(self) -> bool:
        """Whether every unit is committed."""
        return self.committed == self.units


def run_scan(
    directory: Directory,
    scan: Scan,
    prepared: Prepared,
    options: RunOptions,
    quiet: bool,
    begin: Callable[[], Store],
) -> Outcome:
    """Compute every unit of a scan that is not committed yet.

    Args:
        directory: Where the scan is, or will be.
        scan: The scan, bound to its spec.
        prepared: What its driver prepared.
        options: How to run.
        quiet: Whether to show no progress.
        begin: Creates or opens the store, once the directory is locked and Ray is there.

    Raises:
        UsageError: another driver works on the directory, or the cluster cannot be used.
        ScanFailed: no worker can be started.
        RaysenseError: another driver took the directory over meanwhile.
    """
    units = scan.units(prepared)
    with DriverLock(directory) as lock:
        directory.sweep_temporary_files()
        committed = Store(directory).committed()
        left = [unit for unit in units if unit.id not in committed]
        if not left:
            return Outcome(len(units), len(units))
        total = sum(unit.size for unit in units)
        before = total - sum(unit.size for unit in left)
        # The signal handlers last: ray.init installs its own.
        with Progress(total, before, quiet, scan.noun) as progress, cluster(options), _stop_signals() as stop:
            placement = place(options, len(left))
            store = begin()
            watching: list[Observer] = [progress, Beat(progress, lock.publish), ScanMetrics(store.name, scan.kind)]
            with event_log(options.log, store.location) as log:
                watching += [log] if log is not None else []
                dispatcher = Dispatcher(
                    RayCrew(store, placement),
                    store.failures,
                    options,
                    compute_options(options, placement),
                    placement.workers,
                    Observers(watching),
                )
                failed = dispatcher.run(left, lambda: stop() or lock.lost)
            interrupted = stop()
        if lock.lost:
            raise RaysenseError(
                f"{directory.location} is not this driver's any more: another one took it over, since this one did not "
                "beat for a minute, or somebody removed it"
            )
        committed_now = len(store.committed())
        return Outcome(
            len(units), committed_now, tuple(failed), interrupted, progress.done_items - before, progress.bad, scan.noun
        )


def compute_options(options: RunOptions, placement: Placement) -> ComputeOptions:
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
