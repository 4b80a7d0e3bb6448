"""Mean KL divergence between the softmax outputs of two classes (Khaitan & Banerjee 2026, section 4.2, ablation 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputSums:
    """Sums over the samples of C classes of their softmax outputs p; float64.

    Attributes:
        samples: [C], how many samples.
        p: [C, K], sums of p.
        log_p: [C, K], sums of log p.
        p_log_p: [C], sums of p log p, over the K outputs too.
    """

    samples: Tensor
    p: Tensor
    log_p: Tensor
    p_log_p: Tensor


def output_divergences(sums: OutputSums, start: int, stop: int) -> Tensor:
    """Mean of KL(p_x || p_y), in nats, over all pairs of x in class a and y in class b, from sums: no pair is visited.

    On the diagonal the mean over pairs of different samples of a class. The absolute error is some units in the last place
    of the mean of ``sum_k p_k |log p_k|``; what rounding makes negative is 0.

    Args:
        sums: Of every class; a class has at least one sample.
        start: First class a.
        stop: Last class a, exclusive.

    Returns:
        [stop - start, C] float64; NaN on the diagonal for a class of one sample.
    """
    count = sums.samples[start:stop, None]
    entropies = sums.p_log_p[start:stop, None] / count
    found = (entropies - (sums.p[start:stop] / count) @ (sums.log_p / sums.samples[:, None]).T).clamp(min=0)
    own = torch.arange(stop - start, device=found.device)
    # All pairs of a class include each sample with itself, where KL is 0.
    several = (count[:, 0] > 1).double()
    found[own, own + start] *= count[:, 0] / ((count[:, 0] - 1) * several)
    return found
