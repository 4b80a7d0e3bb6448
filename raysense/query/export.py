"""Whole tables of a scan as files for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from typing import BinaryIO

import pyarrow as pa

from raysense.errors import RaysenseError, UsageError
from raysense.query import EXPORT_FORMATS
from raysense.query.encoders import Encoder, write_arrow, write_csv, write_parquet
from raysense.query.tables import ScanTables, open_scans
from raysense.store.files import TEMPORARY_SUFFIX, Directory
from raysense.store.reading import read_pieces
from raysense.store.snapshot import Piece

Progress = Callable[[int, int], None]
"""Called with how many pieces have been read, and how many there are."""

_ENCODERS: dict[str, Encoder] = {"parquet": write_parquet, "csv": write_csv, "arrow": write_arrow}


def export_tables(
    location: str | PathLike[str], out: str | PathLike[str], format: str = "parquet", progress: Progress | None = None
) -> dict[str, int]:
    """Write every table of a scan, committed units only, as one file ``<out>/<table>.<format>``.

    Files are streamed, so memory stays bounded; each appears under its name when it is whole. Parquet and Arrow files
    keep the documentation and units of the columns in their schema, and the scan's document under the key ``raysense``.

    Args:
        location: Scan directory, finished or not.
        out: New or empty directory, local or a URI.
        format: ``parquet``, ``csv`` or ``arrow`` (`EXPORT_FORMATS`).
        progress: Called after every piece (the file of a unit, some units of a part) with (pieces read, pieces in all).

    Returns:
        Rows written, by table.

    Raises:
        UsageError: unknown format, no scan at ``location``, or ``out`` holds something or cannot be written.
        RaysenseError: a file of the scan cannot be read.
    """
    if format not in EXPORT_FORMATS:
        raise UsageError(f"format {format!r} is unknown; choose one of {', '.join(EXPORT_FORMATS)}")
    (scan,) = open_scans(location)
    target = Directory(out)
    _check_empty(target)
    units = scan.store.snapshot().select()
    pieces = {table: units.pieces(table) for table in scan.schemas}
    total = sum(map(len, pieces.values()))
    rows: dict[str, int] = {}
    done = 0
    for table, schema in scan.schemas.items():
        documented = schema.with_metadata({**(schema.metadata or {}), b"raysense": json.dumps(scan.document).encode()})
        step = None if progress is None else _offset(progress, done, total)
        with _published(target, f"{table}.{format}") as stream:
            rows[table] = _ENCODERS[format](documented, _batches(scan, table, pieces[table], step), stream)
        done += len(pieces[table])
    return rows


def _check_empty(target: Directory) -> None:
    try:
        empty = not target.names()
    except OSError as error:
        raise UsageError(
            f"out {target.location!r} cannot be opened ({error}); name a new or empty directory"
        ) from error
    if not empty:
        raise UsageError(f"out {target.location!r} is not empty; name a new or empty directory")


def _offset(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return lambda read: progress(done + read, total)


def _batches(
    scan: ScanTables, table: str, pieces: list[Piece], progress: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    """Rows of a table in the order of the units."""
    read = read_pieces(scan.store.directory, pieces, scan.schemas[table])
    for number in range(1, len(pieces) + 1):
        try:
            _, rows = next(read)
        except (pa.ArrowException, OSError) as error:
            raise RaysenseError(f"table {table} of {scan.store.location!r} cannot be read: {error}") from error
        yield from rows.to_batches()
        if progress is not None:
            progress(number)


@contextmanager
def _published(target: Directory, name: str) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends, and not at all where it fails.

    Object stores publish whatever was written when a stream is closed, so there a failed file is removed again.
    """
    written = target.path(f".{name}{TEMPORARY_SUFFIX}" if target.is_local else name)
    try:
        if target.is_local:
            target.filesystem.create_dir(target.root, recursive=True)
        try:
            with target.filesystem.open_output_stream(written) as stream:
                yield stream
            if target.is_local:
                target.filesystem.move(written, target.path(name))
        except BaseException:
            with suppress(OSError):  # it may not have come into being
                target.filesystem.delete_file(written)
            raise
    except OSError as error:
        raise UsageError(
            f"out {target.location!r} cannot be written ({error}); name a directory you may write to"
        ) from error
