"""The growth of one constrained box, round by round; all coordinates are shares of the axes."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.box_search import BoxSearch, Constraints, Moments
from raysense.measures.region_sampling import around, spread, stratified
from raysense.measures.surrogate import Surrogate, likeliest_lengths

ROUNDS = (4, 8)
"""Rounds of points around the candidate, for up to two axes and for more."""

REACH = 0.25
"""How much of its sides a candidate is widened by, each way, for the next round's points."""

LEAST_REACH = 0.02
"""The least of it, as a share of the axis."""

MISS = Constraints(-0.1, 0.03, -1.0)
"""By how much a box may miss the constraints, and still be looked at closer when none is feasible."""

HOPE = (0.25, 0.5, 1.0)
"""Shares of ``MISS`` that are tried in turn."""

CAUTION = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Margins of the boxes that are put to the proof."""

AFTERTHOUGHT = 2.0
"""Factor of the margin for a box that the proof's points helped to choose."""

Box = tuple[Tensor, Tensor]


class Budget(NamedTuple):
    """How many points one box asks for: over the space, around its candidates, and as its proof."""

    first: int
    exploring: int
    proof: int


class Ended(NamedTuple):
    """How the growth of one box ended.

    Attributes:
        box: Bounds [n]; without volume, at the start, where no box was proved.
        moments: Estimates over it, scalars.
        proved: Whether it is feasible, by the margin.
        settled: Whether it, or that there is nothing to be found, was decided before the points were spent.
        steps: Candidate of every round.
    """

    box: Box
    moments: Moments
    proved: bool
    settled: bool
    steps: list[Box]


def growing(
    start: Tensor, periodic: Tensor, limits: Constraints, budget: Budget, generator: torch.Generator
) -> Generator[Tensor, Tensor, Ended]:
    """Grow one box: yields points [P, n], is sent their scores [P], returns how it ended.

    Args:
        start: [n] float64 in [0, 1].
        periodic: [n] bool.
        limits: What must hold, and the margin of the proof.
        budget: Points of every phase.
        generator: Of the random points.
    """
    space = torch.where(periodic, start - 1, 0.0), torch.where(periodic, start + 1, 1.0)
    estimated = limits._replace(margin=0.0)
    rounds = ROUNDS[len(start) > 2]
    points = spread(start, budget.first, generator)
    scores = yield points
    lengths = likeliest_lengths(points, scores, periodic)
    region, steps = space, list[Box]()
    for number in range(rounds + 1):
        search = BoxSearch(Surrogate(points, scores, periodic, lengths), start, region, periodic)
        box = _candidate(search, estimated)
        reach = torch.zeros_like(start)
        if box is not None:
            reach = ((box[1] - box[0]) * REACH).clamp(min=LEAST_REACH)
        elif float(scores[0]) < limits.least_mean:
            return _nothing(start, scores, limits, steps, settled=True)
        else:  # the start is feasible, and a small box around it must be: closer
            sixth = (region[1] - region[0]) / 6
            box = region = torch.maximum(start - sixth, space[0]), torch.minimum(start + sixth, space[1])
        steps.append(box)
        if number == rounds:
            break
        count = budget.exploring * (number + 1) // rounds - budget.exploring * number // rounds
        new = around(box, reach, points, periodic, lengths, count, generator)
        points, scores = torch.cat((points, new)), torch.cat((scores, (yield new)))
        if number < 2:
            lengths = likeliest_lengths(points, scores, periodic, lengths)
        if len(start) > 2:  # a lattice over the whole space would be too coarse
            side = box[1] - box[0]
            region = torch.maximum(box[0] - side, space[0]), torch.minimum(box[1] + side, space[1])
    box = steps[-1]
    family, region = _family(box, search, space, periodic, estimated)
    new = stratified(box[0][None], box[1][None], budget.proof // 2, 2, [generator])[0].flatten(0, 1)
    new = torch.where(periodic, torch.remainder(new, 1.0), new)
    points, scores = torch.cat((points, new)), torch.cat((scores, (yield new)))
    search = BoxSearch(Surrogate(points, scores, periodic, lengths), start, region, periodic, proof=True)
    proved = [member for member in family if search.holds(member, limits)]
    afterthought = search.largest(limits._replace(margin=limits.margin * AFTERTHOUGHT))
    proved += [] if afterthought is None else [afterthought]
    if not proved:
        return _nothing(start, scores, limits, steps, settled=False)
    largest = max(proved, key=_volume)
    return Ended(largest, search.moments(largest), True, True, steps)


def _candidate(search: BoxSearch, limits: Constraints) -> Box | None:
    """The largest box that seems feasible, or one that misses by little, or none."""
    box = search.largest(limits)
    if box is not None:
        return search.closer(box, limits)
    for share in HOPE:
        hope = Constraints(*(limit + share * miss for limit, miss in zip(limits, MISS, strict=True)))
        box = search.largest(hope)
        if box is not None:
            return box
    return None


def _family(box: Box, search: BoxSearch, space: Box, periodic: Tensor, limits: Constraints) -> tuple[list[Box], Box]:
    """Boxes in a candidate that are put to the proof, chosen before its points are known, and the region they lie in."""
    turned = periodic & (box[1] - box[0] >= 1 - 1e-9)
    region = torch.where(turned, space[0], box[0]), torch.where(turned, space[1], box[1])
    inner = search.over(region)
    smaller = (inner.largest(limits._replace(margin=caution)) for caution in CAUTION)
    return [box, *(member for member in smaller if member is not None)], region


def _nothing(start: Tensor, scores: Tensor, limits: Constraints, steps: list[Box], *, settled: bool) -> Ended:
    """The box of no volume at the start: f is known there, and it is feasible when the start is."""
    zero, one = start.new_zeros(()), start.new_ones(())
    return Ended(
        (start, start), Moments(scores[0], zero, zero, zero, one), float(scores[0]) >= limits.least_mean, settled, steps
    )


def _volume(box: Box) -> float:
    return float((box[1] - box[0]).prod())
