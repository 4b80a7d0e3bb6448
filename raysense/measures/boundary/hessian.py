"""Products with the Hessian of the margin between two classes: exact, or by central differences of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.boundary.margins import margin, margin_gradient
from raysense.measures.gradients import Model, forward_with_graph, laid_out_like


@dataclass(frozen=True)
class Margin:
    """The margin F of a network at N points.

    Attributes:
        model: Maps images to logits [N, K], sample by sample.
        points: [N, ...], P values each.
        from_class: [N] int64.
        to_class: [N] int64.
    """

    model: Model
    points: Tensor
    from_class: Tensor
    to_class: Tensor

    def gradient(self) -> Tensor:
        """The gradients [N, P]."""
        return margin_gradient(self.model, self.points, self.from_class, self.to_class)[1]


class Hessian(Protocol):
    """The Hessians of F at N points."""

    def product(self, vectors: Tensor) -> Tensor:
        """H v for one vector a point, [N, P] to [N, P]."""


class ExactHessian:
    """By automatic differentiation; the graph of a double backward pass at N points is held.

    Attributes:
        gradient: [N, P], of F.
    """

    def __init__(self, of: Margin) -> None:
        with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with a second derivative
            logits, self._inputs = forward_with_graph(of.model, of.points)
            total = margin(logits, of.from_class, of.to_class).sum()
            (self._gradient,) = torch.autograd.grad(total, (self._inputs,), create_graph=True, materialize_grads=True)
        self.gradient = self._gradient.detach().flatten(1)

    def product(self, vectors: Tensor) -> Tensor:
        """H v for one vector a point, [N, P] to [N, P]."""
        if not self._gradient.requires_grad:  # F is affine: autograd would refuse it
            return torch.zeros_like(vectors)
        weights = laid_out_like(self._gradient, vectors.view(self._gradient.shape))
        (product,) = torch.autograd.grad(
            self._gradient, (self._inputs,), weights, retain_graph=True, materialize_grads=True
        )
        return product.flatten(1)


@dataclass(frozen=True)
class DifferenceHessian:
    """By central differences, (grad F(z + h u) - grad F(z - h u)) |v| / 2h for u = v / |v|.

    Attributes:
        of: F.
        step: h, in the Euclidean norm of the points.
    """

    of: Margin
    step: float

    def product(self, vectors: Tensor) -> Tensor:
        """H v for one vector a point, [N, P] to [N, P], from 2N gradients."""
        return _differences(self.of, self.of.points[None], vectors, self.step) * (1 / (2 * self.step))


@dataclass(frozen=True)
class AveragedHessian:
    """The mean of central differences at points around each one.

    Attributes:
        of: F.
        moves: [S, N, P], from the points to those around them.
        reach: h of the differences.
        pass_size: Most images in one forward pass, but at least 2N, so that it can be made smaller with N.
    """

    of: Margin
    moves: Tensor
    reach: float
    pass_size: int

    def product(self, vectors: Tensor) -> Tensor:
        """H v for one vector a point, [N, P] to [N, P], from 2NS gradients."""
        points, total = self.of.points, torch.zeros_like(vectors)
        for moves in self.moves.split(max(1, self.pass_size // (2 * max(1, len(points))))):
            total += _differences(self.of, points + moves.view(-1, *points.shape), vectors, self.reach)
        return total * (1 / (2 * self.reach * len(self.moves)))


def _differences(of: Margin, points: Tensor, vectors: Tensor, step: float) -> Tensor:
    """|v| times the change of the gradient over 2 ``step`` along v [N, P]: the sum over s of points [s, N, ...]; [N, P]."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True, dtype=torch.float64)
    # A zero vector stays where it is: both gradients are the same.
    unit = vectors / torch.where(length > 0, length, 1.0).to(vectors.dtype)
    shift = (step * unit).view(of.points.shape)
    both = torch.cat((points + shift, points - shift)).flatten(0, 1)
    classes = (part.repeat(2 * len(points)) for part in (of.from_class, of.to_class))
    gradients = Margin(of.model, both, *classes).gradient()
    after, before = gradients.view(2, len(points), *vectors.shape)
    change: Tensor = (after - before).sum(0) * length.to(after.dtype)
    return change
