"""Mean and principal curvatures of decision boundaries (Fawzi et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.boundary.margins import UnitVectors
from raysense.measures.boundary.shape_operator import Derivatives, ShapeOperator
from raysense.measures.gradients import Model
from raysense.measures.lanczos import ritz_pairs

_STREAMS = (0, 0x5851F42D, 0x2545F491)  # set apart the random numbers of one seed


class MeanCurvature(NamedTuple):
    """The normal curvature at N points, over random tangent directions, in 1 / pixel values.

    Attributes:
        mean: [N] float64; its expectation is the trace of the shape operator over P - 1, the mean curvature.
        stderr: [N] float64, standard error of ``mean`` over the directions.
        magnitude: [N] float64, mean of the magnitude.
    """

    mean: Tensor
    stderr: Tensor
    magnitude: Tensor


def mean_curvature(operator: ShapeOperator, seeds: Sequence[int], directions: int) -> MeanCurvature:
    """The mean of the normal curvature over random tangent directions, one product of the operator for each.

    This is Hutchinson's estimate of the trace with vectors uniform on the unit sphere of the tangent space.

    Args:
        operator: At N points.
        seeds: One a point.
        directions: How many random directions, at least 2.

    Raises:
        ValueError: Fewer directions than 2, which have no standard error.
    """
    if directions < 2:
        raise ValueError(f"directions {directions} must be at least 2, or the mean has no standard error; use 32, say")
    source = UnitVectors(seeds, operator.normal)
    curvatures = torch.stack([operator.normal_curvature(source.draw()) for _ in range(directions)], dim=1)
    return MeanCurvature(curvatures.mean(1), curvatures.std(1) / directions**0.5, curvatures.abs().mean(1))


def curvature_at_steps(
    model: Model,
    points: Tensor,
    from_class: Tensor,
    to_class: Tensor,
    steps: Sequence[float],
    seeds: Sequence[int],
    directions: int,
) -> list[MeanCurvature]:
    """The mean curvature by differences as a function of the step, with the same random directions for every step.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        points: [N, ...].
        from_class: [N] int64.
        to_class: [N] int64.
        steps: Each h, in the Euclidean norm of the points.
        seeds: One a point.
        directions: How many random directions, at least 2.

    Returns:
        One for each step.
    """
    if not steps:
        return []
    operator = ShapeOperator(model, points, from_class, to_class, "differences", steps[0])
    return [mean_curvature(operator.with_step(step), seeds, directions) for step in steps]


@dataclass(frozen=True)
class Spectrum:
    """All principal curvatures at one point, in 1 / pixel values; NaN where something is not finite.

    Attributes:
        curvatures: [P - 1] float64, descending. Noise of the matrix, whose relative size is about ``asymmetry``, moves them
            outwards: the largest is too large and the smallest too small; their mean is not biased.
        directions: [P - 1, P] float64, orthonormal, tangent. With ``keep`` only those [keep, P] of the largest magnitudes,
            in their order, which is ``curvatures.abs().argsort(descending=True, stable=True)[:keep]``.
        residual: [P - 1] float64, |G v - curvature v| with the matrix G as computed, before it was made symmetric.
        asymmetry: |G - G'| / 2|G| in the Frobenius norm, 0 to 1: rounding, for a smooth network.
        stderr: Standard error of the mean of the curvatures; 0 for exact derivatives. With several bases from the spread of
            their means, rough for few; with one it is that of P - 1 independent directions, an upper bound, since
            orthonormal ones are not independent: it was about twice the real one (1.3 to 4 times).
    """

    curvatures: Tensor
    directions: Tensor
    residual: Tensor
    asymmetry: float
    stderr: float


def spectrum(
    model: Model,
    point: Tensor,
    from_class: Tensor,
    to_class: Tensor,
    derivatives: Derivatives,
    step: float | None = None,
    pass_size: int = 64,
    seed: int = 0,
    bases: int = 1,
    keep: int | None = None,
) -> Spectrum:
    """The whole spectrum of the shape operator at one point, from P - 1 of its products, or as many for each basis.

    Differences of a network with kinks are not linear in the direction, so that the matrix depends on the basis. They are
    taken along random ones: then its expectation is the operator with the Hessian averaged over the tangent ball of radius
    h (:class:`ShapeOperator`), whose mean curvature is the expectation of :func:`mean_curvature`; ``asymmetry`` is about
    the relative error of the matrix. Along the pixels' axes even the sign of the mean can be another.

    The matrix is unbiased, but its eigenvalues are not: noise spreads them, so that the ends lie too far out, with any
    basis. The mean over n bases divides the noise by the square root of n. For a ReLU network of 64 inputs at h = 0.1,
    with an asymmetry of about 0.4, the ends were 4 to 18% further out with one basis than with 60, and within 2% with 8,
    but for one of 12 at 7%. The ends by :func:`extreme_curvatures` are too small instead: the two are not to be mixed.

    On a CPU the peak of memory is about 6 P^2 float64 beside the network's own (5.5 to 6.6 were measured), however many
    bases there are; ``keep`` reduces what the result holds from P^2 to keep P.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        point: [...], P values, without a batch dimension.
        from_class: Scalar int64.
        to_class: Scalar int64.
        derivatives: As for :class:`ShapeOperator`.
        step: As for :class:`ShapeOperator`.
        pass_size: Most images in one forward pass, but at least 2.
        seed: Of the random bases, for differences.
        bases: How many random bases the matrix is the mean of, for differences; exact derivatives do not depend on it.
        keep: How many directions are given, at the most: those of the largest magnitudes of curvature. None gives all, in
            the order of the curvatures.

    Raises:
        ValueError: ``bases`` is not positive, or ``keep`` is negative.
    """
    if bases < 1:
        raise ValueError(f"bases {bases} must be at least 1; use 8, say")
    if keep is not None and keep < 0:
        raise ValueError(f"keep {keep} must not be negative; None keeps all directions")
    size = point.numel()
    kept = size - 1 if keep is None else min(keep, size - 1)
    together = max(1, min(size - 1, pass_size if derivatives == "exact" else pass_size // 2))
    copies, classes = point.expand(together, *point.shape), (from_class.expand(together), to_class.expand(together))
    operator = ShapeOperator(model, copies, *classes, derivatives, step)
    axes = _TangentAxes(operator.normal[0].double())
    if derivatives == "exact":
        matrix, stderr = _products(operator, axes, None), 0.0
    else:
        matrix, stderr = _averaged(operator, axes, seed, bases)
    del operator  # it may hold a graph
    if not matrix.isfinite().all():
        missing, lost = torch.full_like(matrix[:, 0], torch.nan), float("nan")
        return Spectrum(missing, matrix.new_full((kept, size), torch.nan), missing.clone(), lost, lost)
    symmetric = (matrix + matrix.T).mul_(0.5)
    matrix -= symmetric
    norm = torch.hypot(torch.linalg.matrix_norm(symmetric), torch.linalg.matrix_norm(matrix))
    asymmetry = (torch.linalg.matrix_norm(matrix) / norm).item() if norm > 0 else 0.0
    curvatures, vectors = torch.linalg.eigh(symmetric)
    del symmetric
    residual = torch.linalg.vector_norm(matrix.T @ vectors, dim=0).flip(0)
    del matrix
    curvatures, vectors = curvatures.flip(0), vectors.T.flip(0)
    if keep is not None:
        vectors = vectors[curvatures.abs().argsort(descending=True, stable=True)[:kept]]
    return Spectrum(curvatures, axes.embedded(vectors), residual, asymmetry, stderr)


def _averaged(operator: ShapeOperator, axes: _TangentAxes, seed: int, bases: int) -> tuple[Tensor, float]:
    """The mean over random bases of the transposed matrix [P - 1, P - 1], and the standard error of its trace / (P - 1)."""
    generator, size = torch.Generator().manual_seed(seed), operator.size - 1
    matrix = torch.zeros((size, size), dtype=torch.float64, device=operator.normal.device)
    forms = matrix.new_empty((bases, size))
    for place in range(bases):
        basis = axes.random_basis(generator)
        products = _products(operator, axes, basis)
        matrix.addmm_(basis.T, products, alpha=1 / bases)
        forms[place] = products.mul_(basis).sum(1)
        del basis, products  # before the next ones are made
        if not forms[place].isfinite().all():
            return matrix, float("nan")
    independent = forms[0] if bases == 1 else forms.mean(1)
    return matrix, independent.std(correction=int(bases > 1)).item() / len(independent) ** 0.5


def _products(operator: ShapeOperator, axes: _TangentAxes, basis: Tensor | None) -> Tensor:
    """Coordinates [P - 1, P - 1] of the products with the vectors of a basis, [P - 1, P - 1], or with the axes."""
    size, together = operator.size - 1, len(operator.points)
    products = torch.empty((size, size), dtype=torch.float64, device=operator.normal.device)
    for first in range(0, size, together):
        stop = min(first + together, size)
        # The last pass is filled up with zeros.
        vectors = products.new_zeros((together, size))
        if basis is None:
            vectors[torch.arange(stop - first), torch.arange(first, stop)] = 1
        else:
            vectors[: stop - first] = basis[first:stop]
        moved = operator.product(axes.embedded(vectors).to(operator.normal.dtype))
        products[first:stop] = axes.coordinates(moved[: stop - first].double())
    return products


class _TangentAxes:
    """Coordinates in the tangent space: those in the pixels' axes but the first, reflected as the first is to the normal.

    Args:
        normal: [P] float64, unit.
    """

    def __init__(self, normal: Tensor) -> None:
        mirror = normal.clone()
        mirror[0] += torch.where(normal[0] < 0, -1.0, 1.0)  # of the sign without cancellation
        self._mirror = mirror / torch.linalg.vector_norm(mirror)

    def random_basis(self, generator: torch.Generator) -> Tensor:
        """Coordinates [P - 1, P - 1] of an orthonormal basis, uniform but for the signs of the vectors."""
        drawn = torch.randn((len(self._mirror) - 1,) * 2, generator=generator, dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(drawn.to(self._mirror.device)).Q.T
        return basis

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Coordinates [n, P - 1] of vectors [n, P]."""
        return self._reflected(vectors)[:, 1:]

    def embedded(self, coordinates: Tensor) -> Tensor:
        """Vectors [n, P] of coordinates [n, P - 1]."""
        return self._reflected(torch.cat((torch.zeros_like(coordinates[:, :1]), coordinates), dim=1))

    def _reflected(self, vectors: Tensor) -> Tensor:
        reflected: Tensor = torch.addr(vectors, vectors @ self._mirror, self._mirror, alpha=-2)
        return reflected


