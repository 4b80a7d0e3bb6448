"""Figures of the influence scan: Manhattan plot, FI against its bound, the images with the largest FI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from raysense.report.points import HIGHEST, LOWEST, LogValues, says_thinned, scale_edges, visible
from raysense.report.style import BLUE, DPI, GREY, ORANGE, RED, WIDTH, abbreviated, styled

MAX_PANELS = 4
_MOST_NAMED_CLASSES = 40
_MOST_TICKS = 20
_LABEL_LENGTH = 16
_PANEL_HEIGHT = 2.6


@dataclass(frozen=True)
class ScoredSamples:
    """Values of the samples of one split, sorted by class.

    Attributes:
        label: True class, shape ``[N]``, ascending.
        value: FI, or its upper bound, shape ``[N]``, not negative, may be infinite.
        place: Place among the largest (1 is the largest), 0 for all others, shape ``[N]``.
    """

    label: NDArray[np.int64]
    value: NDArray[np.float64]
    place: NDArray[np.int64]


@dataclass(frozen=True)
class Picture:
    """An image to show: pixels ``[H, W]`` or ``[H, W, 3]`` in [0, 1], and what is written above and below it."""

    pixels: NDArray[np.float64]
    title: str
    below: str


def manhattan(splits: Mapping[str, ScoredSamples], classes: Mapping[int, str], quantity: str) -> tuple[Figure, str]:
    """Manhattan plot: samples grouped by class against their value on a log scale, a panel for every split.

    Args:
        splits: Samples by split, at most `MAX_PANELS`.
        classes: Names of the classes by label; only those that have samples are drawn, in label order.
        quantity: Label of the value axis.

    Returns:
        The figure, and sentences on what was clamped or thinned.
    """
    remarks = []
    with styled():
        figure = Figure(figsize=(WIDTH, 0.9 + _PANEL_HEIGHT * len(splits)), layout="constrained")
        panels = figure.subplots(len(splits), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        edges = scale_edges(np.concatenate([samples.value for samples in splits.values()]))
        present = np.unique(np.concatenate([samples.label for samples in splits.values()]))
        for axes, (split, samples) in zip(panels, splits.items(), strict=True):
            axes.set_title(f"{split} ({len(samples.value):,} samples)", loc="left", parse_math=False)
            axes.set_ylabel(quantity)
            remarks.append(_manhattan_panel(axes, samples, present, edges, f"samples of split {split}"))
        panels[-1].set_xlim(0, len(present))
        _name_classes(panels[-1], {int(label): classes[int(label)] for label in present})
    return figure, "".join(remarks)


def against_bound(fi: NDArray[np.float64], bound: NDArray[np.float64]) -> tuple[Figure, str]:
    """FI (shape ``[N]``) against its upper bound (shape ``[N]``), both logarithmic, with the line of equality.

    Returns:
        The figure, and sentences on what was clamped or thinned.
    """
    with styled():
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        axes = figure.add_subplot()
        edges = scale_edges(np.concatenate([fi, bound]))
        x, y = LogValues.of(bound, edges), LogValues.of(fi, edges)
        drawn = visible(x.logs, y.logs, int(5 * DPI), int(4 * DPI))
        low = min(x.logs.min(), y.logs.min()) - 0.3
        high = max(x.logs.max(), y.logs.max()) + 0.3
        axes.plot([low, high], [low, high], color=RED, linewidth=1, label="FI = bound", zorder=1)
        axes.scatter(
            x.logs[drawn], y.logs[drawn], s=_marker_area(len(fi)), color=BLUE, alpha=0.6, linewidths=0, rasterized=True,
            label="sample", zorder=2,
        )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            _powers_of_ten(axis)
        axes.set_xlabel("upper bound of FI")
        axes.set_ylabel("FI")
        axes.legend(loc="upper left")
    return figure, says_thinned(len(drawn), len(fi), "samples") + y.says("values of FI")


def gallery(pictures: Sequence[Picture]) -> Figure:
    """Images in one row, each with its title above and a line below."""
    with styled():
        lines = max(picture.title.count("\n") + 1 for picture in pictures)
        figure = Figure(figsize=(1.8 * len(pictures), 2.0 + 0.2 * lines), layout="constrained")
        for axes, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
            grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0} if picture.pixels.ndim == 2 else {}
            small = max(picture.pixels.shape[:2]) < 100
            axes.imshow(picture.pixels, interpolation="nearest" if small else "antialiased", **grey)
            axes.set_title(picture.title, fontsize=9, parse_math=False)
            axes.set_xlabel(picture.below, fontsize=7, color=GREY, parse_math=False)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            axes.spines[:].set_visible(False)
    return figure


def _manhattan_panel(
    axes: Axes, samples: ScoredSamples, present: NDArray[np.int64], edges: tuple[float, float], what: str
) -> str:
    values = LogValues.of(samples.value, edges)
    band = np.searchsorted(present, samples.label)
    x = _positions(band)
    drawn = visible(x, values.logs, int(WIDTH * DPI), int(_PANEL_HEIGHT * DPI))
    colours = np.where(band[drawn] % 2 == 0, BLUE, ORANGE)
    axes.scatter(
        x[drawn],
        values.logs[drawn],
        s=_marker_area(len(x)),
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
        axes.plot(x[off], values.logs[off], marker, color=RED, markersize=4, rasterized=True, zorder=3)
    _powers_of_ten(axes.yaxis)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.08)
    return says_thinned(len(drawn), len(x), what) + values.says(what)


def _positions(band: NDArray[np.int64]) -> NDArray[np.float64]:
    """Horizontal positions of samples sorted by class: band b reaches from b to b + 1."""
    _, first, counts = np.unique(band, return_index=True, return_counts=True)
    within = np.arange(len(band)) - np.repeat(first, counts)
    return band + (within + 0.5) / np.repeat(counts, counts)


def _name_classes(axes: Axes, classes: Mapping[int, str]) -> None:
    """Every class by name where there are few, otherwise some of them by index and name."""
    count = len(classes)
    if count <= _MOST_NAMED_CLASSES:
        shown = list(range(count))
    else:
        step = -(-count // _MOST_TICKS)
        step = next((nice for nice in (2, 5, 10, 20, 25, 50, 100, 200, 500) if nice >= step), step)
        shown = list(range(0, count, step))
    labels = list(classes)
    names = [abbreviated(classes[labels[band]], _LABEL_LENGTH) for band in shown]
    if len(shown) < count:
        names = [
            name if name == str(labels[band]) else f"{labels[band]} {name}"
            for band, name in zip(shown, names, strict=True)
        ]
    crowded = sum(len(name) + 2 for name in names) > 110
    axes.xaxis.set_major_locator(FixedLocator([band + 0.5 for band in shown]))
    axes.set_xticklabels(
        names,
        parse_math=False,
        rotation=45 if crowded else 0,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
        fontsize=8 if len(shown) <= 25 else 7,
    )
    axes.set_xlabel("true class" if len(shown) == count else f"true class ({count:,}, some of them named)")


def _powers_of_ten(axis: Axis) -> None:
    """Label an axis of log10 values with the powers of ten."""
    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    return f"{10.0**value:g}" if -3 <= value <= 3 else f"$10^{{{round(value)}}}$"


def _marker_area(count: int) -> float:
    """Area of a point in square points, smaller the more there are."""
    return 9.0 if count <= 3_000 else 4.0 if count <= 30_000 else 1.5
