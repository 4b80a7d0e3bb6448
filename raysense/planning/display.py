"""A plan for people: tables, and sentences on what is assumed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raysense.planning.costs import Interval
from raysense.planning.plan import Plan
from raysense.planning.scaling import FEWEST_RUNS, Point, SizePoint
from raysense.query.display import UNBOUNDED_WIDTH

_WORTH = 0.02
"""Share of wall time that a recommended unit size saves at the least."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print the estimate, the curve over numbers of GPUs, unit sizes, a recommendation, and what is assumed."""
    console.print(Text(_calibrated(plan)), soft_wrap=True)
    console.print(_estimate_table(plan))
    _print_runs(console, functools.partial(_curve_table, plan))
    _print_runs(console, functools.partial(_sizes_table, plan))
    console.print(Text(recommendation(plan)), soft_wrap=True)
    console.print(Text(assumptions(plan), style="dim"), soft_wrap=True)
    for note in plan.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def recommendation(plan: Plan) -> str:
    """One sentence on the best unit size, and what it saves."""
    gpus, best = plan.asked[0].gpus, plan.best
    current = _current(plan)
    wall = 1 - best.point.wall.value / current.point.wall.value
    hours = 1 - best.point.gpu_hours.value / current.point.gpu_hours.value
    workers = f"{gpus} {_workers(plan, gpus)}"
    if wall < _WORTH:
        return f"unit size: {current.unit_size} is good on {workers}; no other is quicker by more than {_WORTH:.0%}"
    return (
        f"unit size: --unit-size {best.unit_size} on {workers} {_change(wall)} of the wall time and {_change(hours)} of "
        f"the {_hours(plan)}, against {current.unit_size}"
    )


def assumptions(plan: Plan) -> str:
    """What the simulation takes for given, with its values."""
    model, options = plan.cluster, plan.options
    losses = "no machine is lost"
    if model.loss_rate > 0:
        warned = (
            f"{model.notice_share:.0%} with {model.notice:.0f} s of notice" if model.notice > 0 else "without notice"
        )
        losses = f"{model.loss_rate:g} losses per machine hour, {warned}, others noticed after {model.detection:.0f} s"
    return (
        f"assumed: machines of {model.gpus_per_node} {_workers(plan, model.gpus_per_node)}, none up at the start, up after "
        f"{duration(model.startup)} (spread {model.startup_spread:.0%}), paid from then on when they are asked for, until "
        f"idle for {duration(model.idle)}; {losses}; {model.straggler_share:.0%} of the machines take "
        f"{model.straggler_factor:g} times as long; workers ready after {duration(model.opening)} (measured, spread "
        f"{model.opening_spread:.0%}), units published in {duration(model.publishing)} ({options.latency:g} s a file, or "
        f"as measured), {1e3 * model.dispatch:g} ms of the driver a unit; units take times as measured, at random; the "
        f"head, storage and traffic are not in the price; intervals hold four of five outcomes, by what the calibration "
        f"and these chances leave open, not where machines are slower at another time; none where fewer than {FEWEST_RUNS} "
        f"simulations were made; seed {options.seed}"
    )


