"""Data at a path: local, or the URI of any filesystem that pyarrow or fsspec knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlencode

import pyarrow as pa
from pyarrow import fs

from raysense.datasets.base import UNSPLIT, DataSource
from raysense.datasets.images import IMAGE_MODES
from raysense.references import Reference, local_path
from raysense.store.filesystems import open_filesystem
from raysense.store.patient_files import patient

Location = tuple[fs.FileSystem, str]
"""A filesystem and a path in it."""


class PathSource(DataSource):
    """Data at a path or URI in which ``{split}`` stands for the split's name."""

    defaults: ClassVar[Mapping[str, str]] = {}
    """The source's own options with their values where they are not given (empty: none)."""

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits)
        target = reference.target
        if splits and "{split}" not in target:
            mend = "leave the split out, or write {split} where its name belongs in the path"
            raise reference.error(f"has no splits, but {', '.join(splits)} is asked for; {mend}")
        if not splits and "{split}" in target:
            raise reference.error("has {split} in its path; name the splits to scan")
        others = {key: text for key, text in self.options.items() if key not in self.defaults}
        if others and "://" not in target:
            known = ", ".join((*self.defaults, "resize", "crop", "interpolation", "antialias"))
            raise reference.error(f"there is no option {next(iter(others))}; there are {known}")
        self.settings = {key: self.options.get(key, default) for key, default in self.defaults.items()}
        if self.settings.get("mode", "rgb") not in IMAGE_MODES:
            raise reference.error(f"mode {self.settings['mode']!r} must be {' or '.join(IMAGE_MODES)}")
        self._uri_query = f"?{urlencode(others)}" if others else ""

    def location(self, split: str | None) -> str:
        """Return the absolute path or the URI of a split's data."""
        target = self.reference.target.replace("{split}", split) if split else self.reference.target
        return f"{target}{self._uri_query}" if "://" in target else str(local_path(target))

    def locations(self) -> dict[str, str]:
        """Return the location of each split by the split's name in the listing."""
        return {split or UNSPLIT: self.location(split) for split in self.splits or (None,)}

    def open_existing(self, split: str | None) -> tuple[Location, fs.FileInfo]:
        """Return a split's filesystem and path, and what is there.

        Raises UsageError where nothing is there, or the filesystem cannot be reached.
        """
        location = self.location(split)
        try:
            filesystem, path = open_location(location)
            info = filesystem.get_file_info(path)
        except (OSError, pa.ArrowException) as error:
            raise self.reference.error(f"{location} cannot be opened ({error}); correct the path") from error
        if info.type == fs.FileType.NotFound:
            raise self.reference.error(f"there is nothing at {location}; correct the path")
        return (filesystem, path), info


def open_location(location: str, argument: str = "data") -> Location:
    """Return the filesystem of an absolute path or a URI, and the path in it, without a trailing slash.

    What fails for a moment when it is read, and is not on a local disk, is tried again.

    Raises UsageError where the URI is malformed, has a key or password in it, or no filesystem is known for it.
    """
    filesystem, path = open_filesystem(location, argument)
    return patient(filesystem), path


def open_locations(locations: Mapping[str, str]) -> dict[str, Location]:
    """Return filesystem and path of each split."""
    return {split: open_location(location) for split, location in locations.items()}


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    """Return the content of a file."""
    with filesystem.open_input_file(path) as stream:
        return bytes(stream.read())
