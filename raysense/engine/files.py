"""Whole-file reads and atomic whole-file writes on any pyarrow filesystem."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

from raysense.errors import UsageError, first_line

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True)
class Entry:
    """One file of a listing: base name, size in bytes, time of the last change (UTC)."""

    name: str
    size: int
    modified: datetime | None


class Directory:
    """A folder on a pyarrow filesystem, named by a local path or a URI such as ``s3://bucket/run``.

    Every write is of a whole file, and readers see either all of it or nothing: on a local disk through a temporary name
    and a rename, on an object store because an object appears when its upload is completed. Bytes are serialised
    before the file is opened, since an exception inside an open output stream would publish a truncated object.
    """

    def __init__(self, location: str | os.PathLike[str], argument: str = "out") -> None:
        text = os.fspath(location)
        if "://" in text:
            try:
                self.filesystem, self.root = pafs.FileSystem.from_uri(text)
            except (pa.ArrowInvalid, OSError, ValueError) as error:
                raise UsageError(
                    f"{argument} {text!r} cannot be opened ({first_line(error)}); use a local path or a URI that pyarrow "
                    "knows, such as s3://bucket/run"
                ) from error
            self.location = text.rstrip("/")
            self.root = self.root.rstrip("/")
        else:
            if not text.strip():
                raise UsageError(f"{argument} is empty; name a directory")
            self.root = os.path.abspath(os.path.expanduser(text))
            self.filesystem = pafs.LocalFileSystem()
            self.location = self.root
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """Last component of the path, used as the scan's short name."""
        return str(self.root).rsplit("/", 1)[-1]

    def path(self, relative: str) -> str:
        """Path of a file of this folder, as its filesystem wants it."""
        return f"{self.root}/{relative}"

    def exists(self, relative: str) -> bool:
        """Whether the file is there."""
        return bool(self.filesystem.get_file_info(self.path(relative)).type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Names of everything directly inside the folder, folders and unpublished files included."""
        selector = pafs.FileSelector(self.root, recursive=False, allow_not_found=True)
        return [info.base_name for info in self.filesystem.get_file_info(selector)]

    def check_writable(self) -> None:
        """Write and remove a file, and the folders this needed; OSError where that cannot be done."""
        probe = f".{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
        missing = []
        if self.is_local:
            folder = self.root
            while not os.path.lexists(folder):
                missing.append(folder)
                folder = os.path.dirname(folder)
        self.write(probe, b"raysense")
        self.delete(probe)
        for folder in missing:
            os.rmdir(folder)

    def write(self, relative: str, data: bytes | pa.Buffer) -> None:
        """Publish a whole file under its name, replacing any earlier one."""
        path = self.path(relative)
        if not self.is_local:
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def write_json(self, relative: str, document: Any) -> None:
        """Publish a JSON document."""
        self.write(relative, (json.dumps(document, indent=1, sort_keys=False) + "\n").encode())

    def read(self, relative: str) -> bytes:
        """Bytes of a file; FileNotFoundError where there is none."""
        with self.filesystem.open_input_file(self.path(relative)) as file:
            return cast(bytes, file.read())

    def read_json(self, relative: str) -> Any:
        """A JSON document; FileNotFoundError where there is none."""
        return json.loads(self.read(relative))

    def write_table(self, relative: str, table: pa.Table, compression: str | None = "zstd") -> int:
        """Publish an Arrow IPC file; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table)
        buffer = sink.getvalue()
        self.write(relative, buffer)
        return int(buffer.size)

    def read_table(self, relative: str) -> pa.Table:
        """An Arrow IPC file as a table; memory-mapped on a local disk."""
        if self.is_local:
            return pa.ipc.open_file(pa.memory_map(self.path(relative))).read_all()
        return pa.ipc.open_file(pa.BufferReader(self.read(relative))).read_all()

    def list(self, relative: str) -> Iterator[Entry]:
        """Published files directly inside a sub-folder, sorted by name; nothing where the folder is missing."""
        selector = pafs.FileSelector(self.path(relative), recursive=False, allow_not_found=True)
        for info in sorted(self.filesystem.get_file_info(selector), key=lambda info: info.base_name):
            if info.type == pafs.FileType.File and not info.base_name.endswith(TEMPORARY_SUFFIX):
                yield Entry(info.base_name, info.size, info.mtime)

    def delete(self, relative: str) -> None:
        """Remove a file; no error where it is gone already."""
        try:
            self.filesystem.delete_file(self.path(relative))
        except FileNotFoundError:
            return

    def sweep_temporary_files(self) -> int:
        """Remove what killed writers left half-written on a local disk; returns how many files."""
        if not self.is_local:
            return 0
        stale = [path for path in Path(self.root).rglob(f".*{TEMPORARY_SUFFIX}") if path.is_file()]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)
