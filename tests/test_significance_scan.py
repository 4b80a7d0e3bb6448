"""The significance scan end to end, in one process and on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from in_process import scanned
from shared_data import shared_data
from stored import read_table
from torch import Tensor

import raysense
from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.measures.layer_inputs import LayerInputs, find_layers
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.scans.significance import SignificanceScan, SignificanceSpec
from raysense.store.store import Store

DIGITS: dict[str, Any] = {"model": "digits", "data": "digits", "split": "test,train", "limit": 70}
TABLES = ("samples", "significance", "class_activations", "class_outputs", "activations")

MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(192, 6), nn.Linear(6, 4)
        self.bright = 2.0
    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        # Infinite inside where an image is bright, finite again in the logits.
        h = torch.where(x.amax((1, 2, 3))[:, None] > self.bright, torch.inf, h)
        return self.last(h).nan_to_num(0, 0, 0)

def two(): return Two()
def bright():
    m = Two(); m.bright = 0.99; return m
def poisoned():
    m = Two(); m.last.weight.data[0, 0] = torch.inf; return m
class Branch(nn.Module):
    # Dark images take another first layer than bright ones.
    def __init__(self):
        super().__init__()
        self.dark, self.bright = nn.Linear(192, 6), nn.Linear(192, 6)
        self.last = nn.Linear(6, 4)
    def forward(self, x):
        flat = x.flatten(1)
        h = torch.cat([(self.bright if float(row.max()) > 0.5 else self.dark)(row[None]) for row in flat]).relu()
        return self.last(h)
def branch(): return Branch()
def double():
    class Double(Two):
        def forward(self, x): return super().forward(x.double())
    return Double().double()
def normed():
    m = Two(); m.last = nn.utils.parametrizations.weight_norm(m.last)
    return m
def bare():
    class Bare(nn.Module):
        def forward(self, x): return x.flatten(1)[:, :4]
    return Bare()
"""


@pytest.fixture
def zoo(tmp_path: Path) -> str:
    """A file of model factories, and an npz of 40 images with 4 classes, 10 each, out of order."""
    (tmp_path / "models.py").write_text(MODELS)
    images = np.random.default_rng(0).integers(0, 250, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(40) % 4)
    return str(tmp_path)


def compute_here(
    batch_size: Any = "auto", backwards: bool = False, **spec: Any
) -> tuple[SignificanceScan, dict[str, pa.Table]]:
    """The scan in this process, without Ray or files."""
    scan = SignificanceScan(SignificanceSpec.model_validate(spec))
    prepared = scan.prepare(ComputeOptions())
    computer = scan.open(prepared, ComputeOptions(batch_size=batch_size))
    units = scan.units(prepared)
    by_unit = {unit.id: computer.compute(unit) for unit in (reversed(units) if backwards else units)}
    parts = [by_unit[unit.id] for unit in units]
    computer.close()
    assert {frozenset(part) for part in parts} == {frozenset(scan.tables()) - {"units"}}
    for part in parts:
        for name, table in part.items():
            assert table.schema.equals(scan.schemas()[name], check_metadata=True)
            table.validate(full=True)
    return scan, {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}


def dense_counts(table: pa.Table) -> dict[tuple[str, str, int], tuple[int, np.ndarray]]:
    """By layer, split and class: observations, and counts [m, n] of all paths."""
    found: dict[tuple[str, str, int], tuple[int, np.ndarray]] = {}
    rows = table.to_pylist()
    heights: dict[str, int] = {}
    for row in rows:
        heights[row["layer"]] = max(heights.get(row["layer"], 0), row["row"] + 1)
    for row in rows:
        key = (row["layer"], row["split"], row["class"])
        seen, counts = found.setdefault(key, (0, np.zeros((heights[row["layer"]], row["n_inputs"]), int)))
        columns = slice(None) if row["exception_columns"] is None else row["exception_columns"]
        counts[row["row"]] += row["row_count"]
        if row["exception_counts"]:
            counts[row["row"], columns] += row["exception_counts"]
        found[key] = (seen + (row["n_observations"] if row["row"] == 0 else 0), counts)
    return found


