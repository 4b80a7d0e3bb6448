"""Synthetic scans of decision boundaries with the magnitudes of Fawzi et al. (2018), written through the real store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import SECONDS, STARTED

from raysense.scans.base import Scan
from raysense.scans.boundary import BoundaryScan, BoundarySpec
from raysense.scans.convexity import ConvexityScan, ConvexitySpec
from raysense.scans.detect import DetectScan, DetectSpec
from raysense.scans.directions import DirectionsScan, DirectionsSpec
from raysense.scans.paths import PathsScan, PathsSpec
from raysense.store.store import Store, encode_schemas

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIMENSION = 3072
Rows = list[dict[str, Any]]


@dataclass
class Written:
    """A scan, and the rows of its tables in all committed units."""

    store: Store
    tables: dict[str, pa.Table]

    def column(self, table: str, name: str) -> np.ndarray:
        """A column; null is NaN in one of numbers."""
        values: np.ndarray = self.tables[table][name].to_numpy()
        return values

    def split(self, table: str) -> np.ndarray:
        """The split of the sample of every row of a table."""
        splits = dict(zip(*(self.tables["samples"][name].to_pylist() for name in ("sample_id", "split")), strict=True))
        return np.array([splits[sample] for sample in self.tables[table]["sample_id"].to_pylist()], object)


def write_boundary(
    location: Path, *, splits: Mapping[str, int] | None = None, unit_size: int = 50, commit: int | None = None,
    failed: Collection[int] = (), spectrum: int = 0, ends: int = 0, n_ends: int = 5, dimension: int = DIMENSION,
    steps: Sequence[float] = (), curvature: bool = True, region: str = "predicted", norm: str = "l2", blocked: float = 0.02,
    scale: float = 1.0, seed: int = 0, **document: Any,
) -> Written:  # fmt: skip
    """Write a boundary scan.

    Args:
        location: Scan directory.
        splits: Samples of every split; 240 of test where None.
        unit_size: Samples of a unit.
        commit: How many units are committed; all where None.
        failed: Rows that failed.
        spectrum: How many of the first samples have all ``dimension - 1`` principal curvatures.
        ends: How many of the first have ``n_ends`` at both ends only.
        n_ends: Curvatures at either end.
        dimension: Of the images.
        steps: Steps of the step study.
        curvature: Whether the mean curvature is there.
        region: Whose boundary; with "label", misclassified samples are outside.
        norm: Norm of the distance.
        blocked: Share of the samples without a boundary.
        scale: What distances are multiplied by.
        seed: Of the numbers.
        document: Facts of the model and data: see `_document`.
    """
    asked = (["mean"] if curvature else []) + (["spectrum"] if spectrum else []) + (["extremes"] if ends else [])
    asked = [name for name in asked if not (spectrum and name == "extremes")]
    spec = BoundarySpec(
        model="digits", data="digits", curvature=tuple(asked), step_study=tuple(steps), region=region, norm=norm
    )
    rng = np.random.default_rng(seed)
    samples = _samples(splits or {"test": 240}, failed, rng)
    tables: dict[str, list[Rows]] = {"samples": [[row] for row in samples]}
    for name in ("boundary", "curvatures", "curvature_steps"):
        tables[name] = [[] for _ in samples]
    for place, sample in enumerate(samples):
        if sample["error"] is not None:
            continue
        outside = region == "label" and sample["predicted"] != sample["label"]
        status = "outside" if outside else "blocked" if rng.random() < blocked else "found"
        row = _boundary_row(sample, status, region, norm, scale, curvature, rng)
        tables["boundary"][place] = [row]
        if status != "found":
            continue
        values = principal_curvatures(dimension, rng)
        ranks = range(1, dimension)
        if place >= spectrum:
            ranks = [*range(1, n_ends + 1), *range(dimension - n_ends, dimension)] if place < ends else []
        if ranks:
            row |= {"largest_curvature": float(values[0]), "smallest_curvature": float(values[-1])}
            row |= {"hessian_asymmetry": 0.02} if place < spectrum else {}
        tables["curvatures"][place] = [
            {"rank": rank, "n": dimension - 1, "curvature": float(values[rank - 1]), "residual": 1e-4} for rank in ranks
        ]
        tables["curvature_steps"][place] = [
            {
                "step": step, "mean_curvature": float(rng.normal(-0.06, 0.04) / (1 + step)), "curvature_stderr": 0.01,
                "mean_magnitude": float(0.3 / (0.2 + step)),
            }
            for step in steps
        ]  # fmt: skip
        for name in ("curvatures", "curvature_steps"):
            for other in tables[name][place]:
                other["sample_id"] = sample["sample_id"]
    return _write(location, BoundaryScan(spec), tables, unit_size, commit, **document)


def principal_curvatures(dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Curvatures [dimension - 1], descending: mostly near 0, the negative ones of slightly greater magnitude."""
    count = dimension - 1
    at = (np.arange(count) + 0.5) / count - 0.5
    magnitude = 1.6 * np.exp(-(0.5 - np.abs(at)) * 60) + 0.05 * np.abs(at)
    values = np.where(at < 0, magnitude, -1.35 * magnitude) * rng.lognormal(0, 0.3)
    return np.sort(values + 0.01 * rng.normal(size=count))[::-1]


