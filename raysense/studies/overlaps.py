"""Simulated outliers: two images of different classes overlapped, for any labelled images (Shu & Zhu 2019, section 3.1).

As a data reference: ``raysense.studies.overlaps:Overlaps?data=digits&base=train&fraction=0.05&shift=1&seed=0``, with the
splits ``train`` (the base images as they are) and ``outlier``. A base reference with options of its own is quoted:
``data=npz:/data/{split}.npz%3Fx=x%26y=y``, which `overlaps_reference` does; local paths inside it must be absolute.

An outlier is made as in the authors' code (github.com/shu-hai/SA_DNN, MNIST_sample_outlier.py): both images are shifted
by whole pixels, drawn for each axis from -shift to shift, black where nothing comes in, and of the two the larger pixel
value is taken; its label is that of the first image, and the first images spread evenly over the classes. The base
images stay in split ``train``. Unlike there, the second image is drawn with replacement, and images that a trained
network gets wrong may take part, since there need be no trained network.
"""

from __future__ import annotations

import hashlib
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch

from raysense.datasets import DataSource, ImageReader, Listing, Progress, open_data
from raysense.datasets.base import SplitListing
from raysense.errors import SampleError
from raysense.preprocessing import Preprocessing
from raysense.references import Reference, absolute_reference, option_value

CLEAN, OUTLIER = "train", "outlier"
_DEFAULTS: dict[str, Any] = {
    "data": "digits",
    "base": "train",
    "fraction": 0.05,
    "shift": "auto",
    "seed": 0,
    "limit": 0,
}
_SHIFT_PER_PIXEL = 4 / 28
_PARTS = ("first_", "second_")
_SHIFTS = ("first_down", "first_right", "second_down", "second_right")


def overlaps_reference(data: str, **options: object) -> str:
    """Return the data reference of the overlaps of other data; options that are None are left out.

    Args:
        data: Reference of the base data, made absolute here.
        **options: ``base``, ``fraction``, ``shift``, ``seed``, ``limit``.
    """
    given = {
        "data": absolute_reference(data, "data"),
        **{key: text for key, text in options.items() if text is not None},
    }
    query = "&".join(f"{key}={quote(str(text), safe='/:,.+=~{}')}" for key, text in given.items())
    return f"{__name__}:{Overlaps.__name__}?{query}"