def by_definition(weight: Tensor, columns: Tensor, threshold: str = "sum") -> np.ndarray:
    """Counts over samples and positions [m, n], entry by entry: weight [m, n], columns [N, n, T]."""
    observations = columns.double().transpose(1, 2).flatten(0, 1)
    paths = weight.double() * observations[:, None]
    of = {
        "sum": paths.sum(-1) * weight.shape[1],
        "mean": paths.sum(-1) / weight.shape[1],
        "mean_abs": paths.abs().sum(-1) / weight.shape[1],
    }
    return (paths.abs() > of[threshold][..., None]).sum(0).numpy()


@pytest.mark.parametrize("threshold", ["sum", "mean", "mean_abs"])
def test_counts_equal_the_dense_definition_class_by_class(threshold: str) -> None:
    scan, tables = compute_here(**DIGITS, threshold=threshold, layers="conv3,hidden,output", unit_size=100)
    found = dense_counts(tables["significance"])
    model, data = load_model("digits"), open_data("digits", ("test", "train"))
    listing = data.list().table
    chosen = set(tables["samples"]["sample_id"].to_pylist())
    assert len(chosen) == 140
    reader = data.reader(listing)
    layers = [
        layer
        for layer in find_layers(model.module, reader.read(0)[None])
        if layer.name in ("conv3", "hidden", "output")
    ]
    assert [layer.name for layer in layers] == ["conv3", "hidden", "output"]
    inputs = LayerInputs(model.module, layers)
    for split in ("test", "train"):
        for label in range(10):
            rows = [
                row
                for row, entry in enumerate(listing.select(["sample_id", "split", "label"]).to_pylist())
                if entry["sample_id"] in chosen and (entry["split"], entry["label"]) == (split, label)
            ]
            (part,) = inputs.run(torch.stack([reader.read(row) for row in rows]))
            for index, layer in enumerate(layers):
                columns = part.columns(index, torch.arange(len(rows)))[:, 0]
                seen, counts = found[layer.name, split, label]
                assert seen == len(rows) * layer.positions
                np.testing.assert_array_equal(
                    counts, by_definition(layer.weight(model.module)[0], columns, threshold), err_msg=layer.name
                )
    exceptions = tables["significance"]["exception_columns"].null_count
    assert (exceptions > 0) == (threshold != "sum")
    assert not scan.spec.activations


def test_units_are_runs_of_one_class() -> None:
    scan = SignificanceScan(
        SignificanceSpec.model_validate({**DIGITS, "limit": None, "unit_size": 12, "per_class": 17})
    )
    prepared = scan.prepare(ComputeOptions())
    units = scan.units(prepared)
    assert [unit.start for unit in units[1:]] == [unit.stop for unit in units[:-1]]
    listing = prepared.listing.to_pylist()
    assert len(listing) == units[-1].stop == prepared.facts["data"]["n_samples"] == 340
    assert prepared.facts["data"]["splits"] == {"test": 170, "train": 170}
    assert [entry["split"] for entry in listing] == ["test"] * 170 + ["train"] * 170
    for unit in units:
        assert unit.size in (8, 9)
        assert len({(entry["split"], entry["label"]) for entry in listing[unit.start : unit.stop]}) == 1
    assert [(layer["name"], layer["rows"], layer["inputs"]) for layer in prepared.facts["significance"]["layers"]] == [
        ("hidden", 64, 128),
        ("output", 10, 64),
    ]
    assert prepared.facts["model"]["layers"] == ["hidden", "output"]


@pytest.mark.usefixtures("local_ray")
def test_tables_are_bit_identical_whatever_the_batch_size_and_the_workers(tmp_path: Path) -> None:
    spec = {**DIGITS, "layers": "conv2,output", "activations": 3, "unit_size": 40}
    _, here = compute_here(batch_size=1, **spec)
    one = scanned("significance", tmp_path / "one", ComputeOptions(batch_size=7), **spec)
    assert raysense.scan("significance", tmp_path / "two", run={"workers": 2, "batch_size": "auto"}, **spec).complete
    for store in (one, Store.open(tmp_path / "two")):
        for name in TABLES:
            assert read_table(store, name).equals(here[name]), (store.name, name)


