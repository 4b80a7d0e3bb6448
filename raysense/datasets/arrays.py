"""Data held as arrays: ``digits`` and ``npz:``."""

from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pyarrow as pa
import torch

from raysense.datasets.base import UNSPLIT, DataSource, ImageReader, PerProcess, Progress, SplitListing
from raysense.datasets.images import channel_axis, check_range
from raysense.datasets.paths import PathSource, open_location
from raysense.digits import DIGIT_CLASSES, DIGIT_SPLITS, load_digits
from raysense.references import Reference

_LAYOUTS = {"NHW": 3, "NHWC": 4, "NCHW": 4}
_CHUNK_BYTES = 1 << 24


class DigitsSource(DataSource):
    """scikit-learn's bundled digits, 1 x 8 x 8, float32. Ids ``train/0000012`` give the position in the bundled set."""

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits or ("test",))
        for split in self.splits:
            if split not in DIGIT_SPLITS:
                raise reference.error(f"there is no split {split}; there are {' and '.join(DIGIT_SPLITS)}")
        for key in self.options:
            raise reference.error(f"there is no option {key}; leave it out")

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split."""
        name = cast(Literal["train", "test"], split)
        digits = load_digits(name)
        return SplitListing(
            split=name,
            sample_ids=[f"{name}/{index:07d}" for index in digits.index.tolist()],
            labels=digits.labels.numpy(),
            content=_array_digest(digits.images.numpy()),
            columns={"row": pa.array(np.arange(len(digits.labels)), pa.int64())},
            classes=DIGIT_CLASSES,
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader of the bundled arrays."""
        return ArrayReader(table, PerProcess(partial(_digit_images, self.splits)))


class NpzSource(PathSource):
    """Arrays in an .npz file: images uint8 or floating, labels integer.

    Ids are ``split/0000012``, or ``file/0000012`` where there is no split.
    """

    defaults: ClassVar = {"x": "x", "y": "y", "layout": ""}

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits)
        layout = self.settings["layout"]
        if layout and layout not in _LAYOUTS:
            raise reference.error(f"layout {layout!r} must be {', '.join(_LAYOUTS)}")

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split; floating images are checked to lie in [0, 1]."""
        (_, path), _ = self.open_existing(split)
        images = self._array(split, "x")
        labels = self._array(split, "y")
        try:
            images = _channels_first(images, self.settings["layout"])
            _check_pixels(images)
        except ValueError as error:
            raise self.reference.error(f"array {self.settings['x']}: {error}") from error
        stem = split or PurePosixPath(path).stem
        return SplitListing(
            split=split or UNSPLIT,
            sample_ids=[f"{stem}/{index:07d}" for index in range(len(images))],
            labels=labels,
            content=_array_digest(images),
            columns={"row": pa.array(np.arange(len(images)), pa.int64())},
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that loads the arrays on first use."""
        opener = partial(_npz_images, self.locations(), self.settings["x"], self.settings["layout"])
        return ArrayReader(table, PerProcess(opener))

    def _array(self, split: str | None, option: str) -> np.ndarray:
        """Return one array of a split's file, each complaint with its mend."""
        location, key = self.location(split), self.settings[option]
        try:
            return _load_array(location, key)
        except KeyError as error:
            raise self.reference.error(
                f"{location} has no array {key} but {error.args[0]}; give {option}=NAME"
            ) from error
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            message = f"array {key} of {location} cannot be read ({error})"
            raise self.reference.error(f"{message}; write plain arrays with numpy.savez") from error


class ArrayReader(ImageReader):
    """Reads rows of arrays ``[N, C, H, W]``, one per split, loaded on first use and never pickled."""

    in_memory = True

    def __init__(self, table: pa.Table, images: PerProcess[dict[str, np.ndarray]]) -> None:
        super().__init__(table)
        self._images = images

    def read(self, row: int) -> torch.Tensor:
        """Return the image as it is where it is uint8, else as float32."""
        image = self._images.get()[self.cell("split", row)][self.position("row", row)]
        return torch.from_numpy(np.array(image, dtype=np.uint8 if image.dtype == np.uint8 else np.float32))


def _digit_images(splits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the images of each split."""
    return {split: load_digits(cast(Literal["train", "test"], split)).images.numpy() for split in splits}


def _npz_images(locations: dict[str, str], key: str, layout: str) -> dict[str, np.ndarray]:
    """Return the images ``[N, C, H, W]`` of each split."""
    return {split: _channels_first(_load_array(place, key), layout) for split, place in locations.items()}


def _load_array(location: str, key: str) -> np.ndarray:
    """Load one array; KeyError names the arrays there are, ValueError says that the file is not an .npz of arrays."""
    filesystem, path = open_location(location)
    with filesystem.open_input_file(path) as stream:
        file: Any = np.load(stream, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, not an .npz file")
        if key not in file:
            raise KeyError(", ".join(file.files))
        return np.asarray(file[key])


def _channels_first(images: np.ndarray, layout: str) -> np.ndarray:
    """Return the images as ``[N, C, H, W]``, without a copy. Raises ValueError where their layout is unclear."""
    if not layout and images.ndim == 3:
        layout = "NHW"
    elif not layout and images.ndim == 4:
        layout = {"first": "NCHW", "last": "NHWC", None: ""}[channel_axis(images.shape[1:])]
    if not layout:
        raise ValueError(f"its shape {list(images.shape)} is ambiguous; give layout=NHW, layout=NHWC or layout=NCHW")
    if images.ndim != _LAYOUTS[layout] or 0 in images.shape[1:]:
        raise ValueError(f"its shape {list(images.shape)} is not {layout}; correct layout=")
    if layout == "NHW":
        return images[:, None]
    return images if layout == "NCHW" else images.transpose(0, 3, 1, 2)


def _check_pixels(images: np.ndarray) -> None:
    """Raise ValueError where pixels are neither uint8 nor floating in [0, 1]."""
    if images.dtype == np.uint8 or not len(images):
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"pixels are {images.dtype}; store uint8, or floating in [0, 1]")
    check_range(float(images.min()), float(images.max()))


def _array_digest(images: np.ndarray) -> bytes:
    """Return a SHA-256 over an array, a bounded part of which is copied at a time."""
    digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    return digest.digest()
