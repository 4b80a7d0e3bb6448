"""Figure of principal curvatures by rank, and how unequal the positive and the negative ones are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from raysense.report.manhattan import powers_of_ten
from raysense.report.style import BLUE, GREY, RED, WIDTH, styled

_UNIT = "[1 / pixel values]"
_MOST_TICKS = 12
_DECADES = 4
_LEAST = 1e-300


@dataclass(frozen=True)
class CurvatureProfile:
    """Principal curvatures over samples by rank, ascending; all ranks or some at both ends.

    Attributes:
        total: How many principal curvatures an image has.
        rank: Shape ``[N]``, 1 is the largest.
        mean: Shape ``[N]``, as the next two.
        low: 5th percentile.
        high: 95th percentile.
    """

    total: int
    rank: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def whole(self) -> bool:
        """Whether every rank is there."""
        return len(self.rank) == self.total


def curvature_profile(profile: CurvatureProfile) -> Figure:
    """On the left curvature against rank; on the right magnitudes from either end, |negative| over positive."""
    with styled():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _by_rank(left, profile)
        _mirrored(right, profile)
    return figure


def _by_rank(axes: Axes, profile: CurvatureProfile) -> None:
    whole = profile.whole
    at = profile.rank if whole else _packed(profile.rank)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for part in _runs(profile.rank):
        band = axes.fill_between(at[part], profile.low[part], profile.high[part], color=BLUE, alpha=0.2, linewidth=0)
        (line,) = axes.plot(
            at[part], profile.mean[part], color=BLUE, linewidth=1.3, marker="" if whole else "o", markersize=3
        )
    axes.legend([line, band], ["mean over samples", "5th to 95th percentile"], fontsize=8, loc="upper right")
    axes.set_xlabel(f"rank of the principal curvature, of {profile.total:,}")
    axes.set_ylabel(f"principal curvature {_UNIT}")
    axes.set_title("By rank", loc="left")
    if not whole:
        kept = _sparse(at)
        names = {int(place): f"{rank:,}" for place, rank in zip(at, profile.rank, strict=True)}
        axes.xaxis.set_major_locator(FixedLocator(kept))
        crowded = max(len(names[place]) for place in kept) > 4
        axes.set_xticklabels(
            [names[place] for place in kept],
            rotation=45 if crowded else 0,
            ha="right" if crowded else "center",
            rotation_mode="anchor",
        )


def _mirrored(axes: Axes, profile: CurvatureProfile) -> None:
    """Magnitudes of the i-th largest and of the i-th smallest, as far as they have their sign."""
    half = (profile.total + 1) // 2
    sides = {
        "positive": (profile.rank, profile.mean, RED),
        "|negative|": (profile.total + 1 - profile.rank, -profile.mean, BLUE),
    }
    for label, (place, magnitude, colour) in sides.items():
        shown = (place <= half) & (magnitude > 0)
        order = np.argsort(place[shown])
        x, y = place[shown][order], magnitude[shown][order]
        if profile.whole:
            axes.plot(np.log10(x), np.log10(y), color=colour, linewidth=1.3, label=label)
        else:
            axes.plot(x, y, color=colour, linewidth=1.3, label=label, marker="o", markersize=3)
    if profile.whole:
        powers_of_ten(axes.xaxis)
        powers_of_ten(axes.yaxis)
        # Where they change their sign the means pass through 0; what matters is above.
        greatest = float(np.log10(max(np.abs(profile.mean).max(), _LEAST)))
        axes.set_ylim(bottom=max(axes.get_ylim()[0], greatest - _DECADES))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=_MOST_TICKS, integer=True))
    axes.set_xlabel("place from its end of the spectrum, 1 is the extreme")
    axes.set_ylabel(f"magnitude of the mean {_UNIT}")
    axes.set_title("Asymmetry: |negative| over positive", loc="left")
    axes.legend(fontsize=8)


def _packed(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places side by side, with a gap of three where ranks are missing."""
    steps = np.where(np.diff(rank) > 1, 3, 1)
    places: NDArray[np.int64] = np.concatenate([[0], np.cumsum(steps)])
    return places


def _runs(rank: NDArray[np.int64]) -> list[slice]:
    """Ranks that follow one another."""
    cuts = [0, *(np.flatnonzero(np.diff(rank) > 1) + 1).tolist(), len(rank)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _sparse(places: NDArray[np.int64]) -> list[int]:
    """At most so many of the places, both ends of either run among them."""
    step = -(-len(places) // _MOST_TICKS)
    kept: list[int] = places[::step].tolist()
    return (
        kept if kept[-1] == places[-1] else [*(place for place in kept if places[-1] - place >= step), int(places[-1])]
    )
