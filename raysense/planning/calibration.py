"""A few pieces of a scan, really computed by a worker on Ray, within a time limit."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from raysense.api import scan_document
from raysense.engine.run import compute_options
from raysense.engine.runtime import cluster, place
from raysense.errors import ScanFailed
from raysense.planning.options import PlanOptions
from raysense.planning.places import Pieces, scattered
from raysense.planning.probe import Measured, Probe, ProbeOpened, Request
from raysense.scans import Prepared, Scan, Unit, absolute_kind

_WARM_UP_PARTS = 16
_WARM_UP_UNITS = 3
_WARM_UP_SHARE = 0.3
_ITEMS_PER_PLACE = 1.375  # of those of its larger piece: the smaller is a quarter or a half of it
_FEWEST_PLACES = 3
_OVERRUN = 2.0
_PLACE_SECONDS = 120.0
_CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Piece:
    """A piece of the listing that was computed.

    Attributes:
        place: Number of the place in the listing; the pieces of a place lie side by side.
        start: First row of the listing.
        items: Items (samples, ...) in the piece.
        seconds: Time to compute it.
        publishing: Time to write and commit it, on the worker's disk.
        table_bytes: Bytes of the file of each table.
        files: Files that were written.
        passes: Images that went forward or backward through the network.
        bad_items: Rows that say why their item could not be computed.
    """

    place: int
    start: int
    items: int
    seconds: float
    publishing: float
    table_bytes: dict[str, int]
    files: int
    passes: int
    bad_items: int


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        device: What the worker computes on, in words.
        on_gpu: Whether that is a GPU.
        host: Machine of the worker.
        starting: Time from asking Ray for a worker to its process, s.
        opening: Time for the process to load the scan, s.
        waited: Time until there was a place for it, s: that in which an autoscaler brought a machine, if it did.
        warm_up: Pieces that were computed first and do not count: the first pays for allocations and kernel selection.
        pieces: Pieces that count.
        unit_size: Items of a unit of the scan.
        largest: Items of the largest pieces.
        whole: Whether these are units of the scan; not where a unit takes longer than there was time.
        batch_size: Items per batch at the end.
        memory: Largest memory of the device, in bytes.
        seconds: Time that computing all the pieces took.
        complete: Whether there was time for all the pieces wanted.
        errors: What pieces raised that could not be computed, in a line each.
    """

    device: str
    on_gpu: bool
    host: str
    starting: float
    opening: float
    waited: float
    warm_up: tuple[Piece, ...]
    pieces: tuple[Piece, ...]
    unit_size: int
    largest: int
    whole: bool
    batch_size: int
    memory: int
    seconds: float
    complete: bool
    errors: tuple[str, ...]

    @property
    def first_seconds(self) -> float:
        """Time that the first piece took beyond what another of its size took, s; workers pay it once."""
        alike = [piece.seconds for piece in self.warm_up[1:] if piece.items == self.warm_up[0].items]
        return max(0.0, self.warm_up[0].seconds - min(alike)) if alike else 0.0


def calibrate(kind: str, scan: Scan, prepared: Prepared, options: PlanOptions) -> Calibration:
    """Compute a few pieces of a scan on a worker, evenly spread over the listing and of several sizes.

    Raises:
        UsageError: the cluster cannot be used.
        ScanFailed: no worker could be started, or no piece could be computed within the time.
    """
    run = options.run_options
    with cluster(run):
        placement = place(run, len(scan.units(prepared)))
        remote = ray.remote(
            num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_restarts=0, max_task_retries=0
        )(Probe)
        patience = _PLACE_SECONDS + 3 * options.startup
        began = time.monotonic()
        actor = remote.remote()
        opened: ProbeOpened | None = None
        try:
            request = ray.put(Request.of(scan_document(absolute_kind(kind), scan, prepared), prepared.listing))
            try:
                opened = ray.get(actor.load.remote(request, compute_options(run, placement)), timeout=patience)
            except GetTimeoutError as error:
                what = "GPU" if placement.num_gpus else "CPU"
                raise ScanFailed(
                    f"no worker could be started within {patience:.0f} s; look whether the cluster has a free {what}"
                ) from error
            if opened.problem:
                raise ScanFailed(f"no worker could be started: {opened.problem}")
            # A process that is younger than the request waited for a machine before.
            placed = time.monotonic() - began - opened.seconds
            starting = min(placed, opened.process_seconds)
            return _Measuring(actor, scan, prepared, options).run(opened, starting, placed - starting)
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]  # Ray says last what happened
            raise ScanFailed(f"the worker of the calibration was lost: {reason}") from error
        finally:
            _end(actor, opened)