def duration(seconds: float) -> str:
    """A time with three significant digits at the most: 0.15 s, 42 s, 12.3 min, 3.4 h, 2.1 days."""
    for limit, size, unit in ((59.5, 1.0, "s"), (59.5 * 60, 60.0, "min"), (47.5 * 3600, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{amount(seconds / 86400)} days"


def bytes_text(size: float) -> str:
    """A size in decimal units: 812 B, 3.42 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{amount(size)} TB"


def amount(value: float) -> str:
    """Hours, money or counts: three significant digits, or whole with separators from 1000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


# -- tables ------------------------------------------------------------------------------------------------------------


def _estimate_table(plan: Plan) -> Table:
    estimate = plan.estimate
    table = Table(title="Estimate", title_justify="left", header_style="bold")
    for name in ("what", "value", f"{plan.level:.0%} interval"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=name != "what")

    def row(what: str, value: Interval, text: Callable[[float], str]) -> None:
        low, high = text(value.low), text(value.high)
        table.add_row(Text(what), text(value.value), f"{low} .. {high}" if low != high else "")

    table.add_row("units", f"{estimate.units:,}", Text(f"of at most {estimate.unit_size:,}"))
    table.add_row(plan.noun, f"{estimate.items:,}", "")
    if estimate.passes is not None:
        row("passes (images forward or backward)", estimate.passes, amount)
    row("bytes out", estimate.size, bytes_text)
    for name, size in estimate.table_sizes.items():
        row(f"  table {name}", size, bytes_text)
    table.add_row("  listing", bytes_text(estimate.listing_size), "")
    table.add_row("files (PUT requests)", f"{estimate.files:,}", "")
    hours = _hours(plan)
    row(f"{hours} of work", estimate.hours, amount)
    row(f"  on {plan.noun}", estimate.computing, amount)
    row("  on units besides", estimate.overhead, amount)
    table.add_row("  on publishing", amount(estimate.publishing), "")
    for point in plan.asked:
        table.add_section()
        workers = f"{point.gpus} {_workers(plan, point.gpus)}"
        row(f"wall time on {workers}", point.wall, duration)
        row(f"{hours} paid", point.gpu_hours, amount)
        if point.money is not None:
            row("money", point.money, amount)
    return table


def _curve_table(plan: Plan, detail: int) -> Table:
    asked = {point.gpus for point in plan.asked}
    table = _runs_table(plan, "Scaling", [_workers(plan, 2)], detail)
    for point in plan.curve:
        table.add_row(f"{point.gpus:,}", *_cells(plan, point, detail), style="bold" if point.gpus in asked else None)
    return table


def _sizes_table(plan: Plan, detail: int) -> Table:
    gpus = plan.asked[0].gpus
    table = _runs_table(plan, f"Unit sizes on {gpus} {_workers(plan, gpus)}", ["unit\nsize", "units"], detail)
    for size in plan.sizes:
        table.add_row(
            f"{size.unit_size:,}",
            f"{size.units:,}",
            *_cells(plan, size.point, detail),
            style="bold" if size.unit_size == plan.estimate.unit_size else None,
        )
    return table


def _runs_table(plan: Plan, title: str, first: Sequence[str], detail: int) -> Table:
    """A table of simulated runs without rows: with intervals from a detail of 1 on, with what hours go to from 2 on."""
    table = Table(title=title, title_justify="left", header_style="bold")
    interval = [f"{plan.level:.0%} interval"] if detail >= 1 else []
    money = ["money"] if plan.options.price is not None else []
    hours = _hours(plan).replace(" ", "\n")
    for name in (*first, "wall time", *interval, hours, *money, *(_SHARES if detail >= _MOST_DETAIL else ())):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(plan: Plan, point: Point, detail: int) -> list[str]:
    """What came of a simulated run."""
    enough = point.runs >= FEWEST_RUNS
    interval = f"{duration(point.wall.low)} .. {duration(point.wall.high)}" if enough else ""
    return [
        duration(point.wall.value),
        *([interval] if detail >= 1 else []),
        amount(point.gpu_hours.value),
        *([amount(point.money.value)] if point.money is not None else []),
        *(_shares(point) if detail >= _MOST_DETAIL else []),
    ]


def _print_runs(console: Console, made: Callable[[int], Table]) -> None:
    """Print a table of runs in as much detail as the console is wide enough for; figures are never cut off."""
    for detail in range(_MOST_DETAIL, -1, -1):
        table = made(detail)
        width = Measurement.get(console, console.options.update(width=UNBOUNDED_WIDTH), table).maximum
        if width <= console.width or not detail:
            console.print(table, width=width, crop=False)
            return


_MOST_DETAIL = 2
_SHARES = ("computing", "units", "starting", "lost", "waiting")


def _shares(point: Point) -> list[str]:
    shares = point.shares
    values = (shares.computing, shares.overhead, shares.starting, shares.lost, shares.waiting)
    return [f"{100 * value:.1f}%" for value in values]


# -- words -------------------------------------------------------------------------------------------------------------


def _calibrated(plan: Plan) -> str:
    done = plan.calibration
    items = sum(piece.items for piece in done.pieces)
    warm = done.warm_up
    text = (
        f"{plan.kind}: calibrated on {done.device} ({done.host}) with {len(done.pieces)} pieces of up to {done.largest} "
        f"{plan.noun}, {items} together"
    )
    if warm:
        text += f", after {len(warm)} to warm up, the first of which ({warm[0].items}) took {duration(warm[0].seconds)}"
    return (
        f"{text}; {duration(done.seconds)} in all. A worker starts in {duration(done.starting)} and loads the scan in "
        f"{duration(done.opening)}; batches of {done.batch_size}; at most {bytes_text(done.memory)} of "
        f"{'GPU ' if done.on_gpu else ''}memory"
    )


def _current(plan: Plan) -> SizePoint:
    return next(size for size in plan.sizes if size.unit_size == plan.estimate.unit_size)


def _change(share: float) -> str:
    return (
        f"saves {share:.0%}" if share >= 0.005 else f"costs {-share:.0%} more" if share <= -0.005 else "saves nothing"
    )


def _workers(plan: Plan, count: int) -> str:
    name = "GPU" if plan.calibration.on_gpu else "worker"
    return name if count == 1 else f"{name}s"


def _hours(plan: Plan) -> str:
    return "GPU hours" if plan.calibration.on_gpu else "worker hours"
