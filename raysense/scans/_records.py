"""Rows that are gathered one by one, as Arrow tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa


class Records:
    """Rows of several tables.

    Args:
        schemas: Schema of every table that is wanted; rows of others are dropped.
    """

    def __init__(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._schemas = schemas
        self._rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in schemas}

    def add(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; those of an unwanted table are dropped."""
        if table in self._rows:
            self._rows[table].extend(rows)

    def tables(self) -> dict[str, pa.Table]:
        """The tables; NaN becomes null where a column can be null."""
        return {name: self._table(schema, self._rows[name]) for name, schema in self._schemas.items()}

    @staticmethod
    def _table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        columns = []
        for field in schema:
            values = [row[field.name] for row in rows]
            if field.nullable:
                values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
            columns.append(pa.array(values, field.type))
        return pa.table(columns, schema=schema)