def test_sums_for_the_ablations() -> None:
    _, tables = compute_here(**DIGITS, layers="conv3,output", activations=2)
    model, data = load_model("digits"), open_data("digits", ("test", "train"))
    table = data.list().table
    row_of = {name: row for row, name in enumerate(table["sample_id"].to_pylist())}
    reader = data.reader(table)
    layers = [layer for layer in find_layers(model.module, reader.read(0)[None]) if layer.name in ("conv3", "output")]
    inputs = LayerInputs(model.module, layers)
    samples = tables["samples"].to_pylist()
    outputs = {(row["split"], row["class"]): row for row in tables["class_outputs"].to_pylist()}
    sums = {(row["layer"], row["split"], row["class"]): row for row in tables["class_activations"].to_pylist()}
    assert len(outputs) == 20
    assert len(sums) == 40
    for (split, label), row in outputs.items():
        ids = [one["sample_id"] for one in samples if (one["split"], one["label"]) == (split, label)]
        (part,) = inputs.run(torch.stack([reader.read(row_of[name]) for name in ids]))
        log_p = part.logits.double().log_softmax(1)
        assert row["n_samples"] == len(ids)
        np.testing.assert_allclose(row["p_sum"], log_p.exp().sum(0), rtol=1e-6)
        np.testing.assert_allclose(row["log_p_sum"], log_p.sum(0), rtol=1e-6)
        np.testing.assert_allclose(row["p_log_p_sum"], (log_p.exp() * log_p).sum(), rtol=1e-5)
        kept = [one for one in tables["activations"].to_pylist() if (one["split"], one["class"]) == (split, label)]
        assert len(kept) == 4
        for index, layer in enumerate(layers):
            columns = part.columns(index, torch.arange(len(ids)))[:, 0]
            found = sums[layer.name, split, label]
            assert found["n_observations"] == len(ids) * layer.positions
            np.testing.assert_allclose(found["activation_sum"], columns.sum((0, 2)), rtol=1e-5, atol=1e-6)
            for one in (one for one in kept if one["layer"] == layer.name):
                own = columns[ids.index(one["sample_id"])].mean(1)
                np.testing.assert_allclose(one["activation"], own, rtol=1e-5, atol=1e-6)


def test_samples_that_are_not_finite_inside_are_left_out_and_named(zoo: str) -> None:
    images = dict(np.load(f"{zoo}/data.npz"))
    images["x"][5] = 255
    images["x"][8, 0, 0, 0] = 255
    np.savez(f"{zoo}/data.npz", **images)
    spec = {"model": f"{zoo}/models.py:bright", "data": f"npz:{zoo}/data.npz", "layers": "*", "activations": 40}
    _, tables = compute_here(**spec)
    errors = {row["sample_id"]: row["error"] for row in tables["samples"].to_pylist() if row["error"]}
    assert errors == {f"data/000000{row}": "inputs of layer last are missing or not finite" for row in (5, 8)}
    counts = {(row["layer"], row["class"]): row["n_samples"] for row in tables["significance"].to_pylist()}
    assert counts == {(layer, label): 10 - (label in (0, 1)) for layer in ("first", "last") for label in range(4)}
    assert {row["class"]: row["n_samples"] for row in tables["class_outputs"].to_pylist()} == {0: 9, 1: 9, 2: 10, 3: 10}
    assert not {"data/0000005", "data/0000008"} & set(tables["activations"]["sample_id"].to_pylist())


