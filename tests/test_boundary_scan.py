"""The boundary scan and that of shared directions, in one process: closed forms, what is refused, what may not matter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from in_process import prepared, scanned

from raysense.errors import RaysenseError, UsageError
from raysense.options import ComputeOptions
from raysense.scans import Unit

OPTIONS = ComputeOptions(device="cpu", batch_size=4)
RADIUS = 2.0
AXES = (9.0, 4.0, 1.0)
MODELS = f"""
import torch
from torch import nn

class Quadric(nn.Module):
    '''Class 0 where the sum of weights * (x - 1/2)^2 is below RADIUS^2: a ball, or an ellipsoid.'''
    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))
    def forward(self, x):
        value = (self.weights * (x.flatten(1) - 0.5) ** 2).sum(1) - {RADIUS**2}
        return torch.stack((torch.zeros_like(value), value), dim=1)

class Far(nn.Module):
    '''Logits that hardly move: no boundary in reach.'''
    def forward(self, x):
        return torch.stack((1e-6 * x.flatten(1).sum(1), torch.ones(len(x))), dim=1)

class Broken(Quadric):
    '''NaN for images with a black corner.'''
    def forward(self, x):
        return super().forward(x) + torch.where(x.flatten(1)[:, :1] == 0, torch.nan, 0.0)

