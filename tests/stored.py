"""What a scan directory holds, read as its readers read it."""

from __future__ import annotations

import pyarrow as pa

from raysense.store.reading import read_pieces
from raysense.store.store import Store


def read_table(store: Store, table: str) -> pa.Table:
    """Rows of all committed units, in their order."""
    schema = store.schemas()[table]
    pieces = store.snapshot().select().pieces(table)
    return pa.concat_tables([schema.empty_table(), *(rows for _, rows in read_pieces(store.directory, pieces, schema))])


def loose_file(store: Store, table: str, unit: str) -> str:
    """Path, relative to the directory, of the file of a unit that is not compacted."""
    (file,) = [file for file in store.snapshot().files(table) if file.startswith(f"tables/{table}/{unit}~")]
    return file
