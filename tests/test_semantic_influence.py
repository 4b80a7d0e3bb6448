"""FI of image transforms as a target of the influence scan, beside other targets."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch

from raysense.digits import load_digits
from raysense.errors import UsageError
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.scans.influence import InfluenceScan, InfluenceSpec
from raysense.semantics.image_transforms import transform
from raysense.semantics.space import parse_space
from raysense.validation import validated

DIGITS: dict[str, Any] = {"model": "digits", "data": "digits", "split": "test", "limit": 6}


def computed(**spec: Any) -> pa.Table:
    """Table influence of a scan, without Ray."""
    scan = InfluenceScan(validated(InfluenceSpec, {**DIGITS, **spec}))
    options = ComputeOptions(device="cpu", batch_size=4)
    prepared = scan.prepare(options)
    computer = scan.open(prepared, options)
    return pa.concat_tables([computer.compute(unit)["influence"] for unit in scan.units(prepared)])


@pytest.mark.parametrize("axes", ["rotation", "rotation,scale", "translate_x,translate_y,brightness,contrast"])
def test_fi_of_image_transforms_is_eq_3(axes: str) -> None:
    table = computed(target="semantic", axes=axes).to_pylist()
    model, digits, space = load_model("digits"), load_digits("test"), parse_space(axes.split(","))
    assert len(table) == 6
    for row in table:
        index = (digits.index == int(row["sample_id"].rpartition("/")[2])).nonzero().item()
        image, label = digits.images[index : index + 1], int(digits.labels[index])

        def logits(u: torch.Tensor, image: torch.Tensor = image) -> torch.Tensor:
            return model.module(transform(image, space.parameters(u[None])))[0].double()

        jacobian = torch.autograd.functional.jacobian(logits, space.default)
        p = torch.softmax(logits(space.default), 0)
        metric = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
        gradient = jacobian.T @ p - jacobian[label]
        scale = metric.diagonal().sqrt()  # the units of the axes differ
        expected = (gradient / scale) @ torch.linalg.pinv(metric / torch.outer(scale, scale)) @ (gradient / scale)
        assert row["fi"] == pytest.approx(float(expected), rel=2e-3)
        assert row["fi"] == row["fi_lower"] == row["fi_upper"] < row["fi_bound"]
        assert row["rank"] == len(space.axes)


def test_it_goes_beside_other_targets() -> None:
    alone = {row["sample_id"]: row["fi"] for row in computed(target="semantic").to_pylist()}
    beside = computed(target="semantic;input;pixels", scales="1", cook=True).to_pylist()
    assert [row["target"] for row in beside[:2]] == ["input", "semantic"]
    assert len(beside) == 12
    for row in beside:
        if row["target"] == "semantic":
            assert row["fi"] == pytest.approx(alone[row["sample_id"]], rel=1e-9)
            assert row["cook"] is None
        else:
            assert row["fi"] == pytest.approx(row["fi_bound"], rel=1e-9)
            assert row["cook"] > 0


@pytest.mark.parametrize("method", ["certified", "bound"])
def test_other_methods(method: str) -> None:
    exact = {row["sample_id"]: row["fi"] for row in computed(target="semantic").to_pylist()}
    for row in computed(target="input;semantic", method=method).to_pylist():
        if row["target"] != "semantic":
            continue
        if method == "certified":
            assert row["fi"] == pytest.approx(exact[row["sample_id"]], rel=1e-9)
        else:
            assert (row["fi"], row["fi_upper"], row["rank"]) == (None, row["fi_bound"], None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": "azimuth"}, "name axes of images"),
        ({"axes": "rotate"}, "no axis 'rotate'"),
        ({"cook": True}, "leave out --cook"),
    ],
)
def test_bad_axes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        InfluenceScan(validated(InfluenceSpec, {**DIGITS, "target": "semantic", **changes})).prepare(ComputeOptions())
    assert words in str(caught.value)
