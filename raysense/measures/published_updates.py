"""Losses and update directions of Hamdi & Ghanem (2020), section 3.2, for batches of boxes in n dimensions.

The text and the authors' recorded traces disagree in places; the traces decide. With r = b - a, Delta = prod(r) / 2^n,
M the binary matrix of Eq. (5), Mbar = 1 - M, f the scores and G the gradients at the corners:

- naive, Eq. (7): dL/da = 2 Delta / r (Mbar f) - lambda r and dL/db = -2 Delta / r (M f) + lambda r. Printed are M in both
  and the penalty with the opposite sign, which diverges.
- OIR_B, Eqs. (11) and (12): the outer integral's factor is (1 + alpha)^n, and
  M_Q = (1 + alpha)^(n-1) ((1 + alpha/2) M + alpha/2 Mbar), Mbar_Q with the masks exchanged.
- OIR_W, Eqs. (16) to (18): M_D = (2 - (2n-1) beta) M - beta Mbar. The limit alpha -> 0 of Eq. (13) in n dimensions gives
  this factor (printed: 2 - n beta) and, for the gradient terms of a bound of axis k, beta times the sum over that face's
  corners of r_j / r_k times the derivative by axis j, positive outwards at the upper bound, inwards at the lower one.
- trapezoid (end of section 3.2): Delta 1^T f takes the integral's place before the naive loss is differentiated, not
  after it: dL/da = Delta (1^T f / r - diag(Mbar G)) - lambda r and dL/db = -Delta (1^T f / r + diag(M G)) + lambda r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.boxes import corner_mask


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published growth, section 4.3.

    Attributes:
        eta: Learning rate.
        alpha: Boundary factor of OIR_B: the outer box is 1 + alpha as long.
        beta: Emphasis of OIR_W on the gradient.
        penalty: lambda of the naive loss, and of the trapezoidal one.
        iterations: Updates T: 800 in the text; the recorded boxes are of 600.
        half_width: Half the side of the first box, in the units of the axes. Sides grow by a share proportional to
            r^(n-2) per update: with so small a width boxes of n > 2 hardly ever leave their initial points.
        settled: A box is at rest, and its growth ends, once an update moves no bound by more than this fraction of its
            side; updates depend on nothing but the bounds, so that so still a box stays as it is for about 1 / settled
            more of them. 0 ends only boxes that no update can move, as the authors did.
        limit: A box has diverged once a side is longer than this many extents of the space.
    """

    eta: float = 0.1
    alpha: float = 0.05
    beta: float = 0.0009
    penalty: float = 0.1
    iterations: int = 800
    half_width: float = 1e-5
    settled: float = 1e-9
    limit: float = 1000.0


class Masks(NamedTuple):
    """Which corners lie on the faces of an axis.

    Attributes:
        upper: M of Eq. (5), transposed, [2^n, n] float64: 1 where the corner has the upper bound of the axis.
        lower: Mbar, its complement.
        outward: [2^n, n] float64, 1 at the upper bound and -1 at the lower.
    """

    upper: Tensor
    lower: Tensor
    outward: Tensor


def masks(dimensions: int, device: torch.device) -> Masks:
    """The masks of n dimensions."""
    upper = corner_mask(dimensions).to(device, torch.float64)
    return Masks(upper, 1 - upper, 2 * upper - 1)


class Boxes(NamedTuple):
    """Boxes of one method and what is known at their corners.

    Attributes:
        sides: r = b - a, [B, n] float64.
        inner: f_D, scores at the corners, [B, 2^n] float64.
        outer: f_Q, scores at the corners of the outer boxes, [B, 2^n]; None where neither update nor loss needs them.
        gradients: G_D, gradients at the corners, [B, 2^n, n]; None for methods that need none.
    """

    sides: Tensor
    inner: Tensor
    outer: Tensor | None = None
    gradients: Tensor | None = None

    @property
    def volume(self) -> Tensor:
        """Delta of section 3.1, [B]."""
        return self.sides.prod(dim=1) / 2.0 ** self.sides.shape[1]

    @property
    def faces(self) -> Tensor:
        """Delta / r, [B, n], by products, so that it exists where a side is 0."""
        count, dimensions = self.sides.shape
        if dimensions == 1:
            return self.sides.new_full((count, 1), 0.5)
        if dimensions == 2:
            return self.sides.flip(1) / 4
        own = torch.eye(dimensions, dtype=torch.bool, device=self.sides.device)
        others = torch.where(own, 1.0, self.sides[:, None, :])
        return others.prod(dim=2) / 2.0**dimensions


Directions = tuple[Tensor, Tensor]
"""dL/da and dL/db, [B, n] each."""