@dataclass(frozen=True)
class Extremes:
    """The principal curvatures at both ends of the spectrum at N points, in 1 / pixel values.

    Attributes:
        curvatures: [N, 2 count] float64, descending: the largest ones, then the smallest ones; NaN where something is not
            finite. By differences, with kinks, their magnitudes are too small.
        residuals: [N, 2 count] float64: |G v - curvature v|, within which lies an eigenvalue of the shape operator G.
        directions: [N, 2 count, P], unit, tangent, in the points' dtype.
        converged: [N] bool: the search ended with all residuals within the tolerance.
        products: Products of the operator that were spent.
    """

    curvatures: Tensor
    residuals: Tensor
    directions: Tensor
    converged: Tensor
    products: int


def extreme_curvatures(
    operator: ShapeOperator,
    count: int,
    seeds: Sequence[int],
    tolerance: float = 1e-2,
    iterations: int = 60,
    samples: int = 16,
    pass_size: int = 16,
) -> Extremes:
    """The largest and smallest principal curvatures, by Lanczos from random starts.

    That no curvature lies further out is not certified (:func:`raysense.measures.lanczos.ritz_pairs`). By differences, the
    operator is that with the Hessian averaged over a ball (:meth:`ShapeOperator.averaged`), as in :func:`spectrum`. Lanczos
    also finds what the few random moves have in common by chance: the curvatures and residuals that are given are those of
    other random moves along the directions that were found. So with kinks the curvatures are not too large but for noise,
    but too small, by 10 to 45% at P = 64; those of :func:`spectrum` are too large, and the two are not to be mixed.

    By differences, with kinks, results vary by some percent with the batch size: the operator is not quite linear, so that
    rounding, which depends on the batch, steers Lanczos to other directions.

    Args:
        operator: At N points.
        count: How many at either end; 2 count is at most P - 1.
        seeds: One a point.
        tolerance: Stops when the residuals of every point are at most this times its largest magnitude of curvature.
        iterations: Most products of the operator; as many vectors [N, P] are held.
        samples: Random moves in a product by differences.
        pass_size: Most images in one forward pass of averaged differences, but at least 2N.

    Raises:
        ValueError: There are fewer than 2 count principal curvatures, or fewer iterations.
    """
    if 2 * count > operator.size - 1:
        raise ValueError(
            f"count {count} at either end exceeds the {operator.size - 1} principal curvatures of {operator.size} values; "
            "compute the whole spectrum"
        )
    if 2 * count > iterations:
        raise ValueError(f"iterations {iterations} must be at least {2 * count}, twice the count")
    starts, search, check = ([seed ^ stream for seed in seeds] for stream in _STREAMS)
    source = UnitVectors(starts, operator.normal)
    searched = operator.averaged(search, samples, pass_size)
    normal = operator.normal[:, None]
    found = ritz_pairs(searched.product, source.draw(), count, count, tolerance, iterations, source.draw, normal)
    if searched is operator:
        return Extremes(found.values, found.residuals, found.vectors(), found.converged, found.products)
    checked, directions = operator.averaged(check, samples, pass_size), found.vectors()
    products = torch.stack([checked.product(direction) for direction in directions.unbind(1)], dim=1)
    curvatures = (products * directions).sum(2, dtype=torch.float64)
    residuals = torch.linalg.vector_norm(products.double() - curvatures[:, :, None] * directions, dim=2)
    order = curvatures.argsort(1, descending=True)
    return Extremes(
        curvatures.gather(1, order),
        residuals.gather(1, order),
        directions.gather(1, order[:, :, None].expand_as(directions)),
        found.converged,
        found.products + 2 * count,
    )
