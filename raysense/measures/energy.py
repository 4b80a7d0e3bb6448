"""Mean distances between sets of activations, their energy distance, and the errors where only samples of them were kept.

Khaitan & Banerjee 2026, section 4.2, ablation 3: the separation of two classes is E|X - Y|, the spread of one E|X - X'|;
their energy distance is 2 E|X - Y| - E|X - X'| - E|Y - Y'|. All are unbiased: within a class over pairs of different
samples.

Distances come from matrix products, |x|^2 + |y|^2 - 2 x.y, in float64 and about a common centre. Their relative error is
about 1e-12 at most, since those of samples much nearer to each other than to the centre are computed from differences;
samples that are exactly equal are at distance 0.

**The error of samples.** Where n of the N samples of a class were kept, a mean over pairs is an estimate. As a function of
the samples drawn it falls into effects of single samples and of pairs (as in an analysis of variance), which are
uncorrelated. With sums of squares S^2 of these effects, each divided by its degrees of freedom, the variance under
simple random sampling without replacement is exactly, between two classes of which n of N and m of M were kept,

    (1 - n/N) S^2(x) / n + (1 - m/M) S^2(y) / m + (1 - n/N) (1 - m/M) S^2(x, y) / (n m)

and within a class

    (1 - n/N) S^2(x) / n + 2 (N - n) (N - n - 1) S^2(x, x') / (n (n - 1) (N - 1) (N - 2)).

Every S^2 is estimated without bias from the samples kept; where the estimate of a single sample's falls to 0 or below, the
mean square of the effects stands in for it, which is too large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_NEAR = 1e-3
"""Pairs whose squared distance is below this fraction of |x|^2 + |y|^2 are computed from differences."""


@dataclass(frozen=True)
class Kept:
    """How many samples of a class were kept, of how many; at least one."""

    samples: int
    of: int

    @property
    def left(self) -> float:
        """1 - n/N, the finite population correction."""
        return 1 - self.samples / self.of


@dataclass(frozen=True)
class Within:
    """Distances between different samples of one class.

    Attributes:
        kept: The samples.
        mean: Their mean; NaN for one sample.
        effects: [n], effects of the single samples on the mean, times n; NaN for fewer than 3.
        pairs: Estimate of S^2 of the pairs; NaN for fewer than 4 samples.
    """

    kept: Kept
    mean: float
    effects: np.ndarray
    pairs: float

    @property
    def stderr(self) -> float:
        """Standard error of the mean; 0 where all samples were kept, NaN where fewer than 4 of more were."""
        return _root(_of_singles(self.kept, self.effects, self.bias) + self.of_pairs)

    @property
    def of_pairs(self) -> float:
        """Variance that pairs contribute."""
        n, size = self.kept.samples, self.kept.of
        if size - n < 2:
            return 0.0
        return 2 * (size - n) * (size - n - 1) * self.pairs / max(1, n * (n - 1)) / ((size - 1) * (size - 2))

    @property
    def bias(self) -> float:
        """By how much pairs raise the mean square of the estimated effects of single samples."""
        n, size = self.kept.samples, self.kept.of
        return 0.0 if size == n else 4 * (size - n) * self.pairs / max(1, n - 2) / max(1, size - 2)


@dataclass(frozen=True)
class Between:
    """Distances between the samples of two classes.

    Attributes:
        kept: Samples of both classes.
        mean: Mean distance.
        effects: [n] and [m], effects of the single samples of both classes on the mean, times n and m.
        pairs: Estimate of S^2 of the pairs; NaN where a class has one sample.
    """

    kept: tuple[Kept, Kept]
    mean: float
    effects: tuple[np.ndarray, np.ndarray]
    pairs: float

    @property
    def stderr(self) -> float:
        """Standard error of the mean; 0 where all samples were kept, NaN where one of more was."""
        singles = sum(
            _of_singles(kept, effects, bias)
            for kept, effects, bias in zip(self.kept, self.effects, self.biases, strict=True)
        )
        return _root(singles + self.of_pairs)

    @property
    def of_pairs(self) -> float:
        """Variance that pairs contribute."""
        x, y = self.kept
        return _weighted(x.left * y.left, self.pairs) / (x.samples * y.samples)

    @property
    def biases(self) -> tuple[float, float]:
        """By how much pairs raise the mean squares of the estimated effects of single samples."""
        x, y = self.kept
        return _weighted(y.left, self.pairs) / y.samples, _weighted(x.left, self.pairs) / x.samples


def within(x: Tensor, kept: Kept, memory_bytes: int) -> Within:
    """Distances between different samples of a class.

    Args:
        x: [n, d] float64.
        kept: n and N.
        memory_bytes: Bound on what is allocated at once, beyond x and a copy of it.
    """
    n = len(x)
    sums, _, squares = _sums(x - x.mean(0), None, memory_bytes)
    if n < 2:
        return Within(kept, math.nan, np.full(n, math.nan), math.nan)
    mean = float(sums.sum()) / (n * (n - 1))
    # Twice: a sample is in pairs as the first and as the second.
    effects = 2 * (sums / (n - 1) - mean) * (n - 1) / (n - 2) if n > 2 else np.full(n, math.nan)
    rest = squares / 2 - mean**2 * n * (n - 1) / 2 - (n - 2) * float(np.sum(effects**2)) / 4
    return Within(kept, mean, effects, max(0.0, rest) / (n * (n - 3) / 2) if n > 3 else math.nan)


def between(x: Tensor, y: Tensor, kept: tuple[Kept, Kept], memory_bytes: int) -> Between:
    """Distances between the samples of two classes.

    Args:
        x: [n, d] float64, about a centre of all classes, which keeps the rounding small.
        y: [m, d] float64, about the same.
        kept: n and N, m and M.
        memory_bytes: Bound on what is allocated at once, beyond x and y.
    """
    n, m = len(x), len(y)
    rows, columns, squares = _sums(x, y, memory_bytes)
    mean = float(rows.sum()) / (n * m)
    effects = rows / m - mean, columns / n - mean
    rest = squares - n * m * mean**2 - m * float(np.sum(effects[0] ** 2)) - n * float(np.sum(effects[1] ** 2))
    pairs = max(0.0, rest) / ((n - 1) * (m - 1)) if n > 1 and m > 1 else math.nan
    return Between(kept, mean, effects, pairs)


def energy_distance(between: Between, first: Within, second: Within) -> tuple[float, float]:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| and its standard error, which shares the samples among the three means.

    Being unbiased, an energy distance near 0 may come out negative. It is NaN where a class has one sample.
    """
    variance = 4 * between.of_pairs + first.of_pairs + second.of_pairs
    for index, own in enumerate((first, second)):
        effects = 2 * between.effects[index] - own.effects
        variance += _of_singles(own.kept, effects, 4 * between.biases[index] + own.bias)
    return 2 * between.mean - first.mean - second.mean, _root(variance)