def _naive(boxes: Boxes, masks: Masks, settings: PublishedSettings) -> Directions:
    """Eq. (7)."""
    faces, shrink = 2 * boxes.faces, settings.penalty * boxes.sides
    return faces * (boxes.inner @ masks.lower) - shrink, shrink - faces * (boxes.inner @ masks.upper)


def _naive_loss(boxes: Boxes, settings: PublishedSettings) -> Tensor:
    """Loss of Eq. (7) as the traces log it: with lambda |r| for the penalty, though its updates are of lambda/2 |r|^2."""
    return settings.penalty * boxes.sides.square().sum(dim=1).sqrt() - boxes.volume * boxes.inner.sum(dim=1)


def _oir_b(boxes: Boxes, masks: Masks, settings: PublishedSettings) -> Directions:
    """Eqs. (11) and (12)."""
    assert boxes.outer is not None
    half, faces = settings.alpha / 2, 2 * boxes.faces
    factor = (1 + settings.alpha) ** (masks.upper.shape[1] - 1)
    upper, lower = boxes.outer @ masks.upper, boxes.outer @ masks.lower
    at_lower = factor * ((1 + half) * lower + half * upper)
    at_upper = factor * ((1 + half) * upper + half * lower)
    return (
        faces * (2 * (boxes.inner @ masks.lower) - at_lower),
        faces * (at_upper - 2 * (boxes.inner @ masks.upper)),
    )


def _oir_b_loss(boxes: Boxes, settings: PublishedSettings) -> Tensor:
    """Loss of Eq. (11)."""
    assert boxes.outer is not None
    factor = (1 + settings.alpha) ** boxes.sides.shape[1]
    return boxes.volume * (factor * boxes.outer.sum(dim=1) - 2 * boxes.inner.sum(dim=1))


def _oir_w(boxes: Boxes, masks: Masks, settings: PublishedSettings) -> Directions:
    """Eqs. (16) to (18)."""
    assert boxes.gradients is not None
    beta = settings.beta
    own = 2 - (2 * boxes.sides.shape[1] - 1) * beta
    upper, lower = boxes.inner @ masks.upper, boxes.inner @ masks.lower
    # r_k (diag(M G) + s)_k is a sum over the face's corners of the change of f as the box grows about its centre.
    growing = (boxes.gradients * (masks.outward * boxes.sides[:, None, :])).sum(dim=2)
    faces = boxes.faces
    return (
        faces * (own * lower - beta * upper - beta * (growing @ masks.lower)),
        -faces * (own * upper - beta * lower - beta * (growing @ masks.upper)),
    )


def _oir_w_loss(boxes: Boxes, settings: PublishedSettings) -> Tensor:
    """Loss of Eq. (16) as the traces log it: without the last - 1."""
    assert boxes.outer is not None
    factor = (1 + settings.alpha) ** boxes.sides.shape[1]
    return factor * boxes.outer.sum(dim=1) / boxes.inner.sum(dim=1) - 1


def _trapezoid(boxes: Boxes, masks: Masks, settings: PublishedSettings) -> Directions:
    """Exact derivatives of the trapezoidal loss."""
    assert boxes.gradients is not None
    volume, shrink = boxes.volume[:, None], settings.penalty * boxes.sides
    widening = boxes.faces * boxes.inner.sum(dim=1, keepdim=True)
    at_lower = volume * (boxes.gradients * masks.lower).sum(dim=1)
    at_upper = volume * (boxes.gradients * masks.upper).sum(dim=1)
    return widening - at_lower - shrink, shrink - widening - at_upper


def _trapezoid_loss(boxes: Boxes, settings: PublishedSettings) -> Tensor:
    """The loss whose derivatives the trapezoidal updates are."""
    return settings.penalty / 2 * boxes.sides.square().sum(dim=1) - boxes.volume * boxes.inner.sum(dim=1)


class Method(NamedTuple):
    """One of the methods.

    Attributes:
        directions: Its update directions.
        loss: Its loss, [B].
        outer: Whether updates need the scores at the corners of the outer box.
        gradients: Whether updates need the gradients at the corners, so that only white-box functions will do.
        outer_loss: Whether the loss needs the scores at the corners of the outer box.
    """

    directions: Callable[[Boxes, Masks, PublishedSettings], Directions]
    loss: Callable[[Boxes, PublishedSettings], Tensor]
    outer: bool = False
    gradients: bool = False
    outer_loss: bool = False


METHODS = {
    "naive": Method(_naive, _naive_loss),
    "oir_b": Method(_oir_b, _oir_b_loss, outer=True, outer_loss=True),
    "oir_w": Method(_oir_w, _oir_w_loss, gradients=True, outer_loss=True),
    "trapezoid": Method(_trapezoid, _trapezoid_loss, gradients=True),
}
"""By name: the three of the paper's Table 2, and the one that its section 3.2 reports to diverge."""
