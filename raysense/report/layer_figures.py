"""Figures of FI by layer: the profile of one network, and networks by relative depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysense.report.manhattan import Bands, name_bands, powers_of_ten
from raysense.report.points import LogValues, scale_edges
from raysense.report.style import BLUE, LINES, RED, WIDTH, abbreviated, styled


@dataclass(frozen=True)
class LayerValues:
    """Summaries of the layers of a network in their order.

    Attributes:
        depth: Relative depth in [0, 1], shape ``[L]``.
        median: Median FI, shape ``[L]``.
        p95: 95th percentile of FI, shape ``[L]``.
        jacobian_norm: Median Jacobian norm, shape ``[L]``; NaN where unknown.
    """

    depth: NDArray[np.float64]
    median: NDArray[np.float64]
    p95: NDArray[np.float64]
    jacobian_norm: NDArray[np.float64]


def by_layer(values: LayerValues, bands: Bands) -> tuple[Figure, str]:
    """Median and 95th percentile of FI above, the median Jacobian norm below, by layer.

    Returns:
        The figure, and sentences on what was clamped.
    """
    with styled():
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        at = np.arange(len(values.median), dtype=np.float64)
        edges = scale_edges(np.concatenate([values.median, values.p95]))
        remarks = _line(upper, at, values.median, edges, BLUE, "median", "medians")
        remarks += _line(upper, at, values.p95, edges, RED, "95th percentile", "95th percentiles")
        upper.set_ylabel("FI")
        upper.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        norms = values.jacobian_norm
        remarks += _line(lower, at, norms, scale_edges(norms[~np.isnan(norms)]), BLUE, "median", "Jacobian norms")
        lower.set_ylabel("median Jacobian norm")
        name_bands(lower, bands, 0.0)
    return figure, remarks


def by_depth(networks: Mapping[str, LayerValues]) -> tuple[Figure, str]:
    """Median FI by relative depth, a line for each network, at most as many as `LINES`.

    Returns:
        The figure, and sentences on what was clamped.
    """
    remarks = ""
    with styled():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.add_subplot()
        edges = scale_edges(np.concatenate([values.median for values in networks.values()]))
        for colour, (name, values) in zip(LINES, networks.items(), strict=False):
            label = f"{abbreviated(name, 30)} ({len(values.median)} layers)"
            remarks += _line(axes, values.depth, values.median, edges, colour, label, f"medians of {name}")
        axes.set_xlabel("relative depth of the layer")
        axes.set_ylabel("median FI")
        for text in axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0)).get_texts():
            text.set_parse_math(False)
    return figure, remarks


def _line(
    axes: Axes,
    x: NDArray[np.float64],
    values: NDArray[np.float64],
    edges: tuple[float, float],
    colour: str,
    label: str,
    what: str,
) -> str:
    known = ~np.isnan(values)
    clamped = LogValues.of(values[known], edges)
    axes.plot(x[known], clamped.logs, "-o", color=colour, linewidth=1.2, markersize=3, label=label)
    powers_of_ten(axes.yaxis)
    axes.margins(x=0.02, y=0.08)
    return clamped.says(what)
