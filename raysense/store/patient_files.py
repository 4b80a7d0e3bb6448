"""A filesystem whose reads are tried again, for readers such as those of data sets that get a filesystem and no more.

The S3 client of pyarrow tries most requests again, but not reads of a few bytes: the store's error message does not fit
into the place kept for the answer, which counts as a failure of the client itself. Small files are read at once, since a
request costs more than their bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from raysense.store.retries import patience_of_environment, patiently

Result = TypeVar("Result")

_SMALL_BYTES = 2**20


def patient(filesystem: pafs.FileSystem) -> pafs.FileSystem:
    """The same filesystem with reads that are tried again; a local one as it is."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem
    return pafs.PyFileSystem(_PatientFiles(filesystem, patience_of_environment()))


class _PatientFiles(pafs.FileSystemHandler):  # type: ignore[misc]
    def __init__(self, filesystem: pafs.FileSystem, patience: float) -> None:
        self._filesystem = filesystem
        self._patience = patience
        self._granted: set[str] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PatientFiles) and bool(self._filesystem == other._filesystem)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return f"patient+{self._filesystem.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._filesystem.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return self._try(f"looking for {paths[0]}", lambda: self._filesystem.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._try(f"listing {selector.base_dir}", lambda: self._filesystem.get_file_info(selector))

    def open_input_file(self, path: str) -> pa.PythonFile:
        file = self._try(f"opening {path}", lambda: self._filesystem.open_input_file(path))
        return pa.PythonFile(_PatientFile(file, f"reading {path}", self._patience), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    # What follows changes files. Whether it was done after all is not looked into, so it is not done again.

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        return self._filesystem.open_output_stream(path, metadata=metadata or None)

    def open_append_stream(self, path: str, metadata: Mapping[str, str] | None) -> pa.NativeFile:
        return self._filesystem.open_append_stream(path, metadata=metadata or None)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._filesystem.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._filesystem.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        self._filesystem.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._filesystem.delete_dir_contents("", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._filesystem.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._filesystem.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._filesystem.copy_file(src, dest)

    def _try(self, what: str, action: Callable[[], Result]) -> Result:
        kind = what.partition(" ")[0]
        result = patiently(action, what, self._patience, granted=kind in self._granted)
        self._granted.add(kind)
        return result


class _PatientFile:
    """A file for reading, as Python sees it."""

    def __init__(self, file: pa.NativeFile, what: str, patience: float) -> None:
        self._file = file
        self._what = what
        self._patience = patience
        self._size = int(file.size())
        self._position = 0
        self._whole: bytes | None = None

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if count < 0 else min(count, left)
        if wanted == 0:
            return b""
        if self._size <= _SMALL_BYTES:
            if self._whole is None:
                self._whole = self._read_at(self._size, 0)
            data = self._whole[self._position : self._position + wanted]
        else:
            data = self._read_at(wanted, self._position)
        self._position += len(data)
        return data

    def _read_at(self, count: int, position: int) -> bytes:
        data: bytes = patiently(lambda: self._file.read_at(count, position), self._what, self._patience, granted=True)
        return data
