"""The influence scan end to end, in one process and on Ray."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from in_process import prepared
from networks import of_input
from PIL import Image
from processes import committed, kill, rows, start_driver, wait_for

import raysense
from raysense.api import create_store
from raysense.datasets import open_data
from raysense.engine.worker import Worker
from raysense.errors import UsageError
from raysense.measures.influence import exact_influence
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.scans import Unit, get_scan
from raysense.scans.influence import InfluenceScan, InfluenceSpec
from raysense.store.store import Store

TWO = {"workers": 2}
DIGITS: dict[str, Any] = {"model": "digits", "data": "digits", "split": "test", "limit": 60}

MODELS = '''
import torch
from torch import nn

class Linear(nn.Module):
    """Logits of [3, 8, 8] images; 4 classes."""
    def __init__(self, classes=4):
        super().__init__()
        self.layer = nn.Linear(192, classes)
        self.noise = False
        self.limit = None
    def forward(self, x):
        if self.limit and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        z = self.layer(x.flatten(1))
        if self.noise:
            z = z + torch.randn_like(z)
        return z

def linear(): return Linear()
def random_logits():
    m = Linear(); m.noise = True; return m
def small_memory():
    m = Linear(); m.limit = 5; return m
def nan_for_bright():
    class Nan(Linear):
        def forward(self, x):
            z = super().forward(x)
            return torch.where(x.amax((1, 2, 3))[:, None] > 0.99, torch.nan, z)
    return Nan()
def feature_maps(): return nn.Conv2d(3, 4, 1)
def detached():
    class Detached(Linear):
        def forward(self, x): return super().forward(x).detach()
    return Detached()
def exits(): raise SystemExit(3)
def batch_dependent():
    class Mean(Linear):
        def forward(self, x): return super().forward(x - x.mean(0, keepdim=True))
    return Mean()
'''


@pytest.fixture
def zoo(tmp_path: Path) -> str:
    """A file of model factories and an npz of 40 images with 4 classes."""
    (tmp_path / "models.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 250, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(40) % 4)
    return str(tmp_path)


def compute_here(**spec: Any) -> tuple[pa.Table, pa.Table]:
    """The scan in this process, without Ray or files: tables samples and influence."""
    scan = InfluenceScan(InfluenceSpec.model_validate(spec))
    prepared = scan.prepare(ComputeOptions())
    computer = scan.open(prepared, ComputeOptions())
    parts = [computer.compute(unit) for unit in scan.units(prepared)]
    computer.close()
    return tuple(pa.concat_tables([part[name] for part in parts]) for name in ("samples", "influence"))  # type: ignore[return-value]


def test_rows_without_ray_equal_the_measure() -> None:
    samples, influence = compute_here(**DIGITS)
    data = open_data("digits", ("test",))
    listing = data.list().table
    reader = data.reader(listing)
    model = load_model("digits").module
    chosen = [listing["sample_id"].to_pylist().index(sample) for sample in influence["sample_id"].to_pylist()]
    images = torch.stack([reader.read(row) for row in chosen])
    labels = torch.tensor(listing["label"].to_numpy()[chosen].astype(np.int64))
    expected = of_input(exact_influence)(model, images, labels)
    # fp32 logits differ in the last bits between batch sizes
    np.testing.assert_allclose(influence["fi"].to_numpy(), expected.fi.numpy(), rtol=1e-4)
    assert influence["rank"].to_pylist() == [9] * 60
    assert samples["error"].null_count == 60
    assert samples["predicted"].to_pylist() == expected.logits.argmax(1).tolist()
    assert samples.schema.field("p_label").metadata[b"unit"] == b"probability"


@pytest.mark.parametrize("method", ["exact", "certified", "bound"])
@pytest.mark.parametrize("objective", ["label", "predicted"])
def test_methods_and_objectives(method: str, objective: str) -> None:
    _, influence = compute_here(**DIGITS, method=method, objective=objective)
    fi, lower, upper = (influence[name].to_numpy(zero_copy_only=False) for name in ("fi", "fi_lower", "fi_upper"))
    if method == "bound":
        assert influence["fi"].null_count == len(influence)
        assert influence["jacobian_norm"].null_count == len(influence)
        assert (upper > 0).all()
    else:
        assert (lower <= fi).all()
        assert (fi <= upper).all()
        assert influence["jacobian_norm"].null_count == 0
    _, exact = compute_here(**DIGITS, objective=objective)
    if method == "certified":
        np.testing.assert_allclose(fi, exact["fi"].to_numpy(), rtol=1e-3)
    assert set(influence["method"].to_pylist()) == {method}


def test_published_rule_differs_and_needs_the_exact_method() -> None:
    _, published = compute_here(**DIGITS, rank_rule="published", objective="predicted")
    _, invariant = compute_here(**DIGITS, objective="predicted")
    assert not np.allclose(published["fi"].to_numpy(), invariant["fi"].to_numpy(), rtol=0.01)
    with pytest.raises(UsageError, match="use --method exact"):
        raysense.scan("influence", "unused", **DIGITS, rank_rule="published", method="certified")


@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    def test_workers_batches_and_units_do_not_change_the_numbers(self, tmp_path: Path) -> None:
        results = []
        for index, (workers, batch, unit) in enumerate([(1, 60, 60), (2, 7, 13)]):
            out = tmp_path / str(index)
            run = {"workers": workers, "batch_size": batch}
            assert raysense.scan("influence", out, run=run, **DIGITS, unit_size=unit).complete
            results.append(rows(out, "influence", "sample_id"))
        assert results[0].keys() == results[1].keys()
        for sample, row in results[0].items():
            assert row["fi"] == pytest.approx(results[1][sample]["fi"], rel=1e-4)

    def test_corrupt_images_are_rows_with_an_error(self, tmp_path: Path, zoo: str) -> None:
        generator = np.random.default_rng(1)
        for name in ("cat", "dog"):
            (tmp_path / "photos" / name).mkdir(parents=True)
            for index in range(20):
                pixels = generator.integers(0, 255, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index:02d}.jpg")
        (tmp_path / "photos" / "dog" / "07.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
        out = tmp_path / "s"
        data = f"folder:{tmp_path}/photos?resize=8&crop=8"
        outcome = raysense.scan("influence", out, run=TWO, model=f"{zoo}/models.py:linear", data=data)
        assert outcome.complete
        samples = rows(out, "samples", "sample_id")
        failed = {sample: row for sample, row in samples.items() if row["error"]}
        assert list(failed) == ["dog/07.jpg"]
        assert (outcome.items, outcome.bad_items) == (40, 1)
        assert raysense.status(out).bad_samples == 1
        assert failed["dog/07.jpg"]["predicted"] is None
        assert rows(out, "influence", "sample_id").keys() == samples.keys() - failed.keys()
        document = Store.open(out).document()
        assert document["facts"]["preprocessing"]["resize"] == 8
        assert document["facts"]["preprocessing"]["source"] == "data reference"

    def test_out_of_memory_halves_the_batch(self, tmp_path: Path, zoo: str) -> None:
        out = tmp_path / "s"
        run = {"workers": 1, "worker_cpus": 1, "batch_size": 16}
        spec = {"model": f"{zoo}/models.py:small_memory", "data": f"npz:{zoo}/data.npz", "unit_size": 20}
        assert raysense.scan("influence", out, run=run, **spec).complete
        assert len(rows(out, "influence", "sample_id")) == 40
        assert {row["batch_size"] for row in rows(out, "units", "unit").values()} == {4}

    def test_logits_that_become_nan_are_rows_with_an_error(self, tmp_path: Path, zoo: str) -> None:
        data = np.load(f"{zoo}/data.npz")
        images = data["x"].copy()
        images[30] = 255
        np.savez(f"{zoo}/bright.npz", x=images, y=data["y"])
        out = tmp_path / "s"
        spec = {"model": f"{zoo}/models.py:nan_for_bright", "data": f"npz:{zoo}/bright.npz", "unit_size": 8}
        assert raysense.scan("influence", out, run=TWO, **spec).complete
        failed = {key: row["error"] for key, row in rows(out, "samples", "sample_id").items() if row["error"]}
        assert list(failed.values()) == ["logits are not finite"]
        assert len(rows(out, "influence", "sample_id")) == 39

    def test_resume_refuses_changed_weights_and_data(self, tmp_path: Path, zoo: str) -> None:
        checkpoint = tmp_path / "w.pt"
        torch.manual_seed(1)
        state = {"layer.weight": torch.randn(4, 192), "layer.bias": torch.randn(4)}
        torch.save(state, checkpoint)
        spec = {
            "model": f"{zoo}/models.py:linear?checkpoint={checkpoint}",
            "data": f"npz:{zoo}/data.npz",
            "unit_size": 8,
        }
        out = tmp_path / "s"
        assert raysense.scan("influence", out, run=TWO, **spec).complete
        next((out / "commits").glob("*.json")).unlink()
        torch.save({**state, "layer.bias": state["layer.bias"] + 1}, checkpoint)
        with pytest.raises(UsageError, match="model changed since the scan"):
            raysense.resume(out, run=TWO)
        torch.save(state, checkpoint)
        saved = shutil.copy(f"{zoo}/data.npz", tmp_path / "saved.npz")
        data = np.load(saved)
        np.savez(f"{zoo}/data.npz", x=255 - data["x"], y=data["y"])
        with pytest.raises(UsageError, match="data changed since the scan"):
            raysense.resume(out, run=TWO)
        shutil.copy(saved, f"{zoo}/data.npz")
        assert raysense.resume(out, run={"workers": 1, "worker_cpus": 1, "batch_size": 3}).complete
        assert len(rows(out, "influence", "sample_id")) == 40

    def test_a_worker_with_other_weights_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "s"
        assert raysense.scan("influence", out, run=TWO, **DIGITS).complete
        scan = InfluenceScan(InfluenceSpec.model_validate(DIGITS))
        prepared = scan.prepare(ComputeOptions())
        prepared.facts["fingerprints"]["model"] = "0" * 64
        with pytest.raises(UsageError, match="same weights visible on every machine"):
            scan.open(prepared, ComputeOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "{zoo}/models.py:random_logits"}, "gives different logits for the same images"),
        ({"model": "{zoo}/models.py:batch_dependent"}, "depend on the other images of the batch"),
        ({"model": "{zoo}/models.py:feature_maps"}, r"returns \[4, 4, 8, 8\] for 4 images; it must return logits \[N, K\]"),
        ({"model": "digits"}, "does not take the images"),
        ({"model": "{zoo}/models.py:detached"}, "has no gradient with respect to its input"),
        ({"model": "{zoo}/models.py:exits"}, "SystemExit"),
        ({"model": "{zoo}/missing.py:f"}, "there is no file"),
        ({"model": "{zoo}/models.py"}, "name the function"),
        ({"data": "npz:{zoo}/missing.npz"}, "missing.npz"),
        ({"data": "npz:{zoo}/labels.npz"}, r"label 9 of sample 'labels/0000011' is out of range .*classes 0 to 3"),
        ({"data": "npz:{zoo}/range.npz"}, "divide"),
        ({"data": "npz:{zoo}/bright.npz", "model": "{zoo}/models.py:nan_for_bright"}, "not finite .* 'bright/0000000'"),
        ({"data": "npz:{zoo}/data.npz", "split": "train"}, "split"),
        ({"limit": 0}, "argument 'limit' is 0"),
        ({"limt": 3}, "did you mean limit"),
        ({"objective": "labels"}, "'label' or 'predicted'"),
        ({"tolerance": 2}, "argument 'tolerance' is 2"),
        ({"method": "certified", "tolerance": 1e-7}, "use at least 1e-5"),
        ({"model": None}, "argument 'model'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_anything_starts(
    tmp_path: Path, zoo: str, change: dict[str, Any], message: str
) -> None:
    data = np.load(f"{zoo}/data.npz")
    np.savez(f"{zoo}/labels.npz", x=data["x"], y=np.where(np.arange(40) == 11, 9, data["y"]))
    np.savez(f"{zoo}/range.npz", x=data["x"].astype(np.float32), y=data["y"])
    np.savez(f"{zoo}/bright.npz", x=np.full_like(data["x"], 255), y=data["y"])
    spec: dict[str, Any] = {"model": "{zoo}/models.py:linear", "data": "npz:{zoo}/data.npz", **change}
    spec = {key: value.format(zoo=zoo) if isinstance(value, str) else value for key, value in spec.items()}
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=message) as caught:
        raysense.scan("influence", out, **spec)
    assert "\n" not in str(caught.value)
    assert not out.exists() or not any(out.iterdir())


def test_unknown_kind() -> None:
    with pytest.raises(
        UsageError,
        match="'influenza' is not a scan; choose one of ablations, boundary, convexity, detect, directions, influence",
    ):
        raysense.scan("influenza", "unused")
    with pytest.raises(UsageError, match="not a subclass"):
        get_scan("pathlib:Path")


def computed_here(**spec: Any) -> dict[str, pa.Table]:
    """The tables of a scan, computed at once in this process."""
    scan = InfluenceScan(InfluenceSpec.model_validate(spec))
    options = ComputeOptions(device="cpu", batch_size=64)
    prepared = scan.prepare(options)
    return scan.open(prepared, options).compute(Unit("all", 0, prepared.listing.num_rows))


@pytest.mark.usefixtures("local_ray")
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """SIGKILL of a worker and then of the driver in the middle of a real scan; finished with other workers and batches."""
    spec: dict[str, Any] = {
        "kind": "influence",
        "model": "digits",
        "data": "digits",
        "split": ["train", "test"],
        "limit": 250,
        "unit_size": 8,
    }
    undisturbed = computed_here(**{name: value for name, value in spec.items() if name != "kind"})
    units = 500 // 8 + 1
    chance = random.Random(0)
    out = tmp_path / "b"
    driver = start_driver("scan", out=str(out), run=TWO, **spec)
    wait_for(lambda: committed(out) >= 20)
    family = psutil.Process(driver.pid).children(recursive=True)
    workers = [process for process in family if process.is_running() and "ray::Worker" in " ".join(process.cmdline())]
    kill(chance.choice(workers))
    target = committed(out) + chance.randint(5, 25)
    wait_for(lambda: committed(out) >= target)
    kill(driver)
    driver.wait()
    interrupted = committed(out)
    assert interrupted < units
    time.sleep(0.1)
    resumed = raysense.resume(out, run={"workers": 1, "worker_cpus": 1, "batch_size": 5})
    assert resumed.committed == resumed.units == units
    for table in ("samples", "influence"):
        one = {row["sample_id"]: row for row in undisturbed[table].to_pylist()}
        other = rows(out, table, "sample_id")
        assert one.keys() == other.keys()
        for sample, row in one.items():
            for column, value in row.items():
                if isinstance(value, float):
                    assert other[sample][column] == pytest.approx(value, rel=2e-3), (sample, column)
                else:
                    assert other[sample][column] == value


def test_a_model_that_is_gone_when_a_worker_wants_it(tmp_path: Path, zoo: str) -> None:
    spec = {"model": f"{zoo}/models.py:linear", "data": f"npz:{zoo}/data.npz"}
    bound, found = prepared("influence", spec, ComputeOptions())
    create_store("influence", bound, found, tmp_path / "s")
    Path(f"{zoo}/models.py").unlink()
    assert "there is no file" in Worker("w1").open(str(tmp_path / "s"), ComputeOptions())
