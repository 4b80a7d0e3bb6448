"""The tables of one scan as Arrow datasets over its committed units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from raysense.errors import UsageError
from raysense.query.remote import RemoteTable
from raysense.store.snapshot import Snapshot
from raysense.store.store import Store


class ScanTables:
    """One scan opened for reading: its document, the schemas of its tables, its committed files.

    Attributes:
        store: The scan directory.
        name: Name of the scan among those opened together, the value of column ``scan``.
        document: The parsed scan.json.
        schemas: Arrow schema of every table, documentation in the field metadata, as scan.json holds them: opening
            somebody else's results runs no code that they name.
        run_code: Whether reading images may call the Python factory that a scan's data reference names.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.document: dict[str, Any] = store.document()
        self.schemas: Mapping[str, pa.Schema] = store.schemas()
        self.run_code = False

    @property
    def kind(self) -> str:
        """Kind of the scan, such as ``influence``."""
        return str(self.document["kind"])

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out when the scan was started: model, data, preprocessing, classes, fingerprints."""
        facts: dict[str, Any] = self.document.get("facts") or {}
        return facts

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in label order, from the data or else the model; None where neither names them."""
        for owner in ("data", "model"):
            names = (self.facts.get(owner) or {}).get("classes")
            if names:
                return [str(name) for name in names]
        return None

    @property
    def layer_names(self) -> list[str]:
        """Names of the model's layers that have parameters, in the network's order; empty where none are recorded."""
        return [str(name) for name in (self.facts.get("model") or {}).get("layers") or ()]

    @property
    def axes(self) -> list[dict[str, Any]]:
        """Axes of the semantic space (name, unit, low, high, periodic), in its order; empty where there is none."""
        return list((self.facts.get("space") or {}).get("axes") or ())

    def dataset(self, table: str, snapshot: Snapshot) -> ds.Dataset:
        """A table of the units of a snapshot, with the schema its scan declared; files open on reading."""
        directory, schema = self.store.directory, self.schemas[table]
        if not directory.is_local:
            return RemoteTable(directory, snapshot.pieces(table), schema)
        return ds.FileSystemDataset.from_paths(
            snapshot.paths(table), schema=schema, format=ds.IpcFileFormat(), filesystem=directory.filesystem
        )


Locations = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One scan directory, or several: local paths or URIs."""


def open_scans(locations: Locations) -> list[ScanTables]:
    """Open scan directories, each under a name of its own: the shortest end of its path that tells it from the others.

    Raises:
        UsageError: no directory is given, one holds no scan, or one is given twice.
    """
    if isinstance(locations, str | PathLike):
        locations = [locations]
    if not locations:
        raise UsageError("directory is missing; name at least one scan directory")
    stores = [Store.open(location) for location in locations]
    seen: set[str] = set()
    for store in stores:
        if store.location in seen:
            raise UsageError(f"directory {store.location!r} is given twice; name every scan once")
        seen.add(store.location)
    return [ScanTables(store, name) for store, name in zip(stores, _unique_names(stores), strict=True)]


def _unique_names(stores: Sequence[Store]) -> list[str]:
    paths = [store.location.split("/") for store in stores]
    names = [store.name for store in stores]
    for depth in range(2, max(map(len, paths)) + 1):
        repeated = {name for name in names if names.count(name) > 1}
        names = ["/".join(path[-depth:]) if name in repeated else name for name, path in zip(names, paths, strict=True)]
    return names