def test_a_network_that_branches_is_counted_alike_in_any_order(zoo: str) -> None:
    """Layers are those that the first image of the data passes through, in every worker and whatever came before."""
    images = dict(np.load(f"{zoo}/data.npz"))
    images["x"][np.arange(0, 40, 3)] //= 3
    np.savez(f"{zoo}/data.npz", **images)
    spec = {"model": f"{zoo}/models.py:branch", "data": f"npz:{zoo}/data.npz", "layers": "*", "activations": 3}
    scan, forwards = compute_here(**spec)
    assert scan.prepare(ComputeOptions()).facts["model"]["layers"] == ["dark", "last"]
    _, backwards = compute_here(backwards=True, **spec)
    assert all(backwards[name].equals(forwards[name]) for name in forwards)
    assert set(forwards["significance"]["layer"].to_pylist()) == {"dark", "last"}
    dark = {f"data/{row:07d}" for row in range(0, 40, 3)}
    failed = {row["sample_id"]: row["error"] for row in forwards["samples"].to_pylist() if row["error"]}
    assert set(failed) == {f"data/{row:07d}" for row in range(40)} - dark
    assert set(failed.values()) == {"inputs of layer dark are missing or not finite"}


def test_a_network_in_double_precision_equals_the_dense_definition(zoo: str) -> None:
    _, tables = compute_here(model=f"{zoo}/models.py:double", data=f"npz:{zoo}/data.npz", layers="*")
    model = load_model(f"{zoo}/models.py:double").module
    images = torch.from_numpy(np.load(f"{zoo}/data.npz")["x"]).permute(0, 3, 1, 2).float().div(255).double()
    for (layer, _, label), (seen, counts) in dense_counts(tables["significance"]).items():
        own = images[torch.arange(40) % 4 == label].flatten(1)
        inputs = own if layer == "first" else model.first(own).relu()
        assert seen == 10
        np.testing.assert_array_equal(counts, by_definition(getattr(model, layer).weight, inputs[:, :, None]))


@pytest.mark.parametrize(
    ("model", "layers", "expected"),
    [
        ("two", "", None),
        ("normed", "", "the last layer found, first, has 6 outputs, not the 4 classes"),
        ("normed", "first", None),
    ],
)
def test_a_last_layer_that_is_not_seen_is_pointed_out(zoo: str, model: str, layers: str, expected: str | None) -> None:
    spec = {"model": f"{zoo}/models.py:{model}", "data": f"npz:{zoo}/data.npz", "layers": layers}
    notes = SignificanceScan(SignificanceSpec.model_validate(spec)).prepare(ComputeOptions()).notes
    assert [expected in note for note in notes if "last layer" in note] == ([True] if expected else [])


