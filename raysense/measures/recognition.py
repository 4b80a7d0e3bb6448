"""Which calls of PyTorch use parameters in a way whose per-sample gradients are known in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raysense.measures.elementwise import BroadcastUse, NormUse
from raysense.measures.uses import ConvUse, EmbeddingUse, LinearUse, Piece, Use, sizes

Lookup = Callable[[Any], Piece | None]
"""The target parameter that a value is; None where it is none."""


def recognise(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], find: Lookup) -> Use | None:
    """The use of target parameters that a call makes; None where it makes none, or none that is known.

    Args:
        func: What is called, as a torch function mode sees it.
        args: Its arguments.
        kwargs: Its named arguments.
        find: Tells the target parameters.
    """
    rule = _RULES.get(func)
    if rule is None and not isinstance(func, type(recognise)):
        rule = _BROADCASTS.get(getattr(func, "__name__", ""))
    return None if rule is None else rule(find, *args, **kwargs)


def _linear(find: Lookup, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use | None:
    pieces = find(weight), find(bias)
    if not any(pieces) or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return LinearUse(_plain(input), *pieces, outputs=weight.shape[0])


def _conv(
    find: Lookup,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Use | None:
    pieces = find(weight), find(bias)
    if not any(pieces):
        return None
    spatial = weight.ndim - 2
    steps = sizes(dilation, spatial)
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(steps, weight.shape[2:], strict=True)]
        sides = tuple((total // 2, total - total // 2) for total in totals)
    else:
        sides = tuple((side, side) for side in sizes(0 if isinstance(padding, str) else padding, spatial))
    return ConvUse(
        _plain(input),
        *pieces,
        kernel=tuple(weight.shape),
        stride=sizes(stride, spatial),
        padding=sides,
        dilation=steps,
        groups=groups,
    )


def _batch_norm(
    find: Lookup,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use | None:
    # Statistics of the batch mix its samples.
    if training or running_mean is None or running_var is None:
        return None
    return _norm(find, input, weight, bias, partial(_standardised, running_mean, running_var, eps))


def _instance_norm(
    find: Lookup,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Use | None:
    if use_input_stats:
        return _norm(find, input, weight, bias, partial(functional.instance_norm, eps=eps))
    return _batch_norm(find, input, running_mean, running_var, weight, bias, eps=eps)


def _group_norm(
    find: Lookup,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use | None:
    return _norm(find, input, weight, bias, partial(functional.group_norm, num_groups=num_groups, eps=eps))


def _layer_norm(
    find: Lookup,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use | None:
    standardise = partial(functional.layer_norm, normalized_shape=list(normalized_shape), eps=eps)
    return _norm(find, input, weight, bias, standardise, len(normalized_shape))


def _rms_norm(
    find: Lookup,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Use | None:
    standardise = partial(functional.rms_norm, normalized_shape=list(normalized_shape), eps=eps)
    return _norm(find, input, weight, None, standardise, len(normalized_shape))


def _norm(
    find: Lookup,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    standardise: Callable[[Tensor], Tensor],
    trailing: int = 0,
) -> Use | None:
    pieces = find(weight), find(bias)
    return NormUse(_plain(input), *pieces, standardise=standardise, trailing=trailing) if any(pieces) else None


def _embedding(
    find: Lookup,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use | None:
    piece = find(weight)
    if piece is None or max_norm is not None or scale_grad_by_freq or sparse:
        return None
    padding = None if padding_idx is None or padding_idx == -1 else padding_idx % weight.shape[0]
    return EmbeddingUse(input, piece, None, outputs=weight.shape[1], entries=weight.shape[0], padding=padding)


def _add(find: Lookup, input: Any, other: Any, *rest: Any, **named: Any) -> Use | None:
    return None if rest or named else _broadcast(find, input, other, multiplied=False)


def _multiply(find: Lookup, input: Any, other: Any, *rest: Any, **named: Any) -> Use | None:
    return None if rest or named else _broadcast(find, input, other, multiplied=True)


def _broadcast(find: Lookup, input: Any, other: Any, multiplied: bool) -> Use | None:
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    pieces = find(input), find(other)
    if (pieces[0] is None) == (pieces[1] is None):
        return None
    parameter, x = (input, other) if pieces[0] is not None else (other, input)
    shape = torch.broadcast_shapes(parameter.shape, x.shape)
    x = _plain(x)
    if not x.is_floating_point():
        return None
    factor = x.expand(shape) if multiplied else None
    return BroadcastUse(x, pieces[0] or pieces[1], None, _filled(parameter.shape, len(shape)), factor)


def _expand(find: Lookup, input: Tensor, *shape: Any) -> Use | None:
    piece = find(input)
    if piece is None:
        return None
    wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    own = _filled(input.shape, len(wanted))
    return BroadcastUse(_plain(input), piece, None, own, None)


def _filled(shape: Sequence[int], dimensions: int) -> tuple[int, ...]:
    return (*[1] * (dimensions - len(shape)), *shape)


def _standardised(mean: Tensor, variance: Tensor, eps: float, x: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x - mean.view(shape)) * torch.rsqrt(variance + eps).view(shape).to(x.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """The values alone, without graph or tangent."""
    values: Tensor = torch.autograd.forward_ad.unpack_dual(tensor).primal
    return values.detach()


_RULES: dict[Callable[..., Any], Callable[..., Use | None]] = {
    functional.linear: _linear,
    torch.conv1d: _conv,
    torch.conv2d: _conv,
    torch.conv3d: _conv,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.embedding: _embedding,
    # As exported programs call them.
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.conv1d.default: _conv,
    torch.ops.aten.conv1d.padding: _conv,
    torch.ops.aten.conv2d.default: _conv,
    torch.ops.aten.conv2d.padding: _conv,
    torch.ops.aten.conv3d.default: _conv,
    torch.ops.aten.conv3d.padding: _conv,
}
_BROADCASTS: dict[str, Callable[..., Use | None]] = {"add": _add, "mul": _multiply, "expand": _expand}
