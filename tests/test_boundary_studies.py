"""The studies of decision boundaries, on real Ray, from their options to their tables and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_process import Here

import raysense
from raysense.errors import UsageError
from raysense.studies.boundary_curvature import run_curvature
from raysense.studies.boundary_detection import run_detection
from raysense.studies.boundary_topology import run_topology

RUN = {"workers": 1, "worker_cpus": 1, "batch_size": 16}
SMOOTH = "raysense.studies.networks:smooth_digits?width=4"
KINKED = "raysense.studies.networks:plain_digits?width=4"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysense.engine.run.Dispatcher", Here)


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures take longer than the scans; tests of the report look at them."""
    monkeypatch.setattr("raysense.studies.study.write_report", lambda *given, **named: [])


def rows(directory: Path, query: str) -> list[dict[str, Any]]:
    with raysense.open_results(directory) as database:
        return database.query(query).rows()


@pytest.mark.usefixtures("local_ray")
def test_curvature_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "model": (SMOOTH,),
        "limit": 24,
        "split": "test",
        "directions": 8,
        "extremes": 2,
        "step_study": "0.01,0.3",
        "directions_limit": 12,
        "keep_directions": 4,
        "noise": "0.1,0.5",
        "draws": 4,
    }
    assert run_curvature(tmp_path, options, RUN, quiet=True) == 0
    printed = capsys.readouterr().out
    for title in ("Distance to the decision", "Mean curvature", "as a function of", "relative to random", "Table 1"):
        assert title in printed
    found = rows(tmp_path / "smooth_digits-boundary", "FROM curvature_summary()")
    assert [(row["method"], row["n"]) for row in found] == [("exact", 24)]
    distances = rows(tmp_path / "smooth_digits-boundary", "FROM boundary_distances() WHERE quantity = 'distance'")
    assert all(0 < row["p50"] < 8 and row["n_found"] == row["n"] for row in distances)
    norms = rows(tmp_path / "smooth_digits-shared", "FROM projected_norms()")
    shares = {row["perturbation"]: row["mean_share"] for row in norms}
    assert shares["adversarial"] > shares["random"]
    noise = rows(tmp_path / "smooth_digits-shared", "FROM noise_robustness()")
    assert len(noise) == 4
    assert {row["draws"] for row in noise} == {4 * 24}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/commits/*.json")}
    assert run_curvature(tmp_path, options, RUN, quiet=True) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/commits/*.json")}


@pytest.mark.usefixtures("local_ray", "_no_report")
def test_topology_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "model": (SMOOTH,),
        "pairs": 6,
        "spacing": 0.01,
        "pictures": 1,
        "resolution": 16,
        "groups": 6,
        "k": "2,5",
    }
    assert run_topology(tmp_path, {**options, "split": "test"}, RUN, quiet=True) == 0
    assert "Paths between points" in capsys.readouterr().out
    found = rows(tmp_path / "smooth_digits-paths", "FROM path_statistics()")
    assert [(row["scenario"], row["pairs"]) for row in found] == [("data", 6), ("adversarial", 6), ("noise", 6)]
    assert all(row["mean_length_ratio"] is None or row["mean_length_ratio"] >= 1 - 1e-9 for row in found)
    assert sum(row["connected"] for row in found) > 0
    convex = rows(tmp_path / "smooth_digits-convexity", "FROM convexity_curve()")
    assert [(row["k"], row["groups"]) for row in convex] == [(2, 6), (5, 6)]


@pytest.mark.usefixtures("local_ray", "_no_report")
def test_detection_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": (KINKED,), "split": "test", "limit": 12, "directions": 4, "scales": "1.02,2", "top": 3}
    assert run_detection(tmp_path, options, RUN, quiet=True) == 0
    assert "Areas under the ROC curves" in capsys.readouterr().out
    found = rows(tmp_path / "plain_digits", "FROM detections")
    assert sorted({(row["attack"], row["scale"]) for row in found}) == [
        ("deepfool", 1.02), ("deepfool", 2), ("noise", 1.02), ("noise", 2), ("none", 0)
    ]  # fmt: skip
    assert all(
        row["predicted"] != row["original"] for row in found if row["attack"] == "deepfool" and row["scale"] == 1.02
    )
    areas = rows(tmp_path / "plain_digits", "FROM detection_areas()")
    assert {row["measure"] for row in areas} == {"rho", "max_softmax", "energy"}
    assert all(0 <= row["roc_area"] <= 1 for row in areas)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (run_curvature, {"curvature": "means"}, "curvature"),
        (run_curvature, {"noise": "-1"}, "noise.* must be positive numbers, each once"),
        (run_curvature, {"directions_split": "trian"}, "trian"),
        (run_topology, {"k": "1,2"}, "k.* must be one or more sizes of at least 2 images"),
        (
            run_topology,
            {"scenarios": "data,data"},
            "scenarios.* must be one or more of data, adversarial",
        ),
        (run_detection, {"scales": "0.5"}, "scales.* must be one or more numbers above 1"),
    ],
)
def test_studies_refuse_first(tmp_path: Path, run: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", options, RUN, True)
    assert not (tmp_path / "out").exists()
