"""``folder:``: image files, one folder per class."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from raysense.datasets.base import UNSPLIT, ImageReader, PerProcess, Progress, SplitListing
from raysense.datasets.decoding import decode
from raysense.datasets.images import IMAGE_EXTENSIONS
from raysense.datasets.paths import Location, PathSource, open_locations, read_bytes
from raysense.references import local_path

_LISTING_THREADS = 8


class FolderSource(PathSource):
    """A folder with one folder of images per class. Sample ids are paths relative to it, ``class/file``."""

    defaults: ClassVar = {"classes": "", "mode": "rgb"}

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List the images below the class folders, sorted by path."""
        (filesystem, root), info = self.open_existing(split)
        if info.type != fs.FileType.Directory:
            raise self.reference.error(f"{self.location(split)} is not a folder; name the folder of the class folders")
        entries = filesystem.get_file_info(fs.FileSelector(root))
        folders = sorted(e.base_name for e in entries if e.type == fs.FileType.Directory and _visible(e.base_name))
        if not folders:
            raise self.reference.error(f"{self.location(split)} has no class folders; name the folder that holds them")
        labels, classes = self._classes(folders)
        paths: list[str] = []
        sizes: list[int] = []
        counts: list[int] = []
        skipped: list[str] = []
        with ThreadPoolExecutor(_LISTING_THREADS) as pool:
            for found, others in pool.map(partial(self._images_below, filesystem, root), folders):
                counts.append(len(found))
                paths += [path for path, _ in found]
                sizes += [size for _, size in found]
                skipped += others
                progress(len(paths), None)
        content = hashlib.sha256(np.array(sizes, dtype="<i8").tobytes()).digest()
        return SplitListing(
            split=split or UNSPLIT,
            sample_ids=[f"{split}/{path}" for path in paths] if split else paths,
            labels=np.repeat(np.array(labels, dtype=np.int64), counts),
            content=content,
            columns={"path": pa.array(paths, pa.string())},
            classes=classes,
            notes=_skipped_note(f"folder:{self.location(split)}", skipped),
        )

    def _images_below(
        self, filesystem: fs.FileSystem, root: str, folder: str
    ) -> tuple[list[tuple[str, int]], list[str]]:
        """Return path relative to the root, and size, of all images below a class folder, sorted; and other files."""
        try:
            entries = filesystem.get_file_info(fs.FileSelector(f"{root}/{folder}", recursive=True))
            below = len(root) + 1
            files = [(entry.path[below:], entry.size) for entry in entries if entry.type == fs.FileType.File]
        except UnicodeDecodeError as error:
            raise self.reference.error(f"a file name in {root}/{folder} is not UTF-8; rename it") from error
        visible = [(path, size) for path, size in files if _visible(path)]
        images = sorted((path, size) for path, size in visible if path.lower().endswith(IMAGE_EXTENSIONS))
        others = [path for path, _ in visible if not path.lower().endswith(IMAGE_EXTENSIONS)]
        return images, others

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that decodes the files."""
        return FolderReader(table, self.locations(), self.settings["mode"])

    def _classes(self, folders: list[str]) -> tuple[list[int], tuple[str, ...]]:
        """Return the label of each folder and the names of all classes."""
        file = self.settings["classes"]
        if not file:
            return list(range(len(folders))), tuple(folders)
        path = local_path(file)
        if not path.is_file():
            raise self.reference.error(f"there is no file {path}; correct classes=")
        lines = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
        position = {line[0]: label for label, line in enumerate(lines)}
        if len(position) < len(lines):
            raise self.reference.error(f"{path} names a folder twice; give each class one line")
        for folder in folders:
            if folder not in position:
                raise self.reference.error(f"folder {folder} is not in {path}; add its line or remove the folder")
        return [position[folder] for folder in folders], tuple(line[-1].strip() for line in lines)


class FolderReader(ImageReader):
    """Reads and decodes image files."""

    in_memory = False

    def __init__(self, table: pa.Table, locations: dict[str, str], mode: str) -> None:
        super().__init__(table)
        self._locations: PerProcess[dict[str, Location]] = PerProcess(partial(open_locations, locations))
        self._mode = mode

    def read(self, row: int) -> torch.Tensor:
        """Return the decoded image, uint8."""
        filesystem, root = self._locations.get()[self.cell("split", row)]
        try:
            return decode(read_bytes(filesystem, f"{root}/{self.cell('path', row)}"), self._mode)
        except (FileNotFoundError, PermissionError, ValueError) as error:
            raise self.failure(row, error) from error


def _skipped_note(where: str, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    known = ", ".join(sorted(IMAGE_EXTENSIONS))
    return (f"{where}: {len(skipped)} files are left out, such as {min(skipped)}; images end in {known}",)


def _visible(path: str) -> bool:
    """Tell whether no part of a relative path begins with a dot."""
    return not path.startswith(".") and "/." not in path
