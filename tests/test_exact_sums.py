"""Sums without rounding error, and what says that there is none, against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from raysense.measures.exact_sums import CoarseSums, compare, granularity, once, pair_sums, sums


def wide(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of any sign whose sizes span many orders, some 0; exact in ``dtype``, as float64."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-18, 18, shape, generator=generator).double()
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**exponents
    return (values * (torch.rand(shape, generator=generator) < 0.8)).to(dtype).double()


@pytest.fixture(scope="module")
def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """30 different observations, each several times, against 7 rows: all pairs, in random order."""
    generator = torch.Generator().manual_seed(0)
    inputs = wide((30, 12), 1)[torch.randint(30, (90,), generator=generator)]
    at, of = (part.flatten() for part in torch.meshgrid(torch.arange(90), torch.arange(7), indexing="ij"))
    order = torch.randperm(len(at), generator=generator)
    return inputs, wide((7, 12), 2), at[order], of[order]


def products(inputs: Tensor, weight: Tensor, at: int, of: int) -> list[Fraction]:
    return [Fraction(a) * Fraction(w) for a, w in zip(inputs[at].tolist(), weight[of].tolist(), strict=True)]


def test_pairs_that_are_alike_are_found_once(pairs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    inputs, _, at, of = pairs
    some, rows, which = once(inputs, at, of)
    assert len(some) == 7 * len(inputs.unique(dim=0)) < len(at)
    assert torch.equal(rows[which], of)
    assert torch.equal(inputs[some[which]], inputs[at])


@pytest.mark.parametrize("exact_products", [True, False])
@pytest.mark.parametrize("count", [5, 630])
def test_sums_are_rounded_once(pairs: tuple[Tensor, Tensor, Tensor, Tensor], exact_products: bool, count: int) -> None:
    inputs, weight, at, of = pairs
    found = sums(inputs, weight, at[:count], of[:count], exact_products)
    expected = [float(sum(products(inputs, weight, a, o))) for a, o in zip(at.tolist(), of.tolist(), strict=True)]
    assert found.tolist() == expected[:count]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize(("left", "right"), [(1, 12), (12, 1)])
def test_comparisons_are_exact(
    pairs: tuple[Tensor, Tensor, Tensor, Tensor], absolute: bool, left: int, right: int
) -> None:
    inputs, weight, at, of = pairs
    found = compare(inputs, weight, at, of, absolute, left, right)
    for row, a, o in zip(found.tolist(), at.tolist(), of.tolist(), strict=True):
        terms = products(inputs, weight, a, o)
        limit = right * sum(map(abs, terms) if absolute else terms)
        assert row == [left * abs(term) > limit for term in terms]


def test_sums_of_pairs(pairs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    inputs, weight, at, of = pairs
    signed, absolute = pair_sums(inputs, weight, at, of, 10)
    whole = (inputs.abs() @ weight.abs().T)[at, of]
    torch.testing.assert_close(absolute, whole, rtol=1e-14, atol=0.0)
    assert ((signed - (inputs @ weight.T)[at, of]).abs() <= 1e-14 * whole).all()
    assert [part.shape for part in pair_sums(inputs, weight, at[:0], of[:0], 10)] == [(0,), (0,)]


def test_coarse_sums_are_within_their_bound() -> None:
    inputs, weight = wide((40, 700), 3), wide((30, 700), 4)
    weight[3] *= 2.0**-100  # below the smallest float32 in products
    coarse = CoarseSums(weight)
    found = coarse.of(inputs)
    assert found is not None
    wrong = (found.double() - inputs @ weight.T).abs()
    assert (wrong <= coarse.roundoff * torch.outer(inputs.norm(dim=1), weight.norm(dim=1)) + coarse.slack).all()
    assert wrong.max() > 0
    assert coarse.of(inputs * 2.0**100) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -3.0, 0.0], 1.0),
        ([0.75, 5.0], 0.25),
        ([6.0, -12.0], 2.0),
        ([2.0**-60, 2.0**40], 2.0**-60),
        ([0.1], 2.0**-55),
        ([-(2.0**53)], 2.0**53),
        ([0.0, 0.0], math.inf),
    ],
)
def test_granularity(values: list[float], expected: float) -> None:
    assert granularity(torch.tensor(values, dtype=torch.float64)) == expected
    assert all(Fraction(value) % Fraction(expected) == 0 for value in values if math.isfinite(expected))
