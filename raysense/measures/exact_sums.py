"""Sums of products whose sign or size must be right: bounds of their rounding error, and sums without any.

Pairs (b, i) of an observation and a row stand for the products x_bj w_ij, j = 1 to I.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

ROUNDOFF = 2.0**-53
"""Unit roundoff u of float64."""

_FEW = 64
"""Pairs that are looked at one by one without looking for what they have in common first."""


def sum_roundoff(terms: int) -> float:
    """Bound of the rounding error of a sum of products, relative to the sum of their magnitudes (Higham 2002, Eq. 3.5).

    Ten per cent more, so that it may be multiplied with magnitudes that are rounded themselves.
    """
    return 1.1 * (terms + 4) * ROUNDOFF


def granularity(values: Tensor) -> float:
    """The largest power of two of which all values (float64, finite) are integer multiples; infinite where all are 0."""
    mantissa, exponent = torch.frexp(values[values != 0])
    if not len(mantissa):
        return math.inf
    whole = (mantissa * 2.0**53).long()
    lowest = torch.log2((whole & -whole).double()).round().long()
    return math.ldexp(1.0, int((exponent + lowest).min()) - 53)


def pair_sums(inputs: Tensor, weight: Tensor, at: Tensor, of: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sums over j of x_bj w_ij and of |x_bj w_ij| of pairs (at, of), [P] each, in float64.

    Args:
        inputs: [B, I].
        weight: [O, I].
        at: Observations [P].
        of: Rows [P].
        step: Pairs to expand at a time.
    """
    found = [inputs.new_zeros((2, 0))]
    for some, rows in zip(at.split(step), of.split(step), strict=True):
        products = inputs[some].mul_(weight[rows])
        found.append(torch.stack((products.sum(1), products.abs_().sum(1))))
    signed, absolute = torch.cat(found, dim=1)
    return signed, absolute


class CoarseSums:
    """Sums of products in single precision, a block of terms at a time, with a bound of their error: at twice the speed.

    Args:
        weight: [O, I], float64, of values that float32 has.
    """

    _BLOCK = 256

    def __init__(self, weight: Tensor) -> None:
        self._blocks = [part.T.float().contiguous() for part in weight.split(self._BLOCK, dim=1)]
        # Of the sum in a block and of the blocks' sums; blocks' norms make up the row's (Cauchy-Schwarz).
        self.roundoff = 1.1 * (self._BLOCK + len(self._blocks) + 4) * 2.0**-24
        self.slack = weight.shape[1] * 2.0**-125
        """What may be lost to products below the smallest float32."""

    def of(self, inputs: Tensor) -> Tensor | None:
        """Sums [B, O], float32, of inputs [B, I] that float32 has; None where a product exceeds the largest float32.

        They are wrong by at most ``roundoff`` times the product of the norms, plus ``slack``.
        """
        total = inputs.new_zeros((len(inputs), self._blocks[0].shape[1]), dtype=torch.float32)
        for part, block in zip(inputs.float().split(self._BLOCK, dim=1), self._blocks, strict=True):
            total.addmm_(part, block)
        return total if bool(total.isfinite().all()) else None


def once(inputs: Tensor, at: Tensor, of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs whose observations and rows differ: those that are alike have one result.

    Args:
        inputs: [B, I]; observations with equal inputs are alike (a flat background has many).
        at: Observations [P].
        of: Rows [P].

    Returns:
        Observations and rows of U pairs, [U] each, and which of them every pair is, [P].
    """
    if len(at) <= _FEW:
        return at, of, torch.arange(len(at), device=at.device)
    used, position = at.unique(return_inverse=True)
    _, kind = inputs[used].unique(dim=0, return_inverse=True)
    kind = kind[position]
    rows = int(of.max()) + 1
    pairs, which = (kind * rows + of).unique(return_inverse=True)
    first = torch.zeros(len(pairs), dtype=torch.int64, device=at.device)
    first[which] = torch.arange(len(at), device=at.device)
    return at[first], of[first], which


def sums(inputs: Tensor, weight: Tensor, at: Tensor, of: Tensor, exact_products: bool) -> Tensor:
    """Sums of the products of pairs (at, of), [P] float64, each rounded once.

    Args:
        inputs: [B, I], float64.
        weight: [O, I], float64.
        at: Observations [P].
        of: Rows [P].
        exact_products: Whether the products have no rounding error in float64.
    """
    some, rows, which = once(inputs, at, of)
    add: Callable[[list[float], list[float]], float] = _float_sum if exact_products else _rational_sum
    found = [add(x, w) for x, w in _pairs(inputs, weight, some, rows)]
    return torch.tensor(found, dtype=torch.float64, device=inputs.device)[which]


def compare(inputs: Tensor, weight: Tensor, at: Tensor, of: Tensor, absolute: bool, left: int, right: int) -> Tensor:
    """Whether left * |x_bj w_ij| > right * (the sum over k of x_bk w_ik, or of their magnitudes): bool [P, I], exactly.

    Args:
        inputs: [B, I], float64.
        weight: [O, I], float64.
        at: Observations [P].
        of: Rows [P].
        absolute: Whether magnitudes are summed.
        left: Factor.
        right: Factor.
    """
    some, rows, which = once(inputs, at, of)
    found = []
    for x, w in _pairs(inputs, weight, some, rows):
        products = [Fraction(a) * Fraction(b) for a, b in zip(x, w, strict=True)]
        limit = right * sum(map(abs, products) if absolute else products, Fraction(0))
        found.append([left * abs(product) > limit for product in products])
    shape = len(some), inputs.shape[1]
    return torch.tensor(found, dtype=torch.bool, device=inputs.device).reshape(shape)[which]


def _pairs(inputs: Tensor, weight: Tensor, at: Tensor, of: Tensor) -> Iterator[tuple[list[float], list[float]]]:
    for some, rows in zip(at.tolist(), of.tolist(), strict=True):
        yield inputs[some].tolist(), weight[rows].tolist()


def _float_sum(x: list[float], w: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, w, strict=True))


def _rational_sum(x: list[float], w: list[float]) -> float:
    return float(sum((Fraction(a) * Fraction(b) for a, b in zip(x, w, strict=True)), Fraction(0)))
