"""Images under a distribution shift that is always at hand: other data, transformed, as a data reference.

``raysense.studies.shifts:Shifted?data=digits&split=test&noise=0.2&rotation=30`` has the samples, labels, classes and ids
of ``data``. A reference with options of its own is quoted: ``data=npz:/data/{split}.npz%3Fx=x%26y=y``, which
`shifted_reference` does; local paths inside it must be absolute.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysense.datasets import DataSource, ImageReader, Listing, Progress, open_data
from raysense.datasets.base import SplitListing
from raysense.errors import UsageError
from raysense.loading import as_float
from raysense.preprocessing import Preprocessing
from raysense.references import Reference, absolute_reference, option_value
from raysense.semantics.axes import IMAGE_AXES
from raysense.semantics.image_transforms import transform

_OWN = ("data", "split", "invert", "noise", "seed")


def shifted_reference(data: str, **options: object) -> str:
    """Return the reference of other data under a shift.

    Args:
        data: Reference of the data, made absolute here.
        **options: ``split``, ``invert``, ``noise``, ``seed`` and axes of images, as `Shifted` takes them.
    """
    given = {"data": absolute_reference(data, "data"), **options}
    query = "&".join(f"{key}={quote(str(value), safe='/:,.+=~{}')}" for key, value in given.items())
    return f"{__name__}:{Shifted.__name__}?{query}"


@dataclass(frozen=True)
class Shift:
    """What is done to every image, in this order.

    Attributes:
        axes: Values of axes of images by name, where they are not the defaults (`raysense.semantics.image_transforms`).
        invert: Whether black and white change places.
        noise: Standard deviation of Gaussian noise, independent in every value, in units of the range [0, 1].
        seed: Of the noise.
    """

    axes: tuple[tuple[str, float], ...] = ()
    invert: bool = False
    noise: float = 0.0
    seed: int = 0

    def apply(self, image: Tensor, sample_id: str) -> Tensor:
        """Return the image, float32 in [0, 1] [C, H, W]: a function of the image, the id and the shift alone.

        Raises UsageError where the image has neither 1 nor 3 channels, and an axis is shifted.
        """
        shifted = as_float(image[None], "cpu")
        if self.axes:
            values = {name: axis.default for name, axis in IMAGE_AXES.items()} | dict(self.axes)
            parameters = {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}
            shifted = transform(shifted, parameters)
        if self.invert:
            shifted = 1 - shifted
        if self.noise:
            digest = hashlib.sha256(f"{self.seed} {sample_id}".encode()).digest()
            draw = np.random.RandomState(np.frombuffer(digest, np.uint32))  # its stream is frozen by NumPy
            shifted = shifted + self.noise * torch.from_numpy(draw.standard_normal(shifted.shape)).float()
        return shifted.clamp(0, 1)[0]


class Shifted(DataSource):
    """Other data under a shift; an image is transformed when it is read.

    Options: ``data``, a data reference; ``split``, its split, unless the scan names splits; ``noise``; ``invert``;
    ``seed``; and every axis of images: ``rotation``, ``scale``, ``shear``, ``translate_x``, ``translate_y``,
    ``brightness``, ``contrast``, ``saturation``, ``blur``. The other data's own resize and crop come first.
    """

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits)
        for key in self.options:
            if key not in _OWN and key not in IMAGE_AXES:
                raise reference.error(f"there is no option {key}; there are {', '.join((*_OWN, *IMAGE_AXES))}")
        if "data" not in self.options:
            raise reference.error("says not what to shift; give data=REFERENCE")
        split = self.options.get("split", "")
        if split and splits:
            raise reference.error(
                f"has split={split}, but split {', '.join(splits)} is asked for too; leave one of them out"
            )
        self._shift = _checked(self.options, reference)
        self._base = open_data(self.options["data"], splits or ((split,) if split else ()))
        self.splits = self._base.splits
        self._geometry = self._base.preprocessing
        if self._geometry is not None and self.preprocessing is None:
            self.preprocessing = Preprocessing(None, None, source="applied before shifting")

    def list(self, progress: Progress | None = None) -> Listing:
        """List the other data; the shift enters the fingerprint."""
        listing = self._base.list(progress)
        digest = hashlib.sha256(f"{listing.fingerprint} {self._shift}".encode())
        return replace(listing, fingerprint=digest.hexdigest())

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split of the other data; the shift enters its content."""
        part = self._base.list_split(split, progress)
        return replace(part, content=hashlib.sha256(part.content + repr(self._shift).encode()).digest())

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that shifts what the other data's reader reads."""
        return ShiftedReader(table, self._base.reader(table), self._geometry, self._shift)


class ShiftedReader(ImageReader):
    """Reads images of other data, and shifts them."""

    def __init__(self, table: pa.Table, base: ImageReader, geometry: Preprocessing | None, shift: Shift) -> None:
        super().__init__(table)
        self._base = base
        self._geometry = geometry
        self._shift = shift

    @property
    def in_memory(self) -> bool:
        """Whether the other data are in memory."""
        return self._base.in_memory

    def over(self, table: pa.Table) -> Self:
        """Return the same reader for other rows; what it has opened is shared."""
        return type(self)(table, self._base.over(table), self._geometry, self._shift)

    def read(self, row: int) -> Tensor:
        """Return the shifted image, float32 in [0, 1], ``[C, H, W]``.

        Raises SampleError where it cannot be read, or has channels that cannot be transformed.
        """
        image = self._base.read(row)
        if self._geometry is not None:
            image = self._geometry.apply(image)
        try:
            return self._shift.apply(image, self.cell("sample_id", row))
        except UsageError as error:
            raise self.failure(row, str(error)) from error


def _checked(options: dict[str, str], reference: Reference) -> Shift:
    """The shift that options ask for."""
    values: dict[str, Any] = {key: option_value(text) for key, text in options.items() if key not in ("data", "split")}
    for key, value in values.items():
        if key == "invert":
            wanted = "" if isinstance(value, bool) else "true or false"
        elif key == "seed":
            wanted = "" if type(value) is int and value >= 0 else "a whole number, 0 or more"
        else:
            low, high = (0.0, math.inf) if key == "noise" else (IMAGE_AXES[key].minimum, IMAGE_AXES[key].maximum)
            within = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
            wanted = "" if within else f"a number{_range(low, high)}"
        if wanted:
            raise reference.error(f"{key} {value!r} must be {wanted}")
    axes = {name: float(values[name]) for name in IMAGE_AXES if name in values}
    moved = tuple((name, value) for name, value in axes.items() if value != IMAGE_AXES[name].default)
    return Shift(moved, values.get("invert", False), float(values.get("noise", 0)), values.get("seed", 0))


def _range(low: float, high: float) -> str:
    if high < math.inf:
        return f" from {low:g} to {high:g}"
    return f", {low:g} or more" if low > -math.inf else ""
