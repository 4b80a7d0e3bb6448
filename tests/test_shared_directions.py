"""Directions of high curvature that samples share: their span, the curvature along them, and noise within it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raysense.measures.boundary.shape_operator import Derivatives, ShapeOperator
from raysense.measures.boundary.shared import noise_in, projected_share, relative_curvature, shared_directions


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "size"), [(7, 40), (60, 20)])
def test_they_are_the_singular_vectors(rows: int, size: int) -> None:
    directions = normal(rows, size) * torch.logspace(0, -2, size, dtype=torch.float64)
    found = shared_directions(directions, 5)
    _, values, vectors = torch.linalg.svd(directions, full_matrices=False)
    torch.testing.assert_close(found.singular_values, values[:5])
    torch.testing.assert_close(
        (found.basis @ vectors[:5].T).abs(), torch.eye(5, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(5, dtype=torch.float64))
    turned = directions * normal(rows, 1).sign()
    torch.testing.assert_close(shared_directions(turned, 5).basis, found.basis)


def test_no_more_than_the_directions_span() -> None:
    one = normal(1, 12)
    directions = torch.cat((one, -2 * one, normal(1, 12, seed=1))).float()
    found = shared_directions(directions, 12)
    assert found.basis.shape == (2, 12)
    assert (found.basis.dtype, found.singular_values.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(projected_share(directions, found.basis), torch.ones(3, dtype=torch.float64))
    assert found.singular_values.square().sum().item() == pytest.approx(directions.double().square().sum().item())
    for wrong in (directions[:0], 0 * directions, directions / 0):
        with pytest.raises(ValueError, match="directions"):
            shared_directions(wrong, 3)


def quadric(matrix: Tensor, slope: Tensor, derivatives: Derivatives = "exact") -> ShapeOperator:
    """F = slope'x + x' M x / 2 at the origin, for two points alike."""

    def model(x: Tensor) -> Tensor:
        value = x @ slope + 0.5 * torch.einsum("ni,ij,nj->n", x, matrix, x)
        return torch.stack((torch.zeros_like(value), value), dim=1)

    classes = torch.zeros(2, dtype=torch.int64)
    return ShapeOperator(model, torch.zeros(2, len(slope), dtype=torch.float64), classes, classes + 1, derivatives, 0.3)


def test_curvature_along_them_relative_to_random_directions() -> None:
    size = 6
    matrix, slope = normal(size, size), normal(size, seed=1)
    matrix = matrix + matrix.T
    unit = slope / slope.norm()
    projection = torch.eye(size, dtype=torch.float64) - torch.outer(unit, unit)
    dense = projection @ matrix @ projection / slope.norm()
    basis = torch.linalg.qr(normal(size, 3, seed=2)).Q.T
    operator = quadric(matrix, slope)
    found = relative_curvature(operator, basis, (3, 4), 2000)
    forms = torch.einsum("mi,ij,mj->m", basis, dense, basis)
    torch.testing.assert_close(found.curvature, forms.expand(2, 3))
    torch.testing.assert_close(found.rho, forms.abs() / found.random_magnitude[:, None])
    random = normal(100000, size, seed=5)
    forms = torch.einsum("ni,ij,nj->n", random, dense, random).abs() / random.square().sum(1)
    error = forms.std().item() / math.sqrt(2000)
    assert ((found.random_magnitude - forms.mean()).abs() < 4 * error).all()
    assert found.random_magnitude[0] != found.random_magnitude[1]
    again = relative_curvature(operator, basis.float(), (4, 3), 20)
    torch.testing.assert_close(again.random_magnitude, relative_curvature(operator, basis, (3, 4), 20)[2].flip(0))
    differences = relative_curvature(quadric(matrix, slope, "differences"), basis, (3, 4), 20)
    for expected, measured in zip(relative_curvature(operator, basis, (3, 4), 20), differences, strict=True):
        torch.testing.assert_close(measured, expected)  # a quadric has no scale
    with pytest.raises(ValueError, match="random 0 "):
        relative_curvature(operator, basis, (3, 4), 0)
    assert (relative_curvature(operator, unit[None], (3, 4), 3).curvature.abs() < 1e-12).all()


def test_passes_hold_no_more_images_than_allowed_or_two_a_point() -> None:
    sizes = []

    def model(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.stack((x[:, 0], x.square().sum(1)), dim=1)

    classes = torch.zeros(3, dtype=torch.int64)
    operator = ShapeOperator(model, normal(3, 5), classes, classes + 1, "differences", 0.1)
    for allowed, most in ((1, 6), (11, 6), (12, 12)):
        sizes.clear()
        relative_curvature(operator, torch.eye(5, dtype=torch.float64)[:2], range(3), 2, pass_size=allowed)
        assert max(sizes) == most


def test_share_of_a_vector_within_the_span() -> None:
    basis = torch.eye(5, dtype=torch.float64)[:2]
    vectors = torch.tensor([[3.0, 0, 4, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    assert projected_share(vectors, basis)[:3].tolist() == pytest.approx([0.6, 0, 1])
    assert projected_share(vectors, basis)[3].isnan()
    random = normal(4000, 5).float()
    assert projected_share(random, basis).square().mean().item() == pytest.approx(2 / 5, abs=0.02)


def test_noise_is_uniform_in_the_span_or_its_complement() -> None:
    basis = torch.linalg.qr(normal(8, 3)).Q.T
    norms = torch.linspace(0, 2, 3000, dtype=torch.float64)
    for complement, dimensions in ((False, 3), (True, 5)):
        noise = noise_in(basis, complement, norms, range(3000))
        torch.testing.assert_close(noise.norm(dim=1), norms)
        inside = (noise @ basis.T).norm(dim=1)
        torch.testing.assert_close(inside, torch.zeros_like(norms) if complement else norms)
        unit = noise[1:] / norms[1:, None]
        projection = basis.T @ basis
        expected = (torch.eye(8, dtype=torch.float64) - projection if complement else projection) / dimensions
        assert (unit.T @ unit / len(unit) - expected).abs().max() < 0.03
        assert unit.mean(0).abs().max() < 0.05
        torch.testing.assert_close(noise_in(basis, complement, norms[[7]], [7])[0], noise[7])
    with pytest.raises(ValueError, match="whole space"):
        noise_in(torch.eye(4), True, norms[:1], [1])
