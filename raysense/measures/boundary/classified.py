"""Many images classified, made just before they are needed, so that few are held at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raysense.measures.gradients import Model, forward

Runs = Callable[[int, Callable[[int, int], None]], None]
"""Calls ``work(start, stop)`` over consecutive runs that together are items 0 to N (exclusive), given N and work."""

UNKNOWN = -1
"""The class of an image whose logits are not finite."""


def runs_of(size: int) -> Runs:
    """Runs of at most ``size`` items.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"runs of {size} items do no work; use at least 1")

    def run(items: int, work: Callable[[int, int], None]) -> None:
        for start in range(0, items, size):
            work(start, min(start + size, items))

    return run


def predicted_classes(model: Model, count: int, images: Callable[[int, int], Tensor], runs: Runs) -> Tensor:
    """The class of the largest logit of many images.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        count: How many images there are.
        images: Makes images ``start`` to ``stop`` (exclusive).
        runs: Runs of images that go through the model at once.

    Returns:
        [count] int64 on the host; :data:`UNKNOWN` where the largest logit is not finite.
    """
    predicted = torch.full((count,), UNKNOWN, dtype=torch.int64)

    def work(start: int, stop: int) -> None:
        value, top = forward(model, images(start, stop)).max(1)
        predicted[start:stop] = torch.where(value.isfinite(), top, UNKNOWN).cpu()

    runs(count, work)
    return predicted
