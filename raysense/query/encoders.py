"""Rows as CSV, JSON, Parquet or Arrow files, written batch by batch so that memory stays bounded."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as papq

GROUP_ROWS = 131_072
GROUP_BYTES = 64 * 2**20

Encoder = Callable[[pa.Schema, Iterable[pa.RecordBatch], BinaryIO], int]
"""Writes all batches to a binary stream and returns the number of rows; leaves the stream open."""


def write_parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch], stream: BinaryIO) -> int:
    """Write Parquet (zstd), with the schema's metadata; row groups of about `GROUP_ROWS` rows."""
    rows = 0
    with papq.ParquetWriter(pa.output_stream(_KeepOpen(stream)), schema, compression="zstd") as writer:
        for table in _grouped(schema, batches):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def write_arrow(schema: pa.Schema, batches: Iterable[pa.RecordBatch], stream: BinaryIO) -> int:
    """Write one Arrow IPC file (zstd), with the schema's metadata."""
    rows = 0
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(pa.output_stream(_KeepOpen(stream)), schema, options=options) as writer:
        for table in _grouped(schema, batches):
            writer.write_table(table.combine_chunks())
            rows += table.num_rows
    return rows


def write_csv(schema: pa.Schema, batches: Iterable[pa.RecordBatch], stream: BinaryIO) -> int:
    """Write CSV with a header; NULL is an empty field, an empty string is ``""``, lists and the like are JSON text.

    Floats are written so that they read back as the same number; infinity as ``inf``, not-a-number as ``nan``.
    """
    as_text = [not _is_plain(field.type) for field in schema]
    flat = pa.schema(
        [field.with_type(pa.string()) if text else field for field, text in zip(schema, as_text, strict=True)]
    )
    rows = 0
    with pacsv.CSVWriter(pa.output_stream(_KeepOpen(stream)), flat) as writer:
        for batch in batches:
            columns = [
                pa.array([_json_text(value) for value in column.to_pylist()], pa.string()) if text else column
                for column, text in zip(batch.columns, as_text, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=flat))
            rows += batch.num_rows
    return rows


def write_json(schema: pa.Schema, batches: Iterable[pa.RecordBatch], stream: BinaryIO) -> int:
    """Write a JSON list of records, one a line.

    JSON has no infinity: infinite and not-a-number floats become the strings ``"Infinity"``, ``"-Infinity"`` and
    ``"NaN"``, which Python's ``float()`` and JavaScript's ``Number()`` read, so that they stay apart from NULL (null).
    """
    rows = 0
    stream.write(b"[")
    for batch in batches:
        for record in batch.to_pylist():
            line = json.dumps(_json_value(record), ensure_ascii=False, allow_nan=False)
            stream.write((",\n" if rows else "\n").encode() + line.encode())
            rows += 1
    stream.write(b"\n]\n" if rows else b"]\n")
    return rows


class _KeepOpen:
    """A binary stream that Arrow writes to and does not close."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.closed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True


def _grouped(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.Table.from_batches(held, schema=schema)
            held, rows, size = [], 0, 0
    if rows:
        yield pa.Table.from_batches(held, schema=schema)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Arrow's CSV writer can write the type as it is, without losing anything."""
    types = pa.types
    return not (
        types.is_nested(kind) or types.is_interval(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    converted = _json_value(value)
    return converted if isinstance(converted, str) else json.dumps(converted, ensure_ascii=False, allow_nan=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value
