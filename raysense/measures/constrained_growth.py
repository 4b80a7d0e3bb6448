"""Boxes that are as large as possible and satisfy Eq. (2) of Hamdi & Ghanem (2020), found with few evaluations.

Published growth neither checks Eq. (2) nor leaves the square. Here boxes are found by search instead of by descent:

1. points over the whole space, a Gaussian process through them, the largest box that is feasible by its integrals;
2. some rounds of points in and around that box, far from those known, and the search again with all of them;
3. uniform random points in the last candidate, the proof. A few boxes in it, chosen before by growing caution, are judged
   by all points: integrals of the process, corrected by the mean residual of every point at its prediction out of the
   others (jackknife), and must hold by a margin of standard errors; any other box in it must by twice that margin, as the
   same points chose it.

A round asks for as many points in any number of dimensions; there are no 2^n corners. All boxes advance together, so that
there are six calls of the function for up to two axes and ten for more, however many boxes there are.

The growth's own arithmetic, on the CPU, takes 0.1 to 0.2 s a box of two axes at 400 points, and grows with the cube of
the points.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.measures.box_search import Constraints
from raysense.measures.boxes import Domain, Evaluator
from raysense.measures.growth import Growth, Trace
from raysense.measures.growth_rounds import Budget, Ended, growing
from raysense.measures.region_evidence import Evidence, contains, student_quantile
from raysense.measures.region_sampling import seeded

FEWEST, MOST = 40, 5000
"""Points a box may ask for."""

FIRST, PROOF = 0.24, 0.25
"""Shares of the points that are spread over the space, and kept for the proof."""


@dataclass(frozen=True)
class ConstrainedSettings:
    """How boxes are grown.

    Attributes:
        eps_m: The mean of the score over a box is at least 1 - eps_m.
        eps_v: The variance of the score over a box is at most eps_v.
        evaluations: Points a box may ask for, 40 to 5,000, its proof among them; 400 for each axis find faces to a few
            hundredths of the box's sides.
        margin: Standard errors by which the mean and the variance of a proved box hold.
        seed: Of the random points.
    """

    eps_m: float = 0.5
    eps_v: float = 0.05
    evaluations: int = 400
    margin: float = 1.75
    seed: int = 0


class Constrained(NamedTuple):
    """Grown boxes, and why they hold.

    Attributes:
        growth: The boxes. Where none was proved, one without volume at the start. Bounds lie in the space, on periodic
            axes around the start: they may go beyond the range, a whole turn at most. ``loss`` is minus the box's share of
            the space, ``iterations`` the rounds; a box ``converged`` if it was proved or the first looks found nothing
            that came near, and not if the proof failed.
        evidence: Of these boxes, from the points that the growth asked for; ``points`` are those in the box. ``holds``
            includes the margin. A box without volume has the start's score as its mean, and holds if the start does.
    """

    growth: Growth
    evidence: Evidence


def grow(
    function: Evaluator,
    domain: Domain,
    start: Tensor,
    subjects: Tensor,
    adversarial: Tensor,
    *,
    settings: ConstrainedSettings | None = None,
    record: bool = False,
) -> Constrained:
    """Grow boxes around starts, all together.

    The points that a box asks for depend on its start, the scores it was sent, and the seed alone.

    Args:
        function: f, in [0, 1].
        domain: The space.
        start: [B, n] float64, in the space.
        subjects: [B] int64.
        adversarial: [B] bool, whether the box is one of 1 - f, Eq. (4).
        settings: By default those of the paper's constraints at 400 points.
        record: Whether to keep every round's candidate as a trace.

    Raises:
        UsageError: A start lies outside the space, or a setting has no sense.
    """
    settings = settings or ConstrainedSettings()
    _check(domain, start, settings)
    limits = Constraints(1 - settings.eps_m, settings.eps_v, settings.margin)
    first, proof = round(settings.evaluations * FIRST), 2 * round(settings.evaluations * PROOF / 2)
    budget = Budget(first, settings.evaluations - first - proof, proof)
    boxes: dict[int, Generator[Tensor, Tensor, Ended]] = {}
    asked: dict[int, Tensor] = {}
    ended: dict[int, Ended] = {}
    evaluations = torch.zeros(len(start), dtype=torch.int64)
    for index, at in enumerate(start):
        share = (at - domain.lower) / domain.extent
        boxes[index] = growing(share, domain.periodic, limits, budget, seeded(settings.seed, at))
        asked[index] = next(boxes[index])
    while boxes:
        counts = [len(asked[index]) for index in boxes]
        owner = torch.tensor(list(boxes)).repeat_interleave(torch.tensor(counts))
        points = domain.wrapped(domain.lower + torch.cat([asked[index] for index in boxes]) * domain.extent)
        scores = function.scores(points, subjects[owner]).to(points)
        scores = torch.where(adversarial[owner], 1 - scores, scores)
        for index, part in zip(list(boxes), scores.split(counts), strict=True):
            evaluations[index] += len(part)
            try:
                asked[index] = boxes[index].send(part)
            except StopIteration as stop:
                ended[index] = stop.value
                del boxes[index]
    results = [ended[index] for index in range(len(start))]
    lower, upper = _in_units([result.box for result in results], list(range(len(start))), domain, start)
    growth = Growth(
        lower=lower,
        upper=upper,
        loss=-((upper - lower) / domain.extent).prod(1),
        iterations=torch.tensor([len(result.steps) for result in results], dtype=torch.int64),
        converged=torch.tensor([result.settled for result in results], dtype=torch.bool),
        diverged=torch.zeros(len(start), dtype=torch.bool),
        evaluations=evaluations,
        trace=_trace(results, domain, start) if record else None,
    )
    return Constrained(growth, _evidence(results, adversarial, contains(domain, lower, upper, start)))


def _check(domain: Domain, start: Tensor, settings: ConstrainedSettings) -> None:
    outside = ~((start >= domain.lower) & (start <= domain.upper)).all(1)
    if bool(outside.any()):
        raise UsageError(
            f"start {start[outside][0].tolist()}: lies outside the space; move it between {domain.lower.tolist()} and "
            f"{domain.upper.tolist()}"
        )
    if not 0 <= settings.eps_m <= 1:
        raise UsageError(f"eps_m {settings.eps_m}: scores are probabilities; give a number from 0 to 1")
    if not settings.eps_v >= 0:
        raise UsageError(f"eps_v {settings.eps_v}: is a variance; give a number of at least 0")
    if not settings.margin >= 0:
        raise UsageError(f"margin {settings.margin}: counts standard errors; give a number of at least 0")
    if not FEWEST <= settings.evaluations <= MOST:
        raise UsageError(
            f"evaluations {settings.evaluations}: fewer than {FEWEST} prove nothing and the arithmetic grows with their "
            f"cube; give {FEWEST} to {MOST}"
        )


def _in_units(
    boxes: list[tuple[Tensor, Tensor]], owners: list[int], domain: Domain, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds [R, n] each in the units of the space, of boxes that are shares of it and belong to the starts ``owners``."""
    if not boxes:
        return start[:0], start[:0]
    low, high = (torch.stack(bounds) for bounds in zip(*boxes, strict=True))
    at = start[owners]
    # Rounding must neither exclude the start nor exceed the space.
    lower = torch.minimum(domain.lower + low * domain.extent, at)
    upper = torch.maximum(domain.lower + high * domain.extent, at)
    lower = torch.where(domain.periodic, lower, torch.maximum(lower, domain.lower))
    upper = torch.where(
        domain.periodic, torch.minimum(upper, lower + domain.extent), torch.minimum(upper, domain.upper)
    )
    flat = (low == high).all(1, keepdim=True)
    return torch.where(flat, at, lower), torch.where(flat, at, upper)


