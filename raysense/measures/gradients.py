"""Gradients of logits with respect to the input: backward passes over classes and forward-mode products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Model = Callable[[Tensor], Tensor]
"""Maps images [N, C, H, W] to logits [N, K], sample by sample."""


def input_gradients(logits: Tensor, images: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """Gradients of weighted sums of a sample's logits with respect to its own image, one backward pass for each weight.

    A loop of batched backward passes: faster on CPU than vmap, is_grads_batched or repeated inputs, and with no memory but
    the result's.

    Args:
        logits: [N, K], computed from ``images`` with a graph.
        images: [N, ...] that require grad.
        weights: M tensors [N, K].

    Returns:
        [N, M, P] with P the number of values of an image, in the images' dtype.
    """
    weights = list(weights)
    result = images.new_empty((images.shape[0], len(weights), images[0].numel()))
    for index, weight in enumerate(weights):
        keep = index + 1 < len(weights)
        (gradient,) = torch.autograd.grad(logits, images, grad_outputs=weight.to(logits.dtype), retain_graph=keep)
        result[:, index] = gradient.flatten(1)
    return result


def forward(model: Model, images: Tensor) -> Tensor:
    """Logits without a graph."""
    with torch.no_grad(), _AffineBatchNorm():
        return model(_arranged(images))


def forward_with_graph(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with a graph back to the images, and the images that require grad."""
    with torch.enable_grad(), _AffineBatchNorm():
        inputs = _arranged(images.detach()).requires_grad_(True)
        return model(inputs), inputs


def _arranged(images: Tensor) -> Tensor:
    """On a CPU, images with the channels last: convolutions are faster so, forwards and backwards."""
    if images.device.type != "cpu" or images.ndim != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def jacobian_product(model: Model, images: Tensor, directions: Tensor) -> Tensor:
    """J h for one direction h per sample, in forward mode; by double backward where an operator has no forward rule.

    Args:
        model: Maps [N, ...] to [N, K].
        images: [N, ...].
        directions: Shape and dtype of ``images``.

    Returns:
        [N, K].
    """
    images, directions = _arranged(images), _arranged(directions)
    # Of the attention kernels only the plain one has a forward rule and a second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        return _jacobian_product(model, images, directions)


def _jacobian_product(model: Model, images: Tensor, directions: Tensor) -> Tensor:
    try:
        with torch.no_grad(), forward_ad.dual_level(), _ConstantParameters():
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


class _AffineBatchNorm(TorchFunctionMode):
    """Batch norm in evaluation mode as the affine map it is: its own backward kernel costs several times as much."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        rule = self._rule(func)
        if rule is None:
            return func(*args, **kwargs)
        return rule(*(args or (kwargs.pop("input"),)), **kwargs)

    def _rule(self, func: Callable[..., Any]) -> Callable[..., Any] | None:
        """What is called instead of an operator, with its image first; None where nothing is."""
        return self._batch_norm if func is functional.batch_norm else None

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        # Statistics of another precision than the image's are the native kernel's business.
        if training or running_mean is None or running_var is None or running_var.dtype != x.dtype:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        scale = torch.rsqrt(running_var + eps)
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        shape = (1, -1, *[1] * (x.ndim - 2))
        return self._affine(x, scale.view(shape), shift.view(shape))

    def _affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.addcmul(shift, x, scale)


class _ConstantParameters(_AffineBatchNorm):
    """Forward mode for operators whose parameters do not move: the tangent takes the same linear map as the primal.

    PyTorch's own rules also carry the zero tangents of weights, which makes a convolution half as dear again.
    """

    _LINEAR = (functional.linear, torch.conv1d, torch.conv2d, torch.conv3d)

    def _rule(self, func: Callable[..., Any]) -> Callable[..., Any] | None:
        return partial(_linear, func) if func in self._LINEAR else super()._rule(func)

    def _affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(x)
        output = torch.addcmul(shift, primal, scale)
        if tangent is None:
            return output
        moved: Tensor = forward_ad.make_dual(output, tangent * scale)
        return moved


def _linear(
    func: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(x)
    if tangent is None or forward_ad.unpack_dual(weight).tangent is not None:
        return func(x, weight, bias, *rest, **named)
    moved: Tensor = forward_ad.make_dual(
        func(primal, weight, bias, *rest, **named), func(tangent, weight, None, *rest, **named)
    )
    return moved
