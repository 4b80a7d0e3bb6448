"""The shape operator of a decision boundary: how its normal turns along the boundary (Fawzi et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from raysense.measures.boundary.hessian import AveragedHessian, DifferenceHessian, ExactHessian, Hessian, Margin
from raysense.measures.boundary.margins import UnitVectors
from raysense.measures.gradients import Model

Derivatives = Literal["exact", "differences"]
"""How second derivatives are found: by automatic differentiation, or by central differences of gradients."""


class ShapeOperator:
    """P H P / |grad F| at N points, with H the Hessian of the margin F and P the projection on the tangent space.

    Its eigenvalues on the tangent space are the principal curvatures, in 1 / pixel values, positive where the region of
    ``from_class`` is convex; v' (P H P / |grad F|) v for a unit tangent v is the normal curvature along v. The slides
    write P with the gradient itself; P projects only with the unit normal n, P = I - n n'.

    ``exact`` gives second derivatives at the point; of a network with kinks and nothing else, such as ReLU, they are zero
    almost everywhere. ``differences`` gives (grad F(z + h u) - grad F(z - h u)) / 2h for the unit tangent u: the change of
    the gradient over the length 2h. For a smooth network it converges to the exact product as h^2.

    For a network with kinks it is the curvature at scale h, and its product is homogeneous in v, but not additive. Over
    random tangent directions u, though, (P - 1) E[product(u) u'] is a symmetric operator: that with the Hessian averaged
    over the tangent ball of radius h around the point, by the divergence theorem. :meth:`averaged` gives its products,
    for directions that are not random: along one in which the network bends sharply, the whole step h goes much further
    than its share h / sqrt(P) of a random one, and sees next to nothing.

    A point with values or derivatives that are not finite, or no gradient, has NaN in all products; others do not notice.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        points: [N, ...], P values each.
        from_class: [N] int64.
        to_class: [N] int64.
        derivatives: ``exact`` holds the graph of a double backward pass at N points for as long as it lives;
            ``differences`` holds no graph, and each product takes one forward and backward pass of 2N images.
        step: h for ``differences``, in the Euclidean norm of the points; not used by ``exact``.

    Attributes:
        normal: [N, P], unit, in the points' dtype: grad F / |grad F|, which points out of the region of ``from_class``.
        gradient_norm: [N] float64, |grad F|, Euclidean, in logits / pixel values.
        size: P.

    Raises:
        ValueError: ``step`` is missing where it is needed, or not positive and finite.
    """

    def __init__(
        self,
        model: Model,
        points: Tensor,
        from_class: Tensor,
        to_class: Tensor,
        derivatives: Derivatives,
        step: float | None = None,
    ) -> None:
        self._margin = Margin(model, points, from_class, to_class)
        self._step: float | None = None
        self._hessian: Hessian
        self.size = points[0].numel() if len(points) else 0
        if derivatives == "exact":
            self._hessian = exact = ExactHessian(self._margin)
            gradient = exact.gradient
        else:
            self._step = _checked(step)
            self._hessian = DifferenceHessian(self._margin, self._step)
            gradient = self._margin.gradient()
        self.gradient_norm = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64)
        usable = torch.isfinite(self.gradient_norm) & (self.gradient_norm > 0)
        self._scale = torch.where(usable, self.gradient_norm, torch.nan)
        self.normal = gradient / self._scale[:, None].to(gradient.dtype)

    @property
    def points(self) -> Tensor:
        """The points, [N, ...]."""
        return self._margin.points

    def with_step(self, step: float) -> ShapeOperator:
        """The operator by differences with another step at the same points; their gradients are not computed again."""
        other = copy.copy(self)
        other._step = _checked(step)
        other._hessian = DifferenceHessian(self._margin, other._step)
        return other

    def averaged(self, seeds: Sequence[int], samples: int, pass_size: int = 16) -> ShapeOperator:
        """The operator by differences with the Hessian averaged over the tangent ball of radius h around each point.

        Its product is the mean over random moves within the ball of differences over the length 2h / sqrt(P - 1): of the
        ball's extent in any one direction. As ``samples`` grows it becomes linear and symmetric.

        Args:
            seeds: One a point.
            samples: Random moves; a product takes one forward and backward pass of 2 ``samples`` images a point.
            pass_size: Most images in one forward pass, but at least 2N.

        Returns:
            The operator itself where it is exact.
        """
        if self._step is None:
            return self
        other = copy.copy(self)
        # The part in d dimensions of a unit vector in d + 2 is uniform in the ball; here d = P - 1, the tangent space's.
        source = UnitVectors(seeds, self.normal.new_empty((len(self.normal), self.size + 2)))
        moves = []
        for _ in range(samples):
            drawn = source.draw()
            drawn[:, : self.size] = self.tangent(drawn[:, : self.size])
            unit = drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
            moves.append(self._step * unit[:, : self.size])
        reach = self._step / max(1, self.size - 1) ** 0.5
        other._hessian = AveragedHessian(self._margin, torch.stack(moves), reach, pass_size)
        return other

    def product(self, vectors: Tensor) -> Tensor:
        """P H P v / |grad F|, for one vector a point.

        Args:
            vectors: [N, P] of any length, in the points' dtype; only their tangent part matters.

        Returns:
            [N, P], tangent.
        """
        moved = self._hessian.product(self.tangent(vectors))
        return self.tangent(moved) / self._scale[:, None].to(moved.dtype)

    def tangent(self, vectors: Tensor) -> Tensor:
        """P v [N, P]: vectors [N, P] without their part along the normal."""
        along = (vectors * self.normal).sum(1, keepdim=True, dtype=torch.float64)
        part: Tensor = vectors - along.to(vectors.dtype) * self.normal
        return part

    def quadratic_form(self, vectors: Tensor) -> Tensor:
        """v' P H P v / |grad F| of vectors [N, P], [N] float64: by the length of v as it is."""
        return (vectors * self.product(vectors)).sum(1, dtype=torch.float64)

    def normal_curvature(self, directions: Tensor) -> Tensor:
        """The normal curvature along the tangent part of directions [N, P], of any length.

        Returns:
            [N] float64, in 1 / pixel values.
        """
        tangent = self.tangent(directions)
        length = torch.linalg.vector_norm(tangent, dim=1, dtype=torch.float64)
        curvature: Tensor = self.quadratic_form(tangent) / length**2
        return curvature


def _checked(step: float | None) -> float:
    if step is None or not 0 < step < float("inf"):
        raise ValueError(f"step {step} must be positive and finite for differences; use 0.1, say")
    return step
