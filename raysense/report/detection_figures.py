"""Figure of outlier detection: ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysense.report.style import DPI, GREY, WIDTH, styled

_SIDE = 4.0


@dataclass(frozen=True)
class Curve:
    """Points of one measure, from the highest threshold down.

    Attributes:
        fpr: False positive rate, shape ``[N]``, from 0 to 1.
        tpr: True positive rate, which is the recall, shape ``[N]``, from 0 to 1.
        precision: Shape ``[N]``; NaN where nothing is flagged.
        colour: Colour of the line.
        style: Its dashes.
        roc_label: Name and area under the ROC curve.
        pr_label: Name and area under the precision-recall curve.
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    precision: NDArray[np.float64]
    colour: str
    style: str
    roc_label: str
    pr_label: str


def detection(curves: Sequence[Curve], prevalence: float) -> Figure:
    """ROC curves on the left, precision-recall curves on the right; ``prevalence`` is the share of outliers."""
    with styled():
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for curve in curves:
            _draw(left, curve.fpr, curve.tpr, curve, curve.roc_label)
            known = ~np.isnan(curve.precision)
            _draw(right, curve.tpr[known], curve.precision[known], curve, curve.pr_label)
        left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="chance")
        right.plot([0, 1], [prevalence, prevalence], color=GREY, linewidth=0.8, linestyle=":", label="chance")
        for axes, x, y in ((left, "false positive rate", "true positive rate"), (right, "recall", "precision")):
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
        left.set_title("ROC", loc="left")
        right.set_title("Precision and recall", loc="left")
    return figure


def _draw(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], curve: Curve, label: str) -> None:
    kept = _thinned(x, y)
    axes.plot(x[kept], y[kept], color=curve.colour, linestyle=curve.style, linewidth=1.3, label=label)


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the points of a line in the unit square to draw: the first and last in every pixel it passes."""
    cell = np.stack([x, y], axis=1) * (_SIDE * DPI) // 1
    changes = np.any(cell[1:] != cell[:-1], axis=1)
    kept: NDArray[np.int64] = np.flatnonzero(np.append(True, changes) | np.append(changes, True))
    return kept
