"""A DuckDB connection with one view per table over the committed units of one or several scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from raysense.query.catalogue import Macro, callees_first, read_macros
from raysense.query.overview import (
    AXES,
    CLASSES,
    LAYERS,
    SCANS,
    axes_table,
    classes_table,
    layers_table,
    scans_table,
)
from raysense.query.sqlerrors import explain
from raysense.query.tables import Locations, ScanTables, open_scans
from raysense.store.snapshot import Snapshot

BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Column:
    """A column of a view: name, SQL type, documentation, unit."""

    name: str
    type: str
    doc: str
    unit: str


class QueryResult:
    """The rows a statement returns, read once, batch by batch; the next statement closes it.

    Attributes:
        schema: Arrow schema of the rows; without fields for a statement that returns none.
    """

    def __init__(self, reader: pa.RecordBatchReader | None) -> None:
        self._reader = reader
        self.schema: pa.Schema = pa.schema([]) if reader is None else reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Batches of at most `BATCH_ROWS` rows.

        Raises:
            UsageError: the statement fails on the data (a cast, a division).
            RaysenseError: a file of the scan cannot be read.
        """
        if self._reader is not None:
            with _explained():
                yield from self._reader

    def close(self) -> None:
        """Give up the rows that have not been read."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def table(self) -> pa.Table:
        """All rows in memory."""
        return pa.Table.from_batches(list(self), schema=self.schema)

    def rows(self) -> list[dict[str, Any]]:
        """All rows as dictionaries."""
        rows: list[dict[str, Any]] = self.table().to_pylist()
        return rows


class ResultDatabase:
    """An in-memory DuckDB database over the results of scans.

    It has a view for every table of the scans (column ``scan`` first), the views ``scans``, ``classes``, ``layers`` and
    ``axes``, and the macros whose tables are there. Views read committed units only, as of the last `refresh`.
    Nothing is copied: projections and filters are pushed down into the Arrow files. Statements may read the user's own
    files, to join with; DuckDB extensions are never downloaded, and Python variables cannot be reached.

    Attributes:
        connection: The DuckDB connection itself, for what this class does not offer.
        scans: The scans opened.
        macros: The macros defined.
    """

    def __init__(self, scans: Sequence[ScanTables]) -> None:
        self.scans = tuple(scans)
        self.connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute("SET python_enable_replacements = false")
        self._snapshots: dict[str, Snapshot] = {}
        self._latest = QueryResult(None)
        self.refresh()
        self._tables = self._create_views()
        self.macros: list[Macro] = [macro for macro in read_macros() if macro.tables <= self._tables.keys()]
        for macro in callees_first(self.macros):
            self.connection.execute(macro.sql)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def tables(self) -> dict[str, list[Column]]:
        """Columns of every view, the scans' tables first."""
        return self._tables

    def committed(self, scan: ScanTables) -> Snapshot:
        """Units of a scan that the views hold now."""
        return self._snapshots[scan.name]

    def refresh(self) -> None:
        """Take in the units committed since; two listings a scan, and a file only after a compaction."""
        self._latest.close()
        changed = False
        for index, scan in enumerate(self.scans):
            snapshot = scan.store.snapshot()
            if snapshot == self._snapshots.get(scan.name):
                continue
            changed = True
            self._snapshots[scan.name] = snapshot
            for table in scan.schemas:
                self.connection.register(_source(table, index), scan.dataset(table, snapshot))
        if changed:
            done = {name: len(snapshot) for name, snapshot in self._snapshots.items()}
            self.connection.register("_scans", scans_table(self.scans, done))

    def statements(self, sql: str) -> list[str]:
        """The single statements of a text.

        Raises:
            UsageError: the text cannot be parsed.
        """
        with _explained():
            return [statement.query.strip() for statement in self.connection.extract_statements(sql)]

    def query(self, sql: str) -> QueryResult:
        """Run one or several statements, and return the rows of the last.

        Raises:
            UsageError: SQL error; the message quotes the offending part.
            RaysenseError: a file of a scan cannot be read.
        """
        self._latest.close()
        for statement in self.statements(sql):
            for _ in self._latest:
                pass
            with _explained():
                self._latest = QueryResult(self._reader(statement))
        return self._latest

    def _reader(self, statement: str) -> pa.RecordBatchReader | None:
        # `sql` streams where `execute` would hold the whole result, but only `execute` says where a name is wrong.
        try:
            relation = self.connection.sql(statement)
        except (duckdb.BinderException, duckdb.CatalogException):
            self.connection.execute(statement)
            raise
        return None if relation is None else relation.to_arrow_reader(BATCH_ROWS)

    def _create_views(self) -> dict[str, list[Column]]:
        docs: dict[str, dict[str, pa.Field]] = {}
        sources: dict[str, list[str]] = {}
        for index, scan in enumerate(self.scans):
            for table, schema in scan.schemas.items():
                docs.setdefault(table, {"scan": SCANS.field("scan")}).update({field.name: field for field in schema})
                sources.setdefault(table, []).append(
                    f"SELECT {quoted_text(scan.name)} AS scan, * FROM {_quoted(_source(table, index))}"
                )
        self.connection.register("_classes", classes_table(self.scans))
        self.connection.register("_layers", layers_table(self.scans))
        self.connection.register("_axes", axes_table(self.scans))
        sources["scans"] = ["SELECT * REPLACE (spec::JSON AS spec) FROM _scans"]
        sources["classes"] = ["SELECT * FROM _classes"]
        sources["layers"] = ["SELECT * FROM _layers"]
        sources["axes"] = ["SELECT * FROM _axes"]
        for table, schema in {"scans": SCANS, "classes": CLASSES, "layers": LAYERS, "axes": AXES}.items():
            docs[table] = {field.name: field for field in schema}
        for table, selects in sources.items():
            self.connection.execute(f"CREATE VIEW {_quoted(table)} AS {' UNION ALL BY NAME '.join(selects)}")
        return {table: self._columns(table, docs[table]) for table in sources}

    def _columns(self, table: str, fields: dict[str, pa.Field]) -> list[Column]:
        described = self.connection.execute(f"DESCRIBE {_quoted(table)}").fetchall()
        columns = []
        for name, kind, *_ in described:
            metadata = fields[name].metadata or {}
            columns.append(Column(name, kind, metadata.get(b"doc", b"").decode(), metadata.get(b"unit", b"").decode()))
        return columns


def open_results(locations: Locations) -> ResultDatabase:
    """Open the results of one or several scans, finished or not, local or on an object store.

    Scans whose directories have the same name get the end of their path that tells them apart as their name.

    Raises:
        UsageError: a directory holds no scan, is given twice, or was written by another version.
    """
    return ResultDatabase(open_scans(locations))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise explain(error) from error
    except RuntimeError as error:
        # The client reports Ctrl-C during a statement as a bare RuntimeError.
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


def _source(table: str, index: int) -> str:
    return f"_{table}_{index}"


def quoted_text(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
