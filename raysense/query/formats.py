"""A query's result in one of the formats of the command line."""

from __future__ import annotations

import io
from typing import BinaryIO

from rich.console import Console

from raysense.errors import UsageError
from raysense.query import RESULT_FORMATS
from raysense.query.connection import QueryResult
from raysense.query.display import UNBOUNDED_WIDTH, print_result
from raysense.query.encoders import Encoder, write_csv, write_json, write_parquet

_ENCODERS: dict[str, Encoder] = {"csv": write_csv, "json": write_json, "parquet": write_parquet}


def write_result(result: QueryResult, format: str, stream: BinaryIO, max_rows: int | None = None) -> int:
    """Write a result to a binary stream, such as ``sys.stdout.buffer`` or a file opened with ``"wb"``.

    Args:
        result: What `ResultDatabase.query` returned; a statement without rows writes nothing.
        format: ``table``, ``csv``, ``json`` or ``parquet`` (`RESULT_FORMATS`).
        stream: Stays open.
        max_rows: Most rows of a table (a note says how many more there are); the other formats hold all rows.

    Returns:
        The number of rows written.

    Raises:
        UsageError: an unknown format, or Parquet to a terminal.
    """
    if format not in RESULT_FORMATS:
        raise UsageError(f"format {format!r} is unknown; choose one of {', '.join(RESULT_FORMATS)}")
    if format == "parquet" and stream.isatty():
        raise UsageError("format 'parquet' is binary; redirect the output to a file, or choose table, csv or json")
    if not len(result.schema):
        return 0
    if format != "table":
        rows = _ENCODERS[format](result.schema, result, stream)
        stream.flush()
        return rows
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
    try:
        console = Console(file=text, highlight=False, width=None if stream.isatty() else UNBOUNDED_WIDTH)
        return print_result(result.schema, result, console, max_rows)
    finally:
        text.detach()
