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

from raysense.scans import get_scan
from raysense.store.store import Store, encode_schemas

_SCALES = (1, 3, 5, 7)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECONDS = 2.0


@dataclass
class Truth:
    """Every sample of the scan, and which are committed; ``fi`` is NaN where it is unknown or the sample failed.

    ``layer_fi`` has shape [layers, samples]; ``maps`` are the rows that have pixel maps (`map_values`) of ``map_shape``,
    [channels, height, width]; more than one channel gives maps per channel as well.
    """

    store: Store
    ids: np.ndarray
    split: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    p_label: np.ndarray
    fi: np.ndarray
    fi_upper: np.ndarray
    fi_bound: np.ndarray
    jacobian_norm: np.ndarray
    cook: np.ndarray
    failed: np.ndarray
    committed: np.ndarray
    layer_fi: np.ndarray
    target: str
    layers: tuple[str, ...] = ()
    maps: tuple[int, ...] = ()
    map_shape: tuple[int, int, int] = (1, 8, 8)
    attack: bool = False

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
    target: str = "input",
    layers: Sequence[str] = (),
    cook: bool = False,
    maps: Sequence[int] = (),
    map_shape: tuple[int, int, int] = (1, 8, 8),
    attack: bool = False,
) -> Truth:
    """Write a scan of ``splits`` samples; ``commit`` units of it (all where None), ``failed`` rows with their messages.

    ``fi`` overrides single values (and fi_upper with them); a share ``full_rank`` of the samples has FI = fi_upper.
    A ``listing`` of real data (``reference``) takes the place of ``splits`` and gives ids and labels. FI of split
    "outlier" is larger. ``layers`` adds rows of target layer; an empty ``target`` leaves those only.
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
    margin = rng.normal(6, 4, total) - 6 * (split == "outlier")
    upper = np.exp(-margin)
    p_label = 1 / (1 + upper)
    predicted = np.where(p_label > 0.5, label, (label + 1) % n_classes)
    values = np.where(rng.random(total) < full_rank, upper, upper * rng.random(total))
    for row, value in (fi or {}).items():
        values[row] = upper[row] = value
    is_failed = np.zeros(total, dtype=bool)
    is_failed[list(failed)] = True
    jacobian_norm = np.sqrt(upper) * (rng.lognormal(size=total) if "outlier" in splits else 1)
    depth = rng.random((len(layers), total)) * np.linspace(1.5, 0.2, len(layers))[:, None]
    highest = np.minimum(upper, values * (1 + 1e-3)) if method == "certified" else upper
    if method == "bound":
        values = np.full(total, np.nan)

    if listing is None:
        listing = pa.table({"sample_id": pa.array(ids, pa.string()), "split": split, "label": label.astype(np.int32)})
    units = [(start, min(start + unit_size, total)) for start in range(0, total, unit_size)]
    document = scan_document(reference, splits, n_classes, class_names, method, objective, len(units), unit_size)
    document["schemas"] = encode_schemas(schemas(maps=bool(maps), attack=attack))
    document["facts"]["model"]["layers"] = list(layers)
    parts = {target: target, "layer": layers, "pixels": maps}
    document["spec"]["target"] = [name for name, present in parts.items() if present]
    store = Store.create(location, document, listing)
    truth = Truth(
        store=store,
        ids=ids,
        split=split,
        label=label,
        predicted=predicted,
        p_label=p_label,
        fi=np.where(is_failed, np.nan, values),
        fi_upper=np.where(is_failed, np.nan, highest),
        fi_bound=upper,
        jacobian_norm=jacobian_norm,
        cook=np.sqrt(jacobian_norm * upper) if cook else np.full(total, np.nan),
        failed=is_failed,
        committed=np.zeros(total, dtype=bool),
        layer_fi=np.where(is_failed, np.nan, upper * np.minimum(depth, 1)),
        target=target,
        layers=tuple(layers),
        maps=tuple(maps),
        map_shape=map_shape,
        attack=attack,
    )
    for index, (start, stop) in enumerate(units if commit is None else units[:commit]):
        tables = unit_tables(truth, start, stop, method, objective, failed, f"worker-{index % 2}", index)
        store.commit(unit_id(start, stop), tables, {"attempt": 1})
        truth.committed[start:stop] = True
    return truth


def unit_id(start: int, stop: int) -> str:
    return f"{start:010d}-{stop:010d}"


def schemas(maps: bool, attack: bool) -> dict[str, pa.Schema]:
    """Schemas of the tables that a scan with or without pixel maps and attacks writes."""
    left_out = {name for name, wanted in (("influence_maps", maps), ("pixel_attacks", attack)) if not wanted}
    return {name: schema for name, schema in get_scan("influence").schemas().items() if name not in left_out}


def unit_tables(
    truth: Truth, start: int, stop: int, method: str, objective: str, failed: Mapping[int, str], worker: str,
    index: int,
) -> dict[str, pa.Table]:  # fmt: skip
    """Tables of one unit, exactly as the scan declares them."""
    declared = schemas(maps=bool(truth.maps), attack=truth.attack)
    rows = np.arange(start, stop)
    good = rows[~truth.failed[rows]]
    mask = truth.failed[rows]
    samples = [
        pa.array(truth.ids[rows], pa.string()),
        pa.array(truth.split[rows], pa.string()),
        pa.array(truth.label[rows], pa.int32()),
        pa.array(truth.predicted[rows], pa.int32(), mask=mask),
        pa.array(truth.p_label[rows], mask=mask),
        pa.array(np.maximum(truth.p_label, 1 - truth.p_label)[rows], mask=mask),
        pa.array([failed.get(int(row)) for row in rows], pa.string()),
    ]
    began = STARTED + timedelta(seconds=SECONDS * (index // 2))
    unit = [unit_id(start, stop), worker, "host", "cpu", began, SECONDS, stop - start, 1, 64, 10 * (stop - start)]
    tables = {
        "samples": pa.table(samples, schema=declared["samples"]),
        "influence": influence_table(truth, good, method, objective, declared["influence"]),
        "units": pa.table(
            [pa.array([value], field.type) for value, field in zip(unit, declared["units"], strict=True)],
            schema=declared["units"],
        ),
    }
    mapped = [int(row) for row in good if row in truth.maps]
    if truth.maps:
        tables["influence_maps"] = pa.Table.from_pylist(
            [found for row in mapped for found in map_rows(truth, row, objective)], schema=declared["influence_maps"]
        )
    if truth.attack:
        tables["pixel_attacks"] = pa.Table.from_pylist(
            [attack_row(truth, row, objective) for row in mapped], schema=declared["pixel_attacks"]
        )
    return tables


def influence_table(truth: Truth, good: np.ndarray, method: str, objective: str, schema: pa.Schema) -> pa.Table:
    """Rows of table influence: for every sample its target, then its layers."""
    targets = ([(truth.target, None, truth.fi, truth.fi_upper)] if truth.target else []) + [
        ("layer", name, values, values) for name, values in zip(truth.layers, truth.layer_fi, strict=True)
    ]
    count = len(good) * len(targets)
    rows = np.repeat(good, len(targets))

    def interleaved(column: int) -> np.ndarray:
        return np.stack([values[column][good] for values in targets], axis=1).ravel() if targets else np.zeros(0)

    fi, upper = interleaved(2), interleaved(3)
    unknown = np.full(count, method == "bound")
    lower = np.zeros(count) if method == "bound" else fi * (1 - (1e-3 if method == "certified" else 0.0))
    columns = {
        "sample_id": pa.array(truth.ids[rows], pa.string()),
        "target": pa.array([name for name, *_ in targets] * len(good), pa.string()),
        "layer": pa.array([layer for _, layer, *_ in targets] * len(good), pa.string()),
        "objective": pa.array([objective] * count, pa.string()),
        "method": pa.array([method] * count, pa.string()),
        "fi": pa.array(fi, mask=unknown),
        "fi_lower": pa.array(lower),
        "fi_upper": pa.array(upper),
        "fi_bound": pa.array(truth.fi_bound[rows]),
        "rank": pa.array(np.full(count, 9, np.int32), mask=unknown),
        "n_backward": pa.array(np.full(count, 0 if method == "bound" else 10, np.int32)),
        "jacobian_norm": pa.array(truth.jacobian_norm[rows], mask=unknown),
        "cook": pa.array(truth.cook[rows], mask=np.isnan(truth.cook[rows])),
        "cook_error": pa.array(1e-6 * truth.cook[rows], mask=np.isnan(truth.cook[rows])),
    }
    return pa.table([columns[field.name] for field in schema], schema=schema)


def map_values(truth: Truth, row: int, scale: int, channel: int | None) -> np.ndarray:
    """FI of every pixel, shape [height, width]: a blob that grows with the scale, and noise."""
    _, height, width = truth.map_shape
    rng = np.random.default_rng([row, scale, 99 if channel is None else channel])
    y, x = np.mgrid[:height, :width]
    centre = 0.2 + 0.6 * np.random.default_rng(row).random(2)
    distance = ((y / height - centre[0]) ** 2 + (x / width - centre[1]) ** 2) / (0.01 + 0.004 * scale)
    share = np.exp(-distance) * (0.3 + 0.1 * scale) * (1.0 if channel is None else 0.4)
    return truth.fi_bound[row] * np.minimum(1, share * (0.7 + 0.3 * rng.random((height, width))))


def map_rows(truth: Truth, row: int, objective: str) -> list[dict[str, Any]]:
    channels, height, width = truth.map_shape
    return [
        {
            "sample_id": truth.ids[row], "objective": objective, "scale": scale, "channel": channel, "height": height,
            "width": width, "fi": map_values(truth, row, scale, channel).ravel(), "fi_bound": truth.fi_bound[row],
        }
        for channel in [None, *(range(channels) if channels > 1 else ())]
        for scale in _SCALES
    ]  # fmt: skip


def attack_row(truth: Truth, row: int, objective: str) -> dict[str, Any]:
    """The attack at the largest FI of scale 1; every other sample changes its class."""
    values = map_values(truth, row, 1, None)
    at = np.unravel_index(values.argmax(), values.shape)
    before = int(truth.predicted[row])
    changed = truth.maps.index(row) % 2 == 0
    return {
        "sample_id": truth.ids[row], "objective": objective, "row": int(at[0]), "column": int(at[1]),
        "fi": float(values[at]), "before": [0.0] * truth.map_shape[0], "after": [1.0] * truth.map_shape[0],
        "class_before": before, "p_before": 0.5075, "class_after": abs(before - 1) if changed else before,
        "p_before_after": 0.3026, "p_after": 0.6966 if changed else 0.3026,
    }  # fmt: skip


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
    """A scan.json as the engine writes it, without its schemas."""
    names = None if class_names is None else list(class_names)
    return {
        "kind": "influence",
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
