"""Arrow schemas that several scans share; each field documents itself."""

from __future__ import annotations

import pyarrow as pa


def column(name: str, kind: pa.DataType, doc: str, unit: str = "", nullable: bool = False) -> pa.Field:
    """A field whose metadata says what it holds and in which unit."""
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc, "unit": unit or "1"})


SAMPLES = pa.schema(
    [
        column("sample_id", pa.string(), "stable id of the sample; the key that joins scans", "id"),
        column("split", pa.string(), "split of the data set the sample is in", "name"),
        column("label", pa.int32(), "true class", "class index"),
        column(
            "predicted", pa.int32(), "most probable class; null where the sample failed", "class index", nullable=True
        ),
        column("p_label", pa.float64(), "softmax probability of the true class", "probability", nullable=True),
        column("p_predicted", pa.float64(), "softmax probability of the predicted class", "probability", nullable=True),
        column(
            "error",
            pa.string(),
            "why the sample could not be read or scored; null where it could",
            "text",
            nullable=True,
        ),
    ],
    metadata={"doc": "one row a sample that was scanned"},
)

UNITS = pa.schema(
    [
        column("unit", pa.string(), "id of the unit of work", "id"),
        column("worker", pa.string(), "worker process that computed it", "id"),
        column("node", pa.string(), "host name of the machine", "name"),
        column("device", pa.string(), "device it ran on", "name"),
        column("started", pa.timestamp("us", tz="UTC"), "when computing began", "UTC"),
        column("seconds", pa.float64(), "time to compute it, reading included", "s"),
        column("rows", pa.int64(), "items (samples, initial points, ...) in the unit", "items"),
        column("attempt", pa.int32(), "which attempt succeeded; 1 is the first", "count"),
        column("batch_size", pa.int32(), "batch size at the end of the unit", "items"),
        column("passes", pa.int64(), "images that went forward or backward through the network", "count"),
    ],
    metadata={"doc": "one row a committed unit of work"},
)
