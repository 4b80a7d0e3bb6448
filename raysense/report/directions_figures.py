"""Figure of how curved the boundary is along every shared direction."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raysense.report.style import BLUE, GREY, ORANGE, WIDTH, styled


def direction_bars(
    direction: NDArray[np.int64],
    rho: NDArray[np.float64],
    error: NDArray[np.float64],
    curvature: NDArray[np.float64],
) -> Figure:
    """Bars of the mean rho_i above, with standard errors, and of the signed curvature below, by shared direction.

    Args:
        direction: Shape ``[m]``, from 1; as the next three.
        rho: Mean of rho_i over samples.
        error: Its standard error; NaN where unknown.
        curvature: Mean signed curvature, 1 / pixel values.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _bars(upper, direction, rho, BLUE)
        upper.errorbar(direction, rho, np.nan_to_num(error), linestyle="none", ecolor="black", elinewidth=0.7, zorder=3)
        upper.axhline(1, color=GREY, linewidth=1.0, linestyle="--", label="random directions", zorder=4)
        upper.set_ylabel("ρᵢ, curvature relative to\nrandom directions [1]")
        upper.set_ylim(bottom=0)
        upper.legend(fontsize=8, loc="upper right")
        _bars(lower, direction, curvature, ORANGE)
        lower.axhline(0, color=GREY, linewidth=0.8)
        lower.set_ylabel("signed curvature\n[1 / pixel values]")
        lower.set_xlabel("shared direction uᵢ, 1 is the most shared")
        lower.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        lower.set_xlim(0.4, float(direction.max()) + 0.6)
    return figure


def _bars(axes: Axes, at: NDArray[np.int64], values: NDArray[np.float64], colour: str) -> None:
    axes.bar(at, values, width=0.8, color=colour, linewidth=0)
    axes.grid(False, axis="x")
