"""Gradients of logits with respect to the input: backward passes over classes and forward-mode products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.modes import AffineBatchNorm, ConstantParameters

Model = Callable[[Tensor], Tensor]
"""Maps images [N, C, H, W] to logits [N, K], sample by sample."""


def input_gradients(logits: Tensor, images: Tensor, weights: Iterable[Tensor], retain: bool = False) -> Tensor:
    """Gradients of weighted sums of a sample's logits with respect to its own image, one backward pass for each weight.

    A loop of batched backward passes: faster on CPU than vmap, is_grads_batched or repeated inputs, and with no memory but
    the result's.

    Args:
        logits: [N, K], computed from ``images`` with a graph.
        images: [N, ...] that require grad.
        weights: M tensors [N, K].
        retain: Whether the graph is still needed afterwards.

    Returns:
        [N, M, P] with P the number of values of an image, in the images' dtype.
    """
    weights = list(weights)
    result = images.new_empty((images.shape[0], len(weights), images[0].numel()))
    for index, weight in enumerate(weights):
        keep = retain or index + 1 < len(weights)
        (gradient,) = torch.autograd.grad(logits, images, grad_outputs=weight.to(logits.dtype), retain_graph=keep)
        result[:, index] = gradient.flatten(1)
    return result


def forward(model: Model, images: Tensor) -> Tensor:
    """Logits without a graph."""
    with torch.no_grad(), AffineBatchNorm():
        return in_best_layout(images, model)


def forward_with_graph(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with a graph back to the images, and the images that require grad."""

    def work(inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = inputs.detach().requires_grad_(True)
        return model(inputs), inputs

    with torch.enable_grad(), AffineBatchNorm():
        return in_best_layout(images, work)


Result = TypeVar("Result")


def in_best_layout(images: Tensor, work: Callable[[Tensor], Result]) -> Result:
    """Work on the images, on a CPU with the channels last where the work bears it: convolutions are faster so.

    Args:
        images: [N, ...].
        work: A function of the images that can be called twice.
    """
    if images.device.type != "cpu" or images.ndim != 4:
        return work(images)
    try:
        return work(images.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        return work(images.contiguous())


@contextmanager
def requiring_grad(parameters: Iterable[Tensor]) -> Iterator[None]:
    """The parameters themselves require grad meanwhile, wherever a module reaches them from; then as before."""
    required = [(value, value.requires_grad) for value in parameters]
    try:
        for value, _ in required:
            value.requires_grad_(True)
        yield
    finally:
        for value, before in required:
            value.requires_grad_(before)


def laid_out_like(images: Tensor, directions: Tensor) -> Tensor:
    """Directions in the memory format of images of the same shape."""
    return torch.empty_like(images, dtype=directions.dtype).copy_(directions)


def jacobian_product(model: Model, images: Tensor, directions: Tensor) -> Tensor:
    """J h for one direction h per sample, in forward mode; by double backward where an operator has no forward rule.

    Args:
        model: Maps [N, ...] to [N, K].
        images: [N, ...].
        directions: Shape and dtype of ``images``.

    Returns:
        [N, K].
    """

    def work(inputs: Tensor) -> Tensor:
        inputs = inputs.detach()
        output = model(forward_ad.make_dual(inputs, laid_out_like(inputs, directions)))
        tangent = forward_ad.unpack_dual(output).tangent
        return torch.zeros_like(output) if tangent is None else tangent.clone()

    # Of the attention kernels only the plain one has a forward rule and a second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        try:
            # Gradients are on, so that the mode can tell where the model itself turns them off.
            with torch.enable_grad(), forward_ad.dual_level(), ConstantParameters():
                return in_best_layout(images, work)
        except NotImplementedError:
            logits, inputs = forward_with_graph(model, images)
            with torch.enable_grad():
                dummy = torch.zeros_like(logits, requires_grad=True)
                (pulled,) = torch.autograd.grad(logits, inputs, grad_outputs=dummy, create_graph=True)
                (pushed,) = torch.autograd.grad(pulled, dummy, grad_outputs=directions)
            return pushed
