"""Writing parts: rows of many units, one file a table, in record batches that are neither tiny nor huge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import pyarrow as pa

from raysense.store.files import Directory
from raysense.store.manifests import Part
from raysense.store.naming import PartName

_BATCH_ROWS = 65_536
_BATCH_BYTES = 8 * 2**20
_TINY = 256
_SWEEPS = 3
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")

Result = TypeVar("Result")


class PartWriter:
    """Collects the rows of the units of one part in memory, compressed.

    Args:
        schemas: Schema of every table.
    """

    def __init__(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._files = {table: _FileWriter(schema) for table, schema in schemas.items()}

    def add(self, table: str, rows: pa.Table) -> None:
        """Append rows of a table."""
        self._files[table].add(rows)

    @property
    def size(self) -> int:
        """Bytes so far, those not yet compressed included."""
        return sum(file.size for file in self._files.values())

    def finish(self) -> dict[str, tuple[pa.Buffer, tuple[int, ...]]]:
        """Content of the file and rows of its batches, of every table that has rows."""
        finished = {table: file.finish() for table, file in self._files.items()}
        return {table: found for table, found in finished.items() if found[1]}


def unswept(write: Callable[[], Result]) -> Result:
    """Write a file again where a driver that starts just then has swept away what it was written to at first."""
    for _ in range(_SWEEPS):
        try:
            return write()
        except FileNotFoundError:
            continue
    return write()


def publish_part(directory: Directory, name: PartName, files: Mapping[str, tuple[pa.Buffer, tuple[int, ...]]]) -> Part:
    """Write the files of a part."""
    for table, (content, _) in files.items():
        unswept(partial(directory.write, name.file(table), content))
    size = sum(content.size for content, _ in files.values())
    return Part(name, size, {table: rows for table, (_, rows) in files.items()})


class _FileWriter:
    """One Arrow IPC file in memory."""

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pa.ipc.new_file(self._sink, schema, options=_OPTIONS)
        # A file has one dictionary a column, so that it must be known whole before the first batch is written.
        self._at_once = any(_has_dictionary(field.type) for field in schema)
        self._pending: list[pa.Table] = []
        self._tiny: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0
        self._batches: list[int] = []

    @property
    def size(self) -> int:
        return int(self._sink.tell()) + self._pending_bytes

    def add(self, rows: pa.Table) -> None:
        self._tiny.append(rows)
        if len(self._tiny) == _TINY:
            self._gather()
        self._pending_rows += rows.num_rows
        self._pending_bytes += rows.get_total_buffer_size()
        if not self._at_once and (self._pending_rows >= _BATCH_ROWS or self._pending_bytes >= _BATCH_BYTES):
            self._flush()

    def finish(self) -> tuple[pa.Buffer, tuple[int, ...]]:
        self._flush()
        self._writer.close()
        return self._sink.getvalue(), tuple(self._batches)

    def _gather(self) -> None:
        """Tables of few rows take far more memory than their rows do."""
        if self._tiny:
            self._pending.append(pa.concat_tables(self._tiny).unify_dictionaries().combine_chunks())
            self._tiny = []

    def _flush(self) -> None:
        self._gather()
        if self._pending_rows:
            table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            for batch in table.to_batches(max_chunksize=2 * _BATCH_ROWS):
                self._writer.write_batch(batch)
                self._batches.append(batch.num_rows)
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(index).type) for index in range(kind.num_fields))
