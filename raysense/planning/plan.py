"""`raysense.plan`: what a scan will cost, before it is paid for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raysense.engine.runtime import check_reachable
from raysense.errors import UsageError
from raysense.options import ComputeOptions
from raysense.planning.calibration import Calibration, calibrate
from raysense.planning.costs import LEVEL
from raysense.planning.estimate import Estimate, UnitCosts, estimated, unit_costs
from raysense.planning.fleet import ClusterModel
from raysense.planning.options import PlanOptions, share_and_factor
from raysense.planning.scaling import Point, Scenario, SizePoint, best_size, scaling_curve, size_sweep
from raysense.scans import Prepared, Scan, get_scan
from raysense.validation import validated

_SIZE_STEPS = 4
_MANY_GPUS = 200
_MOST_UNITS = 400_000
_EXTRAPOLATED = 4
_SLOW_TO_COME = 10.0


@dataclass(frozen=True)
class Plan:
    """What a scan will cost.

    Attributes:
        kind: Kind of scan.
        noun: What its items are: samples, or tasks.
        options: What was asked for, and what is assumed of the cluster.
        calibration: What was measured.
        cluster: What the simulation assumes, the workers' opening time and publishing as measured.
        level: Probability of the intervals: with 0.8, from the 10% to the 90% quantile.
        estimate: Units, passes, bytes, files, hours of computing.
        asked: Wall time, GPU hours and money for the numbers of GPUs asked for, in their order.
        curve: The same from 1 to 1000 GPUs.
        sizes: The same for other unit sizes, on the first number of GPUs asked for.
        best: The unit size with the least wall time among them.
        notes: Sentences on what the figures do not tell.
    """

    kind: str
    noun: str
    options: PlanOptions
    calibration: Calibration
    cluster: ClusterModel
    level: float
    estimate: Estimate
    asked: tuple[Point, ...]
    curve: tuple[Point, ...]
    sizes: tuple[SizePoint, ...]
    best: SizePoint
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as a JSON document. Times are in seconds unless their name says hours, sizes in bytes."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "options"
        }
        plain = {name: _plain(value) for name, value in fields.items()}
        return plain | {"options": self.options.model_dump(mode="json")}


def plan(
    kind: str,
    *,
    gpus: int | Sequence[int],
    price: float | None = None,
    options: PlanOptions | Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    **spec: Any,
) -> Plan:
    """Estimate what a scan costs, from a few pieces of it that are really computed, and a simulated cluster.

    Nothing is left on disk. Computing takes at most about ``options["seconds"]``; then a simulation of some ten seconds.

    Args:
        kind: Kind of scan, e.g. ``"influence"``.
        gpus: Number of GPUs (of workers, on a CPU), or several.
        price: Of one GPU for an hour, in any currency.
        options: More fields of `raysense.planning.options.PlanOptions`: calibration, cluster, seed.
        progress: Told in words what is being done.
        **spec: What to scan: the fields of the kind's spec, as for `raysense.scan`.

    Raises:
        UsageError: something about the input is wrong.
        ScanFailed: no worker could be started, or nothing could be computed within the time.
    """
    tell = progress or _silent
    given = options.model_dump(exclude_unset=True) if isinstance(options, PlanOptions) else dict(options or {})
    checked = validated(PlanOptions, {**given, "gpus": gpus, "price": price})
    scan_type = get_scan(kind)
    bound = scan_type(validated(scan_type.spec_type, spec))
    check_reachable(checked.run_options)
    tell("listing the data and loading the model")
    prepared = bound.prepare(ComputeOptions())
    units = bound.units(prepared)
    if not units:
        raise UsageError(f"there is nothing to plan for: the scan has no {bound.noun}; choose more of the data")
    tell("calibrating: computing a few units")
    calibration = calibrate(kind, bound, prepared, checked)
    costs = unit_costs(calibration, checked.latency, checked.seed)
    model = _cluster_model(checked, calibration, costs)
    scenario = Scenario(costs.seconds, costs.residuals, model, checked.price, checked.seed)
    curve = []
    for point in scaling_curve(scenario, [unit.size for unit in units], checked.gpus):
        tell(f"simulating the scan on {point.gpus} GPUs")
        curve.append(point)
    by_gpus = {point.gpus: point for point in curve}
    sizes = []
    for size_point in size_sweep(scenario, _unit_sizes(bound, prepared, checked.gpus[0]), checked.gpus[0]):
        tell(f"simulating units of {size_point.unit_size} {bound.noun}")
        sizes.append(size_point)
    best = best_size(sizes, prepared.unit_size)
    estimate = estimated(costs, units, prepared.unit_size, prepared.listing)
    return Plan(
        kind,
        bound.noun,
        checked,
        calibration,
        model,
        LEVEL,
        estimate,
        tuple(by_gpus[number] for number in checked.gpus),
        tuple(curve),
        tuple(sizes),
        best,
        (
            *prepared.notes,
            *_few_units(checked.gpus, estimate),
            *_notes(calibration, costs, bound.noun, min(best.unit_size, estimate.items), checked),
        ),
    )


def _cluster_model(options: PlanOptions, calibration: Calibration, costs: UnitCosts) -> ClusterModel:
    share, factor = share_and_factor(options.straggler)
    return ClusterModel(
        gpus_per_node=options.gpus_per_node,
        startup=options.startup,
        opening=calibration.starting + calibration.opening + calibration.first_seconds,
        loss_rate=options.loss_rate,
        notice=options.notice,
        straggler_share=share,
        straggler_factor=factor,
        idle=options.idle,
        publishing=costs.publishing,
    )


def _unit_sizes(scan: Scan, prepared: Prepared, gpus: int) -> dict[int, list[int]]:
    """Items of each unit for unit sizes around the scan's own, by unit size, ascending."""
    found: dict[int, list[int]] = {}
    counts: set[int] = set()
    step = 2 if gpus > _MANY_GPUS else 1
    powers = range(-_SIZE_STEPS, _SIZE_STEPS + 1, step)
    for size in sorted({prepared.unit_size, *(int(prepared.unit_size * 2.0**power) for power in powers)}):
        if size < 1 or prepared.listing.num_rows / size > _MOST_UNITS:
            continue
        units = scan.units(dataclasses.replace(prepared, unit_size=size))
        if size == prepared.unit_size or len(units) not in counts:
            found[size] = [unit.size for unit in units]
            counts.add(len(units))
    return found


