"""Synthetic semantic scans, written through the real store; and the recorded results of the authors as such scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import SECONDS, STARTED

from raysense.scans._semantic_tables import semantic_schemas
from raysense.scans.tables import UNITS
from raysense.store.store import Store, encode_schemas

SCHEMAS = {name: schema for name, schema in semantic_schemas().items() if name != "region_traces"}
AZIMUTH = {"name": "azimuth", "unit": "degrees", "low": 0.0, "high": 360.0, "periodic": True}
ELEVATION = {"name": "elevation", "unit": "degrees", "low": -10.0, "high": 90.0, "periodic": False}
CLASS_NAMES = ("bottle", "chair", "cup")


@dataclass
class Tables:
    """Rows of the tables of one scan, and what the space is."""

    axes: Sequence[Mapping[str, Any]] = (AZIMUTH, ELEVATION)
    classes: Sequence[str] = CLASS_NAMES
    model: str = "digits"
    shapes: str = "procedural"
    subjects: list[dict[str, Any]] = field(default_factory=list)
    semantic_maps: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)

    def add_subject(self, shape_id: str, label: int, error: str | None = None) -> None:
        """A shape, without maps or regions yet."""
        sizes = {} if error else {"vertices": 8, "faces": 12, "duplicates": 0, "degenerate": 0}
        known = {"shape_id": shape_id, "label": label, "class_name": self.classes[label], "source": "shape"}
        self.subjects.append(known | sizes | {"error": error})

    def add_map(self, shape_id: str, label: int, names: Sequence[str], score: np.ndarray, **measures: Any) -> None:
        """A map over some of the axes; ``score`` and the ``measures`` have a value for every cell."""
        lines = [grid(axis, steps) for axis, steps in zip(self._named(names), score.shape, strict=True)]
        for cell in np.ndindex(score.shape):
            self.semantic_maps.append(
                {
                    "shape_id": shape_id, "label": label, "axes": ",".join(names), "steps": list(score.shape),
                    "cell": list(cell), "u": [float(line[i]) for line, i in zip(lines, cell, strict=True)],
                    "score": float(score[cell]), "predicted": label, "p_predicted": float(max(score[cell], 0.5)),
                }
                | {name: float(values[cell]) for name, values in measures.items()}
            )  # fmt: skip

    def add_region(self, shape_id: str, label: int, **values: Any) -> None:
        """A box; bounds that are None have diverged. Everything that is not given follows from the bounds."""
        names = values.get("axes", ",".join(axis["name"] for axis in self.axes)).split(",")
        axes = self._named(names)
        lower, upper = values.get("lower"), values.get("upper")
        known = {
            "init": 0, "kind": "robust", "family": "constrained", "method": "constrained", "axes": ",".join(names),
            "u0": [0.0] * len(axes), "lower": None, "upper": None, "diverged": lower is None, "contains_u0": True,
            "holds": False, "converged": True, "evidence_points": 64, "iterations": 10, "evaluations": 40,
            "u0_score": 0.9,
        }  # fmt: skip
        if lower is not None and upper is not None:
            known |= {"volume": volume(axes, lower, upper), "volume_clipped": clipped_volume(axes, lower, upper)}
            known |= {"mean_score": 0.8, "mean_stderr": 0.01, "var_score": 0.02, "var_stderr": 0.001}
        self.regions.append({"shape_id": shape_id, "label": label} | known | values)

    def _named(self, names: Sequence[str]) -> list[Mapping[str, Any]]:
        return [axis for name in names for axis in self.axes if axis["name"] == name]


def grid(axis: Mapping[str, Any], steps: int) -> np.ndarray:
    """Grid points of an axis, shape [steps]; a periodic one does not repeat its end."""
    return np.linspace(axis["low"], axis["high"], steps, endpoint=not axis["periodic"])


def volume(axes: Sequence[Mapping[str, Any]], lower: Sequence[float], upper: Sequence[float]) -> float:
    """Volume of a box as a fraction of the space, not clipped."""
    length = np.array([axis["high"] - axis["low"] for axis in axes])
    return float(np.prod((np.array(upper) - np.array(lower)) / length))


def clipped_volume(axes: Sequence[Mapping[str, Any]], lower: Sequence[float], upper: Sequence[float]) -> float:
    """The part of a box inside the space, as a fraction of it; a periodic axis is covered at most once."""
    parts = []
    for axis, a, b in zip(axes, lower, upper, strict=True):
        length = axis["high"] - axis["low"]
        inside = min(b - a, length) if axis["periodic"] else max(0, min(b, axis["high"]) - max(a, axis["low"]))
        parts.append(max(0, inside) / length)
    return float(np.prod(parts))


def write_tables(
    location: str | Path, tables: Tables, commit: int | None = None, listing: pa.Table | None = None
) -> Store:
    """Write a scan as one unit; where ``commit`` is given, one unit a subject, of which so many are there."""
    units = [tables.subjects] if commit is None else [[subject] for subject in tables.subjects]
    store = Store.create(location, document(tables) | {"units": len(units)}, listing)
    for index, subjects in enumerate(units[:commit]):
        ids = {subject["shape_id"] for subject in subjects}
        found = {"units": units_table(f"{index:010d}")}
        for name in ("subjects", "semantic_maps", "regions"):
            rows = [row for row in getattr(tables, name) if row["shape_id"] in ids]
            found[name] = pa.Table.from_pylist(rows, schema=SCHEMAS[name])
        store.commit(f"{index:010d}", found, {"attempt": 1})
    return store


def units_table(unit: str) -> pa.Table:
    """Table units of one unit."""
    known = [unit, "worker-0", "host", "cpu", STARTED, SECONDS, 1, 1, 64, 1]
    return pa.Table.from_pylist([dict(zip(UNITS.names, known, strict=True))], schema=UNITS)


def document(tables: Tables) -> dict[str, Any]:
    """A scan.json as the engine writes it."""
    length = [axis["high"] - axis["low"] for axis in tables.axes]
    return {
        "kind": "semantic",
        "items": len(tables.subjects),
        "spec": {
            "model": tables.model,
            "shapes": tables.shapes,
            "axes": [axis["name"] for axis in tables.axes],
            "fixed": [],
            "renderer": "auto",
            "eps_mean": 0.5,
            "eps_variance": 0.05,
        },
        "spec_hash": "5" * 64,
        "created": STARTED.isoformat(),
        "versions": {"raysense": "0.1.0"},
        "schemas": encode_schemas(SCHEMAS),
        "facts": {
            "model": {"reference": tables.model, "classes": list(tables.classes), "n_classes": len(tables.classes)},
            "space": {"axes": list(tables.axes), "fixed": {}, "volume": float(np.prod(length))},
        },
        "units": 1,
        "unit_size": 1,
    }
