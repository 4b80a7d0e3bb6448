"""Rows of macros for the scans of decision boundaries, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.style import number

Row = Mapping[str, Any]


def macro_rows(database: ResultDatabase, macro: str, scans: Sequence[ScanTables]) -> list[Row]:
    """Rows of a macro such as ``path_statistics()`` on some of the scans, in their order, split train first."""
    names = ", ".join(quoted_text(scan.name) for scan in scans)
    rows: list[Row] = [*database.query(f"FROM {macro} WHERE scan IN ({names})").rows()]
    order = {scan.name: place for place, scan in enumerate(scans)}
    # The sort is stable: within a scan and split the macro's own order stays.
    return sorted(rows, key=lambda row: (order[row["scan"]], *_train_first(row.get("split"))))


def values_by_split(
    database: ResultDatabase, scan: ScanTables, table: str, columns: str, condition: str
) -> dict[str, Any]:
    """Columns of a table of samples as dictionaries of arrays, by split, train first.

    Args:
        database: What is queried.
        scan: Whose rows.
        table: A table with the column sample_id.
        columns: What is selected, SQL.
        condition: Of which rows, SQL.
    """
    found = database.query(
        f"SELECT split, {columns} FROM {table} AS t JOIN samples AS s USING (scan, sample_id) "
        f"WHERE t.scan = {quoted_text(scan.name)} AND {condition}"
    ).table()
    split = found["split"].combine_chunks().dictionary_encode()
    codes, names = split.indices.to_numpy(), split.dictionary.to_pylist()
    arrays = {name: found[name].to_numpy() for name in found.column_names if name != "split"}
    order = sorted(range(len(names)), key=lambda code: _train_first(names[code]))
    return {names[code]: {name: values[codes == code] for name, values in arrays.items()} for code in order}


def grouped(rows: Iterable[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, or the values of several, in order of their first appearance."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        key = row[names[0]] if len(names) == 1 else tuple(row[name] for name in names)
        found.setdefault(key, []).append(row)
    return found


def column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """A column as an array ``[rows]``, NaN where it is NULL."""
    return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)


def with_error(value: float | None, error: float | None) -> str:
    """A number and its standard error, if that is known."""
    return number(value) if value is None or error is None else f"{number(value)} ± {number(error)}"


def percent(share: float | None, error: float | None = None) -> str:
    """A share as a percentage with its standard error, if that is known; a dash where the share is unknown."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}%" if error is None else f"{100 * share:.1f} ± {100 * error:.1f}%"


def _train_first(split: str | None) -> tuple[bool, str]:
    return split != "train", split or ""
