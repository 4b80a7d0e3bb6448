"""Figures of values by pair of classes: one heat map, and many side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from raysense.report.style import RED, WIDTH, abbreviated, number, styled

KL_LABEL = "KL divergence [nats]\n(diagonal: entropy)"
"""Label of colour bars of divergences with the entropies on the diagonal."""

_COLOURS = "viridis"
_MISSING = "#DDDDDD"
_LINEAR_UP_TO = 20.0
"""Ratio of the largest to the median value up to which a linear scale shows both."""
_DECADES = 4
_WRITTEN_UP_TO = 12
"""Rows and columns up to which the values are written into the cells of a single heat map."""
_OWN_LOGARITHMIC = (
    " Own scales with powers of ten are logarithmic; what lies below their lowest number has the lowest colour."
)
_COLUMNS = 3
_NAME = 16
"""Letters of a class's name beside one of many heat maps."""
_BAR = 0.8
"""Width of a colour bar with its numbers, in inches."""
_LARGEST_SIDE = 2.8
_NARROWEST = 4.0
_FONT = 7.0
_LINE = _FONT * 1.2 / 72
"""Inches that a line of labels takes."""
_LETTER = _FONT * 0.6 / 72


@dataclass(frozen=True)
class HeatMap:
    """Values by pair of classes.

    Attributes:
        title: What is written above.
        rows: Labels of the rows.
        columns: Labels of the columns.
        values: Shape ``[rows, columns]``; NaN is drawn grey, an infinite value red.
        overall: Whether the last row and the last column stand for all classes together, and are set apart.
        sides: What rows and columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray[np.float64]
    overall: bool
    sides: tuple[str, str] = ("P", "Q")


@dataclass(frozen=True)
class Scale:
    """A colour scale from ``low`` to ``high``, linear or logarithmic, and sentences on it."""

    low: float
    high: float
    logarithmic: bool
    infinite: bool
    says: str

    @property
    def norm(self) -> Normalize:
        """The scale as matplotlib has it."""
        return LogNorm(self.low, self.high) if self.logarithmic else Normalize(self.low, self.high)

    def drawn(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values as they are drawn: matplotlib takes infinity, and on a logarithmic scale 0, for missing."""
        clipped: NDArray[np.float64] = np.clip(values, self.low, None)
        return np.where(np.isposinf(clipped), 2.0 * abs(self.high) + 1.0, clipped)


@dataclass(frozen=True)
class Band:
    """Heat maps under one heading, with a common colour scale or, where it is None, each with its own."""

    heading: str
    maps: Sequence[HeatMap]
    scale: Scale | None


def colour_scale(maps: Sequence[HeatMap]) -> Scale:
    """The colour scale of all finite values: linear from 0, or logarithmic where most values would be dark.

    Values that are below 0 (an unbiased estimate of a distance may be) extend a linear scale.
    """
    values = np.concatenate([found.values.ravel() for found in maps])
    missing = bool(np.isnan(values).any())
    values = values[~np.isnan(values)]
    finite = values[np.isfinite(values)]
    infinite = len(finite) < len(values)
    says = f" Red: infinite ({len(values) - len(finite):,} of {len(values):,} values)." if infinite else ""
    says += " Grey: no value." if missing else ""
    positive = finite[finite > 0]
    if not len(positive):
        below = float(finite.min()) if len(finite) else 0.0
        zeros = "" if below or not len(finite) else " All values are 0."
        return Scale(below, 0.0 if below else 1.0, False, infinite, zeros + says)
    low, high = float(finite.min()), float(positive.max())
    if low < 0 or high <= _LINEAR_UP_TO * float(np.median(positive)):
        return Scale(min(low, 0.0), high, False, infinite, f" Colours are linear.{says}")
    floor = max(float(positive.min()), high / 10**_DECADES)
    dark = int((finite < floor).sum())
    lowest = f"; {dark:,} of {len(finite):,} values below {number(floor)} have the lowest colour" if dark else ""
    return Scale(floor, high, True, infinite, f" Colours are logarithmic{lowest}.{says}")


