"""What is known about the opened scans as tables: the scans, their classes, their models' layers, semantic axes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from raysense.errors import RaysenseError
from raysense.query.tables import ScanTables

SCANS = pa.schema(
    [
        pa.field("scan", pa.string(), metadata={"doc": "name of the scan in this database", "unit": "name"}),
        pa.field("kind", pa.string(), metadata={"doc": "kind of scan", "unit": "name"}),
        pa.field("model", pa.string(), metadata={"doc": "model reference", "unit": "reference"}),
        pa.field("data", pa.string(), metadata={"doc": "reference of the data, or of the shapes", "unit": "reference"}),
        pa.field("spec", pa.string(), metadata={"doc": "everything that determines the numbers", "unit": "JSON"}),
        pa.field("created", pa.timestamp("us", tz="UTC"), metadata={"doc": "when the scan was started", "unit": "UTC"}),
        pa.field("units", pa.int64(), metadata={"doc": "units of work of the whole scan", "unit": "count"}),
        pa.field("units_done", pa.int64(), metadata={"doc": "units committed so far", "unit": "count"}),
        pa.field("location", pa.string(), metadata={"doc": "scan directory", "unit": "path or URI"}),
    ]
)
CLASSES = pa.schema(
    [
        pa.field("scan", pa.string(), metadata={"doc": "name of the scan", "unit": "name"}),
        pa.field(
            "class", pa.int32(), metadata={"doc": "class index, as in label and predicted", "unit": "class index"}
        ),
        pa.field("name", pa.string(), metadata={"doc": "name of the class", "unit": "name"}),
    ]
)
LAYERS = pa.schema(
    [
        pa.field("scan", pa.string(), metadata={"doc": "name of the scan", "unit": "name"}),
        pa.field("layer", pa.string(), metadata={"doc": "layer of the model that has parameters", "unit": "name"}),
        pa.field(
            "position", pa.int32(), metadata={"doc": "place in the network's order, 1 is the first", "unit": "count"}
        ),
    ]
)
AXES = pa.schema(
    [
        pa.field("scan", pa.string(), metadata={"doc": "name of the scan", "unit": "name"}),
        pa.field("axis", pa.string(), metadata={"doc": "axis of the semantic space", "unit": "name"}),
        pa.field(
            "position", pa.int32(), metadata={"doc": "place in the space's order, 1 is the first", "unit": "count"}
        ),
        pa.field("unit", pa.string(), metadata={"doc": "unit of the axis", "unit": "name"}),
        pa.field("low", pa.float64(), metadata={"doc": "lower end of the axis", "unit": "unit of the axis"}),
        pa.field("high", pa.float64(), metadata={"doc": "upper end of the axis", "unit": "unit of the axis"}),
        pa.field("periodic", pa.bool_(), metadata={"doc": "whether both ends are the same place", "unit": "boolean"}),
    ]
)


def scans_table(scans: Sequence[ScanTables], done: Mapping[str, int]) -> pa.Table:
    """One row a scan, with the schema `SCANS`; ``done`` holds the number of committed units by name of the scan.

    Raises:
        RaysenseError: scan.json holds no valid time.
    """
    rows = [
        {
            "scan": scan.name,
            "kind": scan.kind,
            "model": _spec(scan).get("model") or _fact(scan, "model"),
            "data": _spec(scan).get("data") or _spec(scan).get("shapes") or _fact(scan, "data"),
            "spec": json.dumps(scan.document.get("spec")),
            "created": _time(scan),
            "units": scan.document.get("units"),
            "units_done": done[scan.name],
            "location": scan.store.location,
        }
        for scan in scans
    ]
    return pa.Table.from_pylist(rows, schema=SCANS)


def classes_table(scans: Sequence[ScanTables]) -> pa.Table:
    """One row a scan and class that has a name, with the schema `CLASSES`."""
    rows = [
        {"scan": scan.name, "class": index, "name": name}
        for scan in scans
        for index, name in enumerate(scan.class_names or ())
    ]
    return pa.Table.from_pylist(rows, schema=CLASSES)


def layers_table(scans: Sequence[ScanTables]) -> pa.Table:
    """One row a scan and layer, with the schema `LAYERS`."""
    rows = [
        {"scan": scan.name, "layer": layer, "position": position}
        for scan in scans
        for position, layer in enumerate(scan.layer_names, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=LAYERS)


def axes_table(scans: Sequence[ScanTables]) -> pa.Table:
    """One row a scan and axis of its semantic space, with the schema `AXES`."""
    rows = [
        {"scan": scan.name, "axis": axis["name"], "position": position}
        | {name: axis[name] for name in ("unit", "low", "high", "periodic")}
        for scan in scans
        for position, axis in enumerate(scan.axes, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=AXES)


def _spec(scan: ScanTables) -> dict[str, Any]:
    return scan.document.get("spec") or {}


def _fact(scan: ScanTables, what: str) -> str | None:
    """The reference that a scan of another scan's results took over."""
    return (scan.facts.get(what) or {}).get("reference")


def _time(scan: ScanTables) -> datetime | None:
    created = scan.document.get("created")
    if created is None:
        return None
    try:
        return datetime.fromisoformat(created)
    except ValueError as error:
        raise RaysenseError(f"{scan.store.location}/scan.json: created {created!r} is not an ISO time") from error
