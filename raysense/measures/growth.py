"""What growing boxes ends with: the bounds, how each growth went and, on request, every state on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """States of boxes before an update each, ordered by iteration and then by box.

    Attributes:
        iteration: [R] int64, from 0.
        box: [R] int64, row of the box in the growth.
        lower: [R, n] float64, the state before this iteration's update.
        upper: [R, n] float64.
        loss: [R] float64, the loss of that state, as the method defines it.
    """

    iteration: Tensor
    box: Tensor
    lower: Tensor
    upper: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Growth:
    """Boxes that were grown together.

    Attributes:
        lower: [B, n] float64, in the units of the space; NaN where the box diverged.
        upper: [B, n] float64.
        loss: [B] float64, of the returned bounds, as the method defines it; NaN where the box diverged or there is no loss.
        iterations: [B] int64, updates made.
        converged: [B] bool, whether the growth ended because it came to rest and not because its updates were spent.
        diverged: [B] bool, whether the growth was given up as the bounds were no numbers, enclosed nothing or left every
            sensible size.
        evaluations: [B] int64, points this box asked the function for.
        trace: Every state before an update, where it was asked for.
    """

    lower: Tensor
    upper: Tensor
    loss: Tensor
    iterations: Tensor
    converged: Tensor
    diverged: Tensor
    evaluations: Tensor
    trace: Trace | None = None