def heat_map(found: HeatMap, label: str) -> tuple[Figure, str]:
    """One heat map, its values written into the cells where there are few.

    Args:
        found: What is drawn.
        label: Label of the colour bar, with the unit.

    Returns:
        The figure, and sentences on its colours and labels.
    """
    scale = colour_scale([found])
    count = max(len(found.rows), len(found.columns))
    side = min(6.4, max(2.4, (0.5 if count <= _WRITTEN_UP_TO else 0.16) * count))
    names = [abbreviated(name, 24) for name in (*found.rows, *found.columns)]
    margin = _LETTER * max(map(len, names)) + 0.3
    with styled():
        figure = Figure(figsize=(min(WIDTH, max(_NARROWEST, side + margin + 0.9)), side + margin), layout="constrained")
        axes = figure.add_subplot()
        _show(axes, found, scale)
        says = _name(axes, found, side, 24)
        axes.set_ylabel(found.sides[0], parse_math=False)
        axes.set_xlabel(found.sides[1], parse_math=False)
        if count <= _WRITTEN_UP_TO:
            _write(axes, found, scale)
        _colour_bar(figure, scale, [axes], label)
    return figure, scale.says + says


def heat_map_bands(bands: Sequence[Band], label: str) -> tuple[Figure, str]:
    """Heat maps in rows of two or three, band under band.

    Args:
        bands: What is drawn.
        label: Label of the colour bars, with the unit.

    Returns:
        The figure, and sentences on the common scales and on labels left out.
    """
    columns = max(_columns(len(band.maps)) for band in bands)
    layout = _Layout.of(bands, columns)
    says: dict[str, None] = {}
    with styled():
        figure = Figure(figsize=(layout.width, sum(layout.heights)), layout="constrained")
        parts = figure.subfigures(len(bands), 1, squeeze=False, height_ratios=layout.heights)[:, 0]
        for part, band, side in zip(parts, bands, layout.sides, strict=True):
            says |= dict.fromkeys(_show_band(part, band, layout, side, label))
    return figure, "".join(says)


@dataclass(frozen=True)
class _Layout:
    """How a figure of bands is laid out, in inches, such that cells are about square.

    Attributes:
        columns: Heat maps in a row.
        sides: Side of the heat maps of every band.
        width: Width of the figure.
        heights: Height of every band.
        shared: Whether all heat maps have the same labels, which then stand only at the left and below.
    """

    columns: int
    sides: list[float]
    width: float
    heights: list[float]
    shared: bool

    @classmethod
    def of(cls, bands: Sequence[Band], columns: int) -> _Layout:
        names = {name for band in bands for found in band.maps for name in (*found.rows, *found.columns)}
        labels = _LETTER * max(len(abbreviated(name, _NAME)) for name in names) + 0.3
        shared = len({(tuple(found.rows), tuple(found.columns)) for band in bands for found in band.maps}) == 1
        sides, heights, widths = [], [], []
        for band in bands:
            bars = _BAR * (columns if band.scale is None else 1)
            beside = bars + labels * (1 if shared else columns) + 0.1 * columns
            side = min(_LARGEST_SIDE, (WIDTH - beside) / columns)
            rows = math.ceil(len(band.maps) / columns)
            ragged = rows > 1 and len(band.maps) % columns > 0
            below = rows if not shared else 2 if ragged else 1
            sides.append(side)
            heights.append((0.3 if band.heading else 0.05) + rows * (side + 0.3) + below * labels)
            widths.append(beside + side * columns)
        return cls(columns, sides, max(_NARROWEST, *widths), heights, shared)


def _columns(count: int) -> int:
    return 2 if count in (2, 4) else min(_COLUMNS, count)