class Overlaps(DataSource):
    """Base images and simulated outliers made of them; nothing is overlapped before it is read.

    Options: ``data``, a data reference; ``base``, its split (empty where it has none); ``fraction``, outliers per base
    image, in (0, 1] (the paper's 2700 of 54000 are 0.05); ``shift``, the largest, in pixels, ``auto`` for 4 at 28 pixels
    and in proportion elsewhere; ``seed``; ``limit``, the number of base images, evenly spaced, 0 for all. The base data's
    own resize and crop come first.
    """

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits or (CLEAN, OUTLIER))
        for split in self.splits:
            if split not in (CLEAN, OUTLIER):
                raise reference.error(f"there is no split {split}; there are {CLEAN} and {OUTLIER}")
        values = {key: option_value(text) for key, text in self.options.items()}
        for key in values.keys() - _DEFAULTS.keys():
            raise reference.error(f"there is no option {key}; there are {', '.join(_DEFAULTS)}")
        settings = {**_DEFAULTS, **values}
        self._fraction, self._shift, self._seed, self._limit = _checked(settings, reference)
        base = str(settings["base"])
        self._base = open_data(str(settings["data"]), (base,) if base else ())
        self._listing: Listing | None = None
        self._geometry = self._base.preprocessing
        if self._geometry is not None and self.preprocessing is None:
            self.preprocessing = Preprocessing(None, None, source="applied before overlapping")

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split; the outliers' columns say which rows of the base data they are made of, and the shifts."""
        if self._listing is None:
            self._listing = self._base.list(progress)
        listing = self._listing
        table = _evenly_spaced(listing.table, self._limit)
        labels = table["label"].to_numpy()
        if split == CLEAN:
            first, second, names = table, None, table["sample_id"].to_pylist()
            shifts = np.zeros((len(labels), len(_SHIFTS)), np.int64)
        else:
            draw = np.random.RandomState(self._seed)  # its stream is frozen by NumPy, unlike Generator's
            pairs = _pairs(labels, max(1, round(self._fraction * len(labels))), draw, self.reference)
            first, second = (table.take(pa.array(rows)) for rows in pairs)
            bound = self._largest_shift(table)
            shifts = draw.randint(-bound, bound + 1, (len(pairs[0]), len(_SHIFTS)))
            names = [f"{OUTLIER}-{self._seed}/{row:07d}" for row in range(len(pairs[0]))]
        columns = {f"first_{name}": first[name].combine_chunks() for name in table.column_names}
        for name, kind in zip(table.column_names, table.schema.types, strict=True):
            columns[f"second_{name}"] = pa.nulls(len(names), kind) if second is None else second[name].combine_chunks()
        columns |= {name: pa.array(shifts[:, index]) for index, name in enumerate(_SHIFTS)}
        return SplitListing(
            split=str(split),
            sample_ids=names,
            labels=first["label"].to_numpy(),
            content=hashlib.sha256(listing.fingerprint.encode() + shifts.tobytes()).digest()
            + hashlib.sha256("\n".join(map(str, columns["second_sample_id"].to_pylist())).encode()).digest(),
            columns=columns,
            classes=listing.classes,
            notes=listing.notes if split == CLEAN else (),
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that overlaps what the base data's reader reads."""
        return OverlapReader(table, self._base.reader(_part(table, "first_")), self._geometry)

    def _largest_shift(self, table: pa.Table) -> int:
        """Return ``shift``, or its default from the size of the first readable image."""
        if self._shift is not None:
            return self._shift
        reader = self._base.reader(table)
        error: SampleError | None = None
        for row in range(min(table.num_rows, 16)):
            try:
                image = reader.read(row)
            except SampleError as unreadable:
                error = unreadable
                continue
            image = image if self._geometry is None else self._geometry.apply(image)
            return max(1, round(_SHIFT_PER_PIXEL * min(image.shape[1:])))
        raise self.reference.error(f"none of the first images can be read ({error}); check the files")


class OverlapReader(ImageReader):
    """Reads base images, and overlaps of two of them."""

    def __init__(self, table: pa.Table, base: ImageReader, geometry: Preprocessing | None) -> None:
        super().__init__(table)
        self._geometry = geometry
        self._first, self._second = (base.over(_part(table, prefix)) for prefix in _PARTS)

    @property
    def in_memory(self) -> bool:
        """Whether the base data are in memory."""
        return self._first.in_memory

    def over(self, table: pa.Table) -> Self:
        """Return the same reader for other rows; what it has opened is shared."""
        return type(self)(table, self._first, self._geometry)

    def read(self, row: int) -> torch.Tensor:
        """Return the base image, or the overlap, uint8 or float32 in [0, 1], ``[C, H, W]``.

        Raises SampleError where one of the images cannot be read or the two differ in size or type.
        """
        first = self._image(self._first, row)
        if not self.table["second_sample_id"][row].is_valid:
            return first
        second = self._image(self._second, row)
        if first.shape != second.shape or first.dtype != second.dtype:
            sizes = " and ".join(f"{image.dtype} {list(image.shape)}" for image in (first, second))
            raise self.failure(
                row, f"its two images are {sizes}; add resize=... and crop=... to the base data's options"
            )
        down, right, other_down, other_right = (self.position(name, row) for name in _SHIFTS)
        return torch.maximum(shifted(first, down, right), shifted(second, other_down, other_right))

    def _image(self, reader: ImageReader, row: int) -> torch.Tensor:
        image = reader.read(row)
        return image if self._geometry is None else self._geometry.apply(image)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Return an image ``[C, H, W]`` shifted by whole pixels (negative: up, left), zero where nothing comes in."""
    result = torch.zeros_like(image)
    height, width = image.shape[1:]
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    source = image[:, max(0, -down) :, max(0, -right) :][:, :rows, :columns]
    result[:, max(0, down) :, max(0, right) :][:, :rows, :columns] = source
    return result


def _pairs(
    labels: np.ndarray, count: int, draw: np.random.RandomState, reference: Reference
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows of first images (without repetition, evenly over the classes) and of second ones of other classes."""
    order = draw.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    classes, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    if len(classes) < 2:
        raise reference.error("its images are all of one class; overlapping needs two classes or more")
    place_in_class = np.arange(len(labels)) - np.repeat(starts, sizes)
    first = by_class[np.argsort(place_in_class, kind="stable")[:count]]
    own = np.searchsorted(classes, labels[first])
    # A row that is not of the first image's class: its class is one block of by_class, which is left out.
    place = np.array([draw.randint(len(labels) - sizes[index]) for index in own])
    second = by_class[np.where(place < starts[own], place, place + sizes[own])]
    return first, second


def _part(table: pa.Table, prefix: str) -> pa.Table:
    """Return the columns of the first or of the second image under the names that the base data gave them."""
    names = [name for name in table.column_names if name.startswith(prefix) and name not in _SHIFTS]
    return table.select(names).rename_columns([name.removeprefix(prefix) for name in names])


def _evenly_spaced(table: pa.Table, limit: int) -> pa.Table:
    """Return ``limit`` rows evenly spaced, since many data sets are sorted by class; all of them for 0."""
    if not 0 < limit < table.num_rows:
        return table
    return table.take(pa.array(np.arange(limit) * table.num_rows // limit)).combine_chunks()


def _checked(settings: dict[str, Any], reference: Reference) -> tuple[float, int | None, int, int]:
    """Return fraction, shift (None for auto), seed and limit."""
    fraction, shift = settings["fraction"], settings["shift"]
    if isinstance(fraction, str | bool) or not 0 < fraction <= 1:
        raise reference.error(f"fraction {fraction!r} must be above 0 and at most 1")
    for name, value in (
        ("shift", 1 if shift == "auto" else shift),
        ("seed", settings["seed"]),
        ("limit", settings["limit"]),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise reference.error(f"{name} {value!r} must be a whole number, 0 or more{_or_auto(name)}")
    return float(fraction), None if shift == "auto" else shift, settings["seed"], settings["limit"]


def _or_auto(name: str) -> str:
    return ", or auto" if name == "shift" else ""
