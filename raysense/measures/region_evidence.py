"""Mean and variance of a function over boxes by stratified sampling, with standard errors: what Eq. (2) asks for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.measures.boxes import Domain, Evaluator, clipped
from raysense.measures.region_sampling import seeded, stratified

EACH = 2
"""Points in every stratum: the fewest that show its variance."""


class Evidence(NamedTuple):
    """What is known of the function f over boxes, for Eq. (2) of Hamdi & Ghanem (2020), or Eq. (4) of adversarial boxes.

    All are [B]; NaN, false and 0 where a box is not a number or lies outside the space.

    Attributes:
        mean: float64, of f over the box, of adversarial boxes too.
        mean_stderr: float64, standard error of ``mean``.
        mean_lower: float64, lower end of the 95% confidence interval of the mean, within [0, 1].
        mean_upper: float64, its upper end.
        variance: float64, of f over the box.
        var_stderr: float64, standard error of ``variance``.
        contains_start: bool, whether the start is in the box.
        holds: bool, whether all that the equation asks holds, by the margin asked for.
        points: int64, evaluations that the estimates rest on.
    """

    mean: Tensor
    mean_stderr: Tensor
    mean_lower: Tensor
    mean_upper: Tensor
    variance: Tensor
    var_stderr: Tensor
    contains_start: Tensor
    holds: Tensor
    points: Tensor


def evidence(
    function: Evaluator,
    domain: Domain,
    lower: Tensor,
    upper: Tensor,
    start: Tensor,
    subjects: Tensor,
    adversarial: Tensor,
    *,
    eps_m: float = 0.5,
    eps_v: float = 0.05,
    points: int = 64,
    seed: int = 0,
    margin: float = 0.0,
) -> Evidence:
    """Estimate mean and variance of f over any boxes, all in one batch of evaluations.

    A box is cut to the space, wrapping on periodic axes, where it is at most a whole turn. It is divided into points / 2
    strata of equal volume with two independent uniform points each, so that mean, second moment and standard errors are
    unbiased (Cochran 1977, "Sampling Techniques", chapter 5). The interval is Student's with Satterthwaite's degrees of
    freedom. The points of a box depend on the seed and its bounds only.

    Args:
        function: f.
        domain: The space.
        lower: [B, n] float64, in the units of the space; NaN is no box.
        upper: [B, n] float64.
        start: [B, n] float64, the points that boxes must hold.
        subjects: [B] int64.
        adversarial: [B] bool, whether the box is one of 1 - f.
        eps_m: The mean is at least 1 - eps_m.
        eps_v: The variance is at most eps_v.
        points: Evaluations of every box, even.
        seed: Of the random points.
        margin: Standard errors by which mean and variance must hold.

    Raises:
        UsageError: ``points`` is odd or less than 4.
    """
    if points < 2 * EACH or points % EACH:
        raise UsageError(f"evidence points {points}: they are two in every stratum; give an even number of at least 4")
    low, high = clipped(domain, lower, upper)
    valid = ((high >= low) & low.isfinite() & high.isfinite()).all(1)
    rows = valid.nonzero()[:, 0]
    if not len(rows):
        unknown, none = lower.new_full((len(lower),), torch.nan), torch.zeros_like(valid)
        return Evidence(*(unknown,) * 6, contains_start=none, holds=none, points=none.long())
    generators = [seeded(seed, lower[row], upper[row]) for row in rows]
    sample = stratified(low[rows], high[rows], points // EACH, EACH, generators)
    at = domain.wrapped(sample.flatten(0, 2))
    scores = function.scores(at, subjects[rows].repeat_interleave(points)).reshape(sample.shape[:3])
    flipped = torch.where(adversarial[rows, None, None], 1 - scores, scores)
    mean, mean_stderr, freedom = _stratified_mean(flipped)
    square = _stratified_mean(flipped.square())[0]
    # (mean estimate)^2 exceeds mean^2 by its variance on average.
    variance = (square - mean.square() + mean_stderr.square()).clamp(min=0)
    var_stderr = _stratified_mean(flipped.square() - 2 * mean[:, None, None] * flipped)[1]
    inside = contains(domain, lower, upper, start)
    holds = (mean - margin * mean_stderr >= 1 - eps_m) & (variance + margin * var_stderr <= eps_v) & inside[rows]
    reach = student_quantile(freedom) * mean_stderr
    mean = torch.where(adversarial[rows], 1 - mean, mean)
    filled = {
        "mean": mean,
        "mean_stderr": mean_stderr,
        "mean_lower": (mean - reach).clamp(min=0),
        "mean_upper": (mean + reach).clamp(max=1),
        "variance": variance,
        "var_stderr": var_stderr,
    }
    columns = {
        name: lower.new_full((len(lower),), torch.nan).index_copy(0, rows, values) for name, values in filled.items()
    }
    return Evidence(
        **columns,
        contains_start=inside & valid,
        holds=torch.zeros_like(valid).index_copy(0, rows, holds),
        points=torch.where(valid, points, 0),
    )


def contains(domain: Domain, lower: Tensor, upper: Tensor, points: Tensor) -> Tensor:
    """Whether boxes [B, n] hold points [B, n], modulo the period on periodic axes: [B] bool."""
    beyond = points - lower
    beyond = torch.where(domain.periodic, torch.remainder(beyond, domain.extent), beyond)
    return ((beyond >= 0) & (beyond <= upper - lower)).all(1)


def student_quantile(freedom: Tensor) -> Tensor:
    """The 97.5% quantile of Student's distribution, to 1% from one degree of freedom on.

    Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5) from 4 degrees on; below, values of the table by interpolation.
    """
    z = 1.959964
    nu = freedom.clamp(min=4)
    high = (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
    table = torch.tensor([12.7062, 4.3027, 3.1824, 2.7764], dtype=freedom.dtype, device=freedom.device)
    place = freedom.clamp(1, 4) - 1
    below = place.floor().long().clamp(max=2)
    # The quantile is closer to linear in 1 / nu, and the interpolation in nu overstates it: the safe side.
    low = table[below] + (place - below) * (table[below + 1] - table[below])
    return torch.where(freedom >= 4, high, low)


def _stratified_mean(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B], its standard error and Satterthwaite's degrees of freedom from values [B, strata, EACH]."""
    strata = values.shape[1]
    spread = values.var(dim=2) / EACH / strata**2
    variance = spread.sum(1)
    freedom = variance.square() / (spread.square().sum(1) / (EACH - 1)).clamp(min=1e-300)
    return values.mean((1, 2)), variance.sqrt(), torch.where(variance > 0, freedom, float(strata))