def ball(): return Quadric([1.0] * 12)
def ellipsoid(): return Quadric([{AXES[0]}, {AXES[1]}, {AXES[2]}] + [0.1] * 9)
def far(): return Far()
def broken(): return Broken([1.0] * 12)
def affine(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
def relu():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
def mixed(): return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and two splits of ten images of 3 x 2 x 2 values that no two of are alike."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "models.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        images = generator.uniform(0.2, 0.8, (10, 2, 2, 3)).astype(np.float32)
        np.savez(folder / f"{split}.npz", x=images, y=np.zeros(10, np.int64))
    return folder


def spec_of(zoo: Path, model: str, **more: Any) -> dict[str, Any]:
    return {"model": f"{zoo}/models.py:{model}", "data": f"npz:{zoo}/{{split}}.npz", "split": "test", **more}


def computed(kind: str, batch: int = 4, units: int = 1, **spec: Any) -> dict[str, list[dict[str, Any]]]:
    """All rows of a scan, computed in this process in a few units."""
    options = ComputeOptions(device="cpu", batch_size=batch)
    scan, found = prepared(kind, spec, options)
    computer = scan.open(found, options)
    edges = np.linspace(0, found.listing.num_rows, units + 1).astype(int)
    parts = [computer.compute(Unit(str(a), int(a), int(b))) for a, b in pairwise(edges)]
    schemas: Mapping[str, pa.Schema] = scan.tables()
    for part in parts:
        assert all(table.schema == schemas[name] for name, table in part.items())
        assert part.keys() == schemas.keys() - {"units"}
    return {name: pa.concat_tables([part[name] for part in parts]).to_pylist() for name in parts[0]}


def test_ball(zoo: Path) -> None:
    """Distance R - |x|, every curvature 1 / R, positive since the region is convex; by either derivative."""
    images = torch.from_numpy(np.load(zoo / "test.npz")["x"]).permute(0, 3, 1, 2).flatten(1).double()
    expected = RADIUS - (images - 0.5).norm(dim=1)
    for derivatives, step in (("exact", None), ("differences", 0.01)):
        more = {"derivatives": derivatives, "step": step or 0.1, "curvature": "spectrum", "keep_points": True}
        found = computed("boundary", **spec_of(zoo, "ball", **more))
        assert [row["distance"] for row in found["boundary"]] == pytest.approx(expected.tolist(), rel=1e-5)
        for row in found["boundary"]:
            assert (row["status"], row["from_class"], row["to_class"]) == ("found", 0, 1)
            assert (row["method"], row["step"]) == (derivatives, step)
            assert row["mean_curvature"] == pytest.approx(1 / RADIUS, rel=2e-3)
            assert row["alignment"] == pytest.approx(1, abs=1e-5)
            assert row["slack"] is None
        curvatures = [row["curvature"] for row in found["curvatures"]]
        assert len(curvatures) == 10 * 11
        assert curvatures == pytest.approx([1 / RADIUS] * len(curvatures), rel=2e-3)
        points = np.array([row["point"] for row in found["boundary_points"]])
        assert np.linalg.norm(points - 0.5, axis=1) == pytest.approx([RADIUS] * 10, rel=1e-5)


def test_mean_and_extremes_agree_with_spectrum(zoo: Path) -> None:
    whole = computed("boundary", **spec_of(zoo, "ellipsoid", curvature="spectrum", keep_directions=2))
    some = computed("boundary", **spec_of(zoo, "ellipsoid", curvature="mean,extremes", extremes=2, directions=400))
    for one, other in zip(whole["boundary"], some["boundary"], strict=True):
        assert abs(other["mean_curvature"] - one["mean_curvature"]) < 5 * other["curvature_stderr"]
        assert other["largest_curvature"] == pytest.approx(one["largest_curvature"], rel=1e-3)
        assert other["smallest_curvature"] == pytest.approx(one["smallest_curvature"], rel=1e-3)
    ranked = {(row["sample_id"], row["rank"]): row["curvature"] for row in whole["curvatures"]}
    assert {row["rank"] for row in some["curvatures"]} == {1, 2, 10, 11}
    for row in some["curvatures"]:
        # To the tolerance of the search, a hundredth of the largest: of nearly equal ones it may give another.
        assert row["curvature"] == pytest.approx(ranked[row["sample_id"], row["rank"]], abs=0.01 * max(ranked.values()))
        assert row["n"] == 11
    # The most curved direction is not the first axis itself: the normal leans towards it.
    kept = [row for row in whole["principal_directions"] if row["place"] == 1]
    assert len(kept) == 10
    assert np.linalg.norm([row["direction"] for row in kept], axis=1) == pytest.approx([1] * 10, rel=1e-5)


def test_batches_and_units_do_not_matter(zoo: Path) -> None:
    more = {"curvature": "mean,extremes", "extremes": 2, "directions": 6, "step_study": "0.1,0.5", "keep_directions": 3}
    one = computed("boundary", 10, 1, **spec_of(zoo, "relu", **more))
    other = computed("boundary", 3, 4, **spec_of(zoo, "relu", **more))
    for table in one:
        assert len(one[table]) == len(other[table])
        for a, b in zip(sorted_rows(one[table]), sorted_rows(other[table]), strict=True):
            for name, value in a.items():
                if name != "direction":  # those of nearly equal curvatures mix
                    assert b[name] == (pytest.approx(value, rel=2e-3, abs=1e-4) if isinstance(value, float) else value)
    assert {row["method"] for row in one["boundary"]} == {"differences"}
    assert any(abs(row["mean_curvature"]) > 1e-3 for row in one["boundary"])


def test_misclassified_blocked_and_broken(zoo: Path) -> None:
    images = np.load(zoo / "test.npz")["x"]
    labels = np.array([0, 1] * 5)
    images[6, 0, 0, 0] = 0
    np.savez(zoo / "odd.npz", x=images, y=labels)
    data = {"data": f"npz:{zoo}/odd.npz", "split": ()}
    found = computed("boundary", **spec_of(zoo, "ball", region="label", **data))["boundary"]
    assert [row["status"] for row in found] == ["found", "outside"] * 5
    assert {row["distance"] for row in found[1::2]} == {0.0}
    assert {row["mean_curvature"] for row in found[1::2]} == {None}
    far = computed("boundary", **spec_of(zoo, "far", box=True, **data))["boundary"]
    assert {(row["status"], row["distance"], row["to_class"], row["method"]) for row in far} == {
        ("blocked", None, None, None)
    }
    broken = computed("boundary", **spec_of(zoo, "broken", **data))
    assert [row["error"] for row in broken["samples"]] == [None] * 6 + ["logits are not finite"] + [None] * 3
    assert len(broken["boundary"]) == 9
    assert all(row["mean_curvature"] == pytest.approx(0.5, rel=1e-3) for row in broken["boundary"])


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("relu", {"derivatives": "exact"}, "zero almost everywhere.*relu.*use --derivatives differences"),
        ("ball", {"curvature": "spectrum,extremes"}, "the spectrum holds the extremes"),
        ("ball", {"keep_directions": 3}, "add --curvature extremes, or spectrum"),
        ("ball", {"curvature": "extremes", "extremes": 1, "keep_directions": 3}, "exceeds the 2 that.*use --extremes 2"),
        ("ball", {"curvature": "extremes", "extremes": 6}, "11 principal curvatures; use --curvature spectrum"),
        ("ball", {"step_study": "0.1,-1"}, "step -1 must be positive"),
        ("ball", {"step": "0"}, "step"),
        ("ball", {"norm": "l1"}, "norm"),
    ],
)  # fmt: skip
def test_refused(zoo: Path, model: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        computed("boundary", **spec_of(zoo, model, **spec))


def test_spectrum_of_large_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((2, 128, 128, 3), np.uint8), y=np.zeros(2, np.int64))
    (tmp_path / "model.py").write_text(
        "from torch import nn\ndef m(): return nn.Sequential(nn.Flatten(), nn.Linear(49152, 2))"
    )
    with pytest.raises(UsageError, match=r"needs 108 GiB; use --curvature mean,extremes"):
        computed("boundary", model=f"{tmp_path}/model.py:m", data=f"npz:{tmp_path}/large.npz", curvature="spectrum")


