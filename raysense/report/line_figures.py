"""Figures of numbers with standard errors along an axis: a line for each split, space, attack or scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter
from numpy.typing import NDArray

from raysense.report.manhattan import powers_of_ten
from raysense.report.style import GREY, WIDTH, abbreviated, styled

_MOST_TICKS = 10
_ROOM = 0.04
"""Share of the axis that a label of a tick takes."""
_ROUNDING = 1e-9
_BEYOND = 0.03
"""How far an axis of shares reaches beyond 0 and 1."""


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        label: What it is, for the legend.
        x: Where its points are, ascending, shape ``[N]``.
        y: Their values, shape ``[N]``; NaN is not drawn.
        error: Standard errors, shape ``[N]``, or None; drawn as bars of one of them either way.
        colour: Its colour.
        style: Its dashes.
        marked: Whether the points are marked.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    error: NDArray[np.float64] | None
    colour: str
    style: str = "-"
    marked: bool = True


@dataclass(frozen=True)
class Panel:
    """Lines in common axes.

    Attributes:
        lines: What is drawn.
        label: Of the vertical axis, with the unit.
        shares: Whether the values are shares, written as percentages.
        levels: Values to mark by a dotted line, and what they are called.
        logarithmic: Whether the vertical axis is; values of 0 or less are not drawn then, nor are errors.
        limits: Lower and upper end of the vertical axis, where they are not those of the data.
    """

    lines: Sequence[Line]
    label: str
    shares: bool = False
    levels: Mapping[float, str] | None = None
    logarithmic: bool = False
    limits: tuple[float, float] | None = None


def line_figure(panels: Sequence[Panel], x_label: str, logarithmic: bool = False) -> Figure:
    """Panels one above the other with a common horizontal axis, whose ticks are the points where these are few."""
    with styled():
        figure = Figure(figsize=(WIDTH, 0.5 + 2.6 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, panel in zip(grid, panels, strict=True):
            for line in panel.lines:
                _draw(axes, line, logarithmic, panel.logarithmic)
            for value, label in (panel.levels or {}).items():
                axes.axhline(value, color=GREY, linewidth=0.9, linestyle=":", label=label, zorder=1)
            axes.set_ylabel(panel.label)
            if panel.logarithmic:
                powers_of_ten(axes.yaxis)
            if panel.shares:
                low, high = axes.get_ylim()
                axes.set_ylim(max(low, -_BEYOND), min(high, 1 + _BEYOND))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percentage(value)))
            if panel.limits is not None:
                axes.set_ylim(*panel.limits)
            _legend(axes)
        grid[-1].set_xlabel(x_label)
        _ticks(grid[-1], np.unique(np.concatenate([line.x for panel in panels for line in panel.lines])), logarithmic)
    return figure


def _draw(axes: Axes, line: Line, log_x: bool, log_y: bool) -> None:
    """On logarithmic axes logarithms are drawn, as `powers_of_ten` labels them."""
    known = line.y > 0 if log_y else ~np.isnan(line.y)
    x, y = line.x[known], line.y[known]
    error = None if line.error is None or log_y else np.nan_to_num(line.error[known])
    axes.errorbar(
        np.log10(x) if log_x else x, np.log10(y) if log_y else y, error, color=line.colour, linestyle=line.style,
        linewidth=1.3, elinewidth=1.0, capsize=2.5, marker="o" if line.marked else "", markersize=3.5, label=line.label,
    )  # fmt: skip


def _ticks(axes: Axes, at: NDArray[np.float64], logarithmic: bool) -> None:
    """Ticks at the points where these are few, as far as their labels have room."""
    if logarithmic:
        powers_of_ten(axes.xaxis)
    if len(at) > _MOST_TICKS:
        return
    places = np.log10(at) if logarithmic else at
    kept: list[int] = []
    for index, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= _ROOM * (places[-1] - places[0]):
            kept.append(index)
    axes.xaxis.set_major_locator(FixedLocator([float(places[index]) for index in kept]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{at[index]:g}" for index in kept]))


def _percentage(value: float) -> str:
    """Of a share; nothing beyond 0 and 1."""
    return f"{100 * value:g}%" if -_ROUNDING < value < 1 + _ROUNDING else ""


def _legend(axes: Axes) -> None:
    """Beside the axes; names are the user's, so that nothing in them is mathematics."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    short = [abbreviated(label, 44) for label in labels]
    for text in axes.legend(handles, short, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8).get_texts():
        text.set_parse_math(False)