class _Measuring:
    """The course of a calibration, once its worker has opened the scan."""

    def __init__(self, actor: Any, scan: Scan, prepared: Prepared, options: PlanOptions) -> None:
        self._actor = actor
        self._prepared = prepared
        self._options = options
        self._began = time.monotonic()
        self._latest: Measured | None = None
        self._errors: list[str] = []
        self._pieces = Pieces(scan, prepared)
        self._places = (options.units + 1) // 2

    def run(self, opened: ProbeOpened, starting: float, waited: float) -> Calibration:
        """Warm up, choose sizes that there is time for, and measure."""
        size = self._prepared.unit_size
        warm_up = []
        for part in (0.0, 0.5):
            warm_up += self._measured(-1, self._pieces.at(max(1, size // _WARM_UP_PARTS), part))
        warm_up += self._settled(self._affordable(warm_up))
        affordable = self._affordable(warm_up)
        plan = self._plan(affordable)
        pieces: list[Piece] = []
        complete = True
        for index, (place_number, unit) in enumerate(plan):
            if self._left() <= _seconds_each([*warm_up, *pieces]) * unit.size:
                complete = False
                break
            upcoming = plan[index + 1][1] if index + 1 < len(plan) else None
            pieces += self._measured(place_number, unit, upcoming)
        if not pieces and warm_up:
            pieces = [replace(warm_up.pop(), place=0)]
        if not pieces or self._latest is None:
            why = (
                self._errors[-1]
                if self._errors
                else f"not one was done within {_OVERRUN * self._options.seconds:g} s; raise --seconds"
            )
            raise ScanFailed(f"no piece of the scan could be computed: {why}")
        return Calibration(
            opened.device,
            opened.on_gpu,
            opened.host,
            starting,
            opened.seconds,
            waited,
            tuple(warm_up),
            tuple(pieces),
            size,
            max(piece.items for piece in pieces),
            affordable == size,
            self._latest.batch_size,
            self._latest.memory,
            time.monotonic() - self._began,
            complete,
            tuple(self._errors),
        )

    def _affordable(self, done: Sequence[Piece]) -> int:
        """Items of the largest pieces: a unit's, or of as large a part of it as the rest of the time suffices for."""
        size = self._prepared.unit_size
        time_each, places = _seconds_each(done) * _ITEMS_PER_PLACE, min(self._places, _FEWEST_PLACES)
        while size > 1 and places * size * time_each > (1 - _WARM_UP_SHARE) * self._left():
            size //= 2
        return size

    def _settled(self, size: int) -> list[Piece]:
        """Pieces that the batch size is found on: until it stays, or a share of the time is used up."""
        found: list[Piece] = []
        until = self._left() * (1 - _WARM_UP_SHARE)
        for number in range(_WARM_UP_UNITS):
            before = None if self._latest is None else self._latest.batch_size
            found += self._measured(-1, self._pieces.at(size, (number + 0.25) / _WARM_UP_UNITS))
            if self._latest is None or self._latest.batch_size == before or self._left() < until:
                break
        return found

    def _plan(self, largest: int) -> list[tuple[int, Unit]]:
        """The pieces with the number of their place: at each a large one, and a smaller one beside it."""
        plan = []
        rng = np.random.default_rng(self._options.seed)
        for turn, number in enumerate(scattered(self._places)):
            # Somewhere in its part of the listing: steps of one length may always meet the same in a listing that repeats.
            whole = self._pieces.at(largest, (number + rng.random()) / self._places)
            plan.append((number, whole))
            part = 2 if turn % 2 else 4
            # Pieces of one item tell nothing of what a unit takes besides, so that larger ones lie beside them.
            small = part if largest == 1 else max(1, largest // part)
            if len(plan) < self._options.units and small != largest:
                plan.append((number, self._pieces.beside(whole, small)))
        return plan

    def _measured(self, place_number: int, unit: Unit, upcoming: Unit | None = None) -> list[Piece]:
        """The piece, once computed; nothing where it failed or there is no more time."""
        limit = self._left() + (_OVERRUN - 1) * self._options.seconds
        if limit <= 0:
            return []
        try:
            found: Measured = ray.get(self._actor.measure.remote(unit, upcoming), timeout=limit)
        except GetTimeoutError:
            return []
        if not found.reply.committed:
            self._errors.append(found.reply.error)
            return []
        self._latest = found
        return [
            Piece(
                place_number,
                unit.start,
                unit.size,
                found.reply.seconds,
                found.reply.publishing,
                found.table_bytes,
                found.files,
                found.reply.passes,
                found.reply.bad_items,
            )
        ]

    def _left(self) -> float:
        return self._options.seconds - (time.monotonic() - self._began)


def _seconds_each(done: Sequence[Piece]) -> float:
    """Time of an item in the latest piece; 0 where there is none."""
    return (done[-1].seconds + done[-1].publishing) / done[-1].items if done else 0.0


def _end(actor: Any, opened: ProbeOpened | None) -> None:
    """End the worker, and its folder with it."""
    try:
        ray.get(actor.end.remote(), timeout=_CLOSE_SECONDS)
    except (RayError, GetTimeoutError):
        if opened is not None and opened.host == socket.gethostname():
            shutil.rmtree(opened.folder, ignore_errors=True)
    ray.kill(actor, no_restart=True)
