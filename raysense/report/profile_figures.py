"""Figures of scores along one axis: one shape with FI, regions and traps, and classes of several networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from raysense.report.manhattan import powers_of_ten
from raysense.report.points import LogValues, scale_edges
from raysense.report.semantic_data import Box, MapAxis
from raysense.report.semantic_figures import Strip, nice_ticks, show_strip
from raysense.report.style import BLUE, GREY, LINES, RED, WIDTH, abbreviated, styled

_STRIP = 0.95
_COLOURS = dict(zip(("naive", "constrained", "trapezoid", "oir_b", "oir_w"), LINES[1:], strict=False))


@dataclass(frozen=True)
class Profile:
    """Values along an axis, ascending.

    Attributes:
        axis: The axis.
        at: Grid points, shape ``[n]``.
        score: Shape ``[n]``.
        fi: Shape ``[n]``; None where it was not computed.
        bound: (1 - p)/p, shape ``[n]``; None as ``fi``.
    """

    axis: MapAxis
    at: NDArray[np.float64]
    score: NDArray[np.float64]
    fi: NDArray[np.float64] | None = None
    bound: NDArray[np.float64] | None = None


def profile_figure(
    profile: Profile,
    boxes: Sequence[Box],
    traps: Sequence[tuple[float, float]],
    strip: Strip | None,
    title: str,
) -> tuple[Figure, str]:
    """Score over the axis, regions below the curve as intervals, traps shaded; FI beneath; pictures of poses above.

    Args:
        profile: What is drawn.
        boxes: Regions over this axis alone.
        traps: Lower and upper ends of traps; the upper may lie beyond the range of a periodic axis.
        strip: Pictures of poses.
        title: What is written above it all.

    Returns:
        The figure, and sentences on what was clamped.
    """
    remarks = ""
    with styled():
        heights = [] if strip is None else [_STRIP]
        heights += [2.3 + 0.12 * len(_lanes(boxes))] + ([] if profile.fi is None else [1.5])
        figure = Figure(figsize=(WIDTH, 0.75 + sum(heights)), layout="constrained")
        rows = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        figure.suptitle(title, fontsize=10, parse_math=False)
        if strip is not None:
            show_strip(rows.pop(0), strip, profile.axis)
        _score(rows[0], profile, boxes, traps)
        if profile.fi is not None and profile.bound is not None:
            remarks = _influence(rows[1], profile, traps)
            rows[0].tick_params(labelbottom=False)
        rows[-1].set_xlabel(profile.axis.label)
    return figure, remarks


def profiles_by_class(classes: Mapping[str, Mapping[str, Profile]]) -> Figure:
    """Mean scores along an axis, a panel for each class and a line for each network, at most as many as `LINES`."""
    with styled():
        columns = min(2, len(classes))
        rows = -(-len(classes) // columns)
        figure = Figure(figsize=(WIDTH, 0.9 + 1.7 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
        handles: dict[str, Line2D] = {}
        for place, (axes, (name, networks)) in enumerate(zip(panels, classes.items(), strict=False)):
            for network, profile in networks.items():
                colour = handles[network].get_color() if network in handles else LINES[len(handles)]
                x, y = _around(profile.axis, profile.at, profile.score)
                (handles[network],) = axes.plot(x, y, color=colour, linewidth=1.2, label=abbreviated(network, 30))
                nice_ticks(axes, profile.axis, True, 9)
                axes.set_xlabel(profile.axis.label if place + columns >= len(classes) else "")
            axes.tick_params(labelbottom=place + columns >= len(classes))
            axes.set_ylim(-0.02, 1.02)
            axes.set_title(abbreviated(name, 40), fontsize=9, parse_math=False)
        for axes in panels[len(classes) :]:
            axes.set_axis_off()
        figure.supylabel("mean score (softmax probability)", fontsize=9)
        legend = figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=min(4, len(handles)))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _score(axes: Axes, profile: Profile, boxes: Sequence[Box], traps: Sequence[tuple[float, float]]) -> None:
    x, y = _around(profile.axis, profile.at, profile.score)
    axes.plot(x, y, color=BLUE, linewidth=1.3)
    _shade(axes, profile.axis, traps, "trap")
    lanes = _lanes(boxes)
    named = set()
    for box in boxes:
        height = -0.06 - 0.075 * lanes.index((box.kind, box.method))
        label = box.method if box.kind == "robust" else f"{box.method} (adversarial)"
        colour = _COLOURS[box.method]
        for low, high in _pieces(profile.axis, float(box.lower[0]), float(box.upper[0])):
            axes.plot(
                [low, high], [height, height], marker="|", color=colour, linewidth=2.5, markersize=5, solid_capstyle="butt",
                linestyle="-" if box.kind == "robust" else (0, (2, 1)), label=None if label in named else label,
            )  # fmt: skip
            named.add(label)
        score = float(np.interp(box.start[0], x, y))
        axes.plot(box.start[0], score, "o", color="black", markersize=4, zorder=4)
    if boxes:
        axes.plot([], [], "o", color="black", markersize=4, label="initial point")
    axes.set_ylim(-0.06 - 0.075 * len(lanes), 1.03)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel("score (softmax probability)")
    nice_ticks(axes, profile.axis, True, 12)
    if boxes or traps:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)


def _influence(axes: Axes, profile: Profile, traps: Sequence[tuple[float, float]]) -> str:
    assert profile.fi is not None
    assert profile.bound is not None
    edges = scale_edges(np.concatenate([profile.fi, profile.bound]))
    remarks = ""
    for values, colour, label in ((profile.bound, GREY, "(1 − p)/p"), (profile.fi, RED, "FI")):
        logs = LogValues.of(values, edges)
        axes.plot(*_around(profile.axis, profile.at, logs.logs), color=colour, linewidth=1.2, label=label)
        remarks += logs.says(f"values of {label}")
    _shade(axes, profile.axis, traps, None)
    powers_of_ten(axes.yaxis)
    nice_ticks(axes, profile.axis, True, 12)
    axes.set_ylabel("FI [1]")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return remarks


def _lanes(boxes: Sequence[Box]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((box.kind, box.method) for box in boxes))


def _shade(axes: Axes, axis: MapAxis, traps: Sequence[tuple[float, float]], label: str | None) -> None:
    for trap in traps:
        for low, high in _pieces(axis, *trap):
            axes.axvspan(low, high, color=RED, alpha=0.18, linewidth=0, label=label, zorder=0)
            label = None


def _pieces(axis: MapAxis, lower: float, upper: float) -> list[tuple[float, float]]:
    """The parts of an interval that lie in the range; one that crosses the seam of a periodic axis has two."""
    length = axis.high - axis.low
    if axis.periodic:
        if upper - lower >= length:
            return [(axis.low, axis.high)]
        turn = np.floor((lower - axis.low) / length) * length
        lower, upper = lower - turn, upper - turn
        if upper > axis.high:
            return [(lower, axis.high), (axis.low, upper - length)]
    return [(max(lower, axis.low), min(upper, axis.high))] if upper >= axis.low and lower <= axis.high else []


def _around(
    axis: MapAxis, at: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A line closed at the seam of a periodic axis."""
    if not axis.periodic:
        return at, values
    return np.append(at, at[0] + axis.high - axis.low), np.append(values, values[0])
