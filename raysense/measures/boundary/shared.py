"""Directions of high curvature that boundaries near different samples share, and noise along them (Fawzi et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.boundary.margins import UnitVectors
from raysense.measures.boundary.shape_operator import ShapeOperator
from raysense.measures.fisher import gram_matrix

_RANK_RTOL = 1e-6  # of singular values: their squares, the Gram matrix's eigenvalues, are known to 1e-16 of the largest

_MOVES = 0x5851F42D  # sets the random moves apart from the random directions of the same seed


class SharedDirections(NamedTuple):
    """The directions that principal directions of many samples have in common.

    Attributes:
        basis: [m, P], orthonormal, in the directions' dtype: the most shared one first. They span S.
        singular_values: [m] float64, descending; the square is the sum over the principal directions of their squared
            component along the shared one.
    """

    basis: Tensor
    singular_values: Tensor


def shared_directions(directions: Tensor, count: int) -> SharedDirections:
    """The right singular vectors of stacked principal directions with the largest singular values.

    Args:
        directions: [M, P], finite, principal directions of all samples; their signs do not matter.
        count: m; fewer are given where the directions span fewer.

    Raises:
        ValueError: There are no directions, or they are zero or not finite.
    """
    if not len(directions) or not directions.isfinite().all() or not directions.any():
        raise ValueError("directions must hold at least one finite vector that is not zero")
    wide = len(directions) < directions.shape[1]
    # The smaller of the two Gram matrices; its eigenvalues are the squared singular values.
    gram = gram_matrix((directions if wide else directions.T)[None])[0]
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp_min(0).sqrt()
    rank = int((values > _RANK_RTOL * values[-1]).sum())
    chosen = torch.arange(len(values) - 1, len(values) - 1 - min(count, rank), -1, device=values.device)
    values, rows = values[chosen], vectors[:, chosen].T
    if wide:
        rows = (rows / values[:, None]) @ directions.double()
        # What rounding took of the orthogonality of those with small singular values.
        rows = torch.linalg.qr(rows.T).Q.T
    signs = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return SharedDirections((rows * signs).to(directions.dtype), values)


class RelativeCurvature(NamedTuple):
    """How curved boundaries are along shared directions, in comparison with random ones, at N points.

    Attributes:
        rho: [N, m] float64, |u' P H P u| over its mean for random directions; infinite or NaN where that is zero.
        curvature: [N, m] float64, u' P H P u / |grad F|, in 1 / pixel values: of u as it is, which need not be tangent.
        random_magnitude: [N] float64, the mean of |v' P H P v| / |grad F| over random v, in 1 / pixel values.
    """

    rho: Tensor
    curvature: Tensor
    random_magnitude: Tensor


def relative_curvature(
    operator: ShapeOperator, basis: Tensor, seeds: Sequence[int], random: int, samples: int = 4, pass_size: int = 16
) -> RelativeCurvature:
    """rho_i of Fawzi et al. (2018): the curvature along u_i over the mean for v uniform on the unit sphere.

    As published, neither u_i nor v is made tangent and unit before; the operator takes their tangent parts as they are. By
    differences, the curvature along u_i, which is not random, is that with the Hessian averaged over a ball
    (:meth:`ShapeOperator.averaged`); along random v the operator itself has the same expectation, and less noise.

    Args:
        operator: At N points.
        basis: [m, P], unit.
        seeds: One a point.
        random: How many random directions, at least 1.
        samples: Random moves in a product by averaged differences.
        pass_size: Most images in one forward pass of averaged differences, but at least 2N.
    """
    if random < 1:
        raise ValueError(f"random {random} must be at least 1; use 32, say")
    basis = basis.to(operator.normal)
    averaged = operator.averaged([seed ^ _MOVES for seed in seeds], samples, pass_size)
    curvature = torch.stack([averaged.quadratic_form(u.expand_as(operator.normal)) for u in basis], dim=1)
    source = UnitVectors(seeds, operator.normal)
    magnitude = torch.stack([operator.quadratic_form(source.draw()).abs() for _ in range(random)]).mean(0)
    return RelativeCurvature(curvature.abs() / magnitude[:, None], curvature, magnitude)


def projected_share(vectors: Tensor, basis: Tensor) -> Tensor:
    """|P_S v| / |v| of vectors [N, P] for the span S of an orthonormal basis [m, P]: [N] float64; NaN for zero vectors."""
    inside = vectors.double() @ basis.T.double()
    share: Tensor = torch.linalg.vector_norm(inside, dim=1) / torch.linalg.vector_norm(vectors.double(), dim=1)
    return share


def noise_in(basis: Tensor, complement: bool, norms: Tensor, seeds: Sequence[int]) -> Tensor:
    """Random vectors of given norms, uniform on the sphere within the span S of a basis, or within its complement.

    Args:
        basis: [m, P], orthonormal.
        complement: Whether they are orthogonal to S instead.
        norms: [N].
        seeds: One for each vector; a vector depends on its own seed only.

    Returns:
        [N, P], in the basis's dtype.

    Raises:
        ValueError: S is the whole space, whose complement has no directions.
    """
    if complement and len(basis) >= basis.shape[1]:
        raise ValueError(f"the {len(basis)} shared directions span the whole space; use fewer")
    like = basis.new_empty((len(norms), basis.shape[1] if complement else len(basis)), dtype=torch.float64)
    vectors = UnitVectors(seeds, like).draw()
    rows = basis.double()
    # A normal vector's part in a subspace is normal there: its direction is uniform.
    vectors = vectors - (vectors @ rows.T) @ rows if complement else vectors @ rows
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    noise: Tensor = vectors * (norms.to(vectors) / lengths)[:, None]
    return noise.to(basis.dtype)
