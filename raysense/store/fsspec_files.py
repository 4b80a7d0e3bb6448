"""Filesystems of fsspec as pyarrow filesystems whose listings are fresh and whose files appear whole."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec import AbstractFileSystem
from fsspec.implementations.cached import CachingFileSystem as CachingFileSystem

TEMPORARY_SUFFIX = ".tmp"
"""Ends the names of files that are being written."""

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class FsspecFiles(pafs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's handler, less its caches, plus times of change and atomic writes.

    fsspec's filesystems of object stores publish a file when it is closed. All others write it under a temporary name
    and rename it.
    """

    def __init__(self, filesystem: AbstractFileSystem) -> None:
        super().__init__(filesystem)
        self.renames = not filesystem.async_impl

    def get_file_info(self, paths: Iterable[str]) -> list[pafs.FileInfo]:
        """What is at each path now."""
        self.fs.invalidate_cache()
        return list(map(self._file_info, paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """What is in a folder now."""
        self.fs.invalidate_cache()
        base = selector.base_dir
        try:
            if selector.recursive:
                found = list(self.fs.find(base, withdirs=True, detail=True).values())
                if not found and not self.fs.exists(base):
                    raise FileNotFoundError(errno.ENOENT, "no such folder", base)
            else:
                found = self.fs.ls(base, detail=True)
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise
        here = [info for info in found if info["name"].strip("/") == base.strip("/")]
        if any(info["type"] == "file" for info in here):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", base)
        return [_described(info["name"], info) for info in found if info not in here]

    def open_input_file(self, path: str) -> pa.PythonFile:
        """A file for reading."""
        if not self.fs.isfile(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.PythonFile:
        """A file that appears when it is closed."""
        try:
            return pa.PythonFile(_RenamedFile(self.fs, path) if self.renames else self.fs.open(path, "wb"), mode="w")
        except NotImplementedError as error:
            raise OSError(errno.EROFS, "the filesystem cannot be written", path) from error

    def delete_file(self, path: str) -> None:
        """Remove one file, whatever its name: ``rm`` of fsspec takes it for a pattern."""
        if not self.fs.exists(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        _remove(self.fs, path)

    def _file_info(self, path: str) -> pafs.FileInfo:
        try:
            return _described(path, self.fs.info(path))
        except FileNotFoundError:
            return pafs.FileInfo(path, pafs.FileType.NotFound)


class _RenamedFile:
    """A file under a temporary name until it is closed, unless a write failed."""

    def __init__(self, filesystem: AbstractFileSystem, path: str) -> None:
        folder, slash, name = path.rpartition("/")
        if folder:
            filesystem.makedirs(folder, exist_ok=True)
        self._filesystem = filesystem
        self._path = path
        self._temporary = f"{folder}{slash}.{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        self._file = filesystem.open(self._temporary, "wb")
        self._whole = True
        self.closed = False

    def write(self, data: bytes) -> int:
        try:
            written: int = self._file.write(data)
        except BaseException:
            self._whole = False
            raise
        return written

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def flush(self) -> None:
        """Nothing is to be seen before the file is closed."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            self._file.close()
            if self._whole:
                _rename(self._filesystem, self._temporary, self._path)
        except BaseException:
            self._whole = False
            raise
        finally:
            if not self._whole and self._filesystem.exists(self._temporary):
                _remove(self._filesystem, self._temporary)


def _remove(filesystem: AbstractFileSystem, path: str) -> None:
    try:
        filesystem.rm_file(path)
    except NotImplementedError:  # of those that have an ``rm`` of their own instead
        filesystem.rm(path)


def _rename(filesystem: AbstractFileSystem, old: str, new: str) -> None:
    if type(filesystem).mv is AbstractFileSystem.mv:  # which takes names for patterns
        filesystem.cp_file(old, new)
        _remove(filesystem, old)
    else:
        filesystem.mv(old, new)


def _described(path: str, info: Mapping[str, Any]) -> pafs.FileInfo:
    kinds = {"file": pafs.FileType.File, "directory": pafs.FileType.Directory}
    kind = kinds.get(info["type"], pafs.FileType.Unknown)
    size = info["size"] if kind == pafs.FileType.File else None
    return pafs.FileInfo(path, kind, size=size, mtime=_changed(info))


def _changed(info: Mapping[str, Any]) -> datetime | None:
    """Time of the last change, by whatever name and in whatever form a filesystem has it."""
    value = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None