def _of_singles(kept: Kept, effects: np.ndarray, bias: float) -> float:
    """Variance that single samples contribute to a mean."""
    if kept.samples == kept.of:
        return 0.0
    if kept.samples < 2:
        return math.nan
    return kept.left * _corrected(float(np.var(effects, ddof=1)), bias) / kept.samples


def _corrected(square: float, bias: float) -> float:
    """A mean square less its bias, or whole where that would leave nothing: then no error is claimed to be 0."""
    return square if bias >= square else square - bias


def _root(variance: float) -> float:
    return math.sqrt(variance)


def _weighted(weight: float, value: float) -> float:
    """Their product, 0 for weight 0 whatever the value."""
    return weight * value if weight else 0.0


def _sums(x: Tensor, y: Tensor | None, memory_bytes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums of the distances by row and by column, and of their squares; of x to itself where y is None."""
    others = x if y is None else y
    rows, columns, squares = x.new_zeros(len(x)), x.new_zeros(len(others)), x.new_zeros(())
    for row, column, distances in _blocks(x, others, y is None, memory_bytes):
        rows[row] += distances.sum(1)
        columns[column] += distances.sum(0)
        squares += distances.square_().sum()
    return rows.cpu().numpy(), columns.cpu().numpy(), float(squares)


def _blocks(x: Tensor, y: Tensor, same: bool, memory_bytes: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Distances [n, m] in blocks of a bounded size, each with its rows and columns."""
    side = _side(x.shape[1], memory_bytes)
    x_sizes, y_sizes = (torch.linalg.vector_norm(points, dim=1).square_() for points in (x, y))
    for first in range(0, len(x), side):
        row = slice(first, first + side)
        for second in range(0, len(y), side):
            column = slice(second, second + side)
            sizes = x_sizes[row, None] + y_sizes[column]
            squared = torch.addmm(sizes, x[row], y[column].T, alpha=-2)
            near = squared <= sizes.mul_(_NEAR)
            if same and first == second:
                near.fill_diagonal_(False)
                squared.fill_diagonal_(0)
            yield row, column, _replaced(squared.clamp_(min=0).sqrt_(), near, x[row], y[column])


def _replaced(distances: Tensor, near: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distances with those of near pairs from differences."""
    if bool(near.any()):
        rows, columns = near.any(1).nonzero()[:, 0], near.any(0).nonzero()[:, 0]
        exact = torch.cdist(x[rows], y[columns], compute_mode="donot_use_mm_for_euclid_dist")
        part = rows[:, None], columns
        distances[part] = torch.where(near[part], exact, distances[part])
    return distances


def _side(width: int, memory_bytes: int) -> int:
    """Side of a block: it is held some 5 times over, and its near rows and columns of ``width`` entries once."""
    numbers = memory_bytes / 8
    return max(1, int((math.sqrt(width**2 + 5 * numbers) - width) / 5))
