"""The SQL macros against NumPy."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from synthetic import STARTED, Truth, map_values, write_scan

from raysense.query.catalogue import describe_macros, read_macros
from raysense.query.connection import ResultDatabase, open_results
from raysense.scans import get_scan
from raysense.store.store import encode_schemas

PERCENTILES = [75, 80, 85, 90, 95, 98, 99, 100]


def test_every_macro_documents_itself() -> None:
    described = {name: (signature, doc) for name, signature, doc in describe_macros()}
    assert {"fi_percentiles", "fi_outliers", "throughput"} <= described.keys()
    assert described["fi_outliers"][0] == "fi_outliers(n := 5)"
    for signature, doc in described.values():
        assert re.fullmatch(r"\w+\([^)]*\)", signature)
        assert len(doc) > 20


def test_macros_of_tables_that_no_scan_has_are_left_out(tmp_path: Path) -> None:
    store = write_scan(tmp_path / "run", commit=1).store
    units_only = {"units": get_scan("influence").schemas()["units"]}
    store.directory.write_json("scan.json", {**store.document(), "schemas": encode_schemas(units_only)})
    with open_results([tmp_path / "run"]) as database:
        assert [macro.name for macro in database.macros] == [m.name for m in read_macros() if m.tables <= {"units"}]
        assert set(database.tables()) == {"units", "scans", "classes", "layers", "axes"}


def percentiles(truth: Truth, values: np.ndarray, split: str) -> np.ndarray:
    return np.percentile(values[truth.scored & (truth.split == split)], PERCENTILES)


def test_percentiles_match_numpy(tmp_path: Path) -> None:
    first = write_scan(tmp_path / "first", failed={4: "corrupt"})
    second = write_scan(tmp_path / "second", seed=1, commit=4, method="certified", objective="predicted")
    with open_results([tmp_path / "first", tmp_path / "second"]) as database:
        rows = database.query("FROM fi_percentiles()").rows()
    assert list(rows[0]) == [
        "scan", "target", "layer", "objective", "method", "split", "percentile", "fi", "fi_upper",
    ]  # fmt: skip
    found = {(row["scan"], row["split"]) for row in rows}
    assert found == {("first", "train"), ("first", "test"), ("second", "train")}
    for name, truth in (("first", first), ("second", second)):
        for split in sorted({split for scan, split in found if scan == name}):
            part = [row for row in rows if (row["scan"], row["split"]) == (name, split)]
            assert [row["percentile"] for row in part] == PERCENTILES
            np.testing.assert_allclose([row["fi"] for row in part], percentiles(truth, truth.fi, split), rtol=1e-12)
            np.testing.assert_allclose(
                [row["fi_upper"] for row in part], percentiles(truth, truth.fi_upper, split), rtol=1e-12
            )
    assert {(row["scan"], row["objective"], row["method"]) for row in rows} == {
        ("first", "label", "exact"), ("second", "predicted", "certified"),
    }  # fmt: skip


def test_percentiles_of_a_bound_are_only_bounds(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", method="bound")
    with open_results([tmp_path / "run"]) as database:
        rows = database.query("FROM fi_percentiles() WHERE split = 'test'").rows()
    assert [row["fi"] for row in rows] == [None] * len(PERCENTILES)
    np.testing.assert_allclose(
        [row["fi_upper"] for row in rows], percentiles(truth, truth.fi_upper, "test"), rtol=1e-12
    )


def test_percentiles_with_infinite_and_zero_values(tmp_path: Path) -> None:
    values = {0: 0.0, 1: 1e-30, 2: 1.0, 3: np.inf, 4: np.inf, 5: np.inf, 6: np.inf, 7: np.inf}
    write_scan(tmp_path / "run", splits={"train": 8}, fi=values)
    with open_results([tmp_path / "run"]) as database:
        rows = database.query("FROM fi_percentiles()").rows()
    assert [row["fi"] for row in rows] == [np.inf] * len(PERCENTILES)


def test_outliers_are_the_largest_with_ties_by_id(tmp_path: Path) -> None:
    tied = {3: 1e6, 200: 1e6, 310: 1e6, 17: np.inf, 5: 2e6}
    names = [f"name {i}" for i in range(10)]
    truth = write_scan(tmp_path / "run", fi=tied, class_names=names, full_rank=1.0, failed={9: "corrupt"})
    order = np.lexsort((truth.ids.astype(str), -truth.fi))[:7]
    with open_results([tmp_path / "run"]) as database:
        rows = database.query("FROM fi_outliers(n := 7)").rows()
        assert len(database.query("FROM fi_outliers()").rows()) == 5
    assert [row["place"] for row in rows] == list(range(1, 8))
    assert [row["sample_id"] for row in rows] == truth.ids[order].tolist()
    assert [row["fi"] for row in rows] == truth.fi[order].tolist()
    assert [row["jacobian_norm"] for row in rows] == truth.jacobian_norm[order].tolist()
    assert [row["split"] for row in rows] == truth.split[order].tolist()
    assert [row["label_name"] for row in rows] == [names[i] for i in truth.label[order]]
    assert [row["predicted_name"] for row in rows] == [names[i] for i in truth.predicted[order]]
    np.testing.assert_array_equal([row["p_label"] for row in rows], truth.p_label[order])


def test_outliers_of_every_scan_apart_and_without_class_names(tmp_path: Path) -> None:
    write_scan(tmp_path / "a", commit=1)
    bound = write_scan(tmp_path / "b", method="bound", seed=3)
    with open_results([tmp_path / "a", tmp_path / "b"]) as database:
        rows = database.query("FROM fi_outliers(n := 2)").rows()
    assert [(row["scan"], row["place"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert rows[0]["label_name"] is None
    assert rows[2]["fi"] is None
    assert rows[2]["fi_upper"] == np.nanmax(bound.fi_upper)


def informative(location: Path, arguments: str = "") -> dict[str | None, dict[str, object]]:
    with open_results(location) as database:
        return {row["layer"]: row for row in database.query(f"FROM fi_informative({arguments})").rows()}


def test_informative_counts_rows_at_the_bound(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", fi={1: 0.0, 2: np.inf}, failed={9: "corrupt"}, layers=("conv", "fc"))
    rows = informative(tmp_path / "run")
    assert list(rows) == ["conv", "fc", None] or list(rows) == [None, "conv", "fc"]
    scored = truth.scored
    for layer, fi in ((None, truth.fi), ("conv", truth.layer_fi[0]), ("fc", truth.layer_fi[1])):
        row, values, bound = rows[layer], fi[scored], truth.fi_bound[scored]
        assert row["n"] == len(values)
        assert row["n_at_bound"] == np.sum(values == bound)
        assert row["n_below"] == np.sum(values < bound)
        assert row["n_above"] == 0
        assert row["fraction_at_bound"] == pytest.approx(np.mean(values == bound))
        assert row["fraction_informative"] == pytest.approx(np.mean(values < bound))
        with np.errstate(invalid="ignore"):
            ratio = np.where(values == bound, 1, values / bound)
        assert row["median_ratio"] == pytest.approx(np.median(ratio))
        assert (row["median_rank"], row["max_rank"]) == (9, 9)
    assert informative(tmp_path / "run", "tolerance := 0.5")[None]["n_below"] == np.sum(
        truth.fi[scored] < 0.5 * truth.fi_bound[scored]
    )


def test_informative_of_intervals_and_bounds(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "certified", method="certified")
    row = informative(tmp_path / "certified")[None]
    assert row["n_below"] == np.sum(truth.fi_upper < (1 - 1e-6) * truth.fi_bound)
    assert row["n_at_bound"] == len(truth.fi) - row["n_below"]  # type: ignore[operator]
    write_scan(tmp_path / "bound", method="bound")
    row = informative(tmp_path / "bound")[None]
    assert row["n"] == len(truth.fi)
    unknown = ("n_at_bound", "n_below", "n_above", "fraction_at_bound", "fraction_informative", "median_ratio")
    assert [row[name] for name in unknown] == [None] * 6


def test_layers_come_in_the_networks_order(tmp_path: Path) -> None:
    names = ("stem.conv", "body.1", "body.0", "head")
    truth = write_scan(tmp_path / "run", layers=names, failed={9: "corrupt"}, fi={3: 0.0})
    with open_results(tmp_path / "run") as database:
        assert database.query("SELECT layer, position FROM layers").rows() == [
            {"layer": name, "position": index + 1} for index, name in enumerate(names)
        ]
        rows = database.query("FROM layer_fi()").rows()
    assert [(row["layer"], row["position"]) for row in rows] == [(name, i + 1) for i, name in enumerate(names)]
    for row, values in zip(rows, truth.layer_fi[:, truth.scored], strict=True):
        assert row["n"] == len(values)
        found = [row[f"p{percentile}"] for percentile in (50, 75, 95, 99, 100)]
        np.testing.assert_allclose(found, np.percentile(values, (50, 75, 95, 99, 100)), rtol=1e-12)
        assert row["mean_log10_fi"] == pytest.approx(np.log10(values[values > 0]).mean())
        assert row["fraction_at_bound"] == pytest.approx(np.mean(values == truth.fi_bound[truth.scored]))
        assert row["median_jacobian_norm"] == pytest.approx(np.median(truth.jacobian_norm[truth.scored]))


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A scan with outliers whose values are tied in many places."""
    location = tmp_path_factory.mktemp("detection") / "run"
    rng = np.random.default_rng(1)
    tied = dict(enumerate(np.round(rng.exponential(size=300) * 4) / 4))
    truth = write_scan(location, splits={"train": 400, "outlier": 60}, fi=tied, cook=True, layers=("fc",), seed=2)
    return location, truth


