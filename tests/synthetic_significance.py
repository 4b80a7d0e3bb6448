"""Synthetic significance scans, written through the real store, with the dense truth as numpy arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import SECONDS, STARTED

from raysense.scans._significance_tables import significance_schemas
from raysense.store.store import Store, encode_schemas

SCHEMAS = {name: significance_schemas()[name] for name in ("samples", "significance", "units")}
LAYERS = {"classifier.4": (12, 20), "classifier.6": (7, 12)}
SPLITS = {"train": (9, 14, 6, 11), "test": (4, 1, 5, 3)}


@dataclass(frozen=True)
class Structure:
    """What a network's paths look like: spreads of the logits of a row's probability, and where exceptions are.

    Attributes:
        shared: Spread, among rows, of the logit of being significant as a whole that all classes have in common.
        own: Spread, among rows and classes, of what each class adds to it.
        bias: Mean logit.
        exceptional: Share of the paths at which several classes have exceptions; 1 means all classes everywhere.
        certain: Share of the rows, class by class, that are significant never or in every observation.
    """

    shared: float
    own: float
    bias: float
    exceptional: float
    certain: float


STRUCTURES = {
    "trained": Structure(shared=1.0, own=3.0, bias=-1.5, exceptional=0.15, certain=0.2),
    "shuffled": Structure(shared=1.5, own=0.8, bias=-0.5, exceptional=0.04, certain=0.05),
    "untrained": Structure(shared=0.6, own=0.1, bias=0.0, exceptional=0.01, certain=0.0),
    # As thresholds of mean |N| give: no whole rows, and every path is an exception.
    "mean_abs": Structure(shared=0.0, own=0.0, bias=-100.0, exceptional=1.0, certain=0.0),
}


@dataclass
class Truth:
    """The scan, and what its committed units add up to.

    Attributes:
        store: The scan directory.
        counts: For every split and layer observations in which a path is significant, int64 [classes, rows, columns].
        exceptions: Those of them in which its row is not significant as a whole, int64 [classes, rows, columns].
        n_observations: For every split and layer observations of each class, int64 [classes]; 0 where there are none.
        n_samples: For every split samples of each class, int64 [classes].
    """

    store: Store
    counts: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    exceptions: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    n_observations: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    n_samples: dict[str, np.ndarray] = field(default_factory=dict)


def write_significance(
    location: str | Path,
    *,
    layers: Mapping[str, tuple[int, int]] | None = None,
    splits: Mapping[str, Sequence[int]] | None = None,
    class_names: Sequence[str] | None = None,
    structure: str = "trained",
    shift: float = 0.0,
    unit_size: int = 4,
    positions: Mapping[str, int] | None = None,
    dense: float = 0.3,
    commit: int | Collection[int] | None = None,
    failed: Collection[str] = (),
    model: str = "digits",
    data: str = "digits",
    threshold: str = "sum",
    seed: int = 0,
    sample_seed: int = 0,
) -> Truth:
    """Write a scan; its units are runs of at most ``unit_size`` samples of one class and split, splits in their order.

    Args:
        location: Scan directory.
        layers: (rows, columns) of every layer, in order of execution; `LAYERS` where None.
        splits: Number of samples of every class in every split; `SPLITS` where None.
        class_names: Names of the classes, or None.
        structure: Key of `STRUCTURES`: what kind of network it looks like.
        shift: Share, 0 to 1, of what tells the classes apart that is lost: more than 0 looks out-of-distribution.
        unit_size: Samples of a unit.
        positions: Observations a sample of every layer; 1 where it is not named.
        dense: Share of the rows of units that are stored as dense counts (null columns).
        commit: How many units, or which, are committed; all where None.
        failed: Ids of samples that failed, such as ``train/000003``.
        model: Reference of the model.
        data: Reference of the data.
        threshold: Threshold named in the spec.
        seed: The network: equal seeds and structures give equal probabilities of paths.
        sample_seed: The samples drawn.
    """
    layers = LAYERS if layers is None else layers
    splits = SPLITS if splits is None else splits
    positions = {name: (positions or {}).get(name, 1) for name in layers}
    n_classes = len(next(iter(splits.values())))
    paths = _probabilities(layers, n_classes, STRUCTURES[structure], shift, seed)
    runs = _runs(splits, unit_size)
    chosen = set(range(len(runs)) if commit is None else range(commit) if isinstance(commit, int) else commit)
    listing = _listing(splits)
    store = Store.create(
        location,
        significance_document(layers, splits, class_names, len(runs), positions, model, data, threshold, unit_size),
        listing,
    )
    truth = Truth(store)
    for split in splits:
        truth.n_samples[split] = np.zeros(n_classes, np.int64)
        for name, (rows, columns) in layers.items():
            truth.n_observations[split, name] = np.zeros(n_classes, np.int64)
            truth.counts[split, name] = np.zeros((n_classes, rows, columns), np.int64)
            truth.exceptions[split, name] = np.zeros((n_classes, rows, columns), np.int64)
    rng = np.random.default_rng([seed, sample_seed])
    for index, (split, label, ids) in enumerate(runs):
        good = [sample for sample in ids if sample not in failed]
        found = []
        for name in layers:
            p_whole, p_single = (part[label] for part in paths[name])
            whole, single = _observations(rng, p_whole, p_single, len(good) * positions[name])
            if index in chosen:
                truth.exceptions[split, name][label] += single.sum(axis=0)
                truth.counts[split, name][label] += single.sum(axis=0) + whole.sum(axis=0)[:, None]
                truth.n_observations[split, name][label] += len(whole)
            as_dense = np.less(rng.random(whole.shape[1]), dense)
            if good:
                row_count, exceptions = whole.sum(axis=0), single.sum(axis=0)
                found += significance_rows(name, label, split, len(good), len(whole), row_count, exceptions, as_dense)
        if index in chosen:
            truth.n_samples[split][label] += len(good)
            store.commit(f"{index:010d}", _unit_tables(index, split, label, ids, failed, found), {"attempt": 1})
    return truth


def write_counts(
    location: str | Path, row_count: np.ndarray, exceptions: np.ndarray, n_observations: np.ndarray
) -> Truth:
    """Write a scan of given counts: one layer "fc" and split "train", one unit a class.

    Args:
        location: Scan directory.
        row_count: Observations in which whole rows are significant, [classes, rows].
        exceptions: Other observations in which single paths are, [classes, rows, columns].
        n_observations: Samples of every class, [classes].
    """
    layers, splits = {"fc": exceptions.shape[1:]}, {"train": n_observations.tolist()}
    runs = _runs(splits, unit_size=max(splits["train"]))
    document = significance_document(
        layers, splits, None, len(runs), {"fc": 1}, "digits", "digits", "sum", max(splits["train"])
    )
    key = ("train", "fc")
    counts = exceptions + row_count[..., None]
    truth = Truth(
        Store.create(location, document, _listing(splits)),
        {key: counts}, {key: exceptions}, {key: n_observations}, {"train": n_observations},
    )  # fmt: skip
    for index, (split, label, ids) in enumerate(runs):
        as_dense = np.full(len(row_count[label]), index % 2 == 0)
        counted = (row_count[label], exceptions[label])
        rows = significance_rows("fc", label, split, len(ids), len(ids), *counted, as_dense)
        truth.store.commit(f"{index:010d}", _unit_tables(index, split, label, ids, (), rows), {"attempt": 1})
    return truth


def significance_rows(
    layer: str, label: int, split: str, n_samples: int, n_observations: int, row_count: np.ndarray,
    exceptions: np.ndarray, as_dense: np.ndarray,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of table significance of one unit, layer and class.

    Args:
        layer: Name of the layer.
        label: The class.
        split: The split.
        n_samples: Samples counted.
        n_observations: Observations counted.
        row_count: Whole rows, [rows].
        exceptions: Counts of single paths, [rows, columns].
        as_dense: Which rows have null columns, boolean [rows].
    """
    known = {
        "layer": layer, "class": label, "split": split, "n_samples": n_samples, "n_observations": n_observations,
        "n_inputs": exceptions.shape[1],
    }  # fmt: skip
    rows = []
    for row, counts in enumerate(exceptions):
        at = np.flatnonzero(counts)
        stored = (None, counts.tolist()) if as_dense[row] else (at.tolist(), counts[at].tolist())
        found = {"row": row, "row_count": int(row_count[row])}
        rows.append(known | found | dict(zip(("exception_columns", "exception_counts"), stored, strict=True)))
    return rows