def write_directions(
    location: Path, *, splits: Mapping[str, int] | None = None, shared: int = 200,
    noise: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3), draws: int = 10, unit_size: int = 50,
    commit: int | None = None, failed: Collection[int] = (), seed: int = 0, **document: Any,
) -> Written:  # fmt: skip
    """Write a scan of shared directions: the first are ten times as curved as random ones; S is sensitive to noise."""
    spec = DirectionsSpec(model="digits", data="digits", of="boundary", shared=shared, noise=tuple(noise), draws=draws)
    rng = np.random.default_rng(seed)
    samples = _samples(splits or {"test": 100}, failed, rng)
    tables: dict[str, list[Rows]] = {"samples": [[row] for row in samples]}
    for name in ("direction_curvatures", "direction_noise", "direction_norms"):
        tables[name] = [[] for _ in samples]
    at = np.arange(1, shared + 1)
    shares = {"random": 0.25, "adversarial": 0.64, "difference": 0.10, "image gradient": 0.22, "logit gradient": 0.60}
    for place, sample in enumerate(samples):
        if sample["error"] is not None:
            continue
        key = {"sample_id": sample["sample_id"]}
        rho = (1 + 9 * np.exp(-at / 25)) * rng.lognormal(-0.2, 0.6, shared)
        sign = np.where(rng.random(shared) < 0.35, 1, -1)
        tables["direction_curvatures"][place] = [
            key
            | {"direction": int(i), "rho": float(value), "curvature": float(s * value * 0.1), "random_magnitude": 0.1}
            | {"method": "differences", "step": 0.1}
            for i, value, s in zip(at, rho, sign, strict=True)
        ]
        weak = rng.beta(1.5, 1.5)
        for space, sensitivity in (("S", 0.12), ("complement", 0.5)):
            for magnitude in noise:
                p = (1 - np.exp(-((magnitude / sensitivity) ** 1.5))) * weak
                row = {"space": space, "magnitude": magnitude, "draws": draws, "changed": int(rng.binomial(draws, p))}
                tables["direction_noise"][place].append(key | row)
        tables["direction_norms"][place] = [
            key | {"perturbation": name, "share": float(np.clip(share * (1 + 0.1 * rng.normal()), 0, 1))}
            for name, share in shares.items()
        ]
    return _write(location, DirectionsScan(spec), tables, unit_size, commit, **document)


def write_paths(
    location: Path, *, pairs: int = 60, scenarios: Sequence[str] = ("data", "adversarial", "noise"), pictures: int = 2,
    unconnected: int = 1, errors: int = 1, anchors: int = 10, resolution: int = 64, unit_size: int = 20,
    commit: int | None = None, seed: int = 0, **document: Any,
) -> Written:  # fmt: skip
    """Write a paths scan: every third pair straight, ``unconnected`` last pairs and ``errors`` before them a scenario."""
    spec = PathsSpec(
        model="digits", data="digits", scenarios=tuple(scenarios), pairs=pairs, pictures=pictures, resolution=resolution
    )
    rng = np.random.default_rng(seed)
    tables: dict[str, list[Rows]] = {"paths": [], "cross_sections": []}
    for scenario in scenarios:
        for number in range(pairs):
            left = pairs - number
            row = _path_row(
                scenario, number, left <= unconnected, unconnected < left <= unconnected + errors, anchors, rng
            )
            tables["paths"].append([row])
            drawn = number < pictures and row["error"] is None
            tables["cross_sections"].append(_sections(row, resolution, rng) if drawn else [])
    return _write(location, PathsScan(spec), tables, unit_size, commit, **document)


