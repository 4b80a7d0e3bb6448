"""The SQL macros against NumPy."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from synthetic import STARTED, Truth, write_scan

from raysense.engine.store import encode_schemas
from raysense.query.catalogue import describe_macros, read_macros
from raysense.query.connection import open_results
from raysense.scans import get_scan

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
        assert set(database.tables()) == {"units", "scans", "classes"}


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
