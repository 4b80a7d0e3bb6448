"""The margin between two classes, and its gradient with respect to the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysense.measures.gradients import Model, forward_with_graph


def margin(logits: Tensor, from_class: Tensor, to_class: Tensor) -> Tensor:
    """F = f_to - f_from: negative where ``from_class`` has the larger logit.

    Args:
        logits: [N, K].
        from_class: [N] int64.
        to_class: [N] int64.

    Returns:
        [N], in the logits' dtype.
    """
    pair = logits.gather(1, torch.stack((from_class, to_class), dim=1))
    return pair[:, 1] - pair[:, 0]


def largest_margin(logits: Tensor, from_class: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of the margins of ``from_class`` [N] to all other classes, [N], and its class, [N] int64.

    It is negative exactly where ``from_class`` is the only class of largest logit.
    """
    others = logits.scatter(1, from_class[:, None], -torch.inf)
    value, to_class = others.max(1)
    return value - logits.gather(1, from_class[:, None]).squeeze(1), to_class


def margin_gradient(model: Model, images: Tensor, from_class: Tensor, to_class: Tensor) -> tuple[Tensor, Tensor]:
    """F [N] and its gradient [N, P] at each image, from one forward and one backward pass, in the images' dtype.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        images: [N, ...], P values each.
        from_class: [N] int64.
        to_class: [N] int64.
    """
    logits, inputs = forward_with_graph(model, images)
    value = margin(logits, from_class, to_class)
    (gradient,) = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), gradient.flatten(1)


class UnitVectors:
    """Random directions, uniform on the unit sphere, from a stream of each sample's own.

    A sample's directions do not depend on the others of its batch, nor on the device.

    Args:
        seeds: One a sample.
        like: [N, ...], says how many values P a direction has, of which dtype and on which device.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        if len(seeds) != len(like):
            raise ValueError(f"{len(seeds)} seeds for {len(like)} samples; give one a sample")
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._size, self._like = like[0].numel() if len(like) else 0, like

    def draw(self) -> Tensor:
        """The next direction of every sample, [N, P] of norm 1."""
        drawn = [torch.randn(self._size, generator=generator, dtype=torch.float64) for generator in self._generators]
        vectors = torch.stack(drawn) if drawn else torch.zeros((0, self._size), dtype=torch.float64)
        unit: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return unit.to(device=self._like.device, dtype=self._like.dtype)
