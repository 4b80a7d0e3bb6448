"""Targets of the influence scan: their rows, layers of the network by name, pixel maps, attacks, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import raysense
from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.measures.pixel_maps import pixel_maps
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.scans import Prepared
from raysense.scans.influence import InfluenceScan, InfluenceSpec
from raysense.validation import validated

DIGITS: dict[str, Any] = {"model": "digits", "data": "digits", "split": "test", "limit": 12}
LAYERS = ["conv1", "conv2", "conv3", "hidden", "output"]


def compute_here(**spec: Any) -> tuple[dict[str, pa.Table], Prepared]:
    """The tables of the scan in this process, without Ray or files."""
    scan = InfluenceScan(validated(InfluenceSpec, spec))
    prepared = scan.prepare(ComputeOptions())
    computer = scan.open(prepared, ComputeOptions())
    parts = [computer.compute(unit) for unit in scan.units(prepared)]
    computer.close()
    assert parts[0].keys() == scan.tables().keys() - {"units"}
    return {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}, prepared


def by_target(table: pa.Table) -> dict[tuple[str, str | None], dict[str, np.ndarray]]:
    """Columns of the influence table for each target and layer, in the order of the samples."""
    frame = table.to_pylist()
    keys = list(dict.fromkeys((row["target"], row["layer"]) for row in frame))
    return {
        key: {
            name: np.array([row[name] for row in frame if (row["target"], row["layer"]) == key])
            for name in table.schema.names
        }
        for key in keys
    }


@pytest.mark.parametrize("method", ["exact", "certified", "bound"])
def test_every_target_is_a_row_and_they_nest(method: str) -> None:
    target = "input;parameters;layer;input+parameters;parameters:conv?.bias,output.*"
    tables, prepared = compute_here(**DIGITS, target=target, method=method)
    assert prepared.facts["model"]["layers"] == LAYERS
    found = by_target(tables["influence"])
    assert list(found) == [
        ("input", None), ("parameters", None), *(("layer", layer) for layer in LAYERS), ("input+parameters", None),
        ("parameters:conv?.bias,output.*", None),
    ]  # fmt: skip
    assert len(tables["influence"]) == 12 * len(found)
    bound = found["input", None]["fi_bound"]
    p = tables["samples"]["p_label"].to_numpy()
    uncertain = p < 0.999
    np.testing.assert_allclose(bound[uncertain], (1 - p[uncertain]) / p[uncertain], rtol=1e-9)
    for columns in found.values():
        np.testing.assert_allclose(columns["fi_bound"], bound)
        assert (columns["fi_lower"] <= columns["fi_upper"]).all()
        assert (columns["fi_upper"] <= bound * (1 + 1e-9)).all()
        assert (columns["cook"] == None).all()  # noqa: E711 - elementwise
    if method == "bound":
        assert all((columns["fi"] == None).all() for columns in found.values())  # noqa: E711
        return
    whole = found["input+parameters", None]
    for columns in found.values():
        assert (columns["fi_lower"] <= whole["fi_upper"] * (1 + 1e-6)).all()
        assert (columns["jacobian_norm"] <= whole["jacobian_norm"] * (1 + 1e-6)).all()
    layers = np.stack([found["layer", layer]["jacobian_norm"] for layer in LAYERS])
    everything = found["parameters", None]["jacobian_norm"]
    np.testing.assert_allclose(np.sqrt((layers**2).sum(0)), everything.astype(float), rtol=1e-5)
    joint = np.hypot(everything.astype(float), found["input", None]["jacobian_norm"].astype(float))
    np.testing.assert_allclose(whole["jacobian_norm"].astype(float), joint, rtol=1e-5)


def test_layers_by_pattern_and_cook() -> None:
    tables, _ = compute_here(**{**DIGITS, "limit": 3}, target="layer:conv*,output", cook=True)
    found = by_target(tables["influence"])
    assert list(found) == [("layer", layer) for layer in ("conv1", "conv2", "conv3", "output")]
    for columns in found.values():
        assert (np.abs(columns["cook"].astype(float)) < np.inf).all()
        assert (columns["cook_error"].astype(float) >= 0).all()
        assert (columns["cook_error"].astype(float) <= 0.01 * np.abs(columns["cook"].astype(float)) + 1e-9).all()


def test_samples_by_id() -> None:
    everything, _ = compute_here(**DIGITS)
    ids = everything["samples"]["sample_id"].to_pylist()
    tables, _ = compute_here(**{**DIGITS, "limit": None}, samples=f"{ids[7]},{ids[2]}")
    assert tables["samples"]["sample_id"].to_pylist() == [ids[2], ids[7]]
    with pytest.raises(UsageError, match="samples 'nobody': data 'digits' has no such sample"):
        compute_here(**DIGITS, samples="nobody")


def test_maps_and_attacks_are_rows() -> None:
    tables, _ = compute_here(
        **{**DIGITS, "limit": 4}, target="pixels", objective="predicted", scales="1,3", channels=True, attack=True
    )
    assert tables["influence"].num_rows == 0
    maps = tables["influence_maps"].to_pylist()
    assert [(row["scale"], row["channel"]) for row in maps] == [(1, None), (3, None), (1, 0), (3, 0)] * 4
    data = open_data("digits", ("test",))
    reader, model = data.reader(data.list().table), load_model("digits").module
    ids = data.list().table["sample_id"].to_pylist()
    for index, attack in enumerate(tables["pixel_attacks"].to_pylist()):
        image = reader.read(ids.index(attack["sample_id"]))[None].float()
        expected = pixel_maps(model, image, None, scales=(1, 3))
        row = maps[4 * index]
        assert (row["height"], row["width"]) == (8, 8)
        np.testing.assert_allclose(row["fi"], expected.maps[1, None].flatten().numpy(), rtol=1e-3)
        np.testing.assert_allclose(maps[4 * index + 1]["fi"], expected.maps[3, None].flatten().numpy(), rtol=1e-3)
        assert max(row["fi"]) == attack["fi"] == row["fi"][8 * attack["row"] + attack["column"]]
        changed = image.clone()
        assert attack["before"] == pytest.approx(image[0, :, attack["row"], attack["column"]].tolist())
        changed[0, :, attack["row"], attack["column"]] = torch.tensor(attack["after"])
        before, after = model(image).double().softmax(1)[0], model(changed).double().softmax(1)[0]
        assert attack["class_before"] == before.argmax()
        assert attack["p_before"] == pytest.approx(float(before.max()), rel=1e-4)
        assert attack["p_before_after"] == pytest.approx(float(after[attack["class_before"]]), rel=1e-4)
        assert (attack["class_after"], attack["p_after"]) == (int(after.argmax()), pytest.approx(float(after.max())))
        assert attack["p_before_after"] <= attack["p_before"]


def test_maps_share_the_scan_with_other_targets() -> None:
    tables, _ = compute_here(**{**DIGITS, "limit": 2}, target=("input", "pixels"), scales=(15,))
    influence = tables["influence"]["fi"].to_numpy()
    for row, fi in zip(tables["influence_maps"].to_pylist(), influence, strict=True):
        np.testing.assert_allclose(row["fi"], fi, rtol=1e-4)  # every 15 x 15 square holds the whole image


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"target": "weights"}, "target 'weights' is unknown; choose from input, parameters"),
        ({"target": "input:conv1"}, "target 'input:conv1' is unknown"),
        ({"target": "layer:"}, "target 'layer:' is unknown"),
        (
            {"target": "layer:conv9"},
            r"target 'layer:conv9': 'conv9' matches none of conv1, conv2, conv3, hidden, output",
        ),
        ({"target": "parameters:conv1"}, r"'conv1' matches none of conv1.weight, conv1.bias"),
        ({"target": "layer;layer:conv*"}, "target names layers twice"),
        ({"target": "input;input"}, "must name at least one target, and each once"),
        ({"target": ""}, "must name at least one target"),
        ({"target": "pixels", "method": "certified"}, "target 'pixels' has no certified method; use --method exact"),
        ({"target": "pixels", "scales": "1,4"}, "scales: 4 must be odd and positive"),
        ({"target": "pixels", "scales": "99"}, "scales: 99 is larger than any square in images of 8 pixels"),
        ({"target": "pixels", "scales": "3", "attack": True}, "attack needs the map of single pixels"),
        ({"attack": True}, "attack needs the map of single pixels"),
        ({"cook": True, "method": "bound"}, "cook needs gradients"),
    ],
)
def test_wrong_targets_are_refused_with_the_mend(spec: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        raysense.scan("influence", tmp_path / "unused", **DIGITS, **spec)
    assert not (tmp_path / "unused").exists()


MODELS = """
import torch
from torch import nn

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 10)
    def forward(self, x): return self.head(self.rows(x[:, 0])[1][0])

