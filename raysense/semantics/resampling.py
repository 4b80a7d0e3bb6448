"""Bicubic resampling of images at any positions, differentiable in the positions in reverse and forward mode."""

from __future__ import annotations

import torch
from torch import Tensor

_TAPS = 4


def resampled(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Values of images between their pixels, by cubic convolution (Keys 1981, a = -1/2); zero outside the image.

    The interpolant and its first derivatives are continuous: at a pixel's centre it has the pixel's very value, and the
    slope of the central difference. (Bilinear interpolation has a kink there, which is where an unmoved image is read;
    torch's own bicubic sampling, a = -3/4, has one and a half times the slope, and rounds positions.)

    Args:
        images: [B, C, H, W].
        columns: [B, P, Q] floating, positions to the right in pixels; the first column's centre is 0.
        rows: [B, P, Q], positions downwards.

    Returns:
        [B, C, P, Q] in the images' dtype; may leave the range of the values by up to 28% of it at edges.
    """
    count, channels, height, width = images.shape
    # With room for all four taps beside the image, every tap is a constant step in memory from the first one.
    padded = torch.nn.functional.pad(images, (_TAPS,) * 4)
    stride, plane = padded.shape[-1], padded.shape[-1] * padded.shape[-2]
    first_column, across = _taps(columns, width, images.dtype)
    first_row, down = _taps(rows, height, images.dtype)
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1, 1) * plane
    first = planes + (first_row * stride + first_column)[:, None]
    values, places = padded.flatten(), first.flatten()
    reach = len(values) - (_TAPS - 1) * (stride + 1)
    result: Tensor = torch.zeros_like(first, dtype=images.dtype)
    for row in range(_TAPS):
        line = torch.zeros_like(result)
        for column in range(_TAPS):
            tap = values.narrow(0, row * stride + column, reach).index_select(0, places).view(first.shape)
            line = line + across[column][:, None] * tap
        result = result + down[row][:, None] * line
    return result


def _taps(positions: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The first of the four pixels about each position, in an axis padded by four on either side; the four weights."""
    base = positions.detach().floor()
    part = positions - base
    first = (base - 1).clamp(-_TAPS, size).long() + _TAPS
    weights = (
        part * (part * (2 - part) - 1) / 2,
        part * part * (3 * part - 5) / 2 + 1,
        part * (part * (4 - 3 * part) + 1) / 2,
        part * part * (part - 1) / 2,
    )
    return first, [weight.to(dtype) for weight in weights]
