"""Preprocessing: the geometry (resize, centre crop) that turns a decoded image into the model's input size.

It runs on the host before the scan, on pixels; normalisation is part of the model, so that a perturbation stays in
pixel units. torch is imported only when an image is processed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raysense.errors import UsageError
from raysense.references import option_value

if TYPE_CHECKING:
    import torch

PREPROCESSING_OPTIONS = ("resize", "crop", "interpolation", "antialias")
"""Options of a data reference that replace the model's own preprocessing."""

_INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, then crop the centre.

    ``resize`` is the new length of the shorter side in pixels (the aspect ratio is kept), ``crop`` is
    ``(height, width)``; None leaves that step out. ``source`` says in words where the values came from.
    """

    resize: int | None
    crop: tuple[int, int] | None
    interpolation: str = "bilinear"
    antialias: bool = True
    source: str = "none"

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Return the resized and cropped image.

        ``image`` has shape ``[C, H, W]``, dtype uint8 (0..255) or floating ([0, 1]); so has the result, of the same
        dtype. Bicubic overshoot of floating images is clamped to [0, 1]. An image smaller than the crop is padded
        with zeros, as torchvision does.
        """
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        if self.resize is not None:
            mode = InterpolationMode(self.interpolation)
            image = functional.resize(image, [self.resize], interpolation=mode, antialias=self.antialias)
            if image.is_floating_point():
                image = image.clamp(0, 1)
        if self.crop is not None:
            image = functional.center_crop(image, list(self.crop))
        return image

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "resize": self.resize,
            "crop": None if self.crop is None else list(self.crop),
            "interpolation": self.interpolation,
            "antialias": self.antialias,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | None = None) -> Preprocessing:
        """Build from a mapping with any of the fields; ``crop`` may be one number (a square) or (height, width).

        ``source`` replaces the mapping's own. Raises UsageError for an unknown key or a value out of range.
        """
        source = source or str(values.get("source", "none"))
        unknown = sorted(set(values) - {*PREPROCESSING_OPTIONS, "source"})
        if unknown:
            raise UsageError(
                f"preprocessing ({source}): unknown key {unknown[0]!r}; use {', '.join(PREPROCESSING_OPTIONS)}"
            )
        resize, crop = values.get("resize"), values.get("crop")
        if resize is not None and not _is_positive_integer(resize):
            raise UsageError(f"preprocessing ({source}): resize {resize!r} must be a positive number of pixels")
        sides = [crop, crop] if isinstance(crop, int) else crop
        if sides is not None and not (
            isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_positive_integer, sides))
        ):
            raise UsageError(f"preprocessing ({source}): crop {crop!r} must be a positive number or height and width")
        interpolation, antialias = values.get("interpolation", "bilinear"), values.get("antialias", True)
        if interpolation not in _INTERPOLATIONS:
            raise UsageError(
                f"preprocessing ({source}): interpolation {interpolation!r} must be one of {', '.join(_INTERPOLATIONS)}"
            )
        if not isinstance(antialias, bool):
            raise UsageError(f"preprocessing ({source}): antialias {antialias!r} must be true or false")
        return cls(resize, None if sides is None else (sides[0], sides[1]), interpolation, antialias, source)

    @classmethod
    def from_options(cls, options: Mapping[str, str], source: str) -> Preprocessing | None:
        """Build from the options of a reference; None where it has none of them.

        ``crop`` is ``227`` or ``224x192`` (height x width); ``none`` leaves a step out, so ``resize=none`` alone
        switches the model's own preprocessing off. Raises UsageError like ``from_dict``.
        """
        given = {key: options[key] for key in PREPROCESSING_OPTIONS if key in options}
        if not given:
            return None
        values: dict[str, Any] = {key: option_value(text) for key, text in given.items() if text.lower() != "none"}
        if isinstance(values.get("crop"), str):
            values["crop"] = [option_value(side) for side in values["crop"].split("x")]
        return cls.from_dict(values, source)


def _is_positive_integer(value: object) -> bool:
    """Tell whether a value counts pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
