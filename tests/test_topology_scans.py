"""The scans of paths, convex combinations and detection, in one process: closed forms, errors, what may not matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import prepared, scanned
from PIL import Image

from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.measures.boundary.margins import UnitVectors
from raysense.options import ComputeOptions
from raysense.scans import Unit, get_scan
from raysense.scans._draws import draws_of, units_of_draws
from raysense.scans._seeds import seed_of

RADIUS = 0.8
MODELS = f"""
import torch
from torch import nn

def distance(x): return (x.flatten(1) - 0.5).square().sum(1)

class Ball(nn.Module):
    '''Class 0 within a ball around grey, class 1 outside.'''
    def forward(self, x):
        d = distance(x) - {RADIUS**2}
        return torch.stack((torch.zeros_like(d), d), dim=1)

class Shell(nn.Module):
    '''Class 0 between two spheres, class 1 elsewhere.'''
    def forward(self, x):
        d = distance(x)
        inside = torch.minimum(d - 0.42, 1.4 - d)
        return torch.stack((inside, torch.zeros_like(inside)), dim=1)

class Far(nn.Module):
    '''No boundary in reach.'''
    def forward(self, x): return torch.stack((1e-6 * x.flatten(1).sum(1), torch.ones(len(x))), dim=1)

class Broken(Ball):
    '''NaN for images with a black corner.'''
    def forward(self, x): return super().forward(x) + torch.where(x.flatten(1)[:, :1] == 0, torch.nan, 0.0)[:, :1]

def ball(): return Ball()
def shell(): return Shell()
def far(): return Far()
def broken(): return Broken()
def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and 40 images of 3 x 2 x 2 values around grey: every other one at distance 0.7, the rest at 1.1."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "models.py").write_text(MODELS)
    drawn = np.random.default_rng(0).normal(size=(40, 12))
    drawn *= (np.where(np.arange(40) % 2, 1.1, 0.7) / np.linalg.norm(drawn, axis=1))[:, None]
    images = (0.5 + np.clip(drawn, -0.5, 0.5)).reshape(40, 2, 2, 3).astype(np.float32)
    np.savez(folder / "data.npz", x=images, y=np.arange(40) % 2)
    np.savez(folder / "shell.npz", x=images, y=np.zeros(40, np.int64))
    (folder / "photos" / "grey").mkdir(parents=True)
    for index in range(7):
        pixels = np.full((2, 2, 3), 120 + index, np.uint8)
        # One has a black corner, which a model below makes NaN of.
        pixels[0, 0, 0] *= index != 5
        Image.fromarray(pixels).save(folder / "photos" / "grey" / f"{index}.png")
    (folder / "photos" / "grey" / "2.png").write_bytes(b"not a picture")
    return folder


def spec_of(zoo: Path, model: str, data: str = "data", **more: Any) -> dict[str, Any]:
    return {"model": f"{zoo}/models.py:{model}", "data": f"npz:{zoo}/{data}.npz", **more}


def computed(kind: str, batch: Any = 16, order: int = 1, **spec: Any) -> dict[str, list[dict[str, Any]]]:
    """All rows of a scan, its units in order or backwards."""
    options = ComputeOptions(device="cpu", batch_size=batch)
    scan, found = prepared(kind, spec, options)
    computer = scan.open(found, options)
    units = scan.units(found)
    parts = {unit.id: computer.compute(unit) for unit in units[::order]}
    assert computer.batch_size > 0
    computer.close()
    tables: dict[str, list[dict[str, Any]]] = {}
    for unit in units:
        assert set(parts[unit.id]) == set(scan.tables()) - {"units"}
        for name, table in parts[unit.id].items():
            assert table.schema.equals(scan.tables()[name], check_metadata=True)
            table.validate(full=True)
            tables.setdefault(name, []).extend(table.to_pylist())
    return tables


