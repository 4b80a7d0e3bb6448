"""The search for the nearest boundary: steps of DeepFool, turns along the boundary, and a bracketed crossing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.boundary.crossing import find_crossings, parabola_zero
from raysense.measures.boundary.linearised import Linearised, Surroundings
from raysense.measures.boundary.margins import largest_margin
from raysense.measures.boundary.projections import (
    Norm,
    check_norm,
    dual_length,
    length,
    onto_hyperplane,
    product,
    room_around,
    scaled,
)

FOUND, OUTSIDE, BLOCKED = 0, 1, 2

_NEAR = 0.25  # of the margin at x: from there on a gradient tells enough of the boundary to turn
_TURN = 0.5  # share of the normal in the first turned direction
_FAILED_ONCE = 0.5 * _TURN
_NORMAL = 0.99  # of the distance, at which the plane is: from there on turns are twice as large, first onto the normal
_WORTH = 200  # tolerances: a turn that gains less is the last one
_BELIEVED = (0.5, 1.5)  # where, in lengths of the ray, an estimated crossing is taken for one


@dataclass(frozen=True)
class Rule:
    """How a search is done: see :func:`raysense.measures.boundary.deepfool.nearest_boundary`."""

    norm: Norm
    candidates: int
    max_iterations: int
    overshoot: float
    tolerance: float
    polish: int
    slack: float


class Search:
    """The state of N samples, each with the point where it is to be asked next and the best ray so far.

    Args:
        around: The model and the images.
        rule: How it is done.
        from_class: [N] int64; None for the predicted one.
    """

    def __init__(self, around: Surroundings, rule: Rule, from_class: Tensor | None) -> None:
        self.around, self.rule = around, rule
        start = around.start
        count = len(start)
        self.status = torch.full((count,), BLOCKED, device=start.device)
        self.iterations, self.turns = torch.zeros_like(self.status), torch.zeros_like(self.status)
        self.near, self.done = (torch.zeros(count, dtype=torch.bool, device=start.device) for _ in range(2))
        self.slack = torch.full((count,), torch.inf, dtype=torch.float64, device=start.device)
        self.turn = torch.full_like(self.slack, _TURN)
        self.total, self.step = torch.zeros_like(start), torch.zeros_like(start)
        # The best ray: the step from x to its end, clipped to the box only where the network is asked; that from x onto the
        # plane F = 0 linearised there; value and slope of F there; and the distance at which the ray is expected to cross.
        self.ray, self.onto = torch.zeros_like(start), torch.zeros_like(start)
        self.value, self.slope, self.distance = (torch.full_like(self.slack, torch.nan) for _ in range(3))
        at = Linearised(around, start)
        self.from_class = at.logits.argmax(1) if from_class is None else from_class
        self.at_start, to_class = largest_margin(at.logits, self.from_class)
        self.status[self.at_start >= 0] = OUTSIDE
        self.active = (torch.isfinite(self.at_start) & (self.at_start < 0)).nonzero().squeeze(1)
        if len(self.active):
            gradient = at.gradients(self.active, self.from_class[self.active], to_class[self.active])
            self.active = self._deepfool(at, self.active, self.active, gradient)

    def approach(self, polish: int) -> None:
        """Step and turn until no sample has anything left to try.

        Args:
            polish: Most turns. Without any, DeepFool goes on until it is beyond the boundary.
        """
        while len(self.active):
            at = Linearised(self.around, self.around.point(self.active, self.step[self.active]))
            value, to_class = largest_margin(at.logits, self.from_class[self.active])
            kept = torch.isfinite(value).nonzero().squeeze(1)
            rows, value = self.active[kept], value[kept]
            if not len(rows):
                break
            gradient = at.gradients(kept, self.from_class[rows], to_class[kept])
            self._judge(rows, value, gradient, polish)
            near = self.near[rows]
            going = [self._turned(rows[near], polish)]
            far = (~near).nonzero().squeeze(1)
            if len(far):
                going.append(self._deepfool(at, kept[far], rows[far], gradient[far]))
            self.active = torch.cat(going).sort().values

    def _deepfool(self, at: Linearised, positions: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """A step of DeepFool; returns the samples that it moved."""
        step = self._nearest_face(at, positions, rows, gradient)
        moving = (step != 0).any(1) & (self.iterations[rows] < self.rule.max_iterations)
        rows, step = rows[moving], step[moving]
        self.iterations[rows] += 1
        self.total[rows] += step
        self.step[rows] = (1 + self.rule.overshoot) * self.total[rows]
        return rows

    def _nearest_face(self, at: Linearised, positions: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """The step [n, P] onto the nearest of the classes' linearised boundaries.

        Args:
            at: Logits and gradients at points.
            positions: [n], which of these points belong to the samples.
            rows: [n], the samples' numbers.
            gradient: [n, P], that of the margin of the largest other logit.
        """
        norm, room = self.rule.norm, room_around(self.around.point(rows, self.step[rows]), self.around.box)
        source, logits = self.from_class[rows], at.logits[positions]
        gaps = (logits.gather(1, source[:, None]) - logits).scatter(1, source[:, None], torch.inf)
        gaps, order = gaps.sort(dim=1)  # the last one is that of from_class itself
        best, reached = onto_hyperplane(gradient, gaps[:, 0], norm, room)
        nearest = torch.where(reached, length(best, norm), torch.inf)
        longest = dual_length(gradient, norm)
        looked = torch.ones_like(rows)
        for index in range(1, min(self.rule.candidates, gaps.shape[1] - 1)):
            # A class can be nearer only with a gradient longer than gap / nearest.
            gap = gaps[:, index]
            more = (torch.isfinite(gap) & (gap < self.rule.slack * nearest * longest)).nonzero().squeeze(1)
            if not len(more):
                break
            looked[more] += 1
            other = at.gradients(positions[more], source[more], order[more, index])
            longest[more] = torch.maximum(longest[more], dual_length(other, norm))
            step, reached = onto_hyperplane(other, gap[more], norm, None if room is None else room.of(more))
            distance = torch.where(reached, length(step, norm), torch.inf)
            nearer = distance < nearest[more]
            best[more[nearer]] = step[nearer]
            nearest[more] = torch.minimum(nearest[more], distance)
        left_out = gaps.gather(1, looked[:, None]).squeeze(1)
        bound = torch.where(torch.isinf(left_out), torch.inf, (left_out / (nearest * longest)).nan_to_num(0.0))
        self.slack[rows] = torch.minimum(self.slack[rows], bound)
        return best

    def _judge(self, rows: Tensor, value: Tensor, gradient: Tensor, polish: int) -> None:
        """Keep the rays to the present points where they are the best ones."""
        norm, ray = self.rule.norm, self.step[rows]
        room = None if self.around.room is None else self.around.room.of(rows)
        inside = ray if room is None else room.clipped(ray)
        size, slope = length(inside, norm), product(gradient, torch.where(inside == ray, ray, 0.0))
        t = parabola_zero(self.at_start[rows], value, slope)
        believed = (slope > 0) & (t > _BELIEVED[0]) & (t < _BELIEVED[1])
        past = value >= 0
        estimate = torch.where(believed, t * size, torch.where(past, size, torch.inf))
        known, before = self.near[rows], self.distance[rows]
        near = known | past | (believed & (value >= _NEAR * self.at_start[rows]) if polish else past)
        better = torch.where(known, estimate < before, near)
        little = estimate > (1 - _WORTH * self.rule.tolerance) * before
        self.done[rows] |= known & little & (better | (self.turn[rows] <= _FAILED_ONCE))
        self.turn[rows[known & ~better]] /= 2
        self.near[rows] = near
        kept = rows[better]
        self.ray[kept], self.value[kept], self.slope[kept] = ray[better], value[better], slope[better]
        self.distance[kept] = estimate[better]
        offset = (product(gradient, inside) - value).clamp(min=0)
        self.onto[kept] = onto_hyperplane(gradient, offset, norm, room)[0][better]

    def _turned(self, rows: Tensor, polish: int) -> Tensor:
        """Turn the best rays towards the normals at their ends; returns the samples of which that may gain."""
        norm = self.rule.norm
        size, plane = length(self.ray[rows], norm), length(self.onto[rows], norm)
        nearer = plane / self.distance[rows]
        gains = (plane > 0) & (nearer < 1 - self.rule.tolerance)
        turn = self.turn[rows] * torch.where(nearer > _NORMAL, 2.0, 1.0)
        going = gains & ~self.done[rows] & (self.turns[rows] < polish)
        rows, size, plane, turn = rows[going], size[going], plane[going], turn[going]
        self.turns[rows] += 1
        steps = scaled(self.ray[rows], (1 - turn) / size) + scaled(self.onto[rows], turn / plane)
        steps = scaled(steps, self.distance[rows] / length(steps, norm))
        if self.around.room is not None:  # what the box takes off is made up for, at least about
            steps = scaled(steps, self.distance[rows] / length(self.around.room.of(rows).clipped(steps), norm))
        self.step[rows] = steps
        return rows

    def cross(self) -> None:
        """Bracket the boundary on the best rays. Samples where that fails are active again, as DeepFool left them."""
        rows = (self.near & (self.status == BLOCKED)).nonzero().squeeze(1)
        rays = self.ray[rows]

        def largest(numbers: Tensor, t: Tensor) -> Tensor:
            points = self.around.point(rows[numbers], scaled(rays[numbers], t))
            return largest_margin(self.around.logits(points), self.from_class[rows[numbers]])[0]

        value, at_start = self.value[rows], self.at_start[rows]
        guess = parabola_zero(at_start, value, self.slope[rows])
        t = find_crossings(largest, at_start, value, guess, self.rule.tolerance).t
        there = torch.isfinite(t).nonzero().squeeze(1)
        self.step[rows[there]] = scaled(rays[there], t[there])
        self.status[rows[there]] = FOUND
        self.active = rows[torch.isnan(t) & (value < 0)]
        self.near[self.active] = False
        self.step[self.active] = (1 + self.rule.overshoot) * self.total[self.active]


def check_search(
    images: Tensor,
    classes: Tensor | None,
    name: str,
    norm: str,
    max_iterations: int,
    overshoot: float,
    tolerance: float,
) -> None:
    """Refuse settings that are out of range."""
    check_norm(norm)
    if classes is not None and classes.shape != (len(images),):
        raise ValueError(f"{name} has shape {tuple(classes.shape)} for {len(images)} images; give one class an image")
    if max_iterations < 1:
        raise ValueError(f"max_iterations {max_iterations} allows no step; use 1 or more")
    if not 0 < overshoot < 1:
        raise ValueError(f"overshoot {overshoot:g} must be a share between 0 and 1; use 0.02, say")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance {tolerance:g} must be a share between 0 and 1; use 1e-4, say")
