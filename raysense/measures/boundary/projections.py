"""Lengths of steps, and the shortest step onto a hyperplane, within a box if asked for, or into halfspaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]
Box = tuple[float, float]
"""Lowest and highest value of an image."""

_RIDGE = 1e-13  # keeps the Gram matrix of parallel gradients of length 1 from being singular
_EXACT = 1e-12
_INSIDE = 1e-6  # share of the largest offset by which a halfspace may be missed, in single precision


def check_norm(norm: str) -> None:
    """Refuse a norm that is not known.

    Raises:
        ValueError: It is neither ``l2`` nor ``linf``.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm {norm!r} is not known; use one of {', '.join(get_args(Norm))}")


def length(vectors: Tensor, norm: Norm) -> Tensor:
    """Norms [N] float64 of vectors [N, P]."""
    order = 2 if norm == "l2" else torch.inf
    norms: Tensor = torch.linalg.vector_norm(vectors, order, dim=1, dtype=torch.float64)
    return norms


def dual_length(gradients: Tensor, norm: Norm) -> Tensor:
    """Dual norms [N] float64 of gradients [N, P]: how much a function rises at the most for a step of length 1."""
    order = 2 if norm == "l2" else 1
    norms: Tensor = torch.linalg.vector_norm(gradients, order, dim=1, dtype=torch.float64)
    return norms


def product(left: Tensor, right: Tensor) -> Tensor:
    """Inner products [N] of vectors [N, P], in float64."""
    products: Tensor = torch.linalg.vecdot(left.double(), right.double())
    return products


def scaled(vectors: Tensor, factors: Tensor) -> Tensor:
    """Vectors [N, P] times factors [N] of any precision, in the vectors' dtype."""
    return vectors * factors[:, None].to(vectors.dtype)


@dataclass(frozen=True)
class Room:
    """How far each value may move: ``lower`` <= step <= ``upper``, both [N, P], with 0 between them."""

    lower: Tensor
    upper: Tensor

    def clipped(self, steps: Tensor) -> Tensor:
        """Steps [N, P] with every value within the room."""
        return torch.minimum(torch.maximum(steps, self.lower), self.upper)

    def of(self, rows: Tensor) -> Room:
        """That of some samples, by their numbers."""
        return Room(self.lower[rows], self.upper[rows])


def room_around(points: Tensor, box: Box | None) -> Room | None:
    """The room of points [N, P] in a box of values; a value outside the box may stay where it is, or move towards it.

    Raises:
        ValueError: The box is empty.
    """
    if box is None:
        return None
    low, high = box
    if not low < high:
        raise ValueError(f"box ({low:g}, {high:g}) is empty; give the lowest value and the highest, as (0, 1)")
    return Room((low - points).clamp(max=0), (high - points).clamp(min=0))


def onto_hyperplane(gradients: Tensor, offsets: Tensor, norm: Norm, room: Room | None = None) -> tuple[Tensor, Tensor]:
    """The shortest step r with g.r = c, and within the room.

    Without a room it is c g / |g|^2 for l2 and c sign(g) / |g|_1 for linf. Within a room every value moves along the same
    line until it meets its limit: r_i = clip(s d_i) with d = g or sign(g), and s solves an equation that is piecewise
    linear and concave. Its corners are sorted, so that it is solved exactly in P log P steps.

    Args:
        gradients: [N, P], g.
        offsets: [N] float64, c >= 0.
        norm: In which the step is shortest.
        room: Where it must stay.

    Returns:
        Steps [N, P] in the gradients' dtype, and whether they reach the hyperplane, [N] bool. Where the room ends before
        it, the step goes to the room's corner; it is 0 where the gradient is 0 or not finite.
    """
    finite = torch.isfinite(gradients).all(1)
    gradients = torch.where(finite[:, None], gradients, 0.0)
    towards = gradients if norm == "l2" else gradients.sign()
    rise = dual_length(gradients, norm)
    rise = rise.square() if norm == "l2" else rise
    reached = (rise > 0) & torch.isfinite(offsets)
    steps = scaled(towards, torch.where(reached, offsets / rise, 0.0))
    if room is None:
        return steps, reached
    clipped = room.clipped(steps)
    rows = ((clipped != steps).any(1) & reached).nonzero().squeeze(1)
    if len(rows):
        clipped[rows], reached[rows] = _clipped_steps(gradients[rows], towards[rows], offsets[rows], room.of(rows))
    return clipped, reached


