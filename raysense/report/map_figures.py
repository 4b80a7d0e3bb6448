"""Figures of pixel maps: FI of every pixel at several scales, over the image, by channel, and one-pixel attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from raysense.report.influence_figures import only_picture, show_image
from raysense.report.points import HIGHEST, LOWEST
from raysense.report.style import RED, WIDTH, number, styled

_COLOURS = "inferno"
_LINEAR_UP_TO = 50.0
"""Ratio of the largest to the median FI up to which a linear scale shows both."""
_DECADES = 4
_LARGEST_SIDE = 1.7
"""Side of an image in inches, where there is room."""
_BAR = 0.9
"""Width of the colour bar in inches."""


@dataclass(frozen=True)
class Attack:
    """A one-pixel attack: the images ``[H, W]`` or ``[H, W, 3]`` in [0, 1], and what is written about them.

    Attributes:
        title: The sample.
        original: Before.
        attacked: After.
        at: Row and column of the pixel.
        before: Class and probability before.
        after: Class and probability after.
        pixel: What is written under the framed pixel.
        fi: FI of single pixels, shape ``[H, W]``; None where it was not stored.
    """

    title: str
    original: NDArray[np.float64]
    attacked: NDArray[np.float64]
    at: tuple[int, int]
    before: str
    after: str
    pixel: str
    fi: NDArray[np.float64] | None


def pixel_maps(
    pixels: NDArray[np.float64] | None, maps: Mapping[int, NDArray[np.float64]], title: str
) -> tuple[Figure, str]:
    """The image and its maps by scale, and below each map the same over the image; maps alone without an image.

    Args:
        pixels: ``[H, W]`` or ``[H, W, 3]`` in [0, 1], or None.
        maps: FI ``[H, W]`` by scale.
        title: What is written above the image.

    Returns:
        The figure, and a sentence on the colour scale, which the maps share.
    """
    norm, says = _norm(list(maps.values()))
    with styled():
        rows = 1 if pixels is None else 2
        figure = _figure(rows, len(maps) + 1, 0.3)
        grid = figure.subplots(rows, len(maps) + 1, squeeze=False)
        for axes, (scale, values) in zip(grid[0, 1:], maps.items(), strict=True):
            _show_map(axes, values, norm)
            axes.set_title(f"scale {scale}", parse_math=False)
        grid[0, 0].set_title(title, fontsize=8, parse_math=False)
        grid[-1, 0].set_axis_off()
        if pixels is not None:
            show_image(grid[0, 0], pixels)
            for axes, values in zip(grid[1, 1:], maps.values(), strict=True):
                show_image(axes, _overlay(pixels, values, norm))
        _colour_bar(figure, norm, list(grid[:, 1:].flat))
    return figure, says


def channel_maps(channels: Mapping[str, Mapping[int, NDArray[np.float64]]]) -> tuple[Figure, str]:
    """Maps ``[H, W]`` by name of the channel (rows) and scale (columns), with one colour scale.

    Returns:
        The figure, and a sentence on the colour scale.
    """
    every = [values for maps in channels.values() for values in maps.values()]
    norm, says = _norm(every)
    with styled():
        columns = max(len(maps) for maps in channels.values())
        figure = _figure(len(channels), columns, 0.3)
        grid = figure.subplots(len(channels), columns, squeeze=False)
        for row, (name, maps) in zip(grid, channels.items(), strict=True):
            for axes, (scale, values) in zip(row, maps.items(), strict=True):
                _show_map(axes, values, norm)
                if axes in grid[0]:
                    axes.set_title(f"scale {scale}", parse_math=False)
            row[0].set_ylabel(name, parse_math=False)
        _colour_bar(figure, norm, list(grid.flat))
    return figure, says


def attacks_figure(attacks: Sequence[Attack]) -> Figure:
    """A row for every attack: original, attacked, the pixel framed, FI of every pixel, FI over the attacked image."""
    heads = ("original", "attacked", "attacked pixel", "FI of every pixel", "FI over the image")
    with styled():
        figure = _figure(len(attacks), len(heads), 0.3, below=0.4)
        grid = figure.subplots(len(attacks), len(heads), squeeze=False)
        for row, attack in zip(grid, attacks, strict=True):
            written = (attack.before, attack.after, attack.pixel)
            for axes, image, text in zip(
                row, (attack.original, attack.attacked, attack.attacked), written, strict=False
            ):
                show_image(axes, image)
                axes.set_xlabel(text, fontsize=8, parse_math=False)
            row[0].set_ylabel(attack.title, fontsize=7, parse_math=False)
            _frame(row[2], attack.at, attack.original.shape[:2])
            if attack.fi is None:
                row[3].set_axis_off()
                row[4].set_axis_off()
                continue
            norm, _ = _norm([attack.fi])
            _show_map(row[3], attack.fi, norm)
            show_image(row[4], _overlay(attack.attacked, attack.fi, norm))
            for axes in row[3:]:
                _frame(axes, attack.at, attack.original.shape[:2])
            _colour_bar(figure, norm, list(row[3:]))
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(head)
    return figure


def _figure(rows: int, columns: int, above: float, below: float = 0.05) -> Figure:
    """A figure for rows of square images and a colour bar, with room above them all and below each, in inches."""
    side = min(_LARGEST_SIDE, (WIDTH - _BAR) / columns)
    return Figure(figsize=(_BAR + side * columns, above + (side + below) * rows), layout="constrained")


def _norm(maps: Sequence[NDArray[np.float64]]) -> tuple[Normalize, str]:
    """A colour scale that all the maps share, and a sentence on it."""
    values = np.concatenate([found.ravel() for found in maps])
    positive = np.clip(values[values > 0], LOWEST, HIGHEST)
    if not len(positive):
        return Normalize(0.0, 1.0), "FI is 0 everywhere."
    high = float(positive.max())
    if high <= _LINEAR_UP_TO * float(np.median(positive)):
        return Normalize(0.0, high), "Colours are linear."
    low = max(float(positive.min()), high / 10**_DECADES)
    below = int((values < low).sum())
    floor = f"; {below:,} of {len(values):,} values below {number(low)} have the lowest colour" if below else ""
    return LogNorm(low, high), f"Colours are logarithmic{floor}."


def _show_map(axes: Axes, values: NDArray[np.float64], norm: Normalize) -> None:
    axes.imshow(_clipped(values, norm), cmap=_COLOURS, norm=norm, interpolation="nearest")
    only_picture(axes)


def _overlay(pixels: NDArray[np.float64], values: NDArray[np.float64], norm: Normalize) -> NDArray[np.float64]:
    """The grey image under the map's colours, the more opaque the larger FI is."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2)
    level = np.asarray(norm(_clipped(values, norm)), np.float64)
    colour = mpl.colormaps[_COLOURS](level)[..., :3]
    opacity = (0.1 + 0.7 * level)[..., None]
    mixed: NDArray[np.float64] = (1 - opacity) * grey[..., None] + opacity * colour
    return mixed


def _clipped(values: NDArray[np.float64], norm: Normalize) -> NDArray[np.float64]:
    clipped: NDArray[np.float64] = np.clip(values, norm.vmin, norm.vmax)
    return clipped


def _frame(axes: Axes, at: tuple[int, int], shape: tuple[int, ...]) -> None:
    """A red frame around a pixel, wide enough to be seen."""
    half = max(0.5, 0.03 * max(shape))
    corner = (at[1] - half, at[0] - half)
    axes.add_patch(Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=RED, linewidth=1.5, clip_on=False))


def _colour_bar(figure: Figure, norm: Normalize, axes: Sequence[Axes]) -> None:
    bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=axes, shrink=0.9, pad=0.01, aspect=25)
    bar.set_label("FI [1]")
