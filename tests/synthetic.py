"""Synthetic influence scans, written through the real store, with the truth as numpy arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.engine.store import Store, encode_schemas
from raysense.scans import get_scan

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECONDS = 2.0


@dataclass
class Truth:
    """Every sample of the scan, and which are committed; ``fi`` is NaN where it is unknown or the sample failed."""

    store: Store
    ids: np.ndarray
    split: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    p_label: np.ndarray
    fi: np.ndarray
    fi_upper: np.ndarray
    jacobian_norm: np.ndarray
    failed: np.ndarray
    committed: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """Committed samples with an influence row."""
        return self.committed & ~self.failed


def write_scan(
    location: str | Path,
    *,
    splits: Mapping[str, int] | None = None,
    n_classes: int = 10,
    class_names: Sequence[str] | None = None,
    unit_size: int = 50,
    method: str = "exact",
    objective: str = "label",
    full_rank: float = 0.9,
    failed: Mapping[int, str] | None = None,
    commit: int | None = None,
    reference: str = "digits",
    seed: int = 0,
    fi: Mapping[int, float] | None = None,
    listing: pa.Table | None = None,
) -> Truth:
    """Write a scan of ``splits`` samples; ``commit`` units of it (all where None), ``failed`` rows with their messages.

    ``fi`` overrides single values (and fi_upper with them); a share ``full_rank`` of the samples has FI = fi_upper.
    A ``listing`` of real data (``reference``) takes the place of ``splits`` and gives ids and labels.
    """
    splits = {"train": 300, "test": 120} if splits is None else splits
    if listing is not None:
        splits = dict(Counter(listing["split"].to_pylist()))
    failed = failed or {}
    rng = np.random.default_rng(seed)
    total = sum(splits.values())
    split = np.repeat(list(splits), list(splits.values()))
    within = np.concatenate([np.arange(count) for count in splits.values()]) if total else np.zeros(0, int)
    ids = np.array([f"{name}/{row:06d}" for name, row in zip(split, within, strict=True)], dtype=object)
    label = rng.integers(0, n_classes, total)
    if listing is not None:
        ids, label = listing["sample_id"].to_numpy(zero_copy_only=False), listing["label"].to_numpy()
    margin = rng.normal(6, 4, total)
    upper = np.exp(-margin)
    p_label = 1 / (1 + upper)
    predicted = np.where(p_label > 0.5, label, (label + 1) % n_classes)
    values = np.where(rng.random(total) < full_rank, upper, upper * rng.random(total))
    for row, value in (fi or {}).items():
        values[row] = upper[row] = value
    is_failed = np.zeros(total, dtype=bool)
    is_failed[list(failed)] = True
    if method == "bound":
        values = np.full(total, np.nan)

    if listing is None:
        listing = pa.table({"sample_id": pa.array(ids, pa.string()), "split": split, "label": label.astype(np.int32)})
    units = [(start, min(start + unit_size, total)) for start in range(0, total, unit_size)]
    document = scan_document(reference, splits, n_classes, class_names, method, objective, len(units), unit_size)
    store = Store.create(location, document, listing)
    truth = Truth(
        store=store,
        ids=ids,
        split=split,
        label=label,
        predicted=predicted,
        p_label=p_label,
        fi=np.where(is_failed, np.nan, values),
        fi_upper=np.where(is_failed, np.nan, upper),
        jacobian_norm=np.sqrt(upper),
        failed=is_failed,
        committed=np.zeros(total, dtype=bool),
    )
    for index, (start, stop) in enumerate(units if commit is None else units[:commit]):
        tables = unit_tables(truth, start, stop, method, objective, failed, worker=f"worker-{index % 2}", index=index)
        store.commit(unit_id(start, stop), tables, {"attempt": 1})
        truth.committed[start:stop] = True
    return truth


def unit_id(start: int, stop: int) -> str:
    return f"{start:010d}-{stop:010d}"


def unit_tables(
    truth: Truth, start: int, stop: int, method: str, objective: str, failed: Mapping[int, str], worker: str, index: int
) -> dict[str, pa.Table]:
    """Tables of one unit, exactly as the scan declares them."""
    schemas = get_scan("influence").schemas()
    rows = np.arange(start, stop)
    good = rows[~truth.failed[rows]]
    mask = truth.failed[rows]
    count = len(good)
    fi = truth.fi[good]
    tolerance = 1e-3 if method == "certified" else 0.0
    lower = np.zeros(count) if method == "bound" else fi * (1 - tolerance)
    samples = [
        pa.array(truth.ids[rows], pa.string()),
        pa.array(truth.split[rows], pa.string()),
        pa.array(truth.label[rows], pa.int32()),
        pa.array(truth.predicted[rows], pa.int32(), mask=mask),
        pa.array(truth.p_label[rows], mask=mask),
        pa.array(np.maximum(truth.p_label, 1 - truth.p_label)[rows], mask=mask),
        pa.array([failed.get(int(row)) for row in rows], pa.string()),
    ]
    unknown = np.full(count, method == "bound")
    influence = [
        pa.array(truth.ids[good], pa.string()),
        pa.array(["input"] * count, pa.string()),
        pa.nulls(count, pa.string()),
        pa.array([objective] * count, pa.string()),
        pa.array([method] * count, pa.string()),
        pa.array(fi, mask=unknown),
        pa.array(lower),
        pa.array(truth.fi_upper[good]),
        pa.array(np.full(count, 9, np.int32), mask=unknown),
        pa.array(np.full(count, 0 if method == "bound" else 10, np.int32)),
        pa.array(truth.jacobian_norm[good], mask=unknown),
        pa.nulls(count, pa.float64()),
    ]
    began = STARTED + timedelta(seconds=SECONDS * (index // 2))
    unit = [unit_id(start, stop), worker, "host", "cpu", began, SECONDS, stop - start, 1, 64]
    return {
        "samples": pa.table(samples, schema=schemas["samples"]),
        "influence": pa.table(influence, schema=schemas["influence"]),
        "units": pa.table(
            [pa.array([value], field.type) for value, field in zip(unit, schemas["units"], strict=True)],
            schema=schemas["units"],
        ),
    }


def scan_document(
    reference: str,
    splits: Mapping[str, int],
    n_classes: int,
    class_names: Sequence[str] | None,
    method: str,
    objective: str,
    units: int,
    unit_size: int,
) -> dict[str, Any]:
    """A scan.json as the engine writes it."""
    names = None if class_names is None else list(class_names)
    return {
        "kind": "influence",
        "schemas": encode_schemas(get_scan("influence").schemas()),
        "items": sum(splits.values()),
        "spec": {
            "model": "digits",
            "data": reference,
            "split": list(splits),
            "limit": None,
            "unit_size": None,
            "seed": 0,
            "target": "input",
            "objective": objective,
            "method": method,
            "tolerance": 1e-3,
            "rank_rule": "invariant",
        },
        "spec_hash": "5" * 64,
        "created": STARTED.isoformat(),
        "versions": {"raysense": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        "facts": {
            "model": {
                "reference": "digits",
                "parameters": 22_000,
                "n_classes": n_classes,
                "classes": names,
                "input_shape": [1, 8, 8],
                "normalisation": None,
            },
            "data": {
                "reference": reference,
                "n_samples": sum(splits.values()),
                "splits": dict(splits),
                "classes": names,
            },
            "preprocessing": {
                "resize": None,
                "crop": None,
                "interpolation": "bilinear",
                "antialias": True,
                "source": "none",
            },
            "fingerprints": {"model": "a1" * 32, "data": "b2" * 32},
        },
        "units": units,
        "unit_size": unit_size,
    }