def _show_band(figure: SubFigure, band: Band, layout: _Layout, side: float, label: str) -> list[str]:
    count, columns = len(band.maps), layout.columns
    grid = list(figure.subplots(math.ceil(count / columns), columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    if band.heading:
        figure.suptitle(band.heading, fontsize=9, parse_math=False)
    says = [] if band.scale is None else [band.scale.says]
    for index, (axes, found) in enumerate(zip(grid, band.maps, strict=False)):
        scale = band.scale or colour_scale([found])
        _show(axes, found, scale)
        says.append(_name(axes, found, min(layout.sides), _NAME))
        axes.set_title(abbreviated(found.title, max(12, int(side / _LETTER / 1.2))), fontsize=8, parse_math=False)
        if layout.shared and index % columns:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(found.sides[0], fontsize=8, parse_math=False)
        if layout.shared and index + columns < count:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel(found.sides[1], fontsize=8, parse_math=False)
        if band.scale is None:
            _colour_bar(figure, scale, [axes], label if index in (columns - 1, count - 1) else "")
        if band.scale is None and scale.logarithmic:
            says.append(_OWN_LOGARITHMIC)
    if band.scale is not None:
        _colour_bar(figure, band.scale, grid[:count], label)
    return says


def _show(axes: Axes, found: HeatMap, scale: Scale) -> None:
    axes.set_facecolor(_MISSING)
    values = scale.drawn(found.values)
    axes.imshow(values, cmap=_colours(), norm=scale.norm, interpolation="nearest", aspect="auto")
    axes.grid(False)
    axes.tick_params(length=2, labelsize=_FONT, pad=1.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if found.overall:
        rows, columns = found.values.shape
        axes.axhline(rows - 1.5, color="white", linewidth=1.5 if rows <= _WRITTEN_UP_TO else 0.7)
        axes.axvline(columns - 1.5, color="white", linewidth=1.5 if columns <= _WRITTEN_UP_TO else 0.7)


def _name(axes: Axes, found: HeatMap, side: float, length: int) -> str:
    """Label rows and columns, every so many of them where there is no room for all; a sentence on those left out."""
    rows, one_in = _labelled(len(found.rows), side, found.overall)
    columns, of_columns = _labelled(len(found.columns), side, found.overall)
    axes.set_yticks(rows, labels=[abbreviated(found.rows[row], length) for row in rows], parse_math=False)
    texts = [abbreviated(found.columns[column], length) for column in columns]
    axes.set_xticks(columns, labels=texts, parse_math=False, rotation=90)
    one_in = max(one_in, of_columns)
    return f" One in {one_in} classes is labelled." if one_in > 1 else ""


def _labelled(count: int, inches: float, overall: bool) -> tuple[list[int], int]:
    """Which of ``count`` rows are labelled, and one of how many that is; the overall row always is."""
    step = max(1, math.ceil(count * _LINE / inches))
    classes = count - 1 if overall else count
    at = list(range(0, classes, step))
    if overall:
        while len(at) > 1 and count - 1 - at[-1] < step:
            at.pop()
        at.append(count - 1)
    return at, step


def _write(axes: Axes, found: HeatMap, scale: Scale) -> None:
    shades = _colours()(scale.norm(scale.drawn(found.values)))
    for (row, column), value in np.ndenumerate(found.values):
        if not np.isnan(value):
            dark = np.dot(shades[row, column, :3], (0.299, 0.587, 0.114)) < 0.5
            colour = "white" if dark else "black"
            axes.text(column, row, number(float(value)), ha="center", va="center", fontsize=_FONT, color=colour)


def _colours() -> Colormap:
    return mpl.colormaps[_COLOURS].with_extremes(over=RED, bad=_MISSING)


def _colour_bar(figure: Figure | SubFigure, scale: Scale, axes: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(
        ScalarMappable(scale.norm, _colours()),
        ax=list(axes),
        pad=0.02,
        aspect=25,
        extend="max" if scale.infinite else "neither",
    )
    bar.ax.tick_params(labelsize=_FONT)
    bar.set_label(label, fontsize=8)
