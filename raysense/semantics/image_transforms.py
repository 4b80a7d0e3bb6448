"""Image transforms: the semantic axes of images without a shape, all at once and differentiable in every parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.semantics.axes import IMAGE_AXES
from raysense.semantics.resampling import resampled

_LUMA = (0.299, 0.587, 0.114)


def transform(images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Images seen under other conditions: moved, then blurred, then recoloured, as by a camera's pose, optics and sensor.

    1. Geometry, in one bicubic resampling: the content is scaled about the image's centre, sheared, rotated, shifted.
       What comes from outside the image is black (0). Shrunk content is not smoothed first: add blur.

       - ``scale`` > 1 magnifies;
       - ``shear``: vertical lines lean by this many degrees, their upper end to the right where positive;
       - ``rotation``: degrees, counterclockwise (as torchvision's ``rotate``; its ``affine`` turns the other way);
       - ``translate_x``: part of the image's width, to the right; ``translate_y``: of its height, downwards.
    2. ``blur``: standard deviation, in pixels, of the discrete Gaussian e^-t I_k(t), t = blur^2 (Lindeberg 1990), on the
       image reflected at its border. The variance is blur^2 for every value down to 0, where it changes nothing; its
       effect there begins with blur^2 / 2 times the Laplacian, so that the derivative at 0 is 0.
    3. ``saturation``: distance of each pixel to its own grey (ITU-R BT.601 luma), times this;
       ``contrast``: distance to the mean grey of the whole image, times this; ``brightness``: added.

    At the end values are clamped to [0, 1]; the derivative of a clamped value is 0. Default parameters return the very
    same values. Differentiable in images and parameters in reverse mode and in forward mode (``torch.func.jvp``).
    Geometry is computed in the parameters' precision, so give float64.

    Args:
        images: [B, C, H, W] floating in [0, 1], C of 1 (grey, which saturation leaves alone) or 3 (RGB).
        parameters: [B] floating by name, of every axis of ``IMAGE_AXES``.

    Returns:
        [B, C, H, W] in the images' dtype, in [0, 1].

    Raises:
        UsageError: the images are not such, or a parameter is missing or not one value an image.
    """
    _check(images, parameters)
    moved = resampled(images, *_sources(parameters, *images.shape[-2:]))
    blurred = _blurred(moved, parameters["blur"])
    saturation, contrast, brightness = (
        parameters[name].to(images.dtype)[:, None, None, None] for name in ("saturation", "contrast", "brightness")
    )
    coloured = blurred + (saturation - 1) * (blurred - _grey(blurred))
    mean = _grey(coloured).mean(dim=(-2, -1), keepdim=True)
    return (coloured + (contrast - 1) * (coloured - mean) + brightness).clamp(0, 1)


def _check(images: Tensor, parameters: Mapping[str, Tensor]) -> None:
    shape = list(images.shape)
    if images.ndim != 4 or shape[1] not in (1, 3) or 0 in shape[2:] or not images.is_floating_point():
        raise UsageError(
            f"images: {shape} {images.dtype} cannot be transformed; give floating images [B, C, H, W] of 1 or 3 channels"
        )
    for name in IMAGE_AXES:
        if name not in parameters:
            raise UsageError(f"parameters: {name} is missing; give every axis, as SemanticSpace.parameters does")
        if list(parameters[name].shape) != shape[:1]:
            raise UsageError(
                f"parameters: {name} has shape {list(parameters[name].shape)}, not [{shape[0]}]; give one value an image"
            )


def _sources(parameters: Mapping[str, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Columns and rows [B, H, W] of the original that each pixel shows: the inverse of the map of the content."""
    scale, shear, rotation, right, down = (
        parameters[name][:, None, None] for name in ("scale", "shear", "rotation", "translate_x", "translate_y")
    )
    # Whole turns are taken off first, so that 360 degrees are exactly none.
    angle = torch.remainder(rotation, 360) * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    x = torch.arange(width, dtype=scale.dtype, device=scale.device) - (width - 1) / 2 - right * width
    y = torch.arange(height, dtype=scale.dtype, device=scale.device)[:, None] - (height - 1) / 2 - down * height
    unturned_x, unturned_y = cosine * x - sine * y, sine * x + cosine * y
    upright = unturned_x + (shear * (math.pi / 180)).tan() * unturned_y
    return upright / scale + (width - 1) / 2, unturned_y / scale + (height - 1) / 2


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images [B, C, H, W] convolved with a discrete Gaussian along both axes, reflected at the border (half-sample)."""
    height, width = images.shape[-2:]
    rows = _blur_matrix(sigma, height)
    columns = rows if height == width else _blur_matrix(sigma, width)
    blurred = rows.to(images.dtype)[:, None] @ images @ columns.to(images.dtype)[:, None]
    # The derivative at 0 is 0 on either branch.
    return torch.where((sigma == 0)[:, None, None, None], images, blurred)


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Matrices [B, size, size], symmetric, doubly stochastic: exp(sigma^2 / 2 times the Laplacian of a reflected axis).

    The Laplacian's eigenvectors are the cosines of the DCT-II, with eigenvalues 2 cos(pi k / size) - 2.
    """
    frequencies = torch.arange(size, dtype=sigma.dtype, device=sigma.device) * (math.pi / size)
    places = torch.arange(size, dtype=sigma.dtype, device=sigma.device) + 0.5
    cosines = (frequencies[:, None] * places).cos() * math.sqrt(2 / size)
    cosines[0] = math.sqrt(1 / size)
    damping = (sigma[:, None] ** 2 * (frequencies.cos() - 1)).exp()
    return cosines.T @ (damping[:, :, None] * cosines)


def _grey(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W] of images of 3 channels; of 1 channel themselves."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)
