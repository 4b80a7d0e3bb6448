"""Both ends of the spectrum by Lanczos, against dense eigenvalues in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raysense.measures.lanczos import ritz_pairs


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(samples: int, size: int) -> Tensor:
    matrix = normal(samples, size, size)
    return matrix + matrix.transpose(1, 2)


def product_of(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda vectors: (matrix @ vectors[:, :, None]).squeeze(2)


def draws(samples: int, size: int) -> Callable[[], Tensor]:
    seeds = iter(range(100, 1000))
    return lambda: normal(samples, size, seed=next(seeds))


@pytest.mark.parametrize(("largest", "smallest"), [(1, 0), (0, 2), (3, 2), (5, 5)])
def test_both_ends_equal_the_dense_ones(largest: int, smallest: int) -> None:
    matrix = symmetric(4, 40)
    matrix[3] -= 100 * torch.eye(40, dtype=torch.float64)
    found = ritz_pairs(product_of(matrix), normal(4, 40, seed=1), largest, smallest, 1e-10, 40)
    dense = torch.linalg.eigvalsh(matrix).flip(1)
    expected = torch.cat((dense[:, :largest], dense[:, 40 - smallest :]), dim=1)
    torch.testing.assert_close(found.values, expected)
    assert found.converged.all()
    vectors = found.vectors()
    torch.testing.assert_close(vectors @ matrix, expected[:, :, None] * vectors)
    torch.testing.assert_close(
        vectors @ vectors.transpose(1, 2), torch.eye(largest + smallest, dtype=torch.float64).expand(4, -1, -1)
    )


@pytest.mark.parametrize("iterations", [6, 9, 15])
def test_an_eigenvalue_lies_within_every_residual(iterations: int) -> None:
    matrix = symmetric(5, 60)
    found = ritz_pairs(product_of(matrix), normal(5, 60, seed=1), 3, 3, 1e-14, iterations)
    dense = torch.linalg.eigvalsh(matrix)
    distances = (found.values[:, :, None] - dense[:, None]).abs().amin(2)
    assert (distances <= found.residuals).all()
    vectors = found.vectors()
    measured = (vectors @ matrix - found.values[:, :, None] * vectors).norm(dim=2)
    torch.testing.assert_close(measured, found.residuals, rtol=1e-6, atol=1e-12)
    assert not found.converged.any()
    assert found.products == iterations


def test_repeated_eigenvalues_need_new_starts() -> None:
    values = torch.tensor([[2.0] * 12, [5.0] * 4 + [0.0] * 8, [3.0, 2.0, *[0.0] * 9, -1.0]], dtype=torch.float64)
    ways = torch.linalg.qr(normal(3, 12, 12)).Q
    matrix = ways @ torch.diag_embed(values) @ ways.transpose(1, 2)
    start = normal(3, 12, seed=1)
    found = ritz_pairs(product_of(matrix), start, 2, 2, 1e-8, 12, draws(3, 12))
    expected = torch.tensor([[2, 2, 2, 2], [5, 5, 0, 0], [3, 2, 0, -1]], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-9)
    assert found.converged.all()
    without = ritz_pairs(product_of(matrix), start, 2, 2, 1e-8, 12)
    assert without.values[:2].isnan().all()
    assert not without.converged[:2].any()
    torch.testing.assert_close(without.values[2], expected[2], rtol=1e-9, atol=1e-9)


def test_what_is_excluded_does_not_count() -> None:
    matrix = symmetric(3, 20)
    values, vectors = torch.linalg.eigh(matrix)
    excluded = vectors[:, :, [19, 0]].transpose(1, 2)
    found = ritz_pairs(product_of(matrix), normal(3, 20, seed=1), 2, 1, 1e-10, 40, excluded=excluded)
    torch.testing.assert_close(found.values, values[:, [18, 17, 1]])
    assert (found.vectors() @ excluded.transpose(1, 2)).abs().max() < 1e-10
    assert found.products <= 18


def test_samples_that_are_not_finite_change_nothing() -> None:
    matrix, start = symmetric(4, 30), normal(4, 30, seed=1)
    expected = ritz_pairs(product_of(matrix), start, 2, 2, 1e-6, 30)
    matrix[0, 3, 3], start[1, 2], start[2] = torch.nan, torch.inf, 0.0
    found = ritz_pairs(product_of(matrix), start, 2, 2, 1e-6, 30)
    assert found.values[:3].isnan().all()
    assert found.residuals[:3].isnan().all()
    assert found.converged.tolist() == [False, False, False, True]
    torch.testing.assert_close(found.values[3], expected.values[3])
