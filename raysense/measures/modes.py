"""Operators called in other ways than PyTorch's own: cheaper derivatives of what is affine in the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class AffineBatchNorm(TorchFunctionMode):
    """Batch norm in evaluation mode as the affine map it is: its own backward kernel costs several times as much."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._called(func, args, dict(kwargs or {}))

    def _called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What an operator gives."""
        rule = self._rule(func)
        if rule is None:
            return func(*args, **kwargs)
        return rule(*(args or (kwargs.pop("input"),)), **kwargs)

    def _rule(self, func: Callable[..., Any]) -> Callable[..., Any] | None:
        """What is called instead of an operator, with its image first; None where nothing is."""
        if func is functional.batch_norm:
            return self._batch_norm
        # As exported programs call it. Its native backward kernel is also wrong on CPUs for one sample whose gradient is
        # laid out with the channels last (PyTorch 2.15).
        return self._exported_batch_norm if func is torch.ops.aten.batch_norm.default else None

    def _exported_batch_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        return self._batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

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


class ConstantParameters(AffineBatchNorm):
    """Forward mode for operators whose parameters do not move: the tangent takes the same linear map as the primal.

    PyTorch's own rules also carry the zero tangents of weights, which makes a convolution half as dear again.
    """

    _LINEAR = (functional.linear, torch.conv1d, torch.conv2d, torch.conv3d)

    def _called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = super()._called(func, args, kwargs)
        if torch.is_grad_enabled():
            return result
        # Where a model turns gradients off, what it computes is a constant; forward mode would go on regardless.
        return tree_map_only(Tensor, lambda value: forward_ad.unpack_dual(value).primal, result)

    def _rule(self, func: Callable[..., Any]) -> Callable[..., Any] | None:
        return partial(_linear, func) if func in self._LINEAR else super()._rule(func)

    def _affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(x)
        if tangent is None or _moving(scale) or _moving(shift):
            return torch.addcmul(shift, x, scale)
        output = torch.addcmul(shift, primal, scale)
        moved: Tensor = forward_ad.make_dual(output, tangent * scale)
        return moved


def _linear(
    func: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(x)
    if tangent is None or _moving(weight) or _moving(bias):
        return func(x, weight, bias, *rest, **named)
    moved: Tensor = forward_ad.make_dual(
        func(primal, weight, bias, *rest, **named), func(tangent, weight, None, *rest, **named)
    )
    return moved


def _moving(parameter: Tensor | None) -> bool:
    return parameter is not None and forward_ad.unpack_dual(parameter).tangent is not None
