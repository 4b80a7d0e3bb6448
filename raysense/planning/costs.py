"""What units cost by their size, fitted to a few that were measured, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.8
"""Probability with which a true value lies in an interval: its ends are the 10% and the 90% quantiles."""

DRAWS = 400
_ABOUT = 0.25
_QUANTILES = ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies with probability `LEVEL`."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """In another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Line:
    """A cost of ``fixed`` per unit and ``each`` per item, with other values that it might as well have.

    Attributes:
        fixed: Cost of a unit whatever its size.
        each: Cost of an item.
        draws: [`DRAWS`, 2], fixed and each of as many fits to resampled measurements, spread for their small number.
        separable: Whether units of several sizes were measured, so that the two can be told apart.
    """

    fixed: float
    each: float
    draws: Floats
    separable: bool

    def total(self, units: int, items: int) -> Interval:
        """Cost of so many units with so many items together; of the one part where the other is 0."""
        spread = units * self.draws[:, 0] + items * self.draws[:, 1]
        low, _, high = np.quantile(spread, _QUANTILES)
        value = units * self.fixed + items * self.each
        return Interval(value, min(value, float(low)), max(value, float(high)))


def fit_line(
    sizes: Sequence[int], values: Sequence[float], groups: Sequence[int], seed: int, usual: int | None = None
) -> Line:
    """Fit costs to measured pieces of several sizes.

    The variance of a piece's cost is taken to grow as its items, so that with no cost of the units the cost of an item is
    the mean over all items. Costs are only roughly a line (compression, batches), so that the line is scaled to go through
    the mean of the pieces of the usual size. The fits to resampled measurements draw whole groups, and are spread by
    Student's factor.

    Args:
        sizes: Items of each piece, [n].
        values: Cost of each piece, [n], not negative.
        groups: Number of the place of each piece, [n]; pieces of a place are drawn together.
        seed: Of the draws.
        usual: Items of a unit; the largest pieces count where all are smaller. None for no scaling.
    """
    x, y, place = np.asarray(sizes, np.float64), np.asarray(values, np.float64), np.asarray(groups)
    separable = len(set(sizes)) > 1
    places = np.unique(place)
    target = -1.0 if usual is None else min(float(usual), x.max())
    anchor = (np.abs(x - target) <= _ABOUT * target).astype(np.float64)
    # Sums over each place of 1/x, 1, x, y/x, y, and of 1, x, y of pieces of the usual size: the fit of any choice of places
    # is made of these.
    terms = np.stack([1 / x, np.ones_like(x), x, y / x, y, anchor, anchor * x, anchor * y], axis=1)
    sums = np.stack([terms[place == each].sum(0) for each in places])
    fixed, each = _solved(sums.sum(0)[None], separable)[0]
    count = len(places)
    if count < 2:
        draws = np.tile([fixed, each], (DRAWS, 1))
    else:
        rng = np.random.default_rng(seed)
        chosen = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
        spread = stats.t.ppf(_QUANTILES[2], count - 1) / stats.norm.ppf(_QUANTILES[2]) * np.sqrt(count / (count - 1))
        middle = np.array([fixed, each])
        draws = np.maximum(0.0, middle + spread * (_solved(chosen @ sums, separable) - middle))
    return Line(float(fixed), float(each), draws, separable)


def residuals(line: Line, sizes: Sequence[int], values: Sequence[float]) -> Floats:
    """Measured costs relative to the fitted ones, [n], with mean 1; ones where nothing costs anything."""
    fitted = line.fixed + line.each * np.asarray(sizes, np.float64)
    if not fitted.min() > 0:
        return np.ones(len(fitted))
    relative = np.asarray(values, np.float64) / fitted
    return np.asarray(relative / relative.mean()) if relative.mean() > 0 else np.ones(len(fitted))


def interval(values: Sequence[float] | Floats) -> Interval:
    """Median, and between which simulated values another one lies with probability `LEVEL`, from nine values on."""
    low, middle, high = (float(value) for value in np.quantile(np.asarray(values), _QUANTILES, method="weibull"))
    return Interval(middle, low, high)


def _solved(sums: Floats, separable: bool) -> Floats:
    """Weighted least squares with neither part negative, scaled to the usual size, for rows of sums [m, 8]; [m, 2]."""
    inverse, count, size, rate, value, usual_count, usual_size, usual_value = sums.astype(np.float64).T
    each_alone = value / size
    if separable:
        determinant = inverse * size - count**2
        safe = np.where(determinant > 1e-12 * inverse * size, determinant, np.inf)
        fixed = (size * rate - count * value) / safe
        each = (inverse * value - count * rate) / safe
        # Where the drawn places have pieces of one size only, the two cannot be told apart: all of it goes to the items.
        no_fixed = (fixed < 0) | ~np.isfinite(safe)
        no_each = each < 0
        fixed, each = (
            np.where(no_fixed, 0.0, np.where(no_each, rate / inverse, fixed)),
            np.where(no_fixed, each_alone, np.where(no_each, 0.0, each)),
        )
    else:
        fixed, each = np.zeros_like(each_alone), each_alone
    fitted = fixed * usual_count + each * usual_size
    scale = np.divide(usual_value, fitted, out=np.ones_like(fitted), where=fitted > 0)
    return np.stack([fixed * scale, each * scale], axis=1)