def write_convexity(
    location: Path, *, k: Sequence[int] = (2, 3, 5, 10, 20), groups: int = 40, combinations: int = 10, errors: int = 2,
    unit_size: int = 20, commit: int | None = None, seed: int = 0, **document: Any,
) -> Written:  # fmt: skip
    """Write a convexity scan: the more images are combined, the fewer combinations stay in the class."""
    spec = ConvexitySpec(model="digits", data="digits", k=tuple(k), groups=groups, combinations=combinations)
    rng = np.random.default_rng(seed)
    rows: list[Rows] = []
    for size in k:
        for number in range(groups):
            row: dict[str, Any] = {"group": f"k{size}-{number:06d}", "k": size, "combinations": combinations}
            if number < errors:
                row |= {"class": None, "samples": [], "inside": 0, "error": "class has too few"}
            else:
                inside = int(rng.binomial(combinations, rng.beta(6, 0.15 * size)))
                names = [f"test/{index:06d}" for index in range(size)]
                row |= {"class": number % 10, "samples": names, "inside": inside, "error": None}
            rows.append([row])
    return _write(location, ConvexityScan(spec), {"convexity": rows}, unit_size, commit, **document)


def write_detect(
    location: Path, *, splits: Mapping[str, int] | None = None, scales: Sequence[float] = (1.02, 1.5, 2.0, 3.0),
    noise: bool = True, unit_size: int = 50, commit: int | None = None, failed: Collection[int] = (),
    unfound: Collection[int] = (), unknown: Collection[int] = (), uncrossed: Collection[int] = (),
    digits: int | None = None, seed: int = 0, **document: Any,
) -> Written:  # fmt: skip
    """Write a detection scan in which detection falls off with the scale.

    Args:
        location: Scan directory.
        splits: Samples of every split; 200 of test where None.
        scales: Scales of the perturbation.
        noise: Whether there are noisy versions.
        unit_size: Samples of a unit.
        commit: How many units are committed; all where None.
        failed: Rows that failed.
        unfound: Rows without a boundary, which have no perturbed versions.
        unknown: Rows whose rho is not finite in one version.
        uncrossed: Rows whose smallest perturbation stays in the class.
        digits: Decimal places that scores are rounded to, so that many are tied.
        seed: Of the numbers.
        document: Facts of the model and data: see `_document`.
    """
    spec = DetectSpec(model="digits", data="digits", scales=tuple(scales), noise=noise)
    rng = np.random.default_rng(seed)
    samples = _samples(splits or {"test": 200}, failed, rng)
    tables: dict[str, list[Rows]] = {"samples": [[row] for row in samples], "detections": [[] for _ in samples]}
    versions = [("none", 0.0), *(("deepfool", scale) for scale in scales)]
    versions += [("noise", scale) for scale in scales] if noise else []
    for place, sample in enumerate(samples):
        if sample["error"] is not None:
            continue
        distance = float(rng.lognormal(-1, 0.5))
        for attack, scale in versions[:1] if place in unfound else versions:
            row = _detection(sample, attack, scale, distance, rng)
            if digits is not None:
                row |= {name: round(row[name], digits) for name in ("rho", "max_softmax", "energy")}
            if place in uncrossed and attack == "deepfool" and scale == min(scales):
                row |= {"perturbed": False, "predicted": row["original"]}
            if place in unknown and attack == "none":
                row |= {"rho": None if place % 2 else float("nan"), "rho_stderr": None, "recovered_label": None}
            tables["detections"][place].append(row)
    return _write(location, DetectScan(spec), tables, unit_size, commit, **document)


