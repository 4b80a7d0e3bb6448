"""Where the samples of a batch are in an operator's tensors, found by comparing one image alone with a batch of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raysense.measures.elementwise import BroadcastUse, NormUse
from raysense.measures.uses import ConvUse, LinearUse, Use


def find_samples(alone: Use, both: Use) -> tuple[int, bool] | None:
    """Where the samples are in a use's tensors: the dimension, and whether interleaved; None where they cannot be told.

    Args:
        alone: The use for one image.
        both: The use for this image and another.
    """
    one, two = alone.input, both.input
    if isinstance(alone, BroadcastUse) and isinstance(both, BroadcastUse):
        # The tensor that the parameter meets may be of fewer dimensions; the output says where the samples are.
        dim = _doubled(alone.output_shape, both.output_shape)
        if dim is None or both.shape[dim] != 1:
            return None
        if alone.factor is not None and both.factor is not None:
            one, two = alone.factor, both.factor
        elif one.shape != torch.Size(alone.output_shape) or two.shape != torch.Size(both.output_shape):
            return (dim, False) if alone.output_shape[dim] == 1 else None
    dim = _doubled(one.shape, two.shape)
    if dim is None or type(alone) is not type(both) or _mixes_features(alone, dim):
        return None
    one, two = one.movedim(dim, 0).double(), two.movedim(dim, 0).double()
    scale = float(one.abs().max()) if one.numel() else 0.0
    fits = [torch.allclose(mine, one, rtol=1e-2, atol=1e-3 * scale) for mine in (two[: len(one)], two[::2])]
    if len(one) == 1:
        return (dim, False) if fits[0] else None
    # Where both fit, the values say nothing about the order.
    return (dim, fits[1]) if fits[0] != fits[1] else None


def _mixes_features(use: Use, dim: int) -> bool:
    """Whether the samples' dimension is one that the operator itself treats as channels or positions."""
    if isinstance(use, LinearUse):
        return dim == use.input.ndim - 1
    if isinstance(use, ConvUse):
        return dim != 0 or use.input.ndim != len(use.stride) + 2
    if isinstance(use, NormUse):
        return dim >= use.input.ndim - use.trailing if use.trailing else dim != 0
    return False


def _doubled(one: Sequence[int], two: Sequence[int]) -> int | None:
    """The only dimension in which two shapes differ, by a factor of two."""
    if len(one) != len(two):
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 and two[differing[0]] == 2 * one[differing[0]] else None