def _notes(calibration: Calibration, costs: UnitCosts, noun: str, best: int, options: PlanOptions) -> Iterator[str]:
    pieces = calibration.pieces
    if not calibration.on_gpu:
        yield (
            f"calibrated on a worker of this kind: {calibration.device}; times are for such workers, not for GPUs: name "
            "a cluster that has one with --address"
        )
    if not calibration.on_gpu and options.worker_cpus == "auto":
        yield (
            "a scan divides the cores among its workers, so that fewer of them have more threads each than the one that "
            "was calibrated; the same --worker-cpus here and there keeps them alike"
        )
    if not calibration.whole:
        yield (
            f"a unit of {calibration.unit_size} {noun} takes longer than there was time; calibrated on pieces of at most "
            f"{calibration.largest}: more --seconds makes the estimate surer"
        )
    if not calibration.complete:
        yield f"time was up after {len(pieces)} of {options.units} pieces: more --seconds makes the estimate surer"
    if len({piece.place for piece in pieces}) < 2:
        yield "calibrated at one place of the listing only: no uncertainty can be told"
    if not costs.seconds.separable:
        yield f"all pieces had the same size: what a unit takes besides its {noun} cannot be told, and counts as theirs"
    if best > _EXTRAPOLATED * calibration.largest:
        yield f"units of {best} {noun} were not calibrated, but pieces of up to {calibration.largest}"
    if calibration.errors:
        yield (
            f"{len(calibration.errors)} pieces of the calibration failed, the last with {calibration.errors[-1]!r}; what "
            "units that fail cost is not in the figures"
        )
    if calibration.waited > _SLOW_TO_COME:
        yield f"the worker's machine took {calibration.waited:.0f} s to come: compare --startup"
    if bad := sum(piece.bad_items for piece in pieces):
        total = sum(piece.items for piece in pieces)
        yield f"{bad} of {total} {noun} of the calibration could not be computed; the times include them"


def _few_units(gpus: Sequence[int], estimate: Estimate) -> Iterator[str]:
    if max(gpus) > estimate.units:
        more = "; a smaller --unit-size makes more units" if estimate.items > estimate.units else ""
        yield f"more GPUs than units ({estimate.units}) have nothing to do, so that the figures stay the same{more}"


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as dictionaries and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _silent(message: str) -> None:
    """Say nothing."""