def recurrent(): return Recurrent()

def frozen():
    network = Recurrent()
    network.rows.requires_grad_(False)
    return network

class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight): return x * weight
    @staticmethod
    def backward(ctx, gradient):
        if ctx.needs_input_grad[1]: raise RuntimeError("the weight has no derivative")
        return gradient, None

class Refusing(Recurrent):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x): return super().forward(Refuses.apply(x, self.scale))

def refusing(): return Refusing()

def all_frozen(): return Recurrent().requires_grad_(False)
"""


def test_generic_layers_are_said_once_and_frozen_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    spec = {**DIGITS, "limit": 3, "target": "layer;parameters"}
    tables, prepared = compute_here(**{**spec, "model": f"{tmp_path}/models.py:recurrent"})
    assert len(prepared.notes) == 1
    assert "rows.weight_ih_l0, rows.weight_hh_l0" in prepared.notes[0]
    found = by_target(tables["influence"])
    assert list(found) == [("layer", "rows"), ("layer", "head"), ("parameters", None)]
    assert (found["layer", "rows"]["rank"] == 5).all(), "the state has five numbers"
    assert (found["layer", "rows"]["fi"] < found["parameters", None]["fi"]).all()
    tables, prepared = compute_here(**{**spec, "model": f"{tmp_path}/models.py:frozen"})
    assert prepared.facts["model"]["layers"] == ["head"]
    assert prepared.notes == ()
    with pytest.raises(
        UsageError, match=r"gives no gradients with respect to its parameters \(the weight has no derivative\)"
    ):
        compute_here(**{**spec, "model": f"{tmp_path}/models.py:refusing"})
    with pytest.raises(UsageError, match="has no trainable parameters; use --target input"):
        compute_here(**{**spec, "model": f"{tmp_path}/models.py:all_frozen"})
