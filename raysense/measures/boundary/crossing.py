"""Where functions of one variable change their sign: many at once, in few evaluations of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Value = Callable[[Tensor, Tensor], Tensor]
"""Maps numbers of samples [n] int64 and t [n] float64 to the values [n] of their functions."""

_SWIFT = 6  # secant steps, before every other step halves the bracket
_SPARE = 60  # for changes of sign that are beyond t = 1, or next to t = 0
_FURTHEST = 16.0
_AIM = 0.45  # beyond the estimate, in tolerances: both ends at that distance from it close the bracket


@dataclass(frozen=True)
class Crossings:
    """Where the functions of N samples change their sign from negative to not.

    Attributes:
        t: [N] float64, between the ends of the bracket, by interpolation; NaN where no change of sign was found.
        before: [N] float64, where the function is negative.
        beyond: [N] float64, where it is not; infinite where that was seen nowhere.
        evaluations: Summed over samples.
    """

    t: Tensor
    before: Tensor
    beyond: Tensor
    evaluations: int


def parabola_zero(at_zero: Tensor, at_one: Tensor, slope: Tensor) -> Tensor:
    """The zero nearest to t = 1 of the parabola with these values at 0 and 1 and this slope at 1; all [N].

    Where the parabola has none, a point near its extremum; not finite where the slope is not.
    """
    bend = at_zero - at_one + slope
    return 1 - 2 * at_one / (slope + (slope.square() - 4 * bend * at_one).clamp(min=0).sqrt())


def find_crossings(value: Value, at_zero: Tensor, at_one: Tensor, guess: Tensor, tolerance: float) -> Crossings:
    """Bracket a change of sign between t = 0 and t = 1, or beyond where there is none.

    A secant step aims a little beyond its estimate, so that a good estimate closes the bracket from the other side: two or
    three evaluations do for a function that is nearly linear. After six, every other step halves the bracket, so that
    2 log2(1 / tolerance) more are taken at the worst.

    Args:
        value: The functions. A sample with a value that is NaN is given up.
        at_zero: [N] float64, negative.
        at_one: [N] float64; where it is negative too, t is at the most 16.
        guess: [N] float64, of t; any number or NaN.
        tolerance: Of the bracket's width, as a share of its upper end.

    Returns:
        Brackets with ``beyond - before`` <= ``tolerance * beyond``, or infinite.
    """
    past = at_one >= 0
    one = torch.ones_like(at_zero)
    before, low = torch.where(past, 0.0, one), torch.where(past, at_zero, at_one)
    beyond, high = torch.where(past, one, torch.inf), torch.where(past, at_one, torch.nan)
    last, last_value, root = one.clone(), at_one.clone(), guess.clone()
    evaluations = 0
    active = torch.isfinite(at_zero + at_one).nonzero().squeeze(1)
    for step in range(_SWIFT + 2 * math.ceil(math.log2(1 / tolerance)) + _SPARE):
        if not len(active):
            break
        a, b, t_last, last_seen = before[active], beyond[active], last[active], last_value[active]
        end = torch.where(torch.isinf(b), (2 * a).clamp(max=_FURTHEST), b)
        middle = torch.where(torch.isinf(b), end, (a + b) / 2)
        t = root[active] * torch.where(last_seen < 0, 1 + _AIM * tolerance, 1 - _AIM * tolerance)
        usable = (t > a) & (t < end) & (step < _SWIFT or step % 2 == 0)
        t = torch.where(usable, t, middle)
        seen = value(active, t).double()
        evaluations += len(active)
        negative, known = seen < 0, ~torch.isnan(seen)
        before[active], low[active] = torch.where(negative, t, a), torch.where(negative, seen, low[active])
        there = ~negative & known
        beyond[active], high[active] = torch.where(there, t, b), torch.where(there, seen, high[active])
        root[active] = t - seen * (t - t_last) / (seen - last_seen)
        last[active], last_value[active] = t, seen
        a, b = before[active], beyond[active]
        open_yet = torch.where(torch.isinf(b), a < _FURTHEST, b - a > tolerance * b)
        active = active[open_yet & known]
    found = beyond - before <= tolerance * beyond
    share = (-low / (high - low)).nan_to_num(0.5).clamp(0, 1)
    t = torch.where(found & torch.isfinite(beyond), before + share * (beyond - before), torch.nan)
    return Crossings(t, before, torch.where(torch.isnan(t), torch.inf, beyond), evaluations)
