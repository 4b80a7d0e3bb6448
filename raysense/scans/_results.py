"""Another scan whose results a scan works on: its committed tables, read through its store."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from raysense.errors import RaysenseError, UsageError, first_line
from raysense.models import load_model
from raysense.store.reading import read_pieces
from raysense.store.snapshot import Piece
from raysense.store.store import Store

UNIT_COLUMN = "__unit"
"""Name under which `ScanResults.rows` gives the unit of each row."""


class ScanResults:
    """A scan that is there already.

    Args:
        location: Directory or URI.
        kind: Kind that it has to be of.

    Raises:
        UsageError: there is none, or it is of another kind.
    """

    def __init__(self, location: str, kind: str) -> None:
        self.store = Store.open(location)
        self.document = self.store.document()
        self.schemas = self.store.schemas()
        self._snapshot = self.store.snapshot()
        if self.document["kind"] != kind:
            raise UsageError(f"of {location!r} holds a scan of kind {self.document['kind']!r}; name a {kind} scan")

    @property
    def facts(self) -> dict[str, Any]:
        """What scan.json says of model and data."""
        facts: dict[str, Any] = self.document["facts"]
        return facts

    @property
    def model(self) -> str:
        """Reference of the model."""
        return str(self.document["spec"]["model"])

    def committed_units(self) -> list[str]:
        """The committed units, sorted.

        Raises:
            UsageError: there are none.
        """
        units = self._snapshot.units
        if not units:
            location = self.store.location
            raise UsageError(
                f"of {location!r} has no committed units yet; finish it with `raysense resume {shlex.quote(location)}`"
            )
        return units

    def progress(self, units: Sequence[str]) -> dict[str, Any]:
        """For the facts of a scan that works on some units of this one: where it is, and how far it was."""
        total = int(self.document["units"])
        return {"location": self.store.location, "units": total, "units_done": len(units)}

    def note_unfinished(self, units: Sequence[str]) -> tuple[str, ...]:
        """A sentence for the user where units are missing."""
        total = int(self.document["units"])
        kind = self.document["kind"]
        if len(units) == total:
            return ()
        return (f"the {kind} scan has {len(units)} of {total} units; its other samples are left out",)

    def check_model(self) -> str:
        """Fingerprint of the model, which is still the one that was scanned.

        Raises:
            UsageError: it is another one now.
        """
        fingerprint, expected = load_model(self.model).fingerprint, self.facts["fingerprints"]["model"]
        if fingerprint != expected:
            raise UsageError(
                f"of {self.store.location!r}: model {self.model!r} changed since, its fingerprint was {expected[:12]}, is "
                f"{fingerprint[:12]} now; restore the weights, or run the {self.document['kind']} scan again"
            )
        return fingerprint

    def data_fingerprint(self, units: Iterable[str]) -> str:
        """Fingerprint of the data and of what is known of it in the given units."""
        what = [self.facts["fingerprints"]["data"], self.document["spec"], sorted(units)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def rows(
        self, table: str, units: Sequence[str], columns: Sequence[str], condition: pc.Expression | None = None
    ) -> pa.Table:
        """Rows of a table of some committed units, in their order; the column ``__unit`` says of which unit each is.

        Raises:
            RaysenseError: a file is missing or damaged, or a unit is not committed.
        """
        try:
            try:
                return self._rows(table, units, columns, condition)
            except FileNotFoundError:  # compacted since this process opened it
                self._snapshot = self.store.snapshot()
                return self._rows(table, units, columns, condition)
        except (pa.ArrowInvalid, OSError) as error:
            raise RaysenseError(
                f"{self.store.location}: a file of table {table} cannot be read ({first_line(error)})"
            ) from error

    def _rows(
        self, table: str, units: Sequence[str], columns: Sequence[str], condition: pc.Expression | None
    ) -> pa.Table:
        pieces = self._snapshot.select(units).pieces(table)
        tagged = self.schemas[table].append(pa.field(UNIT_COLUMN, pa.string()))
        found = [tagged.empty_table().select(list(columns))]
        for piece, rows in read_pieces(self.store.directory, pieces, self.schemas[table]):
            rows = rows.append_column(tagged.field(UNIT_COLUMN), _units_of(piece, rows.num_rows))
            found.append(ds.dataset(rows).to_table(columns=list(columns), filter=condition))
        return pa.concat_tables(found)


def _units_of(piece: Piece, total: int) -> pa.Array:
    counts = [total] if piece.rows is None else piece.rows
    return pa.array(np.repeat(np.array(piece.units, object), counts), pa.string())


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length as [rows, length], of numbers as [rows]."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return np.asarray(array.flatten()).reshape(len(array), -1) if len(array) else np.zeros((0, 0), np.float32)
