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
        curvatures: [P - 1] float64, descending.
        directions: [P - 1, P] float64, orthonormal, tangent.
        residual: [P - 1] float64, |G v - curvature v| with the matrix G as computed, before it was made symmetric.
        asymmetry: |G - G'| / 2|G| in the Frobenius norm, 0 to 1: rounding, for a smooth network.
        stderr: Standard error of the mean of the curvatures, as a mean over random directions; 0 for exact derivatives.
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
) -> Spectrum:
    """The whole spectrum of the shape operator at one point, from P - 1 of its products.

    Differences of a network with kinks are not linear in the direction, so that the matrix depends on the basis. They are
    taken along a random one: then its expectation is the operator with the Hessian averaged over the tangent ball of
    radius h (:class:`ShapeOperator`), whose mean curvature is the expectation of :func:`mean_curvature`; ``asymmetry`` is
    about the relative error of the matrix. On a CIFAR-10 ResNet-20 at h = 0.1 two random bases agreed within 2% on the
    largest and smallest curvatures, with an asymmetry of 0.33; along the pixels' axes even the sign of the mean was
    another.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        point: [...], P values, without a batch dimension.
        from_class: Scalar int64.
        to_class: Scalar int64.
        derivatives: As for :class:`ShapeOperator`.
        step: As for :class:`ShapeOperator`.
        pass_size: Most images in one forward pass.
        seed: Of the random basis, for differences.

    Returns:
        All P - 1 with their directions; a few matrices of P^2 float64 are held on the way.
    """
    size = point.numel()
    together = max(1, min(size - 1, pass_size if derivatives == "exact" else pass_size // 2))
    copies = point.expand(together, *point.shape)
    classes = (from_class.expand(together), to_class.expand(together))
    operator = ShapeOperator(model, copies, *classes, derivatives, step)
    frame = _Frame(operator.normal[0].double(), None if derivatives == "exact" else seed)
    matrix = point.new_empty((size - 1, size - 1), dtype=torch.float64)
    for first in range(0, size - 1, together):
        vectors = frame.vectors(first, min(first + together, size - 1))
        # The last pass is filled up with zeros.
        padded = torch.cat((vectors, vectors.new_zeros((together - len(vectors), size))))
        products = operator.product(padded.to(point.dtype))[: len(vectors)]
        matrix[first : first + len(vectors)] = frame.coordinates(products.double())
    if not matrix.isfinite().all():
        missing = torch.full_like(matrix[:, 0], torch.nan)
        lost = float("nan")
        return Spectrum(missing, matrix.new_full((size - 1, size), torch.nan), missing.clone(), lost, lost)
    stderr = 0.0 if derivatives == "exact" else frame.along(matrix).std(correction=0).item() / (size - 1) ** 0.5
    matrix = frame.unrotated(matrix)
    symmetric = 0.5 * (matrix + matrix.T)
    matrix -= symmetric
    norm = torch.hypot(torch.linalg.matrix_norm(symmetric), torch.linalg.matrix_norm(matrix))
    asymmetry = (torch.linalg.matrix_norm(matrix) / norm).item() if norm > 0 else 0.0
    curvatures, vectors = torch.linalg.eigh(symmetric)
    residual = torch.linalg.vector_norm(matrix.T @ vectors, dim=0)
    directions = frame.embedded(vectors.T.flip(0))
    return Spectrum(curvatures.flip(0), directions, residual.flip(0), asymmetry, stderr)


class _Frame:
    """An orthonormal basis of the tangent space, and coordinates of vectors there.

    Coordinates are those in the pixels' axes but the first, reflected as the first is to the normal; the basis is these
    axes, or a rotation of them.

    Args:
        normal: [P] float64, unit.
        seed: Of the random rotation; None for none.
    """

    def __init__(self, normal: Tensor, seed: int | None) -> None:
        mirror = normal.clone()
        mirror[0] += torch.where(normal[0] < 0, -1.0, 1.0)  # of the sign without cancellation
        self._mirror = mirror / torch.linalg.vector_norm(mirror)
        self._rotation: Tensor | None = None
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn((len(normal) - 1,) * 2, generator=generator, dtype=torch.float64)
            self._rotation = torch.linalg.qr(drawn.to(normal.device)).Q

    def vectors(self, start: int, stop: int) -> Tensor:
        """Vectors ``start`` to ``stop`` of the basis, [stop - start, P]."""
        if self._rotation is not None:
            return self.embedded(self._rotation[start:stop])
        axes = self._mirror.new_zeros((stop - start, len(self._mirror) - 1))
        axes[torch.arange(stop - start), torch.arange(start, stop)] = 1
        return self.embedded(axes)

    def along(self, products: Tensor) -> Tensor:
        """The quadratic forms [P - 1] of an operator along the basis, from the coordinates of its products with it."""
        return products.diagonal() if self._rotation is None else (products * self._rotation).sum(1)

    def unrotated(self, products: Tensor) -> Tensor:
        """The transposed matrix [P - 1, P - 1] of an operator from the coordinates of its products with the basis."""
        return products if self._rotation is None else self._rotation.T @ products

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Coordinates [n, P - 1] of vectors [n, P]."""
        return self._reflected(vectors)[:, 1:]

    def embedded(self, coordinates: Tensor) -> Tensor:
        """Vectors [n, P] of coordinates [n, P - 1]."""
        return self._reflected(torch.cat((torch.zeros_like(coordinates[:, :1]), coordinates), dim=1))

    def _reflected(self, vectors: Tensor) -> Tensor:
        reflected: Tensor = vectors - 2 * torch.outer(vectors @ self._mirror, self._mirror)
        return reflected


@dataclass(frozen=True)
class Extremes:
    """The principal curvatures at both ends of the spectrum at N points, in 1 / pixel values.

    Attributes:
        curvatures: [N, 2 count] float64, descending: the largest ones, then the smallest ones; NaN where something is not
            finite.
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
    other random moves along the directions that were found. So the curvatures are not too large, but may be too small.

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
