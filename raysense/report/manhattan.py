"""Manhattan plots: samples in bands (classes or layers) side by side against their value on a log scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator
from numpy.typing import NDArray

from raysense.report.points import HIGHEST, LOWEST, LogValues, says_thinned, scale_edges, visible
from raysense.report.style import BLUE, DPI, ORANGE, RED, WIDTH, abbreviated, styled

MAX_PANELS = 4
_MOST_NAMED = 40
_MOST_TICKS = 20
_LABEL_LENGTH = 16
_CHARACTERS = 110
"""How many characters fit side by side under a full-width figure."""
_PANEL_HEIGHT = 2.6


@dataclass(frozen=True)
class ScoredSamples:
    """Values of the samples of one split, sorted by band.

    Attributes:
        band: True class, or position of the layer, shape ``[N]``, ascending.
        value: FI, or its upper bound, shape ``[N]``, not negative, may be infinite.
        place: Place among the largest (1 is the largest), 0 for all others, shape ``[N]``.
    """

    band: NDArray[np.int64]
    value: NDArray[np.float64]
    place: NDArray[np.int64]


@dataclass(frozen=True)
class Bands:
    """What the bands are, such as ``true class``, and their names by number, in the order in which they are drawn."""

    what: str
    names: Mapping[int, str]


def manhattan(
    columns: Mapping[str, Mapping[str, ScoredSamples]], bands: Mapping[str, Bands], quantity: str
) -> tuple[Figure, str]:
    """Manhattan plots with one value axis: a column for every scan, in it a panel for every split.

    Args:
        columns: Samples by split, by name of the scan; at most `MAX_PANELS` of each.
        bands: The bands, by name of the scan; only those that have samples are drawn.
        quantity: Label of the value axis.

    Returns:
        The figure, and sentences on what was clamped or thinned.
    """
    remarks = []
    splits = sorted(
        {split for panels in columns.values() for split in panels}, key=lambda name: (name != "train", name)
    )
    with styled():
        figure = Figure(figsize=(WIDTH, 0.9 + _PANEL_HEIGHT * len(splits)), layout="constrained")
        grid = figure.subplots(len(splits), len(columns), sharex="col", sharey=True, squeeze=False)
        every = [samples.value for panels in columns.values() for samples in panels.values()]
        edges = scale_edges(np.concatenate(every))
        for column, (scan, panels) in enumerate(columns.items()):
            prefix = f"{abbreviated(scan, 60 // len(columns))} · " if len(columns) > 1 else ""
            of_scan = f" of {scan}" if len(columns) > 1 else ""
            present = np.unique(np.concatenate([samples.band for samples in panels.values()]))
            for row, split in enumerate(splits):
                axes, samples = grid[row, column], panels.get(split)
                if samples is None:
                    axes.set_title(f"{prefix}{split}: no samples", loc="left", parse_math=False)
                    axes.grid(False)
                    continue
                points = "samples" if bands[scan].what == "true class" else "values"
                axes.set_title(f"{prefix}{split} ({len(samples.value):,} {points})", loc="left", parse_math=False)
                remarks.append(_panel(axes, samples, present, edges, f"{points} of split {split}{of_scan}"))
            grid[-1, column].set_xlim(0, len(present))
            names = {int(band): bands[scan].names[int(band)] for band in present}
            name_bands(grid[-1, column], Bands(bands[scan].what, names), 0.5, WIDTH / len(columns))
        for axes in grid[:, 0]:
            axes.set_ylabel(quantity)
    return figure, "".join(remarks)


def name_bands(axes: Axes, bands: Bands, first: float, width: float = WIDTH) -> None:
    """Name the bands, which stand at ``first``, ``first`` + 1, ..., on the horizontal axis.

    Every band gets its name where there are few, otherwise some of them their number and name.

    Args:
        axes: The plot.
        bands: All bands drawn, in their order.
        first: Where the first one stands.
        width: Width of the plot in inches.
    """
    count, room = len(bands.names), width / WIDTH
    if count <= _MOST_NAMED * room:
        shown = list(range(count))
    else:
        step = -(-count // round(_MOST_TICKS * room))
        step = next((nice for nice in (2, 5, 10, 20, 25, 50, 100, 200, 500) if nice >= step), step)
        shown = list(range(0, count, step))
    numbers = list(bands.names)
    names = [abbreviated(bands.names[numbers[band]], _LABEL_LENGTH) for band in shown]
    if len(shown) < count:
        names = [
            name if name == str(numbers[band]) else f"{numbers[band]} {name}"
            for band, name in zip(shown, names, strict=True)
        ]
    crowded = sum(len(name) + 2 for name in names) > _CHARACTERS * room
    axes.xaxis.set_major_locator(FixedLocator([first + band for band in shown]))
    axes.set_xticklabels(
        names,
        parse_math=False,
        rotation=45 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
        fontsize=8 if len(shown) <= 25 * room else 7,
    )
    axes.set_xlabel(bands.what if len(shown) == count else f"{bands.what} ({count:,}, some of them named)")


def powers_of_ten(axis: Axis) -> None:
    """Label an axis of log10 values with powers of ten, and with what lies between where it spans few of them."""
    axis.set_major_locator(_Decades())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


class _Decades(Locator):
    """Ticks of log10 values: whole numbers; on short axes 1, 2, 5, 10, ...; on very short ones evenly spaced."""

    def __call__(self) -> Sequence[float]:
        return [] if self.axis is None else self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        low, high = sorted((vmin, vmax))
        if high - low >= 2.5:
            return MaxNLocator(nbins=8, integer=True).tick_values(low, high)
        steps = [decade + step for decade in range(floor(low), ceil(high) + 1) for step in np.log10([1, 2, 5]).tolist()]
        if sum(low <= step <= high for step in steps) < 2:
            return MaxNLocator(nbins=4).tick_values(low, high)
        return steps


def marker_area(count: int) -> float:
    """Area of a point in square points, smaller the more there are."""
    return 9.0 if count <= 3_000 else 4.0 if count <= 30_000 else 1.5


def class_bands(labels: Sequence[int], names: Sequence[str] | None) -> Bands:
    """Bands of true classes by label; classes without a name get their number."""
    known = names or ()
    return Bands("true class", {label: known[label] if label < len(known) else str(label) for label in labels})


def _panel(
    axes: Axes, samples: ScoredSamples, present: NDArray[np.int64], edges: tuple[float, float], what: str
) -> str:
    values = LogValues.of(samples.value, edges)
    band = np.searchsorted(present, samples.band)
    x = _positions(band)
    drawn = visible(x, values.logs, int(WIDTH * DPI), int(_PANEL_HEIGHT * DPI))
    colours = np.where(band[drawn] % 2 == 0, BLUE, ORANGE)
    axes.scatter(
        x[drawn],
        values.logs[drawn],
        s=marker_area(len(x)),
        c=colours.tolist(),
        linewidths=0,
        rasterized=True,
        zorder=2,
    )
    for index in np.flatnonzero(samples.place):
        at = (x[index], values.logs[index])
        axes.annotate(str(samples.place[index]), at, xytext=(4, 2), textcoords="offset points", fontsize=7, zorder=3)
        axes.plot(
            x[index], values.logs[index], "o", markersize=6, markerfacecolor="none", markeredgecolor="black", zorder=3
        )
    for off, marker in ((samples.value < LOWEST, "v"), (samples.value > HIGHEST, "^")):
        # A dead layer may put a million samples here; one marker a pixel is enough.
        at_edge = visible(x[off], values.logs[off], int(WIDTH * DPI), 1) if off.any() else np.zeros(0, np.int64)
        axes.plot(
            x[off][at_edge], values.logs[off][at_edge], marker, color=RED, markersize=4, rasterized=True, zorder=3,
            linestyle="none",
        )  # fmt: skip
    powers_of_ten(axes.yaxis)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.08)
    return says_thinned(len(drawn), len(x), what) + values.says(what)


def _positions(band: NDArray[np.int64]) -> NDArray[np.float64]:
    """Horizontal positions of samples sorted by band: band b reaches from b to b + 1."""
    _, first, counts = np.unique(band, return_index=True, return_counts=True)
    within = np.arange(len(band)) - np.repeat(first, counts)
    return band + (within + 0.5) / np.repeat(counts, counts)


def _power(value: float) -> str:
    """10 to the given power, as a label."""
    if -3.5 <= value <= 3.5:
        return f"{float(f'{10.0**value:.3g}'):g}"
    mantissa, exponent = f"{10.0**value:.2e}".split("e")
    factor = "" if mantissa == "1.00" else f"{float(mantissa):g} \\times "
    return f"${factor}10^{{{int(exponent)}}}$"