def measures(truth: Truth) -> dict[str, np.ndarray]:
    return {
        "cook": truth.cook, "fi": truth.fi, "fi_bound": truth.fi_bound, "jacobian_norm": truth.jacobian_norm,
    }  # fmt: skip


def test_roc_points_are_those_of_scikit_learn(detection: tuple[Path, Truth]) -> None:
    location, truth = detection
    with open_results(location) as database:
        rows = database.query("FROM outlier_roc() WHERE layer IS NULL").rows()
        assert database.query("FROM outlier_roc(outlier_split := 'test')").rows() == []
    assert list(dict.fromkeys(row["measure"] for row in rows)) == list(measures(truth))
    for measure, values in measures(truth).items():
        part = [row for row in rows if row["measure"] == measure]
        outlier = truth.split == "outlier"
        fpr, tpr, thresholds = roc_curve(outlier, values, drop_intermediate=False)
        assert [row["threshold"] for row in part] == [None, *thresholds[1:]]
        np.testing.assert_allclose([row["fpr"] for row in part], fpr)
        np.testing.assert_allclose([row["tpr"] for row in part], tpr)
        precision, recall, _ = precision_recall_curve(outlier, values)
        np.testing.assert_allclose([row["precision"] for row in part[1:]], precision[-2::-1])
        np.testing.assert_allclose([row["recall"] for row in part], recall[::-1])


