"""Figures of the influence scan that every target has: FI against its bound, the images with the largest FI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysense.report.manhattan import marker_area, powers_of_ten
from raysense.report.points import LogValues, says_thinned, scale_edges, visible
from raysense.report.style import BLUE, DPI, GREY, RED, styled


@dataclass(frozen=True)
class Picture:
    """An image to show: pixels ``[H, W]`` or ``[H, W, 3]`` in [0, 1], and what is written above and below it."""

    pixels: NDArray[np.float64]
    title: str
    below: str


def against_bound(fi: NDArray[np.float64], bound: NDArray[np.float64]) -> tuple[Figure, str]:
    """FI (shape ``[N]``) against its bound (1 - p)/p (shape ``[N]``), both logarithmic, with the line of equality.

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
            x.logs[drawn], y.logs[drawn], s=marker_area(len(fi)), color=BLUE, alpha=0.6, linewidths=0, rasterized=True,
            label="sample", zorder=2,
        )  # fmt: skip
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            powers_of_ten(axis)
        axes.set_xlabel("bound (1 − p)/p")
        axes.set_ylabel("FI")
        axes.legend(loc="upper left")
    return figure, says_thinned(len(drawn), len(fi), "samples") + y.says("values of FI")


def gallery(pictures: Sequence[Picture]) -> Figure:
    """Images in one row, each with its title above and a line below."""
    with styled():
        lines = max(picture.title.count("\n") + 1 for picture in pictures)
        figure = Figure(figsize=(1.8 * len(pictures), 2.0 + 0.2 * lines), layout="constrained")
        for axes, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
            show_image(axes, picture.pixels)
            axes.set_title(picture.title, fontsize=9, parse_math=False)
            axes.set_xlabel(picture.below, fontsize=7, color=GREY, parse_math=False)
    return figure


def show_image(axes: Axes, pixels: NDArray[np.float64]) -> None:
    """Draw pixels ``[H, W]`` (grey), ``[H, W, 3]`` or ``[H, W, 4]`` in [0, 1]; small images keep their square pixels."""
    interpolation = "nearest" if max(pixels.shape[:2]) < 100 else "antialiased"
    axes.imshow(pixels, interpolation=interpolation, cmap="gray", vmin=0.0, vmax=1.0)
    only_picture(axes)


def only_picture(axes: Axes) -> None:
    """Take ticks, grid and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
