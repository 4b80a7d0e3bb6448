"""The seam between data and scans: sources, their listings, their readers."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysense.errors import SampleError
from raysense.preprocessing import PREPROCESSING_OPTIONS, Preprocessing
from raysense.references import Reference

Progress = Callable[[int, int | None], None]
"""Called while a split is listed with the number of samples so far, and of all samples where that is known."""

UNSPLIT = "all"
"""Value of the column ``split`` for data without splits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """All samples of a data set, in a fixed order.

    ``table`` has one row per sample: ``sample_id`` (string, unique, stable), ``label`` (int32, not negative), ``split``
    (string), and columns by which the source finds the sample again. ``classes`` are the names of the labels where
    known. ``fingerprint`` is a SHA-256 over ids, labels, splits and content (of files: relative path and size).
    ``notes`` are sentences the user should read, such as on files left out.
    """

    table: pa.Table
    classes: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitListing:
    """The listing of one split, unchecked.

    ``sample_ids`` has N entries, ``labels`` shape ``[N]`` and an integer dtype; ``content`` stands for the images in
    the fingerprint.
    """

    split: str
    sample_ids: Sequence[str]
    labels: np.ndarray
    content: bytes
    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class PerProcess(Generic[T]):
    """Something that is opened on first use, and anew in a process that receives it by pickle."""

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._value: T | None = None

    def get(self) -> T:
        """Return it, opened."""
        if self._value is None:
            self._value = self._opener()
        return self._value

    def __reduce__(self) -> tuple[type[PerProcess[T]], tuple[Callable[[], T]]]:
        return type(self), (self._opener,)


class ImageReader(ABC):
    """Reads the images of a listing's rows. Cheap to make and to pickle: files are opened where they are read."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def over(self, table: pa.Table) -> Self:
        """Return the same reader for other rows, such as a slice; what it has opened is shared."""
        other = copy.copy(self)
        other.table = table
        return other

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """True when reading costs nothing (arrays), False when it decodes and is worth a process of its own."""

    @abstractmethod
    def read(self, row: int) -> torch.Tensor:
        """Return the image of a row of the table: ``[C, H, W]``, uint8 or float32 in [0, 1].

        Raises SampleError, naming the sample, where this one cannot be read.
        """

    def cell(self, column: str, row: int) -> str:
        """Return one text cell of the table."""
        return str(self.table[column][row].as_py())

    def position(self, column: str, row: int) -> int:
        """Return one integer cell of the table."""
        return int(self.table[column][row].as_py())

    def failure(self, row: int, error: BaseException | str) -> SampleError:
        """Return (not raise) the error that names a row's sample."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        return SampleError(f"sample {self.cell('sample_id', row)} cannot be read: {text.strip().partition(chr(10))[0]}")


class DataSource(ABC):
    """Data that a reference names. ``list`` is expensive and done once; ``reader`` is cheap and done by every worker.

    ``preprocessing`` is what the reference's own options ask for, None where it has none.
    """

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        if len(set(splits)) < len(splits):
            raise reference.error(f"split {', '.join(splits)}: a split is named twice; name each once")
        self.reference = reference
        self.splits = splits
        self.preprocessing = Preprocessing.from_options(reference.options, "data reference")
        self.options = {key: text for key, text in reference.options.items() if key not in PREPROCESSING_OPTIONS}

    @abstractmethod
    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split, or all there is where no split was asked for."""

    @abstractmethod
    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader of the rows of a listing's table, or of a part of it."""

    def list(self, progress: Progress | None = None) -> Listing:
        """List all samples.

        Raises UsageError where the data are missing or empty, labels are not integers from 0 on, or ids are not unique.
        """
        parts = [self.list_split(split, progress or _no_progress) for split in self.splits or (None,)]
        tables, classes = [], {part.classes for part in parts}
        for part in parts:
            self._check_labels(part)
            columns = {
                "sample_id": pa.array(part.sample_ids, pa.string()),
                "label": pa.array(part.labels.astype(np.int32), pa.int32()),
                "split": pa.repeat(pa.scalar(part.split, pa.string()), len(part.sample_ids)),
                **part.columns,
            }
            tables.append(pa.table(columns))
        table = pa.concat_tables(tables).combine_chunks()
        if len(classes) > 1:
            raise self.reference.error(
                f"the splits {', '.join(self.splits)} have different classes; name them all with classes=FILE"
            )
        counts = pc.value_counts(table["sample_id"])
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            name = repeated[0]["values"].as_py()
            raise self.reference.error(f"sample id {name!r} is there {repeated[0]['counts']} times; make ids unique")
        notes = tuple(note for part in parts for note in part.notes)
        return Listing(table, classes.pop(), _fingerprint(table, parts), notes)

    def _check_labels(self, part: SplitListing) -> None:
        """Refuse a split that is empty or whose labels are not integers from 0 on."""
        if not len(part.sample_ids):
            raise self.reference.error(f"there are no images (split {part.split}); correct the path")
        if part.labels.shape != (len(part.sample_ids),):
            shape = list(part.labels.shape)
            raise self.reference.error(
                f"labels have shape {shape} for {len(part.sample_ids)} images; give one integer per image"
            )
        if not np.issubdtype(part.labels.dtype, np.integer):
            raise self.reference.error(f"labels are {part.labels.dtype}; give integers from 0 on")
        low, high = part.labels.min(), part.labels.max()
        if low < 0 or high > np.iinfo(np.int32).max:
            position = int(part.labels.argmin() if low < 0 else part.labels.argmax())
            raise self.reference.error(
                f"sample {part.sample_ids[position]} has label {part.labels[position]}; labels count from 0"
            )


def _no_progress(done: int, total: int | None) -> None:
    """Report to nobody."""


def _fingerprint(table: pa.Table, parts: Sequence[SplitListing]) -> str:
    """Return a SHA-256 over ids, labels, splits and content."""
    digest = hashlib.sha256()
    for name in ("sample_id", "split"):
        digest.update(hashlib.sha256("\0".join(table[name].to_pylist()).encode()).digest())
    digest.update(table["label"].to_numpy().astype("<i4").tobytes())
    for part in parts:
        digest.update(part.content)
    return digest.hexdigest()
