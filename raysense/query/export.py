"""Whole tables of a scan as files for other programs."""

from __future__ import annotations

import json
from bisect import bisect_right
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
from raysense.store.snapshot import Selection

Progress = Callable[[int, int], None]
"""Called with how many units of tables have been read, and how many there are."""

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
        progress: Called after every few units with (units read, units in all), a unit of two tables counted twice.

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
    selection = scan.store.snapshot().select()
    units = len(selection.units)
    rows: dict[str, int] = {}
    for done, (table, schema) in enumerate(scan.schemas.items()):
        documented = schema.with_metadata({**(schema.metadata or {}), b"raysense": json.dumps(scan.document).encode()})
        step = None if progress is None else _offset(progress, done * units, len(scan.schemas) * units)
        with _published(target, f"{table}.{format}") as stream:
            rows[table] = _ENCODERS[format](documented, _batches(scan, table, selection, step), stream)
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
    scan: ScanTables, table: str, selection: Selection, progress: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    """Rows of a table in the order of the units, which are sorted."""
    units, done, lost = selection.units, 0, False
    while True:
        pieces = selection.part(done, len(units)).pieces(table)
        try:
            for piece, rows in read_pieces(scan.store.directory, pieces, scan.schemas[table]):
                yield from rows.to_batches()
                done, lost = bisect_right(units, piece.units[-1]), False
                if progress is not None:
                    progress(done)
            if progress is not None and done < len(units):  # the last units have no rows
                progress(len(units))
            return
        except (pa.ArrowException, OSError) as error:
            # Compacted since the snapshot was taken, so long ago that what this superseded is removed.
            if lost or not isinstance(error, FileNotFoundError):
                raise RaysenseError(f"table {table} of {scan.store.location!r} cannot be read: {error}") from error
            selection, lost = scan.store.snapshot().select(units), True


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
