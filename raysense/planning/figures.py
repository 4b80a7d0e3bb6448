"""A plan as a picture: wall time and money against the number of GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from raysense.errors import UsageError
from raysense.planning.costs import Interval
from raysense.planning.display import amount, duration
from raysense.planning.plan import Plan
from raysense.report.style import BLUE, GREY, ORANGE, RED, WIDTH, abbreviated, figure_bytes, styled

FORMATS = ("png", "pdf", "svg")

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_TICKS = (
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
    *(_MINUTE * count for count in (1, 2, 5, 10, 20, 30)),
    *(_HOUR * count for count in (1, 2, 5, 10, 20)),
    *(_DAY * count for count in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)),
)
_MOST_TICKS = 7


def figure_format(path: str | os.PathLike[str]) -> str:
    """The format that a file's ending asks for.

    Raises:
        UsageError: it asks for none that there is, or its folder is missing.
    """
    file = Path(path)
    found = file.suffix.removeprefix(".").lower()
    if found not in FORMATS:
        raise UsageError(f"figure {str(path)!r} must end with {', '.join(f'.{name}' for name in FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"figure {str(path)!r} is in a folder that does not exist; create it first")
    return found


def write_figure(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Draw a plan into a PNG, PDF or SVG file.

    Raises:
        UsageError: the file's ending asks for another format, or it cannot be written.
    """
    data = figure_bytes(plan_figure(plan), figure_format(path))
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise UsageError(f"figure {str(path)!r} cannot be written ({error.strerror}); name another file") from error


def plan_figure(plan: Plan) -> Figure:
    """Wall time, and money (GPU hours where there is no price), against the number of GPUs, with bands."""
    gpus = [point.gpus for point in plan.curve]
    worker = "GPUs" if plan.calibration.on_gpu else "workers"
    no_price = not plan.options.price
    costs = [point.gpu_hours if no_price or point.money is None else point.money for point in plan.curve]
    walls = [point.wall for point in plan.curve]
    with styled():
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        alone = 3600 * plan.estimate.hours.value
        left.plot(gpus, [alone / count for count in gpus], color=GREY, linewidth=1, linestyle="--", label="work / N")
        _band(left, gpus, walls, BLUE, "median, 10% to 90%")
        left.set(xscale="log", yscale="log", title="Wall time", xlabel=worker)
        low, high = min(wall.low for wall in walls) / 1.6, 1.4 * max(wall.high for wall in walls)
        left.set_ylim(low, high)
        left.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        left.yaxis.set_minor_locator(NullLocator())
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        title = f"{'GPU' if plan.calibration.on_gpu else 'Worker'} hours paid" if no_price else "Money"
        _band(right, gpus, costs, ORANGE, "median, 10% to 90%")
        right.set(xscale="log", yscale="log", title=title, xlabel=worker)
        right.set_ylim(min(cost.low for cost in costs) / 2, 1.4 * max(cost.high for cost in costs))
        right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
        for axes, values in ((left, walls), (right, costs)):
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            _mark_asked(axes, plan, dict(zip(gpus, values, strict=True)))
            axes.legend(loc="upper right" if axes is left else "upper left")
        figure.suptitle(_title(plan), fontsize=10)
    return figure


def _band(axes: Axes, gpus: Sequence[int], values: Sequence[Interval], color: str, label: str) -> None:
    low, high = [value.low for value in values], [value.high for value in values]
    axes.fill_between(gpus, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(gpus, [value.value for value in values], color=color, marker="o", markersize=3, label=label)


def _mark_asked(axes: Axes, plan: Plan, values: Mapping[int, Interval]) -> None:
    """Circle the numbers of GPUs that were asked for, with their figures."""
    falling = axes.get_title() == "Wall time"
    written = duration if falling else amount
    for point in plan.asked:
        value = values[point.gpus].value
        right = falling or point.gpus == plan.curve[0].gpus  # on the left of the first one are the figures of the axis
        axes.plot([point.gpus], [value], marker="o", markersize=8, markerfacecolor="none", color=RED, zorder=3)
        label = axes.annotate(
            f"{point.gpus:,}: {written(value)}",
            (point.gpus, value),
            xytext=(6 if right else -6, 8 if falling or not right else -13),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
            color=RED,
            fontsize=8,
        )
        label.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])


def _ticks(low: float, high: float) -> list[float]:
    """Round times between two, not too many."""
    found = [tick for tick in _TICKS if low <= tick <= high]
    return found[:: math.ceil(len(found) / _MOST_TICKS) or 1]


def _title(plan: Plan) -> str:
    estimate = plan.estimate
    kind = abbreviated(plan.kind.rsplit("/", 1)[-1], 40)
    return (
        f"{kind}: {estimate.items:,} {plan.noun} in {estimate.units:,} units, simulated; "
        f"calibrated on {plan.calibration.device}"
    )
