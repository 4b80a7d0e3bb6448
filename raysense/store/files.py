"""Whole-file reads and atomic whole-file writes on any filesystem that pyarrow or fsspec knows."""

from __future__ import annotations

import copy
import json
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as pafs

from raysense.errors import UsageError, first_line
from raysense.store.filesystems import open_filesystem
from raysense.store.fsspec_files import TEMPORARY_SUFFIX as TEMPORARY_SUFFIX
from raysense.store.fsspec_files import CachingFileSystem, FsspecFiles
from raysense.store.patient_files import patient
from raysense.store.retries import patience_of_environment, patiently

Result = TypeVar("Result")
Infos = list[pafs.FileInfo]


class Entry(NamedTuple):
    """One file of a listing: base name, size in bytes, time of the last change (UTC)."""

    name: str
    size: int
    modified: datetime | None


class Directory:
    """A folder on any filesystem, named by a local path or a URI such as ``s3://bucket/run``.

    Every write is of a whole file, and readers see either all of it or nothing: on a local disk through a temporary name
    and a rename, on an object store because an object appears when its upload is completed. Bytes are serialised
    before the file is opened, since an exception inside an open output stream would publish a truncated object.

    What fails for a moment on a filesystem that is not local is tried again, with a warning in the log each time, for
    ``RAYSENSE_STORE_PATIENCE`` seconds (300). All operations may therefore raise OSError late, and writes may be carried
    out twice. Safe to use from many threads.

    Attributes:
        filesystem: For readers that want a filesystem, such as datasets; reads are tried again there too.
        root: Path of the folder on it.
        location: Absolute path or URI.
        is_local: Whether it is on a local disk.

    Args:
        location: A local path or a URI. Raises UsageError where it cannot be opened or has a key or password in it.
        argument: What the location was given for; named in messages.
    """

    def __init__(self, location: str | os.PathLike[str], argument: str = "out") -> None:
        text = os.fspath(location)
        if not text.strip():
            raise UsageError(f"{argument} is empty; name a directory")
        self._plain, self.root = open_filesystem(text, argument)
        self.is_local = isinstance(self._plain, pafs.LocalFileSystem)
        self.filesystem = patient(self._plain)
        self.location = self.root if self.is_local else text.rstrip("/")
        self._foreign = self._plain.handler if isinstance(self._plain, pafs.PyFileSystem) else None
        if isinstance(self._foreign, FsspecFiles) and isinstance(self._foreign.fs, CachingFileSystem):
            raise UsageError(
                f"{argument} {text!r} is a cache, which would show old files; name the filesystem behind it"
            )
        self._patience = 0.0 if self.is_local else patience_of_environment()
        self._reached = False
        self._granted: set[str] = set()

    def hurried(self, patience: float) -> Directory:
        """The same directory, whose operations are tried again for at most so many seconds."""
        hurried = copy.copy(self)
        hurried._patience = min(patience, self._patience)
        return hurried

    @property
    def name(self) -> str:
        """Last component of the path, used as the scan's short name."""
        return str(self.root).rsplit("/", 1)[-1]

    def path(self, relative: str) -> str:
        """Path of a file of this folder, as its filesystem wants it."""
        return f"{self.root}/{relative}"

    def exists(self, relative: str) -> bool:
        """Whether the file is there."""
        info = self._try(f"looking for {relative}", lambda: self._plain.get_file_info(self.path(relative)))
        return bool(info.type == pafs.FileType.File)

    def names(self, relative: str = "") -> list[str]:
        """Names of everything directly inside it or a sub-folder, folders and unpublished files included."""
        return [info.base_name for info in self._infos(relative)]

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
            self._try(f"writing {relative}", lambda: self._write_at_once(path, data))
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

    def _write_at_once(self, path: str, data: bytes | pa.Buffer) -> None:
        with self._plain.open_output_stream(path) as stream:
            stream.write(data)

    def write_json(self, relative: str, document: Any) -> None:
        """Publish a JSON document."""
        self.write(relative, (json.dumps(document, indent=1, sort_keys=False) + "\n").encode())

    def read(self, relative: str) -> bytes:
        """Bytes of a file; FileNotFoundError where there is none."""

        def read_at_once() -> bytes:
            with self._plain.open_input_file(self.path(relative)) as file:
                return cast(bytes, file.read())

        return self._try(f"reading {relative}", read_at_once)

    def read_json(self, relative: str) -> Any:
        """A JSON document; FileNotFoundError where there is none, ValueError where it is something else."""
        try:
            return json.loads(self.read(relative))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error

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
        entries = [
            Entry(name, info.size, info.mtime)
            for info in self._infos(relative)
            if info.type == pafs.FileType.File and not (name := info.base_name).endswith(TEMPORARY_SUFFIX)
        ]
        entries.sort(key=itemgetter(0))
        return iter(entries)

    def delete(self, relative: str) -> None:
        """Remove a file; no error where it is gone already."""
        try:
            self._try(f"removing {relative}", lambda: self._plain.delete_file(self.path(relative)))
        except FileNotFoundError:
            return

    @property
    def clears_at_once(self) -> bool:
        """Whether `clear` takes fewer requests than removing file by file, of which pyarrow makes three each on S3."""
        return not self.is_local and self._foreign is None

    def clear(self, relative: str) -> None:
        """Remove everything in a sub-folder; on S3, a thousand files a request."""
        self._try(
            f"clearing {relative}",
            lambda: self._plain.delete_dir_contents(self.path(relative), missing_dir_ok=True),
        )

    def sweep_temporary_files(self) -> int:
        """Remove what killed writers left half-written where files are renamed when whole; returns how many files."""
        if self.is_local:
            stale = [path for path in Path(self.root).rglob(f".*{TEMPORARY_SUFFIX}") if path.is_file()]
            for path in stale:
                path.unlink(missing_ok=True)
            return len(stale)
        if not (isinstance(self._foreign, FsspecFiles) and self._foreign.renames):
            return 0
        temporary = [
            info.path[len(self.root) + 1 :]
            for info in self._infos("", recursive=True)
            if info.base_name.startswith(".") and info.base_name.endswith(TEMPORARY_SUFFIX)
        ]
        for relative in temporary:
            self.delete(relative)
        return len(temporary)

    def _infos(self, relative: str, recursive: bool = False) -> Infos:
        folder = self.path(relative) if relative else self.root
        selector = pafs.FileSelector(folder, recursive=recursive, allow_not_found=True)
        return self._try(f"listing {relative or 'it'}", lambda: self._plain.get_file_info(selector))

    def _try(self, what: str, action: Callable[[], Result]) -> Result:
        if self.is_local:
            return action()
        try:
            kind = what.partition(" ")[0]
            granted = kind in self._granted
            result = patiently(action, f"{self.root}: {what}", self._patience, self._reached, granted)
        except FileNotFoundError:
            self._reached = True
            raise
        except OSError:
            raise
        except Exception as error:
            if not isinstance(self._foreign, FsspecFiles):
                raise
            # Filesystems of fsspec raise errors of their own, such as those of HTTP clients.
            raise OSError(f"{type(error).__name__}: {first_line(error)}") from error
        self._reached = True
        self._granted.add(kind)
        return result