def weights(database: ResultDatabase, replicates: int, seed: int) -> np.ndarray:
    """Weights of the bootstrap, shape [replicates, samples], samples by id."""
    found = database.query(
        f"SELECT poisson_weight(sample_id, r::INTEGER, seed := {seed}) AS w "
        f"FROM samples, range(1, {replicates + 1}) AS x(r) ORDER BY r, sample_id"
    ).table()
    return found["w"].to_numpy().reshape(replicates, -1)


def test_areas_are_those_of_scikit_learn(detection: tuple[Path, Truth]) -> None:
    location, truth = detection
    order = np.argsort(truth.ids.astype(str))
    outlier = (truth.split == "outlier")[order]
    with open_results(location) as database:
        rows = database.query("FROM outlier_areas(replicates := 20, seed := 7, level := 0.8)").rows()
        with_layers = database.query("FROM outlier_areas(replicates := 2, layers := true)").rows()
        drawn = weights(database, 20, 7)
    assert [row["layer"] for row in rows] == [None] * 4
    assert {row["layer"] for row in with_layers} == {None, "fc"}
    for row, (measure, values) in zip(rows, measures(truth).items(), strict=True):
        assert (row["measure"], row["n"], row["n_outliers"]) == (measure, 460, 60)
        values = values[order]
        assert row["roc_area"] == pytest.approx(roc_auc_score(outlier, values), rel=1e-12)
        assert row["pr_area"] == pytest.approx(average_precision_score(outlier, values), rel=1e-12)
        roc, pr = [], []
        for weight in drawn:
            # Outliers and others keep their numbers.
            fixed = weight * np.where(outlier, 60 / weight[outlier].sum(), 400 / weight[~outlier].sum())
            roc.append(roc_auc_score(outlier, values, sample_weight=fixed))
            pr.append(average_precision_score(outlier, values, sample_weight=fixed))
        found = [row[name] for name in ("roc_lower", "roc_upper", "pr_lower", "pr_upper")]
        expected = [*np.percentile(roc, (10, 90)), *np.percentile(pr, (10, 90))]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_bootstrap_weights_are_poisson_and_independent(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", splits={"train": 2000}, unit_size=2000)
    with open_results(tmp_path / "run") as database:
        drawn = weights(database, 50, 0)
        np.testing.assert_array_equal(drawn, weights(database, 50, 0))
        assert (drawn != weights(database, 50, 1)).mean() > 0.5
    frequency = np.bincount(drawn.ravel(), minlength=5)[:5] / drawn.size
    np.testing.assert_allclose(frequency, np.exp(-1) / np.array([1, 1, 2, 6, 24]), atol=0.006)
    correlations = np.corrcoef(drawn)[np.triu_indices(50, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(2000)


def test_outlier_areas_without_outliers_or_with_a_bound_only(tmp_path: Path) -> None:
    write_scan(tmp_path / "none", splits={"train": 50})
    truth = write_scan(tmp_path / "bound", splits={"train": 50, "outlier": 5}, method="bound")
    with open_results([tmp_path / "none", tmp_path / "bound"]) as database:
        (row,) = database.query("FROM outlier_areas(replicates := 5)").rows()
    assert (row["scan"], row["measure"]) == ("bound", "fi_bound")
    assert row["roc_area"] == pytest.approx(roc_auc_score(truth.split == "outlier", truth.fi_bound))


def test_peaks_of_pixel_maps(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", maps=(2, 60), map_shape=(3, 5, 9))
    with open_results(tmp_path / "run") as database:
        rows = database.query("FROM map_peaks(n := 4)").rows()
        assert len(database.query("FROM map_peaks()").rows()) == 2 * 4 * 4 * 5
    assert len(rows) == 2 * 4 * 4 * 4
    for index in range(0, len(rows), 4):
        part, first = rows[index : index + 4], rows[index]
        number = truth.ids.tolist().index(first["sample_id"])
        values = map_values(truth, number, first["scale"], first["channel"])
        at = [np.unravel_index(i, values.shape) for i in np.argsort(-values.ravel(), kind="stable")[:4]]
        assert [(row["row"], row["column"]) for row in part] == at
        assert [row["fi"] for row in part] == [values[i] for i in at]
        assert [row["place"] for row in part] == [1, 2, 3, 4]
        assert {row["fi_bound"] for row in part} == {truth.fi_bound[number]}


def units_table(spans: list[tuple[str, float, float, int]]) -> pa.Table:
    schema = get_scan("influence").schemas()["units"]
    rows = [
        {
            "unit": f"u{i}", "worker": worker, "node": "n", "device": "cpu", "attempt": 1, "batch_size": 8,
            "started": STARTED + timedelta(seconds=start), "seconds": seconds, "rows": count,
        }
        for i, (worker, start, seconds, count) in enumerate(spans)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def test_throughput_leaves_out_the_pause_before_a_resume(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", commit=0)
    spans = [("a", 0, 10, 100), ("a", 10, 10, 100), ("b", 0, 12, 50), ("c", 5000, 5, 30), ("c", 5005, 5, 30)]
    schemas = get_scan("influence").schemas()
    empty = {name: schemas[name].empty_table() for name in ("samples", "influence")}
    truth.store.commit("u", {**empty, "units": units_table(spans)}, {})
    with open_results([tmp_path / "run"]) as database:
        rows = {row["worker"]: row for row in database.query("FROM throughput()").rows()}
        whole = database.query("FROM throughput(pause := 1e9) WHERE worker IS NULL").rows()
    assert list(rows) == ["a", "b", "c", None]
    total = rows[None]
    assert (total["units"], total["rows"], total["busy_seconds"], total["wall_seconds"]) == (5, 310, 42.0, 30.0)
    assert total["rows_per_second"] == pytest.approx(310 / 30)
    assert total["efficiency"] == pytest.approx(42 / (20 + 20 + 10))
    assert rows["b"]["efficiency"] == pytest.approx(12 / 20)
    assert rows["c"]["wall_seconds"] == pytest.approx(10)
    assert whole[0]["wall_seconds"] == pytest.approx(5010)