def _trace(results: list[Ended], domain: Domain, start: Tensor) -> Trace:
    rounds = max((len(result.steps) for result in results), default=0)
    rows = [
        (number, index)
        for number in range(rounds)
        for index in range(len(results))
        if number < len(results[index].steps)
    ]
    owners = [index for _, index in rows]
    lower, upper = _in_units([results[index].steps[number] for number, index in rows], owners, domain, start)
    return Trace(
        iteration=torch.tensor([number for number, _ in rows], dtype=torch.int64),
        box=torch.tensor(owners, dtype=torch.int64),
        lower=lower,
        upper=upper,
        loss=-((upper - lower) / domain.extent).prod(1),
    )


def _evidence(results: list[Ended], adversarial: Tensor, contained: Tensor) -> Evidence:
    columns = torch.tensor([[float(value) for value in result.moments] for result in results], dtype=torch.float64)
    mean, variance, mean_error, variance_error, points = columns.reshape(-1, 5).unbind(1)
    mean = mean.clamp(0, 1)
    mean = torch.where(adversarial, 1 - mean, mean)
    reach = student_quantile(points.clamp(min=2) - 1) * mean_error
    return Evidence(
        mean=mean,
        mean_stderr=mean_error,
        mean_lower=(mean - reach).clamp(min=0),
        mean_upper=(mean + reach).clamp(max=1),
        variance=variance.clamp(min=0),
        var_stderr=variance_error,
        contains_start=contained,
        holds=torch.tensor([result.proved for result in results], dtype=torch.bool),
        points=points.long(),
    )
