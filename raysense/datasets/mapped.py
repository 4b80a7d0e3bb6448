"""``class_map=``: data under the classes of other data, such as those that a network was trained on.

A class map is a TOML file, as the table of Khaitan & Banerjee (2026), Appendix A::

    classes = ["cat", "dog"]             # in the order of the labels
    [map]
    cat = ["n02123045", "n02123394"]     # classes of the data, by name
    dog = ["n02085620"]

Samples of classes that it does not name are left out. Where the data have no class names, labels are named by their
number. Maps that ship with raysense are named without a path, as in ``class_map=tiny_imagenet_to_cifar10``.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.datasets.base import DataSource, ImageReader, Listing, Progress, SplitListing
from raysense.datasets.paths import open_location, read_bytes
from raysense.errors import UsageError
from raysense.references import Reference, local_path

CLASS_MAP = "class_map"
"""The option of a data reference."""

_SHIPPED = Path(__file__).parent / "class_maps"
_PATHS = ("/", "./", "../", "~/")
_MOST_NAMED = 5


@dataclass(frozen=True)
class ClassMap:
    """Which classes of the data become which.

    Attributes:
        classes: The new classes in the order of their labels.
        label: New label of each class of the data that is kept.
    """

    classes: tuple[str, ...]
    label: Mapping[str, int]


class MappedSource(DataSource):
    """Other data, of which it keeps the samples whose class is in a class map, with the labels and classes of the map.

    Ids, splits and images are those of the other data.
    """

    def __init__(self, base: DataSource, file: str) -> None:
        super().__init__(base.reference, base.splits)
        self.preprocessing = base.preprocessing
        self._base = base
        self._file = _location(file, base.reference)
        self._map: ClassMap | None = None
        self._met: set[str] = set()

    def list(self, progress: Progress | None = None) -> Listing:
        """List the samples that are kept.

        Raises UsageError where the map cannot be read, or names a class that the data do not have; else like the base.
        """
        self._met = set()
        listing = super().list(progress)
        for name in self._class_map().label:
            if name not in self._met:
                raise self._error(f"the data have no class {name}, but {_some(sorted(self._met))}")
        return listing

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List what is kept of one split."""
        mapped = self._class_map()
        part = self._base.list_split(split, progress)
        self._check_labels(part)
        present = np.unique(part.labels)
        names = {int(label): str(label) for label in present} if part.classes is None else dict(enumerate(part.classes))
        self._met.update(names.values())
        of = np.full(max(int(present[-1]) + 1, len(names)), -1)
        for label, name in names.items():
            of[label] = mapped.label.get(name, -1)
        labels = of[part.labels]
        rows = np.flatnonzero(labels >= 0)
        if not len(rows):
            raise self._error(f"it maps no class of split {part.split}, which has {_some([*names.values()])}")
        left_out = [names.get(int(label), str(label)) for label in present if of[label] < 0]
        note = (
            f"{self.reference.argument} {self.reference.text!r}: {len(labels) - len(rows)} of {len(labels)} samples of "
        )
        note += f"split {part.split} are left out, since {self._file} does not map their classes ({_some(left_out)})"
        digest = hashlib.sha256(json.dumps([mapped.classes, sorted(mapped.label.items())]).encode()).digest()
        return replace(
            part,
            sample_ids=[part.sample_ids[row] for row in rows.tolist()],
            labels=labels[rows],
            content=hashlib.sha256(part.content).digest() + digest,
            columns={name: column.take(pa.array(rows)) for name, column in part.columns.items()},
            classes=mapped.classes,
            notes=(*part.notes, note) if left_out else part.notes,
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader of the other data."""
        return self._base.reader(table)

    def _class_map(self) -> ClassMap:
        """The map, read when the data are listed: workers, which read images, need not reach its file."""
        if self._map is None:
            try:
                document = tomllib.loads(read_bytes(*open_location(self._file)).decode())
            except FileNotFoundError as error:
                raise self.reference.error(f"there is no file {self._file}; correct {CLASS_MAP}=") from error
            except (OSError, pa.ArrowException, ValueError) as error:
                raise self._error(f"it cannot be read ({error})") from error
            self._map = self._checked(document)
        return self._map

    def _checked(self, document: dict[str, Any]) -> ClassMap:
        classes, table = document.get("classes"), document.get("map")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or not classes:
            raise self._error('it has no list of names classes = ["...", "..."]; add it')
        if len(set(classes)) < len(classes):
            raise self._error("it lists a class twice; name each once")
        if not isinstance(table, dict) or set(document) != {"classes", "map"}:
            raise self._error("it is not made of classes = [...] and a table [map]; write these two, and nothing else")
        label: dict[str, int] = {}
        for target, sources in table.items():
            if target not in classes:
                raise self._error(f"{target} is mapped to, but is not one of its classes {', '.join(classes)}")
            if not isinstance(sources, list):
                raise self._error(f'{target} is not a list; write {target} = ["...", "..."]')
            for source in map(str, sources):
                if source in label:
                    raise self._error(f"class {source} is mapped twice; name it once")
                label[source] = classes.index(target)
        return ClassMap(tuple(classes), label)

    def _error(self, message: str) -> UsageError:
        return self.reference.error(f"class map {self._file}: {message}")


def _location(file: str, reference: Reference) -> str:
    """Path or URI of a class map. Refuses a path that would mean another file in another working directory."""
    if "://" in file:
        return file
    if file.startswith(_PATHS):
        return str(local_path(file))
    shipped = _SHIPPED / f"{file}.toml"
    if "/" in file or not shipped.is_file():
        known = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.toml")))
        raise reference.error(
            f"there is no class map {file} in raysense, but {known}; write ./{file} or an absolute path for a file"
        )
    return str(shipped)


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
