"""Gradients of logits with respect to the input: backward passes over classes and forward-mode products."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

Model = Callable[[Tensor], Tensor]
"""Maps images [N, C, H, W] to logits [N, K], sample by sample."""


def input_gradients(logits: Tensor, images: Tensor, weights: Iterable[Tensor], last: bool = True) -> Tensor:
    """Gradients of weighted sums of a sample's logits with respect to its own image, one backward pass for each weight.

    A loop of batched backward passes: faster on CPU than vmap, is_grads_batched or repeated inputs, and with no memory but
    the result's.

    Args:
        logits: [N, K], computed from ``images`` with a graph.
        images: [N, ...] that require grad.
        weights: M tensors [N, K].
        last: Whether the graph is freed afterwards.

    Returns:
        [N, M, P] with P the number of values of an image, in the images' dtype.
    """
    weights = list(weights)
    result = images.new_empty((images.shape[0], len(weights), images[0].numel()))
    for index, weight in enumerate(weights):
        keep = not last or index + 1 < len(weights)
        (gradient,) = torch.autograd.grad(logits, images, grad_outputs=weight.to(logits.dtype), retain_graph=keep)
        result[:, index] = gradient.flatten(1)
    return result


def forward_with_graph(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with a graph back to the images, and the images that require grad."""
    with torch.enable_grad():
        inputs = images.detach().requires_grad_(True)
        return model(inputs), inputs


def jacobian_product(model: Model, images: Tensor, directions: Tensor) -> Tensor:
    """J h for one direction h per sample, in forward mode; by double backward where an operator has no forward rule.

    Args:
        model: Maps [N, ...] to [N, K].
        images: [N, ...].
        directions: Shape and dtype of ``images``.

    Returns:
        [N, K].
    """
    try:
        with torch.no_grad(), forward_ad.dual_level():
            output = model(forward_ad.make_dual(images, directions))
            tangent = forward_ad.unpack_dual(output).tangent
            return torch.zeros_like(output) if tangent is None else tangent.clone()
    except NotImplementedError:
        logits, inputs = forward_with_graph(model, images)
        with torch.enable_grad():
            dummy = torch.zeros_like(logits, requires_grad=True)
            (pulled,) = torch.autograd.grad(logits, inputs, grad_outputs=dummy, create_graph=True)
            (pushed,) = torch.autograd.grad(pulled, dummy, grad_outputs=directions)
        return pushed
