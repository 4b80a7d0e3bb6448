"""Boxes in a semantic space: the space's bounds and periods, corners, volumes, and the function they are grown on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_HASH_FACTOR = -7046029254386353131
"""2^64 over the golden ratio, odd, as int64 (Knuth's multiplicative hashing)."""


class Domain(NamedTuple):
    """The space Omega that boxes live in.

    Attributes:
        lower: [n] float64.
        upper: [n] float64, above ``lower``.
        periodic: [n] bool; where true, ``upper`` and ``lower`` are the same place, and boxes may cross it.
    """

    lower: Tensor
    upper: Tensor
    periodic: Tensor

    @property
    def extent(self) -> Tensor:
        """Length of every axis, [n]."""
        return self.upper - self.lower

    def wrapped(self, points: Tensor) -> Tensor:
        """Points [..., n] with the periodic coordinates brought into the range; the others as they are."""
        return torch.where(self.periodic, self.lower + torch.remainder(points - self.lower, self.extent), points)


class RegionFunction(Protocol):
    """f(u) of Hamdi & Ghanem (2020), Eq. (1), for several subjects (shapes or images) at once; values in [0, 1]."""

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P] float64 at points [P, n] float64 of subjects [P] int64."""

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and their gradients by the point [P, n], float64."""


class Evaluator:
    """A region function that is evaluated once at equal points of one subject, and counts.

    Attributes:
        requested: Points asked for so far.
        evaluated: Points that were handed to the function.
    """

    def __init__(self, function: RegionFunction) -> None:
        self._function = function
        self.requested = 0
        self.evaluated = 0

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P], as of the function."""
        distinct, inverse = self._distinct(points, subjects)
        return self._function.scores(points[distinct], subjects[distinct])[inverse]

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and gradients [P, n], as of the function."""
        distinct, inverse = self._distinct(points, subjects)
        scores, gradients = self._function.scores_and_gradients(points[distinct], subjects[distinct])
        return scores[inverse], gradients[inverse]

    def _distinct(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the first of equal points, and the place of every point among them."""
        # Zeros of both signs are one point; bits compare exactly, so that no two points are confused.
        keys = torch.cat((subjects[:, None], (points + 0.0).view(torch.int64)), dim=1)
        first, inverse = _first_of_equal(_hashed(keys))
        if not torch.equal(keys[first][inverse], keys):  # two points with one hash: rare, and sorting rows is slow
            first, inverse = _first_of_equal(torch.unique(keys, dim=0, return_inverse=True)[1])
        self.requested += len(points)
        self.evaluated += len(first)
        return first, inverse


def _first_of_equal(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of equal values [P] int64 the first place each, and for every place which of them it is."""
    found, inverse = torch.unique(values, return_inverse=True)
    places = torch.arange(len(values), device=values.device)
    first = torch.full_like(found, len(values)).scatter_reduce(0, inverse, places, "amin")
    return first, inverse


def _hashed(keys: Tensor) -> Tensor:
    """A hash [P] int64 of rows [P, k] int64."""
    found = torch.zeros_like(keys[:, 0])
    for column in keys.unbind(1):
        found = (found ^ column ^ (column >> 29)) * _HASH_FACTOR
        found = found ^ (found >> 31)
    return found


def clipped(domain: Domain, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The part of boxes [B, n] inside the space; a periodic axis may be left but is at most a whole turn long.

    Where nothing is left, the upper bound returned is below the lower one.
    """
    turn = torch.minimum(upper, lower + domain.extent)
    low = torch.where(domain.periodic, lower, torch.maximum(lower, domain.lower))
    return low, torch.where(domain.periodic, turn, torch.minimum(upper, domain.upper))


def clipped_volume(lower: Tensor, upper: Tensor, domain: Domain) -> Tensor:
    """Volume of the part of boxes that lies in the space; along a periodic axis at most one turn counts.

    Args:
        lower: [B, n] float64.
        upper: [B, n] float64.
        domain: The space.

    Returns:
        [B] float64, in the product of the axes' units.
    """
    low, high = clipped(domain, lower, upper)
    return (high - low).clamp_min(0).prod(1)


def corners(lower: Tensor, upper: Tensor) -> Tensor:
    """Corner points of boxes, Eq. (5).

    Args:
        lower: [..., n].
        upper: [..., n].

    Returns:
        [..., 2^n, n]; corner i has the upper bound on axis k where bit k of i is set.
    """
    mask = corner_mask(lower.shape[-1]).to(lower.device)
    return torch.where(mask, upper[..., None, :], lower[..., None, :])


def corner_mask(dimensions: int) -> Tensor:
    """The binary matrix M of Eq. (5), transposed: [2^n, n] bool; row i holds the bits of i, the lowest first."""
    numbers = torch.arange(2**dimensions)
    return (numbers[:, None] >> torch.arange(dimensions)) % 2 == 1