def test_derivatives_are_chosen_and_kept(zoo: Path) -> None:
    """By the network's operators; exact ones of a network with kinks and bends are computed, with a word of warning."""
    for model, asked, used, warned in (
        ("ball", "auto", "exact", False),
        ("affine", "auto", "exact", False),
        ("relu", "auto", "differences", False),
        ("mixed", "auto", "differences", False),
        ("mixed", "exact", "exact", True),
    ):
        found = prepared("boundary", spec_of(zoo, model, derivatives=asked), OPTIONS)[1]
        assert found.facts["model"]["second_order"]["derivatives"] == used, model
        assert any("leave out what its kinks (relu) add" in note for note in found.notes) == warned, model


@pytest.fixture(scope="module")
def curved(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Principal directions at the ellipsoid's boundary near the images of split train."""
    out = tmp_path_factory.mktemp("curved") / "scan"
    spec = spec_of(zoo, "ellipsoid", curvature="spectrum", keep_directions=2, unit_size=4) | {"split": "train"}
    scanned("boundary", out, OPTIONS, **spec)
    return out


def test_shared_directions_of_an_ellipsoid(zoo: Path, curved: Path) -> None:
    """Its shortest axes: boundaries are more curved along them than along random directions, near unseen images too."""
    more = {"of": str(curved), "shared": 2, "noise": "1,2", "draws": 20, "directions": 200}
    found = computed("directions", **spec_of(zoo, "ellipsoid", **more))
    rho = {
        number: [row["rho"] for row in found["direction_curvatures"] if row["direction"] == number] for number in (1, 2)
    }
    assert [len(values) for values in rho.values()] == [10, 10]
    assert min(rho[1] + rho[2]) > 1
    assert {row["method"] for row in found["direction_curvatures"]} == {"exact"}
    shares: dict[str, list[float]] = {}
    for row in found["direction_norms"]:
        shares.setdefault(row["perturbation"], []).append(row["share"])
    assert shares.keys() == {"random", "adversarial", "difference", "image gradient", "logit gradient"}
    assert all(len(values) == 10 and 0 <= min(values) <= max(values) <= 1 + 1e-6 for values in shares.values())
    assert np.mean(np.square(shares["random"])) == pytest.approx(2 / 12, abs=0.12)
    changed: dict[tuple[str, float], int] = {}
    for row in found["direction_noise"]:
        key = row["space"], row["magnitude"]
        changed[key] = changed.get(key, 0) + row["changed"]
        assert row["draws"] == 20
    assert changed["S", 1.0] > 2 * changed["complement", 1.0]
    assert changed["S", 1.0] <= changed["S", 2.0]


def test_directions_do_not_depend_on_batches(zoo: Path, curved: Path) -> None:
    more = {"of": str(curved), "shared": 2, "noise": "0.5", "draws": 3, "directions": 4}
    one = computed("directions", 10, 1, **spec_of(zoo, "relu", **more))
    other = computed("directions", 3, 3, **spec_of(zoo, "relu", **more))
    for table in one:
        for a, b in zip(sorted_rows(one[table]), sorted_rows(other[table]), strict=True):
            for name, value in a.items():
                assert b[name] == (pytest.approx(value, rel=2e-2, abs=1e-4) if isinstance(value, float) else value)


def sorted_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("sample_id", "rank", "place", "step", "direction", "perturbation", "space", "magnitude")
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys if not isinstance(row.get(key, []), list)])


