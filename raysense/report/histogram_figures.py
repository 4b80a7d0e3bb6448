"""Figures of how values are distributed over samples or pairs: histograms side by side, with common axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raysense.report.manhattan import powers_of_ten
from raysense.report.points import LogValues, scale_edges
from raysense.report.style import GREY, WIDTH, abbreviated, styled

_BINS = (10, 50)
"""Fewest and most bars."""
_COLUMNS = 3
_TAIL = 0.005
"""Share of the values at either end that may be drawn in the last bar, where they are far from all others."""


@dataclass(frozen=True)
class Distribution:
    """Values ``[N]``, what they are called, and the colour of their histogram."""

    label: str
    values: NDArray[np.float64]
    colour: str


def histograms(
    panels: Mapping[str, Sequence[Distribution]],
    x_label: str,
    counted: str,
    *,
    scale: str = "linear",
    level: float | None = None,
) -> tuple[Figure, str]:
    """Histograms, a panel for each title; of several in a panel the first is filled, the others are outlines.

    Args:
        panels: Distributions by title; none of them may be empty.
        x_label: Label of the values, with their unit.
        counted: What the bars count, e.g. samples.
        scale: linear; log (for values from 0 up, drawn at the edges where they are off the scale); or integers.
        level: A value to mark by a dotted line.

    Returns:
        The figure, and sentences on values drawn at the edges.
    """
    every = np.concatenate([part.values for parts in panels.values() for part in parts])
    says = ""
    drawn = {title: [part.values for part in parts] for title, parts in panels.items()}
    if scale == "log":
        edges = scale_edges(every)
        says = LogValues.of(every, edges).says("values")
        drawn = {title: [LogValues.of(one, edges).logs for one in values] for title, values in drawn.items()}
        every = LogValues.of(every, edges).logs
    most = max(len(part.values) for parts in panels.values() for part in parts)
    bins, clipped = _bins(every, scale == "integers", int(np.clip(2 * most**0.5, *_BINS)))
    if clipped:
        says += f" {clipped:,} values beyond the horizontal axis are counted in the bars at its ends."
    with styled():
        columns = min(_COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(WIDTH if columns > 1 else 0.72 * WIDTH, 0.5 + 2.3 * rows), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=len(panels) > 1).flat)
        for place, (axes, (title, parts)) in enumerate(zip(grid, panels.items(), strict=False)):
            for index, (part, values) in enumerate(zip(parts, drawn[title], strict=True)):
                _bars(axes, values, bins, part, filled=index == 0)
            if level is not None:
                axes.axvline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=3)
            axes.set_title(abbreviated(title, 80 // columns), fontsize=9, parse_math=False)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.tick_params(labelbottom=place + columns >= len(panels))
            if len(parts) > 1:
                for text in axes.legend(fontsize=8, loc="best").get_texts():
                    text.set_parse_math(False)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        if scale == "log":
            powers_of_ten(grid[0].xaxis)
        elif scale == "integers":
            grid[0].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(counted, fontsize=9)
    return figure, says


def _bins(values: NDArray[np.float64], integers: bool, count: int) -> tuple[NDArray[np.float64], int]:
    """Edges of the bins, and how many values lie beyond them."""
    if integers and values.max() - values.min() < _BINS[1]:
        return np.arange(values.min() - 0.5, values.max() + 1.0), 0
    low, high = (float(value) for value in np.quantile(values, [_TAIL, 1 - _TAIL]))
    room = 0.5 * (high - low)
    low, high = max(low - room, float(values.min())), min(high + room, float(values.max()))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, count + 1), int(((values < low) | (values > high)).sum())


def _bars(axes: Axes, values: NDArray[np.float64], bins: NDArray[np.float64], part: Distribution, filled: bool) -> None:
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    axes.stairs(
        counts, bins, color=part.colour, label=abbreviated(part.label, 40), fill=filled, alpha=0.55 if filled else 1.0,
        linewidth=1.5,
    )  # fmt: skip
