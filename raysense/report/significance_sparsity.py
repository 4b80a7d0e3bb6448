"""Figures of sparsity: how many paths are significant in which proportion of observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysense.report.style import BLUE, WIDTH, abbreviated, styled

_COLUMNS = 4
_HEIGHT = 1.9
_NARROWEST = 4.5
_BASE = 0.5
"""Where bars start, so that a single path is seen on the log axis."""


@dataclass(frozen=True)
class Histogram:
    """Paths by the proportion of observations in which they are significant.

    Attributes:
        title: What is written above, on one line or more.
        edges: Edges of the bins, in [0, 1], shape ``[B + 1]``.
        paths: Number of paths in every bin, shape ``[B]``.
    """

    title: str
    edges: NDArray[np.float64]
    paths: NDArray[np.int64]


def sparsity_histograms(rows: Sequence[Sequence[Histogram]]) -> Figure:
    """Histograms with common axes, each sequence starting a new row; logarithmic in the number of paths."""
    lines = [list(row[at : at + _COLUMNS]) for row in rows for at in range(0, len(row), _COLUMNS)]
    columns = max(map(len, lines))
    most = max(int(found.paths.max()) for line in lines for found in line)
    width = min(WIDTH, max(_NARROWEST, 0.6 + 2.8 * columns))
    with styled():
        figure = Figure(figsize=(width, 0.35 + _HEIGHT * len(lines)), layout="constrained")
        grid = figure.subplots(len(lines), columns, squeeze=False, sharex=True, sharey=True)
        for panels, line in zip(grid, lines, strict=True):
            for axes in panels[len(line) :]:
                axes.set_axis_off()
            for axes, found in zip(panels, line, strict=False):
                axes.stairs(np.maximum(found.paths, _BASE), found.edges, baseline=_BASE, fill=True, color=BLUE)
                axes.set_title(
                    "\n".join(abbreviated(part, int(width / columns * 11)) for part in found.title.split("\n")),
                    fontsize=8,
                    parse_math=False,
                )
        first = grid[0, 0]
        first.set_yscale("log")
        first.set_xlim(0.0, 1.0)
        first.set_ylim(_BASE, max(2.0 * most, 10.0))
        first.set_xticks([0.0, 0.5, 1.0], labels=["0", "0.5", "1"])
        for column in range(columns):
            # Below a line that is not full, numbers stand at the last panel of the column.
            last = max(index for index, line in enumerate(lines) if len(line) > column)
            grid[last, column].tick_params(labelbottom=True)
        figure.supxlabel("proportion of observations in which a path is significant", fontsize=9)
        figure.supylabel("number of paths", fontsize=9)
    return figure