def test_directions_that_cannot_be_used(zoo: Path, curved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"use at most \d+, or keep directions of more samples"):
        computed("directions", **spec_of(zoo, "ellipsoid", of=str(curved), shared=12))
    scanned("boundary", tmp_path / "bare", OPTIONS, **spec_of(zoo, "ball", limit=2))
    with pytest.raises(UsageError, match="was run without --keep-directions"):
        computed("directions", **spec_of(zoo, "ellipsoid", of=str(tmp_path / "bare")))
    np.savez(tmp_path / "small.npz", x=np.full((2, 2, 2, 1), 0.5, np.float32), y=np.zeros(2, np.int64))
    (tmp_path / "small.py").write_text(
        "from torch import nn\ndef m(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))"
    )
    with pytest.raises(UsageError, match=r"has directions of 12 values, and model .* takes images of 4"):
        computed(
            "directions", model=f"{tmp_path}/small.py:m", data=f"npz:{tmp_path}/small.npz?layout=NHWC", of=str(curved)
        )
    notes = prepared("directions", spec_of(zoo, "relu", of=str(curved)) | {"split": "train"}, OPTIONS)[1].notes
    assert any("are those of another model" in note for note in notes)
    assert any("of the very samples that are scanned" in note for note in notes)


def test_directions_scan_goes_on_when_its_base_has_grown_but_not_when_it_is_another(
    zoo: Path, curved: Path, tmp_path: Path
) -> None:
    """S is that of the units that were there; a base run again with other directions is noticed by the worker."""
    grown, out = tmp_path / "grown", tmp_path / "shared"
    shutil.copytree(curved, grown)
    (commit,) = (grown / "commits").glob("0000000008-0000000010~*.json")
    commit.rename(tmp_path / "later.json")
    spec = spec_of(zoo, "ellipsoid", of=str(grown), shared=2, noise="none", directions=2, limit=4)
    bound, found = prepared("directions", spec, OPTIONS)
    assert any("2 of 3 units" in note for note in found.notes)
    (tmp_path / "later.json").rename(commit)
    assert bound.fingerprints(OPTIONS) == found.facts["fingerprints"]
    before = bound.open(found, OPTIONS).compute(Unit("x", 0, 4))["direction_curvatures"]
    assert before.num_rows == 8
    scanned(
        "boundary",
        out,
        OPTIONS,
        **spec_of(zoo, "ellipsoid", curvature="spectrum", keep_directions=2, seed=7, unit_size=4),
    )
    for folder in ("tables", "commits"):
        shutil.rmtree(grown / folder)
        shutil.copytree(out / folder, grown / folder)
    with pytest.raises(RaysenseError, match="is not the scan it was"):
        bound.open(found, OPTIONS)


def test_a_batch_without_a_finite_sample_is_no_failure(zoo: Path, curved: Path, tmp_path: Path) -> None:
    images = np.load(zoo / "test.npz")["x"]
    images[4:, 0, 0, 0] = 0
    np.savez(tmp_path / "black.npz", x=images, y=np.zeros(10, np.int64))
    spec = spec_of(zoo, "broken") | {"data": f"npz:{tmp_path}/black.npz", "split": ()}
    for kind, more in (
        ("boundary", {}),
        ("directions", {"of": str(curved), "shared": 1}),
        ("detect", {"directions": 2}),
    ):
        found = computed(kind, 4, 1, **spec, **more)
        assert [row["error"] is None for row in found["samples"]] == [True] * 4 + [False] * 6, kind


def test_directions_of_another_norm_are_refused(zoo: Path, tmp_path: Path) -> None:
    more = {"norm": "linf", "curvature": "extremes", "extremes": 1, "keep_directions": 1, "limit": 2}
    scanned("boundary", tmp_path / "linf", OPTIONS, **spec_of(zoo, "ball", **more))
    with pytest.raises(UsageError, match="was run with --norm linf"):
        prepared("directions", spec_of(zoo, "ball", of=str(tmp_path / "linf")), OPTIONS)
