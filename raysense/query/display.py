"""A result as a table for people: significant digits, NULL marked, as wide as the terminal allows."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

SIGNIFICANT_DIGITS = 6
UNBOUNDED_WIDTH = 100_000
"""Console width, in columns, for output that is not a terminal."""
_LIST_ITEMS = 8
_UNCOUNTED_ROWS = 1_000_000
_TEXT_WIDTH = 12


def print_result(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], console: Console, max_rows: int | None = None
) -> int:
    """Print rows as a table, and a note where there are more than ``max_rows`` (None prints all).

    Numbers are never cut: where the console is too narrow for the columns, each row is printed as a block of lines.

    Returns:
        The number of rows printed.
    """
    if not len(schema):
        return 0
    rows, more = _head(batches, max_rows)
    table = _table(schema, rows)
    needs = Measurement.get(console, console.options.update(width=UNBOUNDED_WIDTH), table)
    if needs.minimum <= console.width:
        console.print(table, width=min(console.width, needs.maximum))
    else:
        _print_blocks(schema, rows, console)
    if more:
        console.print(Text(f"{more} more rows" if more != "1" else "1 more row", style="dim"))
    return len(rows)


def cell(value: Any) -> str:
    """A value as text: floats to `SIGNIFICANT_DIGITS` digits with their exponent, control characters escaped."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.{SIGNIFICANT_DIGITS}g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds" if not value.microsecond else "microseconds")
    if isinstance(value, list | tuple):
        shown = ", ".join("NULL" if item is None else cell(item) for item in value[:_LIST_ITEMS])
        return f"[{shown}{f', ... {len(value)} items' if len(value) > _LIST_ITEMS else ''}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {'NULL' if item is None else cell(item)}" for key, item in value.items()) + "}"
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in str(value))


def _head(batches: Iterable[pa.RecordBatch], max_rows: int | None) -> tuple[list[list[Any]], str]:
    """The first rows, and how many more there are, as text: empty for none, "over ..." where counting was stopped."""
    rows: list[list[Any]] = []
    more = 0
    for batch in batches:
        take = batch.num_rows if max_rows is None else min(batch.num_rows, max_rows - len(rows))
        if take:
            columns = [column.to_pylist() for column in batch.slice(0, take).columns]
            rows.extend(list(row) for row in zip(*columns, strict=True))
        more += batch.num_rows - take
        if more > _UNCOUNTED_ROWS:
            return rows, f"over {_UNCOUNTED_ROWS:,}"
    return rows, f"{more:,}" if more else ""


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _text(value: Any) -> Text:
    return Text("NULL", style="dim italic") if value is None else Text(cell(value))


def _table(schema: pa.Schema, rows: list[list[Any]]) -> Table:
    table = Table(header_style="bold")
    for index, field in enumerate(schema):
        if _is_number(field.type):
            table.add_column(Text(field.name), justify="right", no_wrap=True)
        else:
            longest = max([len(field.name), *(len(_text(row[index])) for row in rows)])
            table.add_column(Text(field.name), overflow="fold", min_width=min(longest, _TEXT_WIDTH))
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _print_blocks(schema: pa.Schema, rows: list[list[Any]], console: Console) -> None:
    widest = max(len(name) for name in schema.names)
    for number, row in enumerate(rows, 1):
        console.print(Text(f"-- row {number} --", style="bold"))
        for name, value in zip(schema.names, row, strict=True):
            console.print(Text.assemble((f"{name:<{widest}}  ", "bold"), _text(value)), soft_wrap=True)
