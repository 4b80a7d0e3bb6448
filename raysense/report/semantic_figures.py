"""Figures of semantic maps: one with its regions, traps and poses, and many side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, Normal, Stroke
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from raysense.report.influence_figures import show_image
from raysense.report.semantic_data import HIGH, Box, MapAxis, SemanticMap, Trap
from raysense.report.style import ORANGE, RED, WIDTH, abbreviated, styled

STYLES: Mapping[str, tuple[str, Any]] = {
    "constrained": ("white", "solid"),
    "naive": (RED, "dashed"),
    "oir_b": ("#F0A6CB", "dashdot"),
    "oir_w": ("#56B4E9", "dotted"),
    "trapezoid": (ORANGE, (0, (6, 1.5, 1.5, 1.5))),
}
"""Colour and dashes of the boxes of every method."""
KINDS = {"robust": "robust regions", "adversarial": "adversarial regions"}

_COLOURS = "viridis"
_NORM = Normalize(0.0, 1.0)
_MISSING = "#DDDDDD"
_TRAP = "#FF2D2D"
_STRIP = 0.95
_PANEL = 2.5


@dataclass(frozen=True)
class Strip:
    """Pictures of poses along the first axis: where on it ``[P]``, pictures ``[H, W]`` or ``[H, W, 3]``, what is fixed."""

    at: Sequence[float]
    pictures: Sequence[NDArray[np.float64]]
    fixed: str


def map_figure(
    found: SemanticMap, boxes: Sequence[Box], traps: Sequence[Trap], strip: Strip | None, title: str
) -> Figure:
    """One map over two axes, a panel for each kind of region; pictures of poses above it.

    Boxes cross the seam of a periodic axis; on the other axes they are cut at the frame.
    """
    kinds = [kind for kind in KINDS if any(box.kind == kind for box in boxes)] or [""]
    with styled():
        above = 0.35 if strip is None else 0.35 + _STRIP
        figure = Figure(figsize=(WIDTH, above + _PANEL * len(kinds) + 0.75), layout="constrained")
        ratios = ([] if strip is None else [_STRIP]) + [_PANEL] * len(kinds)
        rows = figure.subplots(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        panels = rows if strip is None else rows[1:]
        figure.suptitle(title, fontsize=10, parse_math=False)
        if strip is not None:
            show_strip(rows[0], strip, found.axes[0])
        for axes, kind in zip(panels, kinds, strict=True):
            _show_map(axes, found)
            _show_traps(axes, found, traps)
            for box in boxes:
                if box.kind == kind:
                    _show_box(axes, found.axes, box)
            if len(kinds) > 1:
                axes.set_title(KINDS[kind], loc="left", fontsize=9)
            axes.set_ylabel(found.axes[1].label)
        panels[-1].set_xlabel(found.axes[0].label)
        _colour_bar(figure, list(panels))
        _legend(figure, boxes, traps)
    return figure


def map_grid(rows: Mapping[str, Mapping[str, SemanticMap]], heads: Sequence[str]) -> Figure:
    """Maps by row and column, with one colour scale; a cell without a map stays empty."""
    with styled():
        height = 1.45 if len(heads) > 3 else 1.9
        figure = Figure(figsize=(WIDTH, 0.9 + height * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(heads), squeeze=False, sharex=True, sharey=True)
        for panels, (name, maps) in zip(grid, rows.items(), strict=True):
            for axes, head in zip(panels, heads, strict=True):
                if head in maps:
                    _show_map(axes, maps[head], ticks=4 if len(heads) > 3 else 6)
                else:
                    axes.grid(False)
                    axes.text(0.5, 0.5, "no map", ha="center", va="center", transform=axes.transAxes, fontsize=8)
            panels[0].set_ylabel(abbreviated(name, int(14 * height)), fontsize=8, parse_math=False)
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(abbreviated(head, 110 // len(heads)), fontsize=9, parse_math=False)
        first = next(found for maps in rows.values() for found in maps.values())
        figure.supxlabel(first.axes[0].label, fontsize=9)
        figure.supylabel(first.axes[1].label, fontsize=9)
        _colour_bar(figure, list(grid.flat))
    return figure


def show_strip(axes: Axes, strip: Strip, axis: MapAxis) -> None:
    """Draw pictures in a row, each above its place on the axis."""
    axes.set_xlim(axis.low, axis.high)
    axes.set_ylim(0.0, 1.0)
    axes.set_axis_off()
    width = 0.96 / len(strip.pictures)
    for place, picture in zip(strip.at, strip.pictures, strict=True):
        centre = (place - axis.low) / (axis.high - axis.low)
        inset = axes.inset_axes((centre - width / 2, 0.0, width, 0.86))
        show_image(inset, picture)
        inset.set_title(f"{place:g}", fontsize=7, pad=1.5)
    axes.text(1.005, 0.4, strip.fixed, transform=axes.transAxes, fontsize=7, va="center", parse_math=False)


def nice_ticks(axes: Axes, axis: MapAxis, horizontal: bool, most: int) -> None:
    """Limits and ticks of an axis: degrees are divided by 15, 30, 45, 90."""
    side = axes.xaxis if horizontal else axes.yaxis
    (axes.set_xlim if horizontal else axes.set_ylim)(axis.low, axis.high)
    if axis.unit == "degrees":
        length = axis.high - axis.low
        step = next((step for step in (5, 10, 15, 30, 45, 90) if length / step <= most), 180)
        side.set_major_locator(MultipleLocator(step))


def _show_map(axes: Axes, found: SemanticMap, ticks: int = 9) -> None:
    values, edges = found.values, []
    for dimension, (axis, line) in enumerate(zip(found.axes, found.lines, strict=True)):
        step = line[1] - line[0] if len(line) > 1 else axis.high - axis.low
        ends = np.append(line, line[-1] + step) - step / 2
        if axis.periodic:
            # The cell at the seam shows at both ends.
            values = np.concatenate([values, np.take(values, [0], dimension)], dimension)
            ends = np.append(ends, ends[-1] + step)
        edges.append(ends)
    axes.set_facecolor(_MISSING)
    axes.pcolormesh(*edges, values.T, cmap=_COLOURS, norm=_NORM, rasterized=True)
    axes.grid(False)
    nice_ticks(axes, found.axes[0], True, ticks)
    nice_ticks(axes, found.axes[1], False, max(3, ticks // 2))


def _show_box(axes: Axes, named: Sequence[MapAxis], box: Box) -> None:
    colour, dashes = STYLES[box.method]
    for shift in np.ndindex(*(3 if axis.periodic else 1 for axis in named)):
        corner, size, start = [], [], []
        for dimension, (axis, turn) in enumerate(zip(named, shift, strict=True)):
            length = axis.high - axis.low
            lower, upper = float(box.lower[dimension]), float(box.upper[dimension])
            moved = 0.0
            if axis.periodic:
                # Into the range, and its copies a turn away on both sides.
                moved = (np.floor((axis.low - lower) / length) + turn) * length
                if upper - lower >= length:
                    lower, upper, moved = axis.low - length, axis.high + length, 0.0
            corner.append(lower + moved)
            size.append(upper - lower)
            start.append(float(box.start[dimension]))
        axes.add_patch(
            Rectangle(
                (corner[0], corner[1]), size[0], size[1], fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.4,
                path_effects=_halo(), zorder=4,
            )
        )  # fmt: skip
    axes.plot(*start, "+", color="white", markersize=7, markeredgewidth=1.3, path_effects=_halo(), zorder=5)


def _show_traps(axes: Axes, found: SemanticMap, traps: Sequence[Trap]) -> None:
    steps = [line[1] - line[0] for line in found.lines]
    for trap in traps:
        inside = found.component(trap.least, HIGH)
        segments = []
        for cell in np.argwhere(inside):
            x, y = (found.lines[dimension][cell[dimension]] for dimension in range(2))
            for dimension in range(2):
                for side in (-1, 1):
                    near = cell.copy()
                    near[dimension] = (near[dimension] + side) % inside.shape[dimension]
                    if inside[tuple(near)]:
                        continue
                    half = np.array(steps) / 2
                    a, b = np.array([x, y]) - half, np.array([x, y]) + half
                    edge = b[dimension] if side > 0 else a[dimension]
                    a[dimension] = b[dimension] = edge
                    segments.append((tuple(a), tuple(b)))
        axes.add_collection(
            LineCollection(_closed(segments, found.axes), colors=_TRAP, linewidths=1.1, zorder=3), autolim=False
        )
        # Numbers at the frame move inside it.
        x, y = (
            float(np.clip(at, axis.low + 0.012 * (axis.high - axis.low), axis.high - 0.012 * (axis.high - axis.low)))
            for at, axis in zip(trap.least, found.axes, strict=True)
        )
        axes.text(
            x,
            y,
            str(trap.number),
            color="white",
            fontsize=7,
            ha="center",
            va="center",
            path_effects=_halo(1.6),
            zorder=6,
        )


def _closed(
    segments: list[tuple[tuple[float, ...], tuple[float, ...]]], named: Sequence[MapAxis]
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Segments, and their copies a turn further, which show the half cells at the upper end of a periodic axis."""
    found = list(segments)
    for dimension, axis in enumerate(named):
        if axis.periodic:
            turn = np.zeros(2)
            turn[dimension] = axis.high - axis.low
            found += [(tuple(a + turn), tuple(b + turn)) for a, b in found]
    return found


def _legend(figure: Figure, boxes: Sequence[Box], traps: Sequence[Trap]) -> None:
    handles = [
        Line2D([], [], color=STYLES[method][0], linestyle=STYLES[method][1], path_effects=_halo(), label=method)
        for method in STYLES
        if any(box.method == method for box in boxes)
    ]
    if boxes:
        handles.append(
            Line2D(
                [], [], linestyle="none", marker="+", color="white", markersize=7, path_effects=_halo(),
                label="initial point",
            )
        )  # fmt: skip
    if traps:
        handles.append(Line2D([], [], color=_TRAP, label="trap, numbered at its least score"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, handlelength=3.2)


def _halo(width: float = 2.6) -> list[AbstractPathEffect]:
    return [Stroke(linewidth=width, foreground="black"), Normal()]


def _colour_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    height = figure.get_figheight()
    bar = figure.colorbar(ScalarMappable(_NORM, _COLOURS), ax=axes, pad=0.01, aspect=25, shrink=min(1.0, 4.0 / height))
    bar.set_label("score (softmax probability)")