def significance_document(
    layers: Mapping[str, tuple[int, int]], splits: Mapping[str, Sequence[int]], class_names: Sequence[str] | None,
    units: int, positions: Mapping[str, int], model: str, data: str, threshold: str, unit_size: int,
) -> dict[str, Any]:  # fmt: skip
    """A scan.json as the engine writes it."""
    n_classes = len(next(iter(splits.values())))
    names = None if class_names is None else list(class_names)
    facts = [
        {"name": name, "operator": "linear", "rows": rows, "inputs": columns, "groups": 1, "positions": positions[name]}
        for name, (rows, columns) in layers.items()
    ]
    return {
        "kind": "significance",
        "items": sum(map(sum, splits.values())),
        "spec": {
            "model": model, "data": data, "split": list(splits), "limit": None, "samples": [], "unit_size": None,
            "seed": 0, "layers": [], "threshold": threshold, "positions": "each", "per_class": None, "activations": 0,
            "pass_size": 32,
        },
        "spec_hash": "5" * 64,
        "created": STARTED.isoformat(),
        "versions": {"raysense": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        "schemas": encode_schemas(SCHEMAS),
        "facts": {
            "model": {
                "reference": model, "parameters": 22_000, "n_classes": n_classes, "classes": names,
                "input_shape": [1, 8, 8], "normalisation": None, "layers": list(layers),
            },
            "data": {
                "reference": data, "n_samples": sum(map(sum, splits.values())), "classes": names,
                "splits": {split: sum(counts) for split, counts in splits.items()},
            },
            "preprocessing": {
                "resize": None, "crop": None, "interpolation": "bilinear", "antialias": True, "source": "none",
            },
            "fingerprints": {"model": "a1" * 32, "data": "b2" * 32},
            "significance": {"layers": facts, "threshold": threshold, "positions": "each"},
        },
        "units": units,
        "unit_size": unit_size,
    }  # fmt: skip


def _probabilities(
    layers: Mapping[str, tuple[int, int]], n_classes: int, structure: Structure, shift: float, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every layer probabilities of whole rows [classes, rows] and of single paths [classes, rows, columns]."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (rows, columns) in layers.items():
        shared = structure.bias + structure.shared * rng.normal(size=rows)
        logit = shared + (1 - shift) * structure.own * rng.normal(size=(n_classes, rows))
        whole = 1 / (1 + np.exp(-logit))
        certain = rng.random((n_classes, rows)) < (1 - shift) * structure.certain
        whole = np.where(certain, np.round(whole), whole)
        # Most of the exceptions are at places that classes share, one place more of them than another.
        chosen = rng.random((rows, columns)) < structure.exceptional
        popular = np.where(chosen, rng.random((rows, columns)), structure.exceptional / 10)
        own = rng.random((n_classes, rows, columns)) < np.where(structure.exceptional < 1, popular, 1)
        size = rng.choice([0.1, 0.5, 1.0], (n_classes, rows, columns), p=[0.5, 0.4, 0.1])
        found[name] = (whole, np.where(own, size, 0.0))
    return found


def _observations(
    rng: np.random.Generator, whole: np.ndarray, single: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Significant rows [count, rows], and significant paths of the other rows [count, rows, columns]."""
    rows = rng.random((count, *whole.shape)) < whole
    return rows, (rng.random((count, *single.shape)) < single) & ~rows[..., None]


def _runs(splits: Mapping[str, Sequence[int]], unit_size: int) -> list[tuple[str, int, list[str]]]:
    """Split, class and sample ids of every unit."""
    runs = []
    for split, counts in splits.items():
        starts = np.concatenate([[0], np.cumsum(counts)])
        for label, count in enumerate(counts):
            ids = [f"{split}/{starts[label] + index:06d}" for index in range(count)]
            runs += [(split, label, ids[at : at + unit_size]) for at in range(0, count, unit_size)]
    return runs


def _listing(splits: Mapping[str, Sequence[int]]) -> pa.Table:
    runs = _runs(splits, unit_size=1)
    return pa.table(
        {
            "sample_id": pa.array([ids[0] for _, _, ids in runs], pa.string()),
            "split": pa.array([split for split, _, _ in runs], pa.string()),
            "label": pa.array([label for _, label, _ in runs], pa.int32()),
        }
    )


def _unit_tables(
    index: int, split: str, label: int, ids: Sequence[str], failed: Collection[str], rows: list[dict[str, Any]]
) -> dict[str, pa.Table]:
    samples = [
        {"sample_id": sample, "split": split, "label": label}
        | (
            {"error": "image is truncated"}
            if sample in failed
            else {"predicted": label, "p_label": 0.75, "p_predicted": 0.75, "error": None}
        )
        for sample in ids
    ]
    unit = {
        "unit": f"{index:010d}", "worker": f"worker-{index % 2}", "node": "host", "device": "cpu",
        "started": STARTED + timedelta(seconds=SECONDS * (index // 2)), "seconds": SECONDS, "rows": len(ids),
        "attempt": 1, "batch_size": 64,
    }  # fmt: skip
    return {
        "samples": pa.Table.from_pylist(samples, schema=SCHEMAS["samples"]),
        "significance": pa.Table.from_pylist(rows, schema=SCHEMAS["significance"]),
        "units": pa.Table.from_pylist([unit], schema=SCHEMAS["units"]),
    }
