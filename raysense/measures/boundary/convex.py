"""Random convex combinations of images of one class (Fawzi et al. 2018): whether they stay in it."""

from __future__ import annotations

import torch
from torch import Tensor

from raysense.measures.boundary.classified import Runs, predicted_classes, runs_of
from raysense.measures.gradients import Model


def convex_weights(k: int, count: int, seed: int) -> Tensor:
    """Weights of ``count`` convex combinations of k points, uniform on the simplex (Dirichlet(1)).

    Returns:
        [count, k] float64 on the host, not negative, of sum 1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty((count, k), dtype=torch.float64).exponential_(generator=generator)
    return drawn / drawn.sum(1, keepdim=True)


def combinations_inside(
    model: Model, images: Tensor, classes: Tensor, weights: Tensor, *, runs: Runs | None = None
) -> Tensor:
    """Whether convex combinations of groups of images are predicted as the class of their group.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        images: [G, k, ...], k images of each of G groups.
        classes: [G] int64.
        weights: [G, M, k], of M combinations of each group.
        runs: Runs of combinations classified at once; 256 by default.

    Returns:
        [G, M] bool on the host.
    """
    groups, count, _ = weights.shape
    flat, weights = images.flatten(2), weights.to(images)

    def combined(start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            group, first = divmod(start, count)
            last = min(count, first + stop - start)
            parts.append(weights[group, first:last] @ flat[group])
            start += last - first
        return torch.cat(parts).view(-1, *images.shape[2:])

    predicted = predicted_classes(model, groups * count, combined, runs or runs_of(256))
    return predicted.view(groups, count) == classes.cpu()[:, None]