def _clipped_steps(gradients: Tensor, towards: Tensor, offsets: Tensor, room: Room) -> tuple[Tensor, Tensor]:
    """As :func:`onto_hyperplane`, for finite gradients that are not zero."""
    still = towards == 0
    speed = towards.double()
    weight = gradients.double() * speed
    limit = torch.where(towards > 0, room.upper, room.lower).double() / torch.where(still, 1.0, speed)
    limit, order = torch.where(still, 0.0, limit).sort(dim=1)
    weight = weight.gather(1, order)
    # Weights of those that are free yet, summed from the end: subtracting from the whole would cancel.
    free = weight.flip(1).cumsum(1).flip(1)
    held = weight * limit
    held = held.cumsum(1) - held
    at_limit = held + limit * free
    reached = at_limit[:, -1] >= offsets
    index = torch.searchsorted(at_limit, offsets[:, None]).clamp(max=limit.shape[1] - 1)
    left = free.gather(1, index)
    scale = (offsets[:, None] - held.gather(1, index)) / torch.where(left > 0, left, 1.0)
    steps = torch.where(still, 0.0, torch.where(reached[:, None], scale, torch.inf) * speed)
    return room.clipped(steps.to(gradients.dtype)), reached


def into_halfspaces(gradients: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest step r in the Euclidean norm with g_i.r >= c_i for all i.

    It is r = sum of l_i g_i with l >= 0, w = G l - c >= 0 and l.w = 0 for the Gram matrix G: a linear complementarity
    problem. It is solved by principal pivoting with the least index (Murty 1974), which ends at the solution where G is
    positive definite.

    Args:
        gradients: [N, M, P]; a row of zeros with offset 0 is no constraint.
        offsets: [N, M] float64, c.

    Returns:
        Steps [N, P] in the gradients' dtype, and whether they are in all halfspaces, [N] bool. The step is 0 where not: the
        halfspaces have nothing in common, or something is not finite.
    """
    samples, count, _ = gradients.shape
    finite = torch.isfinite(gradients).all(2).all(1) & torch.isfinite(offsets).all(1)
    rows = torch.where(finite[:, None, None], gradients, 0.0).double()
    wanted = torch.where(finite[:, None], offsets, 0.0)
    size = torch.linalg.vector_norm(rows, dim=2)
    size = torch.where(size > 0, size, 1.0)
    rows, wanted = rows / size[:, :, None], wanted / size
    eye = torch.eye(count, dtype=torch.float64, device=rows.device)
    gram = rows @ rows.transpose(1, 2) + _RIDGE * eye
    scale = wanted.abs().amax(1, keepdim=True)
    used = torch.zeros((samples, count), dtype=torch.bool, device=rows.device)
    multipliers = torch.zeros_like(wanted)
    for _ in range(2 ** min(count, 8) + 4 * count):
        both = used[:, :, None] & used[:, None, :]
        multipliers = torch.linalg.solve(torch.where(both, gram, eye), torch.where(used, wanted, 0.0))
        missed = wanted - (gram @ multipliers[:, :, None]).squeeze(2)
        wrong = torch.where(used, multipliers < -_EXACT * scale, missed > _EXACT * scale)
        if not wrong.any():
            break
        used ^= wrong & (wrong.cumsum(1) == 1)
    steps = (multipliers.clamp(min=0)[:, None, :] @ rows).squeeze(1)
    missed = wanted - (rows @ steps[:, :, None]).squeeze(2)
    inside = finite & torch.isfinite(steps).all(1) & (missed <= _INSIDE * scale).all(1)
    return torch.where(inside[:, None], steps, 0.0).to(gradients.dtype), inside
