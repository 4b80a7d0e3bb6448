"""Images as tensors: conversion of what data sets return."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp")
"""Files that torchvision decodes, by their lower-case extension."""

IMAGE_MODES = ("rgb", "gray")


def channel_axis(shape: tuple[int, ...]) -> Literal["first", "last"] | None:
    """Tell whether a three-dimensional image shape is [C, H, W] or [H, W, C], by an axis of 1 or 3; None if unclear."""
    first, last = shape[0] in (1, 3), shape[2] in (1, 3)
    if first == last:
        return None
    return "first" if first else "last"


def to_image(value: Any) -> Tensor:
    """Convert an image of a data set to uint8 or float32 ``[C, H, W]``.

    Takes PIL images (palette and CMYK become RGB), tensors ``[C, H, W]`` or ``[H, W]``, and arrays ``[H, W, C]``,
    ``[C, H, W]`` or ``[H, W]``; uint8, or floating in [0, 1]. Raises ValueError for anything else.
    """
    if isinstance(value, Image.Image):
        return _from_pil(value)
    if isinstance(value, np.ndarray):
        image = torch.from_numpy(np.array(value, order="C"))
        if image.ndim == 3:
            axis = channel_axis(tuple(image.shape)) or "last"
            image = image if axis == "first" else image.permute(2, 0, 1).contiguous()
    elif isinstance(value, Tensor):
        image = value.detach()
    else:
        raise ValueError(f"the image is a {type(value).__name__}; return a PIL image, a tensor or an array")
    if image.ndim == 2:
        image = image.unsqueeze(0)
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"the image has shape {list(image.shape)}; return [C, H, W] or [H, W]")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"the image is {image.dtype}; return uint8, or floating in [0, 1]")
    check_range(float(image.min()), float(image.max()))
    return image.float()


def check_range(low: float, high: float) -> None:
    """Raise ValueError where floating pixels are not in [0, 1], or NaN."""
    if not (low >= 0 and high <= 1):
        mend = "divide them by 255" if 1 < high <= 255 and low >= 0 else "give them before any normalisation"
        raise ValueError(f"pixel values lie in {low:g}..{high:g}, not in [0, 1]; {mend}")


def _from_pil(image: Image.Image) -> Tensor:
    """Convert a PIL image to uint8."""
    if image.mode.startswith("I;16"):
        return torch.from_numpy((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)).unsqueeze(0)
    if image.mode in ("I", "F"):
        raise ValueError(f"the image has PIL mode {image.mode}; convert it to L or RGB")
    if image.mode in ("1", "L"):
        return torch.from_numpy(np.array(image.convert("L"))).unsqueeze(0)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
