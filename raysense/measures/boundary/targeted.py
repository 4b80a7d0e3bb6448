"""The point of a class's region that is nearest to an image: DeepFool towards a given class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.boundary.crossing import find_crossings
from raysense.measures.boundary.linearised import Linearised, Surroundings
from raysense.measures.boundary.margins import largest_margin
from raysense.measures.boundary.projections import (
    Box,
    Norm,
    dual_length,
    into_halfspaces,
    length,
    onto_hyperplane,
    product,
    room_around,
    scaled,
)
from raysense.measures.boundary.search import check_search
from raysense.measures.gradients import Model

_STALE = 2  # times that halfspaces may be replaced by ones of the same class, before steps add up as in DeepFool
_HALFSPACES = 8  # held at the most
_ROUNDING = 64  # multiples of the precision of the largest logit by which the target is to win


@dataclass(frozen=True)
class ClassPoints:
    """Points in the regions of target classes.

    Attributes:
        points: [N, ...], where the target has the largest logit; the image itself where not ``reached``.
        distance: [N] float64, norm of the step; NaN where not reached.
        reached: [N] bool.
        iterations: [N] int64, steps; 0 where the image was inside.
    """

    points: Tensor
    distance: Tensor
    reached: Tensor
    iterations: Tensor


def project_to_class(
    model: Model,
    images: Tensor,
    target: Tensor,
    *,
    norm: Norm = "l2",
    max_iterations: int = 50,
    overshoot: float = 0.02,
    box: Box | None = None,
    tolerance: float = 1e-3,
) -> ClassPoints:
    """The point of the target class's region that is nearest to each image, as far as local search finds it.

    The region is an intersection: f_target >= f_j for all j. For l2 without a box a step goes from x into all the
    halfspaces linearised so far, one of each class j that was ahead, which for an affine model ends at the nearest point.
    Once halfspaces of a class had to be replaced several times, and in all other cases, steps add up as DeepFool's do, each
    onto the linearised boundary with the class that is ahead. The way to the point reached is then cut where it enters the
    region, to ``tolerance``.

    Args:
        model: As for :func:`nearest_boundary`.
        images: [N, ...].
        target: [N] int64.
        norm: Of the step.
        max_iterations: Steps, at the most.
        overshoot: By what share they are lengthened, so that they arrive.
        box: As for :func:`nearest_boundary`.
        tolerance: How far inside of where the way enters the region the point lies at the most, as a share of the distance.

    Raises:
        ValueError: A setting is out of range, or the model's output is not [N, K] with K >= 2.
    """
    check_search(images, target, "target", norm, max_iterations, overshoot, tolerance)
    around = Surroundings(model, images, box)
    at = Linearised(around, around.start)
    # The lead of the target less a guard against the rounding of logits in other batches.
    guard = _ROUNDING * torch.finfo(images.dtype).eps * at.logits.abs().amax(1)
    # NaN is the largest value to argmax.
    reached = (at.logits.argmax(1) == target) & ~at.logits.isnan().any(1)
    iterations = reached.long() * 0
    point, total = around.start.clone(), torch.zeros_like(around.start)
    bundle = _Bundle(around.start) if norm == "l2" and box is None else None
    at_start, at_end, longer = torch.zeros_like(guard), torch.zeros_like(guard), torch.full_like(guard, 1 + overshoot)
    active = torch.arange(len(images), device=images.device)
    for step in range(max_iterations + 1):
        margin, rival = largest_margin(at.logits, target[active])
        lead = -margin - guard[active]
        if step == 0:
            at_start = torch.where(lead < 0, lead, -guard)  # inside by rounding only
            going = ~reached & torch.isfinite(lead)
        else:
            arrived = active[lead >= 0]
            reached[arrived], at_end[arrived] = True, lead[lead >= 0]
            going = torch.isfinite(lead) & (lead < 0)
        kept = going.nonzero().squeeze(1)
        rows = active[kept]
        if not len(rows) or step == max_iterations:
            break
        gradient = at.gradients(kept, rival[kept], target[rows])
        ahead = -lead[kept]
        moved, _ = onto_hyperplane(gradient, ahead, norm, room_around(point[rows], box))
        total[rows] += moved
        longer[rows] = 1 + overshoot
        if bundle is not None:
            # A little into the halfspace instead: a longer step could jump over a corner, or leave another halfspace.
            inwards = tolerance * dual_length(gradient, norm) * length(total[rows], norm)
            offset = ahead + product(gradient, point[rows] - around.start[rows]) + inwards
            bundled, used = bundle.step(rows, rival[kept], gradient, offset)
            total[rows] = torch.where(used[:, None], bundled, total[rows])
            longer[rows[used]] = 1
        active = rows[(moved != 0).any(1)]
        if not len(active):
            break
        iterations[active] += 1
        point[active] = around.point(active, scaled(total[active], longer[active]))
        at = Linearised(around, point[active])
    rows = (reached & (iterations > 0)).nonzero().squeeze(1)
    rays = point[rows] - around.start[rows]

    def lead_at(numbers: Tensor, t: Tensor) -> Tensor:
        logits = around.logits(around.point(rows[numbers], scaled(rays[numbers], t)))
        return -largest_margin(logits, target[rows[numbers]])[0] - guard[rows[numbers]]

    guess = torch.where(longer[rows] > 1, 1 / longer[rows], 1 - tolerance)
    beyond = find_crossings(lead_at, at_start[rows], at_end[rows], guess, tolerance).beyond
    point[rows] = around.point(rows, scaled(rays, beyond.clamp(max=1)))
    point = torch.where(reached[:, None], point, around.start)
    distance = length(point - around.start, norm).masked_fill(~reached, torch.nan)
    return ClassPoints(point.reshape(images.shape), distance, reached, iterations)


class _Bundle:
    """The halfspaces that the target's region was found to lie in, one of each class that was ahead."""

    def __init__(self, start: Tensor) -> None:
        count, size = start.shape
        self._rows = torch.arange(count, device=start.device)
        self._gradients = start.new_zeros((count, 0, size))
        self._offsets = start.new_zeros((count, 0), dtype=torch.float64)
        self._rivals = self._rows.new_zeros((count, 0))
        self._stale = torch.zeros_like(self._rows)

    def step(self, rows: Tensor, rival: Tensor, gradient: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The shortest step from the images into all the halfspaces and one more, g.r >= offset.

        Args:
            rows: [n] int64, samples, ascending; only these can be asked for later.
            rival: [n] int64, the class that is ahead.
            gradient: [n, P], g.
            offset: [n] float64.

        Returns:
            [n, P], and where it is to be taken, [n] bool.
        """
        kept = torch.searchsorted(self._rows, rows)
        held = slice(-_HALFSPACES + 1, None)
        gradients, offsets, rivals = self._gradients[kept, held], self._offsets[kept, held], self._rivals[kept, held]
        replaced = rivals == rival[:, None]
        self._rows, self._stale = rows, self._stale[kept] + replaced.any(1)
        self._gradients = torch.cat((gradients * ~replaced[:, :, None], gradient[:, None]), dim=1)
        self._offsets = torch.cat((offsets * ~replaced, offset[:, None]), dim=1)
        self._rivals = torch.cat((torch.where(replaced, -1, rivals), rival[:, None]), dim=1)
        steps, inside = into_halfspaces(self._gradients, self._offsets)
        return steps, inside & (self._stale <= _STALE)