def assert_close(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], rel: float) -> None:
    """Equal rows, numbers within rounding."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for name, value in first.items():
            if isinstance(value, float):
                assert second[name] == pytest.approx(value, rel=rel, abs=1e-6), name
            else:
                assert second[name] == value, name


def test_units_of_draws_are_runs_of_one_name() -> None:
    units = units_of_draws(["data", "noise"], 10, 4)
    assert [(unit.id, unit.start, unit.stop) for unit in units] == [
        ("data-0000-0004", 0, 4),
        ("data-0004-0008", 4, 8),
        ("data-0008-0010", 8, 10),
        ("noise-0000-0004", 10, 14),
        ("noise-0004-0008", 14, 18),
        ("noise-0008-0010", 18, 20),
    ]
    draws = [draw for unit in units for draw in draws_of(unit, ["data", "noise"], 10)]
    assert [(draw.name, draw.number) for draw in draws] == [(name, n) for name in ("data", "noise") for n in range(10)]
    assert draws[12].id == "noise-0002"
    assert units_of_draws(["k2"], 20000, 15000)[1].id == "k2-15000-20000"
    assert len({draw.id for draw in draws}) == 20


class TestPaths:
    def test_a_ball_is_crossed_straight(self, zoo: Path) -> None:
        rows = computed("paths", **spec_of(zoo, "ball", pairs=6, spacing=1e-2, scenarios="data,noise"))["paths"]
        assert [row["pair"] for row in rows] == [f"{name}-{n:04d}" for name in ("data", "noise") for n in range(6)]
        own = [row for row in rows if row["class"] == 0]
        assert own
        assert all(row["straight"] and row["connected"] for row in own)
        assert {row["length_ratio"] for row in own} == {1.0}
        assert {(row["anchors"], row["depth"], row["checked"], row["bad_segments"]) for row in own} == {(0, 0, 99, 0)}
        for row in rows:
            assert row["error"] is None
            assert row["spacing"] == pytest.approx(1e-2 * row["distance"])

    def test_pairs_are_what_the_scenario_says(self, zoo: Path) -> None:
        spec = spec_of(zoo, "ball", pairs=5, spacing=0.1)
        rows = computed("paths", **spec)["paths"]
        data = open_data(spec["data"])
        listing = data.list().table
        ids, reader = listing["sample_id"].to_pylist(), data.reader(listing)
        image = {name: reader.read(row).flatten() for row, name in enumerate(ids)}
        inside = {name: bool((pixels - 0.5).norm() < RADIUS) for name, pixels in image.items()}
        for row in rows:
            assert inside[row["sample_a"]] == (row["class"] == 0)
            assert row["sample_a"] != row["sample_b"]
            if row["scenario"] == "data":
                assert inside[row["sample_b"]] == inside[row["sample_a"]]
                assert row["perturbation"] is None
                apart = (image[row["sample_a"]] - image[row["sample_b"]]).norm()
                assert row["distance"] == pytest.approx(float(apart), rel=1e-5)
            elif row["scenario"] == "adversarial":
                assert inside[row["sample_b"]] != inside[row["sample_a"]]
                least = abs(float((image[row["sample_b"]] - 0.5).norm()) - RADIUS)
                assert least < row["perturbation"] < 1.05 * least
            else:
                assert row["sample_b"] is None
                assert row["perturbation"] >= 0
        assert {row["class"] for row in rows} == {0, 1}

    def test_neither_units_nor_batches_nor_order_matter(self, zoo: Path) -> None:
        spec = spec_of(zoo, "shell", "shell", pairs=5, spacing=1e-2, pictures=1, resolution=8)
        whole = computed("paths", unit_size=5, **spec)
        split = computed("paths", batch=3, order=-1, unit_size=2, **spec)
        assert_close(whole["paths"], split["paths"], rel=1e-4)
        assert_close(whole["cross_sections"], split["cross_sections"], rel=1e-4)
        assert {row["straight"] for row in whole["paths"]} >= {True, False}
        other = computed("paths", **(spec | {"seed": 1}))["paths"]
        assert [row["sample_a"] for row in other] != [row["sample_a"] for row in whole["paths"]]

    def test_sections_are_those_of_the_straight_segment_and_of_the_path(self, zoo: Path) -> None:
        spec = spec_of(zoo, "shell", "shell", pairs=6, spacing=1e-2, pictures=6, resolution=16, scenarios="data")
        tables = computed("paths", **spec)
        anchors = {row["pair"]: row["anchors"] for row in tables["paths"]}
        assert len({count > 0 for count in anchors.values()}) == 2
        segments: dict[str, list[int]] = {}
        for row in tables["cross_sections"]:
            segments.setdefault(row["pair"], []).append(row["segment"])
            assert len(row["predicted"]) == row["width"] * row["height"] == 16 * 12
            assert set(row["predicted"]) <= {0, 1}
            assert row["low_x"] < row["from_x"] == 0 < row["to_x"] < row["high_x"]
            assert row["low_y"] == -row["high_y"]
        lengths = {row["pair"]: row["distance"] for row in tables["paths"]}
        for pair, found in segments.items():
            assert found == list(range(anchors[pair] + 2 if anchors[pair] else 1))
            straight, *others = (row["to_x"] for row in tables["cross_sections"] if row["pair"] == pair)
            assert straight == pytest.approx(lengths[pair], rel=1e-5)
            assert not others or sum(others) > straight
        assert "cross_sections" not in computed("paths", **(spec | {"pictures": 0}))

    def test_pairs_that_cannot_be_made_say_why(self, zoo: Path) -> None:
        spec = {"model": f"{zoo}/models.py:broken", "data": f"folder:{zoo}/photos", "pairs": 20, "spacing": 0.1}
        rows = computed("paths", **spec, scenarios="data")["paths"]
        assert {row["sample_b"] for row in rows if row["error"] is None} == {f"grey/{n}.png" for n in (0, 1, 3, 4, 6)}
        errors = {row["sample_a"]: row["error"] for row in rows if row["error"]}
        assert errors["grey/5.png"] == "sample 'grey/5.png': logits are not finite"
        assert errors["grey/2.png"].startswith("sample 'grey/2.png': ")
        assert set(errors) == {"grey/2.png", "grey/5.png"}
        rows = computed("paths", **spec_of(zoo, "far", pairs=2, spacing=0.1))["paths"]
        for row in rows:
            if row["scenario"] == "adversarial":
                assert row["error"] == "none of 20 other samples is predicted as another class than 1"
                assert row["connected"] is row["distance"] is row["checked"] is None
            else:
                assert row["error"] is None


class TestConvexity:
    def test_a_ball_holds_all_combinations_and_a_shell_does_not(self, zoo: Path) -> None:
        rows = computed("convexity", **spec_of(zoo, "ball", k="2,6", groups=8, combinations=7))["convexity"]
        assert [row["group"] for row in rows] == [f"k{k}-{n:04d}" for k in (2, 6) for n in range(8)]
        for row in rows:
            assert (len(row["samples"]), len(set(row["samples"]))) == (row["k"], row["k"])
            assert row["combinations"] == 7
            if row["class"] == 0:
                assert row["inside"] == 7
        assert {row["class"] for row in rows} == {0, 1}
        shares = computed("convexity", **spec_of(zoo, "shell", "shell", k="2,12", groups=8))["convexity"]
        by_k = {k: sum(row["inside"] for row in shares if row["k"] == k) for k in (2, 12)}
        assert by_k[12] < by_k[2] < 80

    def test_neither_units_nor_batches_nor_order_matter(self, zoo: Path) -> None:
        spec = spec_of(zoo, "shell", "shell", k="2,5", groups=9)
        whole = computed("convexity", unit_size=9, **spec)
        assert whole == computed("convexity", batch=3, order=-1, unit_size=2, **spec)

    def test_groups_that_cannot_be_made_say_why(self, zoo: Path) -> None:
        rows = computed("convexity", **spec_of(zoo, "ball", k="30", groups=3))["convexity"]
        for row in rows:
            assert row["error"] == (
                f"only {len(row['samples'])} of 30 images: of 19 others of class {row['class']} no more are such"
            )
            assert (row["combinations"], row["inside"]) == (0, 0)


class TestDetect:
    def test_balls_have_the_curvature_of_their_radius(self, zoo: Path) -> None:
        spec = spec_of(zoo, "ball", scales="1.5", directions=40, limit=8, derivatives="exact")
        tables = computed("detect", **spec)
        data = open_data(spec["data"])
        listing = data.list().table
        reader, ids = data.reader(listing), listing["sample_id"].to_pylist()
        assert len(tables["samples"]) == 8
        assert [row["attack"] for row in tables["detections"]].count("none") == 8
        for row in tables["detections"]:
            image = reader.read(ids.index(row["sample_id"]))
            radius = float((image - 0.5).norm())
            sign = 1 if row["original"] == 0 else -1
            if row["attack"] == "none":
                assert (row["scale"], row["distance"], row["perturbed"]) == (0, 0, False)
                seed = seed_of(0, "detect", row["sample_id"], "none", 0.0)
                source, offset = UnitVectors([seed], image[None]), (image - 0.5).flatten() / radius
                forms = torch.tensor([1 - float(source.draw()[0] @ offset) ** 2 for _ in range(40)]) / radius
                # One other class and the predicted one itself: L = 2.
                assert row["rho"] == pytest.approx(sign * float(forms.mean()) / 2, rel=1e-4)
                assert row["rho_stderr"] == pytest.approx(float(forms.std()) / 2 / 40**0.5, rel=1e-3)
                continue
            assert row["distance"] == pytest.approx(1.5 * abs(radius - RADIUS), rel=1e-3)
            assert row["perturbed"] == (row["attack"] == "deepfool")
            if row["perturbed"]:
                assert row["predicted"] == row["recovered_label"] ^ 1 == row["original"] ^ 1
                assert np.sign(row["rho"]) == -sign
        assert {row["n_classes"] for row in tables["detections"]} == {1}
        assert {row["n_directions"] for row in tables["detections"]} == {40}
        assert {(row["method"], row["step"]) for row in tables["detections"]} == {("exact", None)}

    def test_neither_units_nor_batches_matter(self, zoo: Path) -> None:
        spec = spec_of(zoo, "smooth", scales="1.02,2", directions=4, limit=6, top=2, derivatives="differences")
        whole = computed("detect", unit_size=6, **spec)
        split = computed("detect", batch=2, order=-1, unit_size=3, **spec)
        assert_close(whole["samples"], split["samples"], rel=1e-4)
        # Sorted, since a unit holds its samples version by version.
        rows = [
            sorted(tables["detections"], key=lambda row: (row["sample_id"], row["attack"], row["scale"]))
            for tables in (whole, split)
        ]
        assert len(rows[0]) == 30
        assert_close(*rows, rel=1e-2)
        assert {row["n_classes"] for row in rows[0]} == {2}
        assert {(row["method"], row["step"]) for row in rows[0]} == {("differences", 0.1)}
        for row in rows[0]:
            assert 0.2 < row["max_softmax"] <= 1
            assert row["rho_stderr"] > 0
        attacks = {row["attack"] for row in computed("detect", **(spec | {"noise": False}))["detections"]}
        assert attacks == {"none", "deepfool"}

    def test_samples_without_a_boundary_and_unreadable_ones(self, zoo: Path) -> None:
        how = {"scales": "1.5", "directions": 2, "derivatives": "differences"}
        tables = computed("detect", **spec_of(zoo, "far", limit=3, box=True, **how))
        assert [row["attack"] for row in tables["detections"]] == ["none"] * 3
        tables = computed("detect", model=f"{zoo}/models.py:broken", data=f"folder:{zoo}/photos", **how)
        errors = {row["sample_id"]: row["error"] for row in tables["samples"] if row["error"]}
        assert errors.keys() == {"grey/5.png", "grey/2.png"}
        assert errors["grey/5.png"] == "logits are not finite"
        assert {row["sample_id"] for row in tables["detections"]} == {f"grey/{n}.png" for n in (0, 1, 3, 4, 6)}

    def test_noise_and_perturbations_stay_in_the_box(self, zoo: Path) -> None:
        spec = spec_of(zoo, "smooth", scales="3", directions=2, limit=4, derivatives="differences")
        free, boxed = (computed("detect", **spec, box=box)["detections"] for box in (False, True))
        noise = [[row["distance"] for row in rows if row["attack"] == "noise"] for rows in (free, boxed)]
        assert len(noise[0]) == 4
        assert noise[0] != noise[1]


def test_scans_are_written_by_a_worker(zoo: Path, tmp_path: Path) -> None:
    options = ComputeOptions(device="cpu")
    store = scanned("paths", tmp_path / "p", options, **spec_of(zoo, "ball", pairs=2, spacing=0.1, pictures=1))
    assert len(store.committed()) == 3
    assert store.document()["items"] == 6
    store = scanned("convexity", tmp_path / "c", options, **spec_of(zoo, "ball", k="2", groups=3))
    assert store.document()["items"] == 3
    scanned("detect", tmp_path / "d", options, **spec_of(zoo, "ball", limit=2, directions=2))
    assert get_scan("paths").noun == "pairs"


def test_what_cannot_be_scanned_is_refused_before_anything_is_computed(zoo: Path) -> None:
    with pytest.raises(UsageError, match="scenarios"):
        prepared("paths", spec_of(zoo, "ball", scenarios="data,data"), ComputeOptions())
    with pytest.raises(UsageError, match="must be one or more sizes of at least 2 images"):
        prepared("convexity", spec_of(zoo, "ball", k="1"), ComputeOptions())
    assert Unit("x", 0, 3).size == 3