def test_a_class_without_good_samples_has_no_rows(zoo: str) -> None:
    images = dict(np.load(f"{zoo}/data.npz"))
    images["x"][np.arange(2, 40, 4)] = 255
    np.savez(f"{zoo}/data.npz", **images)
    _, tables = compute_here(model=f"{zoo}/models.py:bright", data=f"npz:{zoo}/data.npz", activations=1)
    assert set(tables["significance"]["class"].to_pylist()) == {0, 1, 3}
    assert tables["samples"].num_rows - tables["samples"]["error"].null_count == 10


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"layers": "fc*"}, r"layers: 'fc\*' matches none of first, last"),
        ({"model": "poisoned"}, "the weight of last is not finite; check the checkpoint"),
        ({"model": "bare"}, "applies no linear layer or convolution"),
        ({"threshold": "max"}, "threshold"),
        ({"pass_size": 0}, "pass_size"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(zoo: str, spec: dict[str, Any], message: str) -> None:
    model = f"{zoo}/models.py:{spec.pop('model', 'two')}"
    out = Path(zoo) / "out"
    with pytest.raises(UsageError, match=message):
        raysense.scan("significance", out, model=model, data=f"npz:{zoo}/data.npz", **spec)
    assert not out.exists()


def test_a_network_without_linear_layers_gives_its_last_convolutions(zoo: str) -> None:
    Path(zoo, "more.py").write_text(
        "from torch import nn\n"
        "def conv():\n"
        "    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 4), nn.Flatten()\n"
        "    return nn.Sequential(*parts)\n"
    )
    scan, tables = compute_here(model=f"{zoo}/more.py:conv", data=f"npz:{zoo}/data.npz")
    assert set(tables["significance"]["layer"].to_pylist()) == {"2", "4"}
    notes = scan.prepare(ComputeOptions()).notes
    assert any("its last convolutions are scanned, 2, 4" in note for note in notes)


def images_of_imagenet() -> str:
    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    return f"folder:{folder}?classes={synsets}"


@pytest.mark.parametrize("positions", ["each", "any", "first"])
def test_a_transformer_on_imagenet_images(positions: str, tmp_path: Path) -> None:
    """Tokens of the MLP, of the attention's projections, and the class token in the head."""
    (tmp_path / "small.py").write_text(
        "import torchvision\n"
        "def vit():\n"
        "    m = torchvision.models.VisionTransformer(224, 32, 2, 4, 64, 128, num_classes=1000)\n"
        "    m.preprocessing = {'resize': 256, 'crop': 224}\n"
        "    return m\n"
    )
    _, tables = compute_here(
        model=f"{tmp_path}/small.py:vit", data=images_of_imagenet(), limit=2, positions=positions,
        layers="*layer_1.mlp.3,*layer_1.self_attention.*",
    )  # fmt: skip
    found = dense_counts(tables["significance"])
    assert len(found) == 6
    assert {counts.shape for _, counts in found.values()} == {(64, 128), (192, 64), (64, 64)}
    model, source = load_model(f"{tmp_path}/small.py:vit"), open_data(f"{images_of_imagenet()}&resize=256&crop=224", ())
    listing = source.list().table
    ids, reader = listing["sample_id"].to_pylist(), source.reader(listing)
    for sample in tables["samples"].to_pylist():
        assert model.preprocessing is not None
        image = model.preprocessing.apply(reader.read(ids.index(sample["sample_id"])))[None].float() / 255
        for (layer, _, label), (seen, counts) in found.items():
            if label != sample["label"]:
                continue
            known = next(one for one in find_layers(model.module, image) if one.name == layer)
            (part,) = LayerInputs(model.module, [known]).run(image)
            columns = part.columns(0, torch.tensor([0]))[:, 0]
            assert columns.shape[2] == 50
            weight = known.weight(model.module)[0]
            single = [by_definition(weight, columns[..., [token]]) for token in range(50)]
            expected = {"each": sum(single), "any": np.any(single, axis=0), "first": single[0]}[positions]
            np.testing.assert_array_equal(counts, expected)
            assert seen == (50 if positions == "each" else 1)


def test_squeezenet_on_imagenet_images_equals_the_dense_definition(tmp_path: Path) -> None:
    zoo = Path(__file__).parent / "zoo" / "squeezenet.py"
    weights = shared_data("imagenet", "squeezenet1_0_fp16.pt")
    reference = f"{zoo}:squeezenet?checkpoint={weights}"
    _, tables = compute_here(model=reference, data=images_of_imagenet(), limit=2)
    found = dense_counts(tables["significance"])
    assert {layer for layer, *_ in found} == {"features.12.expand3x3", "classifier.1"}
    model = load_model(reference)
    (sample,) = (row for row in tables["samples"].to_pylist() if row["label"] == min(label for *_, label in found))
    data = open_data(f"{images_of_imagenet()}&resize=256&crop=227", ())
    listing = data.list().table
    image = model.preprocessing.apply(
        data.reader(listing).read(listing["sample_id"].to_pylist().index(sample["sample_id"]))
    )
    layer = next(
        one for one in find_layers(model.module, image[None].float() / 255) if one.name.endswith("classifier.1")
    )
    (part,) = LayerInputs(model.module, [layer]).run(image[None].float() / 255)
    columns = part.columns(0, torch.tensor([0]))[:, 0]
    seen, counts = found["classifier.1", sample["split"], sample["label"]]
    assert seen == columns.shape[2]
    np.testing.assert_array_equal(counts, by_definition(layer.weight(model.module)[0], columns))
