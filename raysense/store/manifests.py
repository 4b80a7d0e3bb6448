"""Manifests: which committed units a compaction has gathered in which parts, one Arrow file for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysense.errors import RaysenseError, first_line
from raysense.store.files import Directory
from raysense.store.naming import TOKEN_PATTERN, UNIT_PATTERN, ManifestName, PartName, check_table

_VERSION = 1
_KEY = b"raysense"
_ROWS = "rows:"
_MOST = 2**48
"""Counts are below this, so that sums of them fit."""
_FIELDS = (
    pa.field("unit", pa.string()),
    pa.field("token", pa.string()),
    pa.field("committed", pa.timestamp("us", tz="UTC")),
    pa.field("part", pa.int32()),
    pa.field("items", pa.int64()),
    pa.field("bad_items", pa.int64()),
    pa.field("bytes", pa.int64()),
)
_NULLABLE = frozenset({"committed", "items", "bad_items"})


@dataclass(frozen=True)
class Part:
    """Files, one a table, that hold the rows of some units in the units' order.

    Attributes:
        name: Which part it is.
        size: Bytes of its files.
        batches: Rows of every record batch, by table; a table without rows has no file.
    """

    name: PartName
    size: int
    batches: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Manifest:
    """Units and the parts that hold their rows; immutable.

    Attributes:
        name: Its name; None where nothing has been compacted.
        parts: The parts.
        table: One row a unit, sorted by it: unit, token, committed (when, UTC), part (index into ``parts``), items and
            bad_items (null where the commit did not say), bytes (of the unit's own files), and a column ``rows:<table>``
            for every table.
    """

    name: ManifestName | None
    parts: tuple[Part, ...]
    table: pa.Table
    _bounds: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def empty() -> Manifest:
        """Nothing compacted yet."""
        return Manifest(None, (), manifest_schema(()).empty_table())

    @property
    def number(self) -> int:
        """Number of the manifest, 0 for none."""
        return self.name.number if self.name is not None else 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, unit: str) -> bool:
        return bool(pc.index(self.units, pa.scalar(unit, pa.string())).as_py() >= 0)

    @cached_property
    def units(self) -> pa.Array:
        """Ids of the units, sorted."""
        return _combined(self.table["unit"])

    @cached_property
    def part_of(self) -> np.ndarray:
        """Index of each unit's part."""
        return np.asarray(self.table["part"].to_numpy())

    @property
    def tables(self) -> list[str]:
        """Names of the tables."""
        return [name.removeprefix(_ROWS) for name in self.table.column_names if name.startswith(_ROWS)]

    def total(self, column: str) -> int:
        """Sum over the units of items, bad_items or bytes, as far as they are known."""
        return int(pc.sum(self.table[column]).as_py() or 0)

    def places(self, units: Sequence[str] | pa.Array) -> np.ndarray:
        """Where each of some units is in the manifest, -1 where it is not."""
        if not len(self) or not len(units):
            return np.full(len(units), -1)
        wanted = units if isinstance(units, pa.Array) else pa.array(units, pa.string())
        return np.asarray(pc.fill_null(pc.index_in(wanted, value_set=self.units), -1).to_numpy(zero_copy_only=False))

    def rows(self, table: str) -> np.ndarray:
        """Rows of each unit in a table."""
        return self._rows_and_offsets(table)[0]

    def offsets(self, table: str) -> np.ndarray:
        """First row of each unit in its part of a table."""
        return self._rows_and_offsets(table)[1]

    def _rows_and_offsets(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        known = self._bounds.get(table)
        if known is None:
            rows = np.asarray(self.table[_ROWS + table].to_numpy())
            order = np.argsort(self.part_of, kind="stable")
            ends = np.cumsum(rows[order])
            parts = self.part_of[order]
            first = np.searchsorted(parts, parts)  # of each unit's part
            begins = ends - rows[order]
            offsets = np.empty_like(rows)
            offsets[order] = begins - begins[first] if len(rows) else begins
            known = self._bounds[table] = (rows, offsets)
        return known

    def write(self, directory: Directory) -> None:
        """Publish it under its name."""
        if self.name is None:
            raise ValueError("a manifest without a name cannot be written")
        document = {
            "format": _VERSION,
            "parts": [
                {
                    "number": part.name.number,
                    "index": part.name.index,
                    "token": part.name.token,
                    "bytes": part.size,
                    "batches": {table: list(rows) for table, rows in part.batches.items()},
                }
                for part in self.parts
            ],
        }
        stored = self.table.replace_schema_metadata({_KEY: json.dumps(document)})
        directory.write_table(self.name.file, stored)


def manifest_schema(tables: Sequence[str]) -> pa.Schema:
    """Schema of a manifest of scans with the given tables."""
    return pa.schema([*_FIELDS, *(pa.field(_ROWS + table, pa.int64()) for table in tables)])


def read_manifest(directory: Directory, name: ManifestName) -> Manifest:
    """Read a manifest and check all that it says.

    Raises:
        FileNotFoundError: it is gone.
        RaysenseError: it is damaged, or says what cannot be.
    """
    try:
        table = directory.read_table(name.file)
        manifest = Manifest(name, _parts(table), table.replace_schema_metadata())
        _check(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise RaysenseError(
            f"{directory.location}/{name.file} is not a manifest that can be read ({first_line(error)}); restore it from a "
            "copy of the directory"
        ) from error
    return manifest


def _parts(table: pa.Table) -> tuple[Part, ...]:
    document = json.loads((table.schema.metadata or {})[_KEY])
    if document["format"] != _VERSION:
        raise ValueError(f"it has format {document['format']!r}, this version of raysense reads format {_VERSION}")
    return tuple(_part(described) for described in document["parts"])


def _part(described: Mapping[str, Any]) -> Part:
    number, index, size = (whole(described[key]) for key in ("number", "index", "bytes"))
    batches: dict[str, tuple[int, ...]] = {}
    for table, rows in described["batches"].items():
        check_table(table)
        batches[table] = tuple(whole(count) for count in rows)
    return Part(PartName(number, index, str(described["token"])), size, batches)


def whole(value: object) -> int:
    """A count that was read; ValueError where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise ValueError(f"{value!r} stands where a count belongs")
    return value


def _check(manifest: Manifest) -> None:
    """Raise ValueError unless everything fits together."""
    table, tables = manifest.table, manifest.tables
    for name in tables:
        check_table(name)
    if not table.schema.equals(manifest_schema(tables)):
        raise ValueError(f"its columns are {', '.join(table.schema.names)}")
    for name in table.column_names:
        if name not in _NULLABLE and table[name].null_count:
            raise ValueError(f"column {name} has nulls")
    units = manifest.units
    _all(pc.match_substring_regex(units, rf"^(?:{UNIT_PATTERN})\z"), "an id of a unit is not a plain file name")
    _all(pc.match_substring_regex(table["token"], rf"^(?:{TOKEN_PATTERN})?\z"), "a token is not 12 hexadecimal digits")
    _all(pc.less(units.slice(0, max(0, len(units) - 1)), units.slice(1)), "its units are not sorted")
    part = manifest.part_of
    if len(part) and not (part.min() >= 0 and part.max() < len(manifest.parts)):
        raise ValueError("a unit is in a part that is not there")
    for name in tables:
        rows = manifest.rows(name)
        held = np.bincount(part, rows, len(manifest.parts)) if len(rows) else np.zeros(len(manifest.parts))
        there = [sum(one.batches.get(name, ())) for one in manifest.parts]
        if (len(rows) and not 0 <= rows.min() <= rows.max() < _MOST) or not np.array_equal(held, there):
            raise ValueError(f"the rows of table {name} do not add up")


def _all(condition: Any, otherwise: str) -> None:
    if pc.all(condition).as_py() is False:
        raise ValueError(otherwise)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
