"""Figure of plane sections through classification regions, along the segments of a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raysense.report.style import WIDTH, abbreviated, styled

COLUMNS = 6
"""Segments in a row."""

_OWN = "#E3EAF1"
_OTHERS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255", "#999933", "#F0E442")
_REST = "#8C8C8C"
_PANEL = 1.55
_FEW = 2


@dataclass(frozen=True)
class Section:
    """A plane section through one segment, which lies on the horizontal axis.

    Attributes:
        title: What the segment is.
        ends: What its two ends are: ``x`` is an end of the path, ``p`` an anchor point.
        segment: Where it begins and ends on the horizontal axis, pixel values.
        extent: Left, right, lower and upper edge of the section, pixel values.
        predicted: Predicted class, shape ``[height, width]`` int64, the lowest row first; -1 where logits are not finite.
    """

    title: str
    ends: tuple[str, str]
    segment: tuple[float, float]
    extent: tuple[float, float, float, float]
    predicted: NDArray[np.int64]


def section_figure(found: Sequence[Section], own: int, names: Mapping[int, str]) -> Figure:
    """Sections side by side, at most `COLUMNS` in a row, regions coloured by predicted class.

    Args:
        found: What is drawn.
        own: The class of the path, whose region is pale.
        names: Names of the classes; one without is called by its index.
    """
    counts = Counter[int]()
    for section in found:
        counts.update(dict(zip(*np.unique(section.predicted, return_counts=True), strict=True)))
    others = [int(index) for index, _ in counts.most_common() if index != own]
    coloured, rest = others[: len(_OTHERS)], others[len(_OTHERS) :]
    place = {own: 0, **{index: 1 + at for at, index in enumerate(coloured)}, **dict.fromkeys(rest, 1 + len(coloured))}
    colours = [_OWN, *_OTHERS[: len(coloured)], _REST]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=_OWN, edgecolor="#666666", label=f"{_name(names, own)} (the path's class)"),
        *(Patch(color=colour, label=_name(names, index)) for colour, index in zip(_OTHERS, coloured, strict=False)),
        *([Patch(color=_REST, label=f"{len(rest)} other classes")] if rest else []),
        _marker("x", "end of the path"),
        *([_marker("p", "anchor point")] if any("p" in section.ends for section in found) else []),
    ]
    with styled():
        columns = min(COLUMNS, len(found))
        rows = -(-len(found) // columns)
        # A few segments are drawn larger, with the classes beside them.
        few = columns <= _FEW
        size = (2.6 * columns + 2.2, max(2.6, 0.3 + 0.17 * len(handles))) if few else (WIDTH, 1.0 + _PANEL * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, section in zip(grid.flat, found, strict=False):
            _draw(axes, section, place, colours)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        figure.supxlabel("along the segment [pixel values]", fontsize=8)
        figure.supylabel("along r(x₁) [pixel values]", fontsize=8)
        where, in_row = ("outside right upper", 1) if few else ("outside upper center", min(6, len(handles)))
        for text in figure.legend(handles=handles, loc=where, ncols=in_row, fontsize=7).get_texts():
            text.set_parse_math(False)
    return figure


def _draw(axes: Axes, section: Section, place: Mapping[int, int], colours: Sequence[str]) -> None:
    seen, inverse = np.unique(section.predicted, return_inverse=True)
    codes = np.array([place[int(index)] for index in seen])[inverse].reshape(section.predicted.shape)
    norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
    axes.imshow(
        codes,
        origin="lower",
        extent=section.extent,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(colours),
        norm=norm,
    )
    line = axes.plot(section.segment, (0, 0), color="black", linewidth=1.4, zorder=3, solid_capstyle="butt")[0]
    line.set_path_effects([Stroke(linewidth=3.2, foreground="white"), Normal()])
    for end, x in zip(section.ends, section.segment, strict=True):
        axes.add_line(_marker(end, None, x))
    axes.set_title(section.title, fontsize=8, pad=3)
    axes.grid(False)
    axes.tick_params(labelsize=7, length=2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _marker(kind: str, label: str | None, x: float | None = None) -> Line2D:
    """The mark of an end of the path, or of an anchor point; in a legend where it has no place."""
    at: tuple[list[float], list[float]] = ([], []) if x is None else ([x], [0.0])
    face = "black" if kind == "x" else "white"
    return Line2D(
        *at,
        linestyle="none",
        marker="o",
        markersize=5,
        markerfacecolor=face,
        markeredgecolor="black",
        label=label,
        zorder=4,
    )


def _name(names: Mapping[int, str], index: int) -> str:
    return "no class, logits not finite" if index < 0 else abbreviated(names.get(index, str(index)), 22)
