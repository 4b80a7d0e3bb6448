"""The SQL macros of the significance scan against dense float64 NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_significance import LAYERS, Truth, write_counts, write_significance

from raysense.errors import UsageError
from raysense.query.connection import ResultDatabase, open_results

SCANS: dict[str, dict[str, Any]] = {
    "trained": {"failed": ["train/000003", "test/000004"]},  # the latter is its class's only sample
    "untrained": {
        "structure": "untrained", "splits": {"train": (60, 40, 50)}, "layers": {"fc": (4, 6)}, "unit_size": 25,
    },
    "dense": {"dense": 1.0, "positions": {"classifier.4": 3}},
    "sparse": {"dense": 0.0, "sample_seed": 1},
    "mean_abs": {"structure": "mean_abs", "threshold": "mean_abs"},
    "partial": {"commit": {0, 3, 4, 5, 9, 14}},
    "one class": {"splits": {"train": (7,), "test": (1,)}},
    "one sample": {"splits": {"train": (1, 1, 1)}, "class_names": ["ant", "bee", "cat"]},
    # So many that paths exceptional in most of them are not joined.
    "many classes": {
        "splits": {"train": [1 + 2 * (index % 11) for index in range(60)]}, "layers": {"b": (7, 16), "a": (6, 11)},
        "unit_size": 12, "positions": {"b": 4, "a": 4},
    },
    "many classes, mean_abs": {
        "structure": "mean_abs", "splits": {"train": [1 + index % 4 for index in range(60)]}, "layers": {"b": (2, 3)},
    },
}  # fmt: skip
EVERY_COUNT = {"every count": 1, "every count, many classes": 5}
SMOOTHINGS = (0.5, 2, 0)
MACROS = (
    "kl_matrix",
    "class_entropy",
    "class_separation",
    "path_summary",
    "sparsity",
    "significant_paths",
    "path_probabilities",
)


def ask(results: ResultDatabase | Path | Iterable[Path], sql: str) -> list[dict[str, Any]]:
    if isinstance(results, ResultDatabase):
        return results.query(sql).rows()
    with open_results(results if isinstance(results, Path) else list(results)) as database:
        return database.query(sql).rows()


def distributions(truth: Truth, split: str, layer: str) -> tuple[list[int | None], np.ndarray, np.ndarray]:
    """Classes that have observations, then None for all; their counts [classes, rows, columns]; their observations."""
    total = truth.n_observations[split, layer]
    seen = np.flatnonzero(total)
    counts = truth.counts[split, layer]
    return (
        [*seen.tolist(), None] if len(seen) else [],
        np.concatenate([counts[seen], counts.sum(axis=0, keepdims=True)]),
        np.append(total[seen], total.sum()),
    )


def smoothed(truth: Truth, split: str, layer: str, smoothing: float) -> dict[int | None, np.ndarray]:
    """Probabilities [rows, columns] of every class, and of all classes together (None)."""
    labels, counts, total = distributions(truth, split, layer)
    p = (counts + smoothing) / (total + 2 * smoothing)[:, None, None]
    return dict(zip(labels, p, strict=False))


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(a == 0, 0, a * np.log(a / b)) for a, b in ((p, q), (1 - p, 1 - q))]
    return float(np.mean(terms[0] + terms[1]))


def entropy(p: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(-np.mean(sum(np.where(a == 0, 0, a * np.log(a)) for a in (p, 1 - p))))


def keys(truth: Truth, layers: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Splits and layers with observations, as the macros order them: splits by name, layers by execution."""
    named = [layer for split, layer in truth.counts if split == next(iter(truth.n_samples))]
    return [
        (split, layer)
        for split in sorted(truth.n_samples)
        for layer in named
        if truth.n_observations[split, layer].any() and (layers is None or layer in layers)
    ]


