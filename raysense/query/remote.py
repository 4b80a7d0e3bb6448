"""Tables of scans that are not on a local disk, read by our own threads.

pyarrow's scanner would call such a file system, which is Python's, from threads of its own. Where a file is missing, or a
statement ends before all is read, as at a LIMIT, those and the interpreter wait for each other for ever, or bring the
process down at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from raysense.store.files import Directory
from raysense.store.reading import read_pieces
from raysense.store.snapshot import Piece


class RemoteTable(ds.InMemoryDataset):  # type: ignore[misc]
    """What DuckDB takes for a dataset: the rows of some pieces, of which only the columns that are asked for are read.

    Args:
        directory: The scan directory.
        pieces: Where the rows are.
        schema: Schema of the table.
    """

    def __init__(self, directory: Directory, pieces: Sequence[Piece], schema: pa.Schema) -> None:
        super().__init__(schema.empty_table())
        self._directory = directory
        self._pieces = pieces

    def scanner(self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None) -> RemoteRows:
        """The given columns of the rows that pass the filter."""
        return RemoteRows(self._directory, self._pieces, self.schema, columns, filter)


class RemoteRows:
    """What DuckDB takes for the scanner of a dataset."""

    def __init__(
        self,
        directory: Directory,
        pieces: Sequence[Piece],
        schema: pa.Schema,
        columns: Sequence[str] | None,
        condition: pc.Expression | None,
    ) -> None:
        self._directory = directory
        self._pieces = pieces
        self._columns = schema.names if columns is None else list(columns)
        self._condition = condition
        self._read = pa.schema(
            [field for field in schema if field.name in self._columns or _concerns(condition, field.name, schema)]
        )
        self._schema = pa.schema([schema.field(name) for name in self._columns])

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows, read while they are asked for."""
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for _, rows in read_pieces(self._directory, self._pieces, self._read):
            passing = rows if self._condition is None else rows.filter(self._condition)
            yield from passing.select(self._columns).to_batches()


def _concerns(condition: pc.Expression | None, name: str, schema: pa.Schema) -> bool:
    """Whether a condition names a column: then it fails without it."""
    if condition is None:
        return False
    try:
        schema.remove(schema.get_field_index(name)).empty_table().filter(condition)
    except pa.ArrowInvalid:
        return True
    return False
