"""The SQL macros of the scans of decision boundaries against NumPy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from synthetic_boundary import Written, write_boundary, write_convexity, write_detect, write_directions, write_paths

from raysense.query.connection import open_results

SPLITS = {"train": 30, "test": 70}
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BOUNDARY = {
    "boundary_distances", "curvature_summary", "curvature_profile", "curvature_by_step", "shared_curvature",
    "noise_robustness", "projected_norms", "path_statistics", "convexity_curve", "detection_scores", "detection_roc",
    "detection_areas", "recovery_accuracy",
}  # fmt: skip


def ask(locations: Path | Iterable[Path], sql: str) -> list[dict[str, Any]]:
    with open_results(locations if isinstance(locations, Path) else list(locations)) as database:
        return database.query(sql).rows()


def by(rows: Iterable[Mapping[str, Any]], *names: str) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Rows by the columns that identify them, none twice."""
    rows = list(rows)
    found = {tuple(row[name] for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


def error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def ratio_error(hits: np.ndarray, tries: np.ndarray) -> float:
    """Standard error of sum(hits) / sum(tries) over independent rows."""
    residual = hits - hits.sum() / tries.sum() * tries
    return float(np.sqrt(len(hits) / (len(hits) - 1) * (residual**2).sum()) / tries.sum())


def same(found: Mapping[str, Any], **expected: Any) -> None:
    for name, value in expected.items():
        expected_value = None if value is None else pytest.approx(value, rel=1e-10, abs=1e-12)
        assert found[name] == expected_value, name


def test_the_macros_of_a_kind_are_there_with_its_tables(tmp_path: Path) -> None:
    write_boundary(tmp_path / "distances", splits={"test": 3}, curvature=False)
    with open_results(tmp_path / "distances") as database:
        assert BOUNDARY & {macro.name for macro in database.macros} == {"boundary_distances", "curvature_summary"}
        assert database.query("FROM curvature_summary()").rows() == []


@pytest.mark.parametrize("region", ["predicted", "label"])
def test_distances(tmp_path: Path, region: str) -> None:
    found = write_boundary(
        tmp_path / "run", splits=SPLITS, region=region, failed=[2], blocked=0.1, unit_size=30, commit=3
    )
    rows = by(ask(tmp_path / "run", "FROM boundary_distances()"), "split", "correct", "quantity")
    split, status, distance = (
        found.split("boundary"),
        *(found.column("boundary", name) for name in ("status", "distance")),
    )
    samples = found.tables["samples"].to_pylist()
    correct = np.array([row["predicted"] == row["label"] for row in samples if row["error"] is None])
    assert {name for name, *_ in rows} == {"train", "test"}
    for (name, right, quantity), row in rows.items():
        part = (split == name) & (correct == right)
        known = part & (status == "found")
        counts = {f"n_{kind}": int((part & (status == kind)).sum()) for kind in ("found", "outside", "blocked")}
        assert {key: row[key] for key in ("n", *counts)} == {"n": part.sum(), **counts}
        values = distance[known] / (found.column("boundary", "image_norm")[known] if quantity == "relative" else 1)
        if not len(values):
            assert row["mean"] is row["p50"] is None
            continue
        same(row, mean=values.mean())
        np.testing.assert_allclose([row[f"p{p}"] for p in PERCENTILES], np.percentile(values, PERCENTILES), rtol=1e-12)
    assert sum(row["n_outside"] for row in rows.values()) == (0 if region == "predicted" else 2 * int((~correct).sum()))


def test_curvature_by_sample_and_by_step(tmp_path: Path) -> None:
    found = write_boundary(
        tmp_path / "run", splits=SPLITS, spectrum=4, dimension=40, steps=(0.01, 0.1, 1.0), failed=[5], blocked=0.1
    )
    rows = by(ask(tmp_path / "run", "FROM curvature_summary()"), "split")
    split, stderr = found.split("boundary"), found.column("boundary", "curvature_stderr")
    for (name,), row in rows.items():
        values = found.column("boundary", "mean_curvature")
        part = (split == name) & ~np.isnan(values)
        values = values[part]
        assert (row["method"], row["step"], row["n"]) == ("differences", 0.1, len(values))
        same(row, mean_curvature=values.mean(), stderr=error(values), median_curvature=np.median(values))
        same(row, share_negative=np.mean(values < 0), share_uncertain=np.mean(np.abs(values) < 2 * stderr[part]))
        largest = found.column("boundary", "largest_curvature")[split == name]
        same(row, mean_largest=None if np.isnan(largest).all() else np.nanmean(largest))
    assert rows["train",]["hessian_asymmetry"] == pytest.approx(0.02)
    rows = by(ask(tmp_path / "run", "FROM curvature_by_step()"), "split", "step")
    assert list(rows) == [(name, step) for name in ("test", "train") for step in (0.01, 0.1, 1.0)]
    split, step = found.split("curvature_steps"), found.column("curvature_steps", "step")
    for (name, at), row in rows.items():
        values = found.column("curvature_steps", "mean_curvature")[(split == name) & (step == at)]
        assert row["n"] == len(values)
        same(row, mean_curvature=values.mean(), stderr=error(values), share_negative=np.mean(values < 0))
        same(row, mean_magnitude=0.3 / (0.2 + at))


def test_profiles_of_whole_spectra_and_of_both_ends(tmp_path: Path) -> None:
    whole = write_boundary(tmp_path / "whole", splits=SPLITS, spectrum=40, dimension=30, blocked=0)
    ends = write_boundary(tmp_path / "ends", splits=SPLITS, ends=40, n_ends=3, dimension=3072, blocked=0)
    rows = by(ask((tmp_path / "whole", tmp_path / "ends"), "FROM curvature_profile()"), "scan", "split", "rank")
    assert len(rows) == 2 * 29 + 2 * 6
    for scan, found in (("whole", whole), ("ends", ends)):
        split, rank, curvature = (
            found.split("curvatures"),
            *(found.column("curvatures", n) for n in ("rank", "curvature")),
        )
        n = found.column("curvatures", "n")[0]
        mean = {key: curvature[(split == key[0]) & (rank == key[1])].mean() for key in {*zip(split, rank, strict=True)}}
        for (name, place), value in mean.items():
            row, values = rows[scan, name, place], curvature[(split == name) & (rank == place)]
            assert (row["n"], row["n_samples"]) == (n, {"train": 30, "test": 10}[name])
            same(row, mean=value, stderr=error(values), asymmetry=value + mean[name, n + 1 - place], mean_residual=1e-4)
            np.testing.assert_allclose(
                [row[f"p{p}"] for p in (5, 25, 50, 75, 95)], np.percentile(values, (5, 25, 50, 75, 95)), rtol=1e-10
            )


def test_shared_directions(tmp_path: Path) -> None:
    found = write_directions(tmp_path / "run", splits=SPLITS, shared=12, draws=7, failed=[1])
    rows = by(ask(tmp_path / "run", "FROM shared_curvature()"), "split", "direction")
    table = "direction_curvatures"
    split, direction = found.split(table), found.column(table, "direction")
    assert list(rows) == [(name, i) for name in ("test", "train") for i in range(1, 13)]
    for (name, i), row in rows.items():
        part = (split == name) & (direction == i)
        rho, curvature = (found.column(table, column)[part] for column in ("rho", "curvature"))
        assert row["n"] == len(rho) == SPLITS[name] - (name == "train")
        same(row, mean_rho=rho.mean(), stderr=error(rho), median_rho=np.median(rho), mean_curvature=curvature.mean())
    rows = by(ask(tmp_path / "run", "FROM noise_robustness()"), "split", "space", "magnitude")
    split, space, magnitude, draws, changed = (
        found.split("direction_noise"),
        *(found.column("direction_noise", column) for column in ("space", "magnitude", "draws", "changed")),
    )
    assert len(rows) == 2 * 2 * 6
    for (name, where, size), row in rows.items():
        part = (split == name) & (space == where) & (magnitude == size)
        rate = changed[part].sum() / draws[part].sum()
        same(row, n=part.sum(), draws=draws[part].sum(), changed=changed[part].sum(), rate=rate)
        same(row, stderr=ratio_error(changed[part], draws[part]))
        same(row, stderr=error(changed[part] / 7), binomial_stderr=np.sqrt(rate * (1 - rate) / draws[part].sum()))
    rows = by(ask(tmp_path / "run", "FROM projected_norms() WHERE split = 'test'"), "perturbation")
    assert [kind for (kind,) in rows] == ["random", "adversarial", "difference", "image gradient", "logit gradient"]
    part = found.split("direction_norms") == "test"
    for (kind,), row in rows.items():
        share = found.column("direction_norms", "share")[
            part & (found.column("direction_norms", "perturbation") == kind)
        ]
        same(row, n=70, mean_share=share.mean(), stderr=error(share))


def test_paths(tmp_path: Path) -> None:
    found = write_paths(tmp_path / "run", pairs=30, pictures=0, unconnected=2, errors=3, unit_size=25, commit=3)
    rows = by(ask(tmp_path / "run", "FROM path_statistics()"), "scenario")
    assert [name for (name,) in rows] == ["data", "adversarial", "noise"]
    for (name,), row in rows.items():
        part = [path for path in found.tables["paths"].to_pylist() if path["scenario"] == name]
        made = [path for path in part if path["error"] is None]
        good = [path for path in made if path["connected"]]
        ratio = [path["length_ratio"] for path in good]
        straight = [path["straight"] for path in made]
        same(row, pairs=len(made), errors=len(part) - len(made), connected=len(good), straight=sum(straight))
        same(row, share_connected=len(good) / len(made), share_straight=np.mean(straight))
        same(row, mean_anchors=np.mean([path["anchors"] for path in good]))
        same(row, mean_anchors_bent=np.mean([path["anchors"] for path in good if not path["straight"]]))
        same(row, max_anchors=max(path["anchors"] for path in good), mean_length_ratio=np.mean(ratio))
        same(row, median_length_ratio=np.median(ratio), max_length_ratio=max(ratio))
        same(row, checked=sum(path["checked"] for path in made), mean_distance=np.mean([p["distance"] for p in made]))
    assert rows["data",]["pairs"] == 27


def test_convexity(tmp_path: Path) -> None:
    found = write_convexity(tmp_path / "run", k=(3, 2, 20), groups=25, combinations=60_000, errors=4)
    write_convexity(tmp_path / "none", k=(2,), groups=3, errors=3)
    rows = by(ask((tmp_path / "run", tmp_path / "none"), "FROM convexity_curve()"), "scan", "k")
    assert list(rows) == [("none", 2), ("run", 2), ("run", 3), ("run", 20)]
    empty = rows["none", 2]
    same(empty, groups=0, errors=3, share_inside=None, stderr=None, share_whole=None)
    for k in (2, 3, 20):
        part = found.tables["convexity"].to_pylist()
        inside = np.array([row["inside"] for row in part if row["k"] == k and row["error"] is None])
        tried = np.full(len(inside), 60_000)
        row = rows["run", k]
        same(
            row,
            groups=21,
            errors=4,
            combinations=21 * 60_000,
            inside=inside.sum(),
            share_whole=np.mean(inside == tried),
        )
        assert row["share_inside"] == pytest.approx(inside.sum() / tried.sum())
        assert row["stderr"] == pytest.approx(ratio_error(inside, tried), rel=1e-6)


SCORES: dict[str, Callable[[Written], np.ndarray]] = {
    "rho": lambda found: found.column("detections", "rho"),
    "max_softmax": lambda found: 1 - found.column("detections", "max_softmax"),
    "energy": lambda found: found.column("detections", "energy"),
}


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    """A scan with ties, with samples without perturbed versions, and with values of rho that are not finite."""
    location = tmp_path_factory.mktemp("detection") / "run"
    found = write_detect(
        location,
        splits=SPLITS,
        scales=(1.02, 3.0),
        digits=2,
        failed=[4],
        unfound=[0, 50, 51],
        unknown=[7, 60],
        uncrossed=[8, 61, 62],
        seed=3,
    )
    return location, found


def versions(
    found: Written, split: str, attack: str, scale: float, measure: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, whether they are perturbed, and scores of what is compared."""
    kind, at, score = found.column("detections", "attack"), found.column("detections", "scale"), SCORES[measure](found)
    asked = (found.split("detections") == split) & np.isfinite(score)
    moved = found.column("detections", "perturbed") | (kind != "deepfool")
    kept = asked & ((kind == "none") | ((kind == attack) & (at == scale) & moved))
    return found.column("detections", "sample_id")[kept], kind[kept] == attack, score[kept]


def test_roc_points_are_those_of_scikit_learn(detection: tuple[Path, Written]) -> None:
    location, found = detection
    rows = ask(location, "FROM detection_roc() WHERE split = 'test'")
    keys = list(dict.fromkeys((row["attack"], row["scale"], row["measure"]) for row in rows))
    assert keys == [
        (a, s, m) for a in ("deepfool", "noise") for s in (1.02, 3.0) for m in ("energy", "max_softmax", "rho")
    ]
    for key in keys:
        part = [row for row in rows if (row["attack"], row["scale"], row["measure"]) == key]
        _, perturbed, score = versions(found, "test", *key)
        fpr, tpr, thresholds = roc_curve(perturbed, score, drop_intermediate=False)
        assert [row["threshold"] for row in part] == [None, *thresholds[1:]]
        np.testing.assert_allclose([row["fpr"] for row in part], fpr)
        np.testing.assert_allclose([row["tpr"] for row in part], tpr)
        precision, _, _ = precision_recall_curve(perturbed, score)
        np.testing.assert_allclose([row["precision"] for row in part[1:]], precision[:-1][::-1])


def test_areas_and_their_errors(detection: tuple[Path, Written]) -> None:
    location, found = detection
    rows = by(ask(location, "FROM detection_areas()"), "split", "attack", "scale", "measure")
    assert len(rows) == 2 * 2 * 2 * 3
    for (split, *key), row in rows.items():
        names, perturbed, score = versions(found, split, *key)
        assert (row["n_perturbed"], row["n_original"]) == (perturbed.sum(), (~perturbed).sum())
        same(row, roc_area=roc_auc_score(perturbed, score), average_precision=average_precision_score(perturbed, score))
        same(row, roc_stderr=paired_error(names, perturbed, score))
    assert rows["test", "deepfool", 1.02, "rho"]["roc_area"] > 0.9 > rows["test", "deepfool", 3.0, "rho"]["roc_area"]


def paired_error(names: np.ndarray, perturbed: np.ndarray, score: np.ndarray) -> float:
    """Obuchowski's (1997) standard error of the area, from all pairs: a cluster is a sample and its version."""
    one, other = score[perturbed], score[~perturbed]
    wins = (one[:, None] > other) + 0.5 * (one[:, None] == other)
    area, m, n = wins.mean(), len(one), len(other)
    first = dict(zip(names[perturbed], wins.mean(1) - area, strict=True))
    second = dict(zip(names[~perturbed], wins.mean(0) - area, strict=True))
    every = {*first, *second}
    covariance = sum(first.get(name, 0.0) * second.get(name, 0.0) for name in every) * len(every) / (len(every) - 1)
    squares = [sum(value**2 for value in part.values()) / (len(part) - 1) for part in (first, second)]
    return float(np.sqrt(squares[0] / m + squares[1] / n + 2 * covariance / (m * n)))


@pytest.mark.parametrize("threshold", [0.02, 1.0])
def test_recovery(detection: tuple[Path, Written], threshold: float) -> None:
    location, found = detection
    rows = by(ask(location, f"FROM recovery_accuracy(threshold := {threshold})"), "split", "attack", "scale")
    split, attack, scale, rho, label, original = (
        found.split("detections"),
        *(found.column("detections", name) for name in ("attack", "scale", "rho", "recovered_label", "original")),
    )
    assert [key[1:] for key in rows if key[0] == "train"] == [
        ("none", 0.0), ("deepfool", 1.02), ("deepfool", 3.0), ("noise", 1.02), ("noise", 3.0),
    ]  # fmt: skip
    for (name, kind, at), row in rows.items():
        part = (split == name) & (attack == kind) & (scale == at) & np.isfinite(rho)
        part &= found.column("detections", "perturbed") | (kind != "deepfool")
        flagged, right = rho[part] >= threshold, label[part] == original[part]
        n, share = part.sum(), flagged.mean()
        same(row, n=n, n_changed=n if kind == "deepfool" else 0, mean_rho=rho[part].mean(), rho_stderr=error(rho[part]))
        same(row, share_flagged=share, flagged_stderr=np.sqrt(share * (1 - share) / n))
        if kind != "deepfool":
            same(row, recovered_of_flagged=None, recovered_of_all=None, of_all_stderr=None, chance=None)
            continue
        of_all = right.mean()
        same(row, recovered_of_all=of_all, chance=1 / 9)
        of_flagged = right[flagged].mean() if flagged.any() else None
        stderr = None if of_flagged is None else np.sqrt(of_flagged * (1 - of_flagged) / flagged.sum())
        same(row, recovered_of_flagged=of_flagged, of_flagged_stderr=stderr)
        same(row, of_all_stderr=np.sqrt(of_all * (1 - of_all) / n))


def test_scans_are_kept_apart(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        write_detect(tmp_path / name, splits={"test": 12}, scales=(2.0,), noise=False, seed=seed)
    together = ask((tmp_path / "one", tmp_path / "two"), "FROM detection_areas()")
    apart = [row for name in ("one", "two") for row in ask(tmp_path / name, "FROM detection_areas()")]
    assert [row["scan"] for row in together] == ["one"] * 3 + ["two"] * 3
    for found, expected in zip(together, apart, strict=True):
        assert found == {
            key: pytest.approx(value) if isinstance(value, float) else value for key, value in expected.items()
        }


def test_an_unperturbed_scan_has_nothing_to_detect(tmp_path: Path) -> None:
    write_detect(tmp_path / "run", splits={"test": 5}, unfound=range(5))
    assert ask(tmp_path / "run", "FROM detection_areas()") == ask(tmp_path / "run", "FROM detection_roc()") == []
    (row,) = ask(tmp_path / "run", "FROM recovery_accuracy()")
    assert (row["attack"], row["n"]) == ("none", 5)
