"""Image transforms: conventions against torchvision and scipy, derivatives against differences, exact identity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, special
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from raysense.errors import UsageError
from raysense.semantics.axes import IMAGE_AXES
from raysense.semantics.image_transforms import transform
from raysense.semantics.resampling import resampled
from raysense.semantics.space import parse_space

GENERIC = {
    "rotation": 17.3, "scale": 1.13, "shear": 8.7, "translate_x": 0.043, "translate_y": -0.061,
    "brightness": 0.04, "contrast": 0.83, "saturation": 1.21, "blur": 0.77,
}  # fmt: skip
"""A place with no symmetry, where values of `_smooth` images stay away from the clamp."""


def _parameters(count: int, **values: float) -> dict[str, Tensor]:
    return {
        name: torch.full((count,), values.get(name, axis.default), dtype=torch.float64)
        for name, axis in IMAGE_AXES.items()
    }


def _smooth(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images in 0.3..0.7 that vary slowly, with another pattern in each channel."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [
        0.5 + 0.2 * torch.sin(5 * x + 3 * y * (1 + channel) + image) * torch.cos(4 * y - channel + 0.5 * image)
        for image in range(count) for channel in range(channels)
    ]  # fmt: skip
    return torch.stack(waves).reshape(count, channels, height, width).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 17, 24), (1, 3, 1, 5)])
def test_defaults_return_the_very_same_values(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    for rotation in (0.0, 360.0, -720.0):
        result = transform(images, _parameters(shape[0], rotation=rotation))
        assert result.dtype == dtype
        assert torch.equal(result, images)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rotation": 23.0}, (-23.0, 0, 0, 1.0, 0.0)),
        ({"rotation": -131.0}, (131.0, 0, 0, 1.0, 0.0)),
        ({"scale": 1.37}, (0.0, 0, 0, 1.37, 0.0)),
        ({"scale": 0.8}, (0.0, 0, 0, 0.8, 0.0)),
        ({"shear": 19.0}, (0.0, 0, 0, 1.0, 19.0)),
        ({"shear": -12.0, "rotation": 30.0, "scale": 1.1}, (-30.0, 0, 0, 1.1, -12.0)),
        ({"translate_x": 5 / 40, "translate_y": -3 / 36}, (0.0, 5, -3, 1.0, 0.0)),
        (
            {"translate_x": 2 / 40, "translate_y": 4 / 36, "rotation": -40.0, "scale": 1.2, "shear": 9.0},
            (40.0, 2, 4, 1.2, 9.0),
        ),
    ],
)
def test_geometry_is_that_of_torchvision(ours: dict[str, float], theirs: tuple[float, ...]) -> None:
    images = _smooth(1, 3, 36, 40)
    angle, right, down, scale, shear = theirs
    expected = tv.affine(images, angle, [int(right), int(down)], scale, [shear, 0.0], InterpolationMode.BILINEAR)
    inside = tv.affine(torch.ones_like(images), angle, [int(right), int(down)], scale, [shear, 0.0])
    inside = ndimage.binary_erosion(inside[0, 0].numpy() > 0.5, iterations=3)
    difference = (transform(images, _parameters(1, **ours)) - expected).abs()[0].amax(dim=0).numpy()
    assert inside.sum() > 300
    # Bilinear interpolation is off by an eighth of the second difference, at most 0.2 (14 / 36)^2 / 8.
    assert difference[inside].max() < 4e-3


def test_quarter_turns_mirror_exactly() -> None:
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for turns in range(4):
        result = transform(images, _parameters(2, rotation=90.0 * turns))
        torch.testing.assert_close(result, images.rot90(turns, (-2, -1)), rtol=0, atol=1e-13)
    shifted = transform(images, _parameters(2, translate_x=2 / 9, translate_y=1 / 9))
    torch.testing.assert_close(shifted[..., 1:, 2:], images[..., :-1, :-2], rtol=0, atol=1e-13)
    assert shifted[..., 0, :].abs().max() < 1e-13, "what comes in is black"
    assert transform(images, _parameters(2, translate_x=3.0)).abs().max() == 0
    assert transform(images, _parameters(2, scale=0.01)).count_nonzero() <= 6, "the centre's pixel alone"


def test_resampling_reproduces_parabolas() -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0).double(), torch.arange(7.0).double(), indexing="ij")

    def surface(x: Tensor, y: Tensor) -> Tensor:
        return 0.3 * x**2 - 0.2 * x * y + 0.1 * y**2 - y + 2

    generator = torch.Generator().manual_seed(0)
    x = 1 + 4 * torch.rand(1, 5, 6, generator=generator, dtype=torch.float64)
    y = 1 + 6 * torch.rand(1, 5, 6, generator=generator, dtype=torch.float64)
    found = resampled(surface(columns, rows)[None, None], x, y)[:, 0]
    torch.testing.assert_close(found, surface(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0, 6.0])
def test_blur_is_the_discrete_gaussian(sigma: float) -> None:
    images = torch.rand(1, 1, 20, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = transform(images, _parameters(1, blur=sigma))[0, 0].numpy()
    kernel = special.ive(np.abs(np.arange(-60, 61)), sigma**2)
    expected = images[0, 0].numpy()
    for axis in (0, 1):
        expected = ndimage.convolve1d(expected, kernel, axis=axis, mode="reflect")
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if sigma >= 2:
        sampled = ndimage.gaussian_filter(images[0, 0].numpy(), sigma, mode="reflect", truncate=8)
        np.testing.assert_allclose(found, sampled, atol=0.03 / sigma**2)  # the two kernels differ by this order


def test_blur_composes_and_starts_smoothly() -> None:
    images = torch.rand(1, 3, 11, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    twice = transform(transform(images, _parameters(1, blur=1.2)), _parameters(1, blur=0.5))
    torch.testing.assert_close(twice, transform(images, _parameters(1, blur=1.3)), rtol=0, atol=1e-12)
    laplacian = torch.from_numpy(ndimage.laplace(images[0, 0].numpy(), mode="reflect"))
    for sigma in (1e-3, 1e-2):
        change = (transform(images, _parameters(1, blur=sigma)) - images)[0, 0] / (sigma**2 / 2)
        torch.testing.assert_close(change, laplacian, rtol=0, atol=20 * sigma**2 + 1e-9)
    flat = torch.full((1, 1, 30, 30), 0.3)
    torch.testing.assert_close(transform(flat, _parameters(1, blur=50.0)), flat, rtol=0, atol=1e-6)


def test_colours_are_those_of_torchvision() -> None:
    images = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for factor in (0.0, 0.4, 1.0, 1.7):
        # torchvision's luma weights sum to 0.9999.
        saturated = transform(images, _parameters(2, saturation=factor))
        torch.testing.assert_close(saturated, tv.adjust_saturation(images, factor), rtol=0, atol=2e-4)
        contrasted = transform(images, _parameters(2, contrast=factor))
        torch.testing.assert_close(contrasted, tv.adjust_contrast(images, factor), rtol=0, atol=2e-4)
    for step in (-0.3, 0.2):
        bright = transform(images, _parameters(2, brightness=step))
        torch.testing.assert_close(bright, (images + step).clamp(0, 1), rtol=0, atol=1e-15)
    grey = images[:, :1]
    assert torch.equal(transform(grey, _parameters(2, saturation=0.2)), grey)
    wild = transform(images, _parameters(2, contrast=9.0, saturation=7.0, rotation=33.0))
    assert 0 <= float(wild.min()) <= float(wild.max()) <= 1


def _at(name: str, value: float, base: dict[str, float], images: Tensor) -> Tensor:
    return transform(images, _parameters(len(images), **(base | {name: value})))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGE_AXES)
def test_derivatives(name: str, channels: int) -> None:
    """Reverse and forward mode against central differences, at a generic place; forward mode also at the defaults."""
    images = _smooth(2, channels, 15, 18)
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (_at(name, GENERIC[name] + sign * step, GENERIC, images) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    parameters = _parameters(2, **GENERIC)

    def along(value: Tensor) -> Tensor:
        return transform(images, parameters | {name: value})

    value, tangent = torch.func.jvp(along, (parameters[name],), (torch.ones(2, dtype=torch.float64),))
    assert torch.equal(value, along(parameters[name]))
    scale = max(float(slope.abs().max()), 1e-3)
    assert float((tangent - slope).abs().max()) < 1e-6 * scale
    leaf = parameters[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((along(leaf) * weights).sum(), leaf)
    torch.testing.assert_close(gradient, (slope * weights).sum(dim=(1, 2, 3)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", IMAGE_AXES)
def test_derivatives_at_the_defaults(name: str) -> None:
    """Where every scan of an image starts: pixels are read at their centres, and blur begins."""
    images = _smooth(1, 3, 15, 18)
    base = {name: axis.default for name, axis in IMAGE_AXES.items()}
    step = 1e-5
    ahead, behind = (_at(name, base[name] + sign * step, base, images) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step) if name != "blur" else torch.zeros_like(images)
    parameters = _parameters(1)
    _, tangent = torch.func.jvp(
        lambda value: transform(images, parameters | {name: value}), (parameters[name],), (torch.ones(1).double(),)
    )
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(tangent[inner], slope[inner], rtol=1e-4, atol=1e-4)
    leaf = parameters[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(transform(images, parameters | {name: leaf}).sum(), leaf)
    torch.testing.assert_close(gradient[0], tangent.sum(), rtol=1e-9, atol=1e-9)
    assert torch.isfinite(tangent).all()


def test_derivative_by_the_image() -> None:
    images = _smooth(1, 3, 6, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transform(x, _parameters(1, **GENERIC)), (images,))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images_one_by_one(channels: int) -> None:
    images = torch.rand(6, channels, 21, 16, generator=torch.Generator().manual_seed(6))
    space = parse_space([*IMAGE_AXES])
    points = torch.rand(6, len(IMAGE_AXES), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    points = space.domain.lower + points * space.domain.extent
    points[0] = space.default
    together = transform(images, space.parameters(points))
    for row in range(6):
        alone = transform(images[row : row + 1], space.parameters(points[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-6)
    double = transform(images.double(), space.parameters(points))
    torch.testing.assert_close(together.double(), double, rtol=0, atol=2e-5)


def test_order_geometry_blur_colour() -> None:
    images = _smooth(1, 3, 24, 20)
    # Nothing comes from outside, so that no step alone leaves [0, 1] and is clamped.
    geometry = {"rotation": 17.3, "scale": 1.8, "shear": 8.7, "translate_x": 0.043, "translate_y": -0.061}
    steps = [geometry, {"blur": 0.9}, {"saturation": 1.2}, {"contrast": 0.8}, {"brightness": 0.05}]
    expected = images
    for step in steps:
        expected = transform(expected, _parameters(1, **step))
    whole = transform(images, _parameters(1, **{name: value for step in steps for name, value in step.items()}))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    there = transform(images, _parameters(1, rotation=25.0, scale=1.2))
    back = transform(there, _parameters(1, rotation=-25.0, scale=1 / 1.2))
    assert float((back - images)[..., 9:15, 7:13].abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("images", "change", "message"),
    [
        (torch.rand(3, 8, 8), {}, "cannot be transformed"),
        (torch.rand(2, 2, 8, 8), {}, "1 or 3 channels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {}, "floating images"),
        (torch.rand(2, 3, 0, 8), {}, "cannot be transformed"),
        (torch.rand(3, 3, 8, 8), {}, r"rotation has shape \[2\], not \[3\]; give one value an image"),
        (torch.rand(2, 3, 8, 8), {"blur": torch.zeros(2, 1)}, r"blur has shape \[2, 1\]"),
        (torch.rand(2, 3, 8, 8), {"blur": None}, "blur is missing"),
    ],
)
def test_misuse(images: Tensor, change: dict[str, Tensor | None], message: str) -> None:
    parameters = _parameters(2) | change
    with pytest.raises(UsageError, match=message):
        transform(images, {name: value for name, value in parameters.items() if value is not None})


def test_rotation_moves_content_counterclockwise_and_scale_magnifies() -> None:
    dot = torch.zeros(1, 1, 21, 21)
    dot[0, 0, 10, 18] = 1

    def place(**values: float) -> tuple[int, int]:
        return divmod(int(transform(dot, _parameters(1, **values)).argmax()), 21)

    assert place(rotation=90.0) == (2, 10)
    assert place(translate_x=1 / 21) == (10, 19)
    assert place(translate_y=1 / 21) == (11, 18)
    assert place(scale=0.5) == (10, 14)
    assert place(rotation=90.0, shear=math.degrees(math.atan(0.25))) == (2, 10), "sheared along the dot's line"
    assert place(shear=45.0, rotation=-90.0) == (18, 10)