def _samples(splits: Mapping[str, int], failed: Collection[int], rng: np.random.Generator) -> Rows:
    rows: Rows = []
    for split, count in splits.items():
        for index in range(count):
            label, p = int(rng.integers(10)), float(rng.beta(4, 1))
            found = {"predicted": label if rng.random() < 0.9 else (label + 1) % 10, "p_label": p, "p_predicted": p}
            row = {"sample_id": f"{split}/{index:06d}", "split": split, "label": label, "error": None}
            rows.append(row | ({"error": "image is truncated"} if len(rows) in failed else found))
    return rows


def _boundary_row(
    sample: Mapping[str, Any],
    status: str,
    region: str,
    norm: str,
    scale: float,
    curvature: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    own = sample["predicted" if region == "predicted" else "label"]
    found = status == "found"
    row = {
        "sample_id": sample["sample_id"], "from_class": own, "to_class": (own + 3) % 10 if found else None,
        "status": status, "norm": norm, "image_norm": float(rng.normal(28, 4)), "iterations": int(rng.integers(2, 6)),
        "distance": {"found": scale * float(rng.lognormal(-1.2, 0.6)), "outside": 0.0, "blocked": None}[status],
    }  # fmt: skip
    if found:
        row |= {"residual": 1e-6, "alignment": float(1 - rng.exponential(2e-3)), "slack": None, "gradient_norm": 7.0}
    if found and curvature:
        row |= {"mean_curvature": float(rng.normal(-0.06, 0.04)), "curvature_stderr": float(rng.uniform(0.005, 0.02))}
        row |= {"method": "differences", "step": 0.1}
    return row


def _path_row(
    scenario: str, number: int, unconnected: bool, error: bool, anchors: int, rng: np.random.Generator
) -> dict[str, Any]:
    row: dict[str, Any] = {"pair": f"{scenario}-{number:06d}", "scenario": scenario, "sample_a": f"test/{number:06d}"}
    if error:
        return row | {"error": "no second image of class 3 is predicted so in 20 tries"}
    straight = number % 3 == 0 and not unconnected
    found = 0 if straight else 1 + int(rng.poisson(anchors - 1))
    distance = float(rng.normal(15, 3))
    return row | {
        "sample_b": None if scenario == "noise" else f"test/{number + 7:06d}", "class": 3, "connected": not unconnected,
        "straight": straight, "anchors": found, "distance": distance, "spacing": 1e-4 * distance,
        "length_ratio": 1 + found * float(rng.exponential(1e-5)), "depth": int(np.ceil(np.log2(found + 1))),
        "perturbation": {"data": 0.0, "adversarial": 0.8, "noise": 6.0}[scenario],
        "checked": 10_000 + 500 * found, "bad_segments": 2 if unconnected else 0, "error": None,
    }  # fmt: skip


def _sections(path: Mapping[str, Any], width: int, rng: np.random.Generator) -> Rows:
    """The straight segment, and those of the path where it is not straight; they stay in the class."""
    height = width // 2
    cuts = np.sort(rng.random(path["anchors"])) * path["distance"]
    lengths = [path["distance"], *np.diff([0.0, *cuts, path["distance"]])]
    found = []
    for segment, length in enumerate(lengths[: 1 if path["straight"] else None]):
        left = 0.1 * length
        x, y = np.meshgrid(np.linspace(-0.1, 1.1, width), np.linspace(-1, 1, height))
        scores = np.full((10, height, width), -np.inf)
        scores[path["class"]] = 1 - 0.7 * y**2
        crossed = segment == 0 and not path["straight"]
        for other in rng.choice([c for c in range(10) if c != path["class"]], 4, replace=False):
            middle = (0.0 if crossed else 0.9) * rng.choice([-1, 1])
            top, at = rng.uniform(0.9, 1.6), rng.random()
            scores[other] = top * np.exp(-((x - at) ** 2) / 0.03 - (y - middle) ** 2 / 0.15)
        found.append(
            {
                "pair": path["pair"], "segment": segment, "from_x": 0.0, "to_x": length, "low_x": -left,
                "high_x": length + left, "low_y": -0.8, "high_y": 0.8, "width": width, "height": height,
                "predicted": scores.argmax(0).ravel().tolist(),
            }
        )  # fmt: skip
    return found


def _detection(
    sample: Mapping[str, Any], attack: str, scale: float, distance: float, rng: np.random.Generator
) -> dict[str, Any]:
    perturbed = attack == "deepfool"
    original = sample["predicted"]
    confidence = 1 - 0.5 * np.exp(-3 * (scale - 1)) if perturbed else 1.0
    rho = rng.normal(0.1 * scale**-1.5 - 0.03 if perturbed else -0.03, 0.035)
    recovered = original if perturbed and rng.random() < 0.9 / scale**0.3 else (original + 4) % 10
    return {
        "sample_id": sample["sample_id"], "perturbed": perturbed, "attack": attack, "scale": scale,
        "distance": scale * distance, "original": original, "predicted": (original + 2) % 10 if perturbed else original,
        "rho": float(rho), "rho_stderr": 0.01, "recovered_label": recovered, "n_classes": 9, "n_directions": 32,
        "max_softmax": float(confidence * rng.beta(20, 1)), "energy": float(-rng.normal(5 + 5 * confidence, 1.5)),
        "method": "differences", "step": 0.1,
    }  # fmt: skip


def _write(
    location: Path, scan: Scan, items: Mapping[str, list[Rows]], unit_size: int, commit: int | None, **document: Any
) -> Written:
    """Write the rows of every item, by table, in units of so many items; commit the first units, or all."""
    schemas = scan.tables()
    total = len(next(iter(items.values())))
    starts = range(0, total, unit_size)
    if "samples" in items:
        keys = [{name: row[name] for name in ("sample_id", "split", "label")} for (row,) in items["samples"]]
        listing = pa.Table.from_pylist(keys, schema=pa.schema([schemas["samples"].field(name) for name in keys[0]]))
    else:
        listing = pa.table(
            {"sample_id": pa.array(["test/000000"]), "split": ["test"], "label": pa.array([0], pa.int32())}
        )
    facts = _document(scan, len(starts), total, unit_size, **document)
    store = Store.create(location, facts | {"schemas": encode_schemas(schemas)}, listing)
    committed: dict[str, list[pa.Table]] = {name: [] for name in schemas}
    for index, start in enumerate(starts[:commit]):
        stop = min(start + unit_size, total)
        rows = {name: [row for item in items[name][start:stop] for row in item] for name in schemas if name != "units"}
        rows["units"] = [
            {
                "unit": f"{start:010d}-{stop:010d}", "worker": "worker-0", "node": "host", "device": "cpu",
                "started": STARTED + timedelta(seconds=SECONDS * index), "seconds": SECONDS, "rows": stop - start,
                "attempt": 1, "batch_size": 64,
            }
        ]  # fmt: skip
        tables = {name: pa.Table.from_pylist(found, schema=schemas[name]) for name, found in rows.items()}
        store.commit(rows["units"][0]["unit"], tables, {"attempt": 1})
        for name, table in tables.items():
            committed[name].append(table)
    return Written(
        store, {name: pa.concat_tables([schemas[name].empty_table(), *found]) for name, found in committed.items()}
    )


def _document(
    scan: Scan,
    units: int,
    items: int,
    unit_size: int,
    *,
    class_names: Sequence[str] | None = CLASSES,
    model: str = "digits",
) -> dict[str, Any]:
    """A scan.json as the engine writes it, without its schemas."""
    names = None if class_names is None else list(class_names)
    return {
        "kind": scan.kind,
        "items": items,
        "spec": scan.spec.model_dump(mode="json") | {"model": model},
        "spec_hash": "5" * 64,
        "created": STARTED.isoformat(),
        "versions": {"raysense": "0.1.0", "torch": "2.15.0", "python": "3.11.7"},
        "facts": {
            "model": {
                "reference": model, "parameters": 270_000, "n_classes": 10, "classes": names, "input_shape": [3, 32, 32],
                "normalisation": None,
                "second_order": {"derivatives": "differences", "step": 0.1, "kinks": ["relu"], "bends": []},
            },
            "data": {"reference": "digits", "n_samples": items, "splits": {"test": items}, "classes": names},
            "preprocessing": None,
            "fingerprints": {"model": model, "data": "b2" * 32},
        },
        "units": units,
        "unit_size": unit_size,
    }  # fmt: skip
