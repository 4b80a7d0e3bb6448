"""A Gaussian process that stands in for an expensive function of a few parameters, and its integrals over boxes."""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = (0.02, 0.05, 0.12, 0.3, 0.75, 2.0, 5.0)
"""Correlation lengths that are tried, as shares of an axis."""

NUGGET = 1e-6
"""Share of the variance that is added to the kernel's diagonal."""


class Surrogate:
    """Interpolation of a score and of its square by Gaussian processes with one kernel.

    The kernel exp(-sum_k |x_k - y_k| / l_k) belongs to rough functions (continuous, not smooth), so that a cliff does not
    ring far from where it is; |x_k - y_k| is the arc on a periodic axis, for which the kernel is positive definite too.
    As it is a product over the axes, so are its integrals over boxes, in any number of dimensions (Bayesian quadrature,
    O'Hagan 1991, "Bayes-Hermite quadrature").

    Attributes:
        points: Where the function is known, [N, n] float64, as shares of the axes.
        values: The scores and their squares, [N, 2] float64.
        centre: Mean of both processes, [2], by generalised least squares.
        weights: Coefficients of the kernels, [N, 2].
    """

    def __init__(self, points: Tensor, scores: Tensor, periodic: Tensor, lengths: Tensor) -> None:
        self.points, self._lengths, self._periodic = points, lengths, periodic
        self.values = torch.stack((scores, scores.square()), dim=1)
        kernel = torch.exp(-distances(points, points, lengths, periodic))
        kernel.diagonal().add_(NUGGET)
        self._factor = torch.linalg.cholesky(kernel)
        ones = torch.ones_like(self.values[:, :1])
        solved = torch.cholesky_solve(torch.cat((self.values, ones), dim=1), self._factor)
        self.centre = solved[:, :2].sum(0) / solved[:, 2].sum()
        self.weights = solved[:, :2] - self.centre * solved[:, 2:]

    @property
    def log_likelihood(self) -> Tensor:
        """Log-likelihood of the scores at the best variance, a scalar up to a constant."""
        variance = (self.values[:, 0] - self.centre[0]) @ self.weights[:, 0] / len(self.points)
        likelihood: Tensor = (
            -0.5 * len(self.points) * variance.clamp(min=1e-300).log() - self._factor.diagonal().log().sum()
        )
        return likelihood

    @property
    def residuals(self) -> Tensor:
        """What every score, and its square, exceeds its prediction out of all other points by: [N, 2]."""
        return self.weights / torch.cholesky_inverse(self._factor).diagonal()[:, None]

    def integrals(self, axis: int, edges: Tensor) -> Tensor:
        """The kernel's integrals along one axis from a common origin to every edge.

        Args:
            axis: Which axis.
            edges: [E] float64; on a periodic axis they may lie beyond 0 and 1.

        Returns:
            [E, N] float64. Their differences are integrals between edges, for every known point.
        """
        offset = edges[:, None] - self.points[:, axis]
        length = float(self._lengths[axis])
        if not self._periodic[axis]:
            return offset.sign() * -torch.expm1(-offset.abs() / length) * length
        turns = offset.floor()
        offset = offset - turns
        half = -torch.expm1(-torch.minimum(offset, 1 - offset) / length) * length
        whole = -2 * torch.expm1(torch.tensor(-0.5 / length)).to(edges) * length
        return turns * whole + torch.where(offset <= 0.5, half, whole - half)


def likeliest_lengths(
    points: Tensor, scores: Tensor, periodic: Tensor, lengths: Tensor | None = None, most: int = 160
) -> Tensor:
    """Correlation lengths of the greatest likelihood, by ascent over one axis at a time on ``LENGTHS``.

    Args:
        points: [N, n] float64, as shares of the axes.
        scores: [N] float64.
        periodic: [n] bool.
        lengths: Where to begin, [n]; by default in the middle of ``LENGTHS``.
        most: No more points than these are used, the last ones: the cost is cubic.

    Returns:
        [n] float64.
    """
    points, scores = points[-most:], scores[-most:]
    table = torch.tensor(LENGTHS, dtype=torch.float64)
    chosen = [len(LENGTHS) // 2] * points.shape[1]
    if lengths is not None:
        chosen = [int((table - length).abs().argmin()) for length in lengths]

    def likelihood(indices: list[int]) -> float:
        return float(Surrogate(points, scores, periodic, table[indices]).log_likelihood)

    best, improved = likelihood(chosen), True
    while improved:
        improved = False
        for axis in range(points.shape[1]):
            for step in (-1, 1):
                while 0 <= chosen[axis] + step < len(LENGTHS):
                    tried = [*chosen[:axis], chosen[axis] + step, *chosen[axis + 1 :]]
                    found = likelihood(tried)
                    if not found > best:  # also where scores are no numbers
                        break
                    chosen, best, improved = tried, found, True
    return table[chosen]


def distances(x: Tensor, y: Tensor, lengths: Tensor, periodic: Tensor) -> Tensor:
    """Sum over the axes of |x_k - y_k| / l_k, arcs on periodic axes, between [P, n] and [N, n]: [P, N]."""
    total = x.new_zeros(len(x), len(y))
    for axis in range(x.shape[1]):
        apart = (x[:, axis, None] - y[None, :, axis]).abs_()
        if periodic[axis]:
            apart = torch.minimum(apart, 1 - apart)
        total.add_(apart, alpha=1 / float(lengths[axis]))
    return total