def by(rows: Iterable[Mapping[str, Any]], *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by the columns that identify them, none twice."""
    rows = list(rows)
    found = {tuple(row[name] for name in names): dict(row) for row in rows}
    assert len(found) == len(rows)
    return found


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def assert_same_rows(found: Iterable[Mapping[str, Any]], expected: Iterable[Mapping[str, Any]]) -> None:
    for row, other in zip(found, expected, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert value == (
                pytest.approx(other[name], rel=1e-12, abs=1e-13) if isinstance(value, float) else other[name]
            )


def write_every_count(location: Path, times: int) -> Truth:
    """A class for every way in which one row and its two paths can be significant in two observations."""
    ways = [(whole, a, b) for whole in range(3) for a in range(3 - whole) for b in range(3 - whole)] * times
    counts = np.array(ways)
    return write_counts(location, counts[:, :1], counts[:, None, 1:], np.full(len(ways), 2))


@pytest.fixture(params=[*SCANS, *EVERY_COUNT], scope="module")
def scan(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ResultDatabase, Truth]]:
    location = tmp_path_factory.mktemp("scan") / "run"
    if request.param in EVERY_COUNT:
        truth = write_every_count(location, EVERY_COUNT[request.param])
    else:
        truth = write_significance(location, **SCANS[request.param])
    with open_results(location) as database:
        yield database, truth


def test_many_classes_have_paths_that_most_of_them_share_and_others(tmp_path: Path) -> None:
    truth = write_significance(tmp_path / "run", **SCANS["many classes"])
    for name in ("a", "b"):
        exceptional = (truth.exceptions["train", name] > 0).sum(axis=0)
        assert exceptional.max() > 35
        assert ((exceptional > 0) & (exceptional < 30)).sum() > 10


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_kl_matrix_is_the_dense_one(scan: tuple[ResultDatabase, Truth], smoothing: float) -> None:
    database, truth = scan
    rows = ask(database, f"FROM kl_matrix(smoothing := {smoothing})")
    assert list(rows[0]) == ["scan", "split", "layer", "class_a", "class_b", "kl"]
    expected = [
        ("run", split, layer, a, b, 0.0 if a == b else divergence(p, q))
        for split, layer in keys(truth)
        for a, p in smoothed(truth, split, layer, smoothing).items()
        for b, q in smoothed(truth, split, layer, smoothing).items()
    ]
    assert [tuple(row.values())[:5] for row in rows] == [row[:5] for row in expected]
    assert_same([row["kl"] for row in rows], [row[5] for row in expected])
    assert all(row["kl"] == 0 for row in rows if row["class_a"] == row["class_b"])
    assert all(row["kl"] >= 0 for row in rows)
    if smoothing > 0:
        assert all(np.isfinite(row["kl"]) for row in rows)


def test_without_smoothing_what_b_excludes_is_infinite(scan: tuple[ResultDatabase, Truth]) -> None:
    database, truth = scan
    rows = ask(database, "FROM kl_matrix(smoothing := 0)")
    # What a class does all classes together do not exclude.
    assert all(np.isfinite(row["kl"]) for row in rows if row["class_b"] is None)
    between = [row for row in rows if None not in (row["class_a"], row["class_b"]) and row["class_a"] != row["class_b"]]
    infinite = {(row["split"], row["layer"]) for row in between if np.isinf(row["kl"])}
    for row in ask(database, "FROM path_summary(smoothing := 0)"):
        summed = [found["kl"] for found in between if (found["split"], found["layer"]) == (row["split"], row["layer"])]
        assert row["mean_inter_class_kl"] == (pytest.approx(np.mean(summed), rel=1e-12) if summed else None)
    expected = set()
    for key in keys(truth):
        p = [values for label, values in smoothed(truth, *key, 0).items() if label is not None]
        if any(np.isinf(divergence(a, b)) for a in p for b in p):
            expected.add(key)
    assert infinite == expected


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_entropies(scan: tuple[ResultDatabase, Truth], smoothing: float) -> None:
    database, truth = scan
    rows = ask(database, f"FROM class_entropy(smoothing := {smoothing})")
    assert list(rows[0]) == ["scan", "split", "layer", "class", "class_name", "entropy"]
    expected = [
        (split, layer, label, entropy(p))
        for split, layer in keys(truth)
        for label, p in smoothed(truth, split, layer, smoothing).items()
    ]
    assert [(row["split"], row["layer"], row["class"]) for row in rows] == [row[:3] for row in expected]
    assert_same([row["entropy"] for row in rows], [row[3] for row in expected])


def test_class_paths_and_separation(scan: tuple[ResultDatabase, Truth]) -> None:
    database, truth = scan
    paths = by(ask(database, "FROM class_paths(smoothing := 1)"), "split", "layer", "class")
    rows = ask(database, "FROM class_separation(smoothing := 1)")
    assert list(rows[0]) == [
        "scan", "split", "layer", "class", "class_name", "n_samples", "n_observations", "density", "entropy",
        "mean_kl_to", "mean_kl_from", "nearest", "nearest_name", "nearest_kl",
    ]  # fmt: skip
    order = [(split, layer, label) for split, layer in keys(truth) for label in smoothed(truth, split, layer, 1)]
    assert [(row["split"], row["layer"], row["class"]) for row in rows] == order == list(paths)
    for row in rows:
        split, layer, label = row["split"], row["layer"], row["class"]
        labels, counts, total = distributions(truth, split, layer)
        p = smoothed(truth, split, layer, 1)
        at = labels.index(label)
        samples = truth.n_samples[split]
        assert row["n_samples"] == (samples.sum() if label is None else samples[label])
        assert row["n_observations"] == total[at]
        assert_same(row["density"], np.mean(counts[at] / total[at]))
        assert_same(row["entropy"], entropy(p[label]))
        known = paths[split, layer, label]
        assert (known["n_rows"], known["n_inputs"]) == counts.shape[1:]
        assert_same_rows(*([{name: each[name] for name in known if name in row}] for each in (known, row)))
        others = [other for other in labels if other not in (None, label)]
        if label is None or not others:
            separation = [row[name] for name in ("mean_kl_to", "mean_kl_from", "nearest", "nearest_kl")]
            assert separation == [None] * 4
            continue
        to = [divergence(p[label], p[other]) for other in others]
        assert_same(row["mean_kl_to"], np.mean(to))
        assert_same(row["mean_kl_from"], np.mean([divergence(p[other], p[label]) for other in others]))
        assert_same(row["nearest_kl"], np.min(to))
        assert_same(to[others.index(row["nearest"])], np.min(to))


def test_summary(scan: tuple[ResultDatabase, Truth]) -> None:
    database, truth = scan
    rows = ask(database, "FROM path_summary()")
    assert list(rows[0]) == [
        "scan", "split", "layer", "n_classes", "n_samples", "mean_inter_class_kl", "mean_class_entropy",
        "overall_entropy", "mean_density",
    ]  # fmt: skip
    assert [(row["split"], row["layer"]) for row in rows] == keys(truth)
    for row in rows:
        labels, counts, total = distributions(truth, row["split"], row["layer"])
        p = smoothed(truth, row["split"], row["layer"], 0.5)
        overall = p.pop(None)
        assert (row["n_classes"], row["n_samples"]) == (len(labels) - 1, truth.n_samples[row["split"]].sum())
        pairs = [divergence(p[a], p[b]) for a in p for b in p if a != b]
        if pairs:
            assert_same(row["mean_inter_class_kl"], np.mean(pairs))
        else:
            assert row["mean_inter_class_kl"] is None
        assert_same(row["mean_class_entropy"], np.mean([entropy(values) for values in p.values()]))
        assert_same(row["overall_entropy"], entropy(overall))
        assert_same(row["mean_density"], np.mean(counts[:-1] / total[:-1, None, None]))


@pytest.mark.parametrize("bins", [20, 3, 1])
def test_sparsity(scan: tuple[ResultDatabase, Truth], bins: int) -> None:
    database, truth = scan
    rows = ask(database, "FROM sparsity()" if bins == 20 else f"FROM sparsity(bins := {bins})")
    assert list(rows[0]) == ["scan", "split", "layer", "class", "bin", "low", "high", "n_paths"]
    expected = []
    for split, layer in keys(truth):
        for label, counts, total in zip(*distributions(truth, split, layer), strict=True):
            filled = [0] * bins
            for count in counts.ravel().tolist():
                filled[min(int(Fraction(count, int(total)) * bins), bins - 1)] += 1
            expected += [(split, layer, label, place, filled[place - 1]) for place in range(1, bins + 1)]
    names = ("split", "layer", "class", "bin", "n_paths")
    assert [tuple(row[name] for name in names) for row in rows] == expected
    assert all((row["low"], row["high"]) == ((row["bin"] - 1) / bins, row["bin"] / bins) for row in rows)


def best_lines(truth: Truth, split: str, layer: str, label: int, n: int) -> list[tuple[Any, ...]]:
    """The n most significant lines of a class: p, p_overall, row, column, n_paths."""
    labels, counts, total = distributions(truth, split, layer)
    at = labels.index(label)
    lines: list[tuple[Any, ...]] = []
    for row, exceptional in enumerate(truth.exceptions[split, layer][label] > 0):
        columns = np.flatnonzero(exceptional)
        lines += [(counts[at, row, column], counts[-1, row, column], row, column, 1) for column in columns]
        rest = np.flatnonzero(~exceptional)
        if len(rest):
            overall = Fraction(int(counts[-1, row, rest].sum()), len(rest))
            lines.append((counts[at, row, rest[0]], overall, row, None, len(rest)))
    lines = [line for line in lines if line[0] > 0]
    # Within a class equal p are equal counts, and equal contrasts equal overall counts.
    lines.sort(key=lambda line: (-line[0], line[1], line[2], np.inf if line[3] is None else line[3]))
    return [(line[0] / total[at], float(line[1]) / total[-1], *line[2:]) for line in lines[:n]]


@pytest.mark.parametrize("n", [10, 1000])
def test_significant_paths(scan: tuple[ResultDatabase, Truth], n: int) -> None:
    database, truth = scan
    rows = ask(database, "FROM significant_paths()" if n == 10 else f"FROM significant_paths(n := {n})")
    assert list(rows[0]) == [
        "scan", "split", "layer", "class", "class_name", "place", "row", "column", "n_paths", "p", "p_overall",
        "contrast",
    ]  # fmt: skip
    expected = [
        (split, layer, label, place, *line)
        for split, layer in keys(truth)
        for label in smoothed(truth, split, layer, 0.5)
        if label is not None
        for place, line in enumerate(best_lines(truth, split, layer, label, n), start=1)
    ]
    names = ("split", "layer", "class", "place", "p", "p_overall", "row", "column", "n_paths")
    found = [tuple(row[name] for name in names) for row in rows]
    assert [row[:4] + row[6:] for row in found] == [row[:4] + row[6:] for row in expected]
    assert_same([row[4:6] for row in found], [row[4:6] for row in expected])
    assert_same([row["contrast"] for row in rows], [row[4] - row[5] for row in expected])


def test_path_probabilities(scan: tuple[ResultDatabase, Truth]) -> None:
    database, truth = scan
    rows = ask(database, "FROM path_probabilities()")
    assert list(rows[0]) == [
        "scan", "split", "layer", "class", "row", "column", "count", "n_observations", "p",
    ]  # fmt: skip
    expected = [
        (split, layer, label, row, column, count, int(total), count / total)
        for split, layer in keys(truth)
        for label, counts, total in zip(*distributions(truth, split, layer), strict=True)
        for row, values in enumerate(counts.tolist())
        for column, count in enumerate(values)
    ]
    assert [tuple(row.values())[1:] for row in rows] == expected


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Truth]]:
    """A scan, its network on data that say less of the classes, and one of which a layer has another shape."""
    folder = tmp_path_factory.mktemp("pair")
    narrow = {"classifier.4": (12, 19), "classifier.6": LAYERS["classifier.6"]}
    written: dict[str, dict[str, Any]] = {
        "inside": {"class_names": ["ant", "bee", "cat", "dog"]},
        "outside": {"shift": 0.6, "splits": {"test": (3, 8, 5), "extra": (9, 2, 4)}, "sample_seed": 1},
        "narrow": {"layers": narrow},
    }
    return {name: (folder / name, write_significance(folder / name, **given)) for name, given in written.items()}


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("names", [("inside", "outside"), ("outside", "inside"), ("inside", "inside")])
def test_kl_between_scans(pair: Mapping[str, tuple[Path, Truth]], names: tuple[str, str], smoothing: float) -> None:
    (_, truth_a), (_, truth_b) = (pair[name] for name in names)
    rows = ask(
        [location for location, _ in pair.values()],
        f"FROM kl_between('{names[0]}', '{names[1]}', smoothing := {smoothing})",
    )
    assert list(rows[0]) == ["scan_a", "split_a", "scan_b", "split_b", "layer", "class_a", "class_b", "kl"]
    expected = [
        (names[0], split_a, names[1], split_b, layer, a, b, divergence(p, q))
        for split_a in sorted(truth_a.n_samples)
        for split_b in sorted(truth_b.n_samples)
        for layer in LAYERS
        for a, p in smoothed(truth_a, split_a, layer, smoothing).items()
        for b, q in smoothed(truth_b, split_b, layer, smoothing).items()
    ]
    assert [tuple(row.values())[:7] for row in rows] == [row[:7] for row in expected]
    assert_same([row["kl"] for row in rows], [row[7] for row in expected])
    same = [
        row["kl"]
        for row in rows
        if [row[f"{name}_a"] == row[f"{name}_b"] for name in ("scan", "split", "class")] == [True] * 3
    ]
    assert same == [0.0] * (2 * 2 * 5 if names[0] == names[1] else 0)
    assert min(row["kl"] for row in rows) >= 0


def test_kl_between_many_classes(tmp_path: Path) -> None:
    given = SCANS["many classes"]
    a = write_significance(tmp_path / "a", **given)
    b = write_significance(tmp_path / "b", **given | {"splits": {"x": [4] * 30, "y": [5] * 30}, "sample_seed": 1})
    for smoothing in SMOOTHINGS:
        rows = ask([tmp_path / "a", tmp_path / "b"], f"FROM kl_between('a', 'b', smoothing := {smoothing})")
        assert len(rows) == 2 * 2 * 61 * 31
        p = {key: smoothed(a, *key, smoothing) for key in a.counts}
        q = {key: smoothed(b, *key, smoothing) for key in b.counts}
        expected = [
            divergence(p[row["split_a"], row["layer"]][row["class_a"]], q[row["split_b"], row["layer"]][row["class_b"]])
            for row in rows
        ]
        assert_same([row["kl"] for row in rows], expected)


def test_layers_of_another_shape_are_not_compared(pair: Mapping[str, tuple[Path, Truth]]) -> None:
    rows = ask([location for location, _ in pair.values()], "FROM kl_between('inside', 'narrow')")
    assert {row["layer"] for row in rows} == {"classifier.6"}
    assert len(rows) == 2 * 2 * 5 * 5


def test_scans_are_kept_apart(pair: Mapping[str, tuple[Path, Truth]]) -> None:
    together = [location for location, _ in pair.values()]
    for sql in ("kl_matrix()", "class_separation()", "path_summary()", "sparsity()", "significant_paths()"):
        rows = ask(together, f"FROM {sql}")
        assert [row["scan"] for row in rows] == sorted(row["scan"] for row in rows)
        for name, (location, _) in pair.items():
            part = [row for row in rows if row["scan"] == name]
            assert_same_rows(part, ask(location, f"FROM {sql}"))


@pytest.mark.parametrize("macro", MACROS)
def test_one_layer(pair: Mapping[str, tuple[Path, Truth]], macro: str) -> None:
    location, _ = pair["inside"]
    for name in LAYERS:
        expected = [row for row in ask(location, f"FROM {macro}()") if row["layer"] == name]
        assert expected
        for sql in (f"FROM {macro}(layer := '{name}')", f"FROM {macro}('{name}')"):
            assert_same_rows(ask(location, sql), expected)


def test_one_layer_between_scans(pair: Mapping[str, tuple[Path, Truth]]) -> None:
    rows = ask([location for location, _ in pair.values()], "FROM kl_between('inside', 'outside', 'classifier.6', 1)")
    assert {row["layer"] for row in rows} == {"classifier.6"}
    (_, inside), (_, outside) = pair["inside"], pair["outside"]
    for row in rows:
        p = smoothed(inside, row["split_a"], "classifier.6", 1)[row["class_a"]]
        q = smoothed(outside, row["split_b"], "classifier.6", 1)[row["class_b"]]
        assert_same(row["kl"], divergence(p, q))


def test_class_names(pair: Mapping[str, tuple[Path, Truth]]) -> None:
    known = {0: "ant", 1: "bee", 2: "cat", 3: "dog", None: None}
    location, _ = pair["inside"]
    for macro in ("class_entropy", "class_separation", "significant_paths"):
        rows = ask(location, f"FROM {macro}()")
        assert all(row["class_name"] == known[row["class"]] for row in rows)
    assert all(row["nearest_name"] == known[row["nearest"]] for row in ask(location, "FROM class_separation()"))
    location, _ = pair["outside"]
    assert all(row["class_name"] is None for row in ask(location, "FROM class_separation()"))


def test_trained_networks_tell_classes_apart(tmp_path: Path) -> None:
    found = {}
    for structure in ("untrained", "shuffled", "trained"):
        write_significance(tmp_path / structure, structure=structure, splits={"train": (30, 30, 30, 30)}, unit_size=30)
        found[structure] = ask(tmp_path / structure, "FROM path_summary('classifier.4')")[0]["mean_inter_class_kl"]
    assert 2 * found["untrained"] < found["shuffled"] < found["trained"] / 2


@pytest.mark.parametrize("smoothing", ["-0.1", "NULL", "'nan'::DOUBLE", "'inf'::DOUBLE"])
def test_smoothing_that_is_no_number_is_refused(pair: Mapping[str, tuple[Path, Truth]], smoothing: str) -> None:
    for macro in ("kl_matrix", "class_entropy"):
        with pytest.raises(UsageError, match="smoothing must be a number, 0 or more"):
            ask(pair["inside"][0], f"FROM {macro}(smoothing := {smoothing})")
