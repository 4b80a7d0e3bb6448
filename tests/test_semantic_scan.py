"""The semantic scan: maps, regions, FI, images and shapes; what is refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from in_process import Here

import raysense
from raysense.cli import main
from raysense.errors import UsageError
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.scans.semantic import SemanticScan, SemanticSpec
from raysense.semantics.renderers import open_renderer
from raysense.semantics.shapes import open_shapes
from raysense.semantics.space import parse_space
from raysense.studies.semantic import run_semantic
from raysense.validation import validated

NETWORK = "raysense.studies.networks:plain?channels=3&classes=4&width=4"
SMALL: dict[str, Any] = {"model": NETWORK, "shapes": "procedural?variants=1", "classes": "cup=1,chair=2", "size": 16}


def computed(unit_size: int | None = None, batch_size: int = 8, **spec: Any) -> dict[str, pa.Table]:
    """All tables of a scan, without Ray."""
    scan = SemanticScan(validated(SemanticSpec, {**spec, "unit_size": unit_size}))
    options = ComputeOptions(device="cpu", batch_size=batch_size)
    prepared = scan.prepare(options)
    computer = scan.open(prepared, options)
    parts = [computer.compute(unit) for unit in scan.units(prepared)]
    computer.close()
    assert set(parts[0]) == set(scan.tables()) - {"units"}
    for part in parts:
        for name, table in part.items():
            assert table.schema.equals(scan.schemas()[name], check_metadata=False), name
    return {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}


def test_maps_hold_the_softmax_score_of_every_pose() -> None:
    tables = computed(**SMALL, maps="azimuth:90,elevation:50;elevation:25", methods="none", influence=True)
    found = tables["semantic_maps"].to_pylist()
    assert len(found) == 2 * (4 * 3 + 5)
    assert tables["subjects"]["label"].to_pylist() == [2, 1]
    assert tables["subjects"]["error"].to_pylist() == [None, None]
    assert min(tables["subjects"]["faces"].to_pylist()) > 100
    space = parse_space(["azimuth", "elevation"])
    model, source, renderer = load_model(NETWORK), open_shapes("procedural?variants=1"), open_renderer("torch", size=16)
    for row in (found[0], found[7], found[14], found[-1]):
        whole = [0.0, row["u"][0]] if row["axes"] == "elevation" else row["u"]
        scene = space.parameters(torch.tensor([whole], dtype=torch.float64))
        with torch.no_grad():
            logits = model.module(renderer.render(renderer.prepare(source.mesh(row["shape_id"])), scene)).double()[0]
        p = torch.softmax(logits, 0)
        assert row["score"] == pytest.approx(p[row["label"]].item(), rel=1e-5)
        assert (row["predicted"], row["p_predicted"]) == (int(p.argmax()), pytest.approx(p.max().item(), rel=1e-5))
        assert row["fi_bound"] == pytest.approx((1 - row["score"]) / row["score"], rel=1e-4)
    assert {tuple(row["steps"]) for row in found} == {(4, 3), (5,)}
    # Two axes and four classes: FI says more than the softmax.
    assert all(0 <= row["fi"] < row["fi_bound"] for row in found)
    assert any(row["fi"] > 1e-3 * row["fi_bound"] for row in found)


REGIONS: dict[str, Any] = {
    **SMALL,
    "methods": "constrained,published,trapezoid",
    "kinds": "robust,adversarial",
    "initial": "2",
    "iterations": 3,
    "evaluations": 60,
    "half_width": 0.5,
    "evidence": 16,
    "traces": True,
}


def test_regions_of_all_methods_kinds_and_points() -> None:
    tables = computed(**REGIONS)
    found = tables["regions"].to_pylist()
    assert len(found) == 2 * 2 * 2 * 5
    assert {(row["family"], row["method"]) for row in found} == {
        ("constrained", "constrained"),
        *(("published", method) for method in ("naive", "oir_b", "oir_w", "trapezoid")),
    }
    for row in found:
        lower, upper = (torch.tensor(row[side], dtype=torch.float64) for side in ("lower", "upper"))
        assert row["volume"] == pytest.approx(float((upper - lower).prod()) / 36000, rel=1e-6, abs=1e-12)
        assert row["volume_clipped"] <= row["volume"] + 1e-12
        assert row["mean_lower"] <= row["mean_score"] <= row["mean_upper"]
        assert row["contains_u0"]
        mean = row["mean_score"] if row["kind"] == "robust" else 1 - row["mean_score"]
        if row["holds"]:
            assert mean >= 0.5
            assert row["var_score"] <= 0.05
        if row["method"] == "constrained":
            assert row["evaluations"] <= 60
            assert upper[1] <= 90
            assert lower[1] >= -10
        else:
            assert row["iterations"] == 3
    traces = tables["region_traces"].to_pylist()
    published = [row for row in traces if row["method"] == "oir_b" and row["iteration"] == 0]
    assert all(row["upper"][0] - row["lower"][0] == pytest.approx(1.0) for row in published)
    assert len(published) == 2 * 2 * 2


def test_regions_do_not_depend_on_units_or_batches() -> None:
    spec = {**REGIONS, "traces": False, "kinds": "robust"}
    apart, together = computed(unit_size=1, batch_size=5, **spec), computed(unit_size=2, batch_size=64, **spec)
    for one, other in zip(apart["regions"].to_pylist(), together["regions"].to_pylist(), strict=True):
        assert (one["shape_id"], one["init"], one["method"]) == (other["shape_id"], other["init"], other["method"])
        assert one["lower"] == pytest.approx(other["lower"], abs=1e-4)
        assert one["upper"] == pytest.approx(other["upper"], abs=1e-4)
        assert one["mean_score"] == pytest.approx(other["mean_score"], abs=1e-5)


def test_images_have_a_space_without_a_shape() -> None:
    tables = computed(
        model="digits", data="digits", split="test", limit=2, maps="rotation:120", evaluations=50, influence=True,
        axes="rotation,scale,blur",
    )  # fmt: skip
    maps, regions = tables["semantic_maps"].to_pylist(), tables["regions"].to_pylist()
    assert [row["u"] for row in maps[:3]] == [[-180.0], [-60.0], [60.0]]
    assert tables["subjects"]["source"].to_pylist() == ["image", "image"]
    assert [row["u0"] for row in regions] == [[0.0, 1.0, 0.0]] * 2
    scored = computed_scores(tables["subjects"]["shape_id"].to_pylist())
    for row in regions:
        assert row["u0_score"] == pytest.approx(scored[row["shape_id"]], rel=1e-5)
        assert row["u0_fi"] < row["u0_fi_bound"]


def computed_scores(samples: list[str]) -> dict[str, float]:
    """The score of the label of digits as they are."""
    from raysense.digits import load_digits

    model, digits = load_model("digits"), load_digits("test")
    found = {}
    for sample in samples:
        row = (digits.index == int(sample.rpartition("/")[2])).nonzero().item()
        p = torch.softmax(model.module(digits.images[row : row + 1]).double()[0], 0)
        found[sample] = float(p[digits.labels[row]])
    return found


def test_a_broken_mesh_spares_its_neighbours(tmp_path: Path) -> None:
    cup = tmp_path / "cup"
    cup.mkdir()
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    (cup / "good.obj").write_text(corners + "f 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n")
    (cup / "broken.obj").write_text(corners + "f 1 2 9\n")
    tables = computed(model=NETWORK, shapes=str(tmp_path), classes="cup=0", size=16, maps="azimuth:180", methods="none")
    errors = dict(zip(*(tables["subjects"][name].to_pylist() for name in ("shape_id", "error")), strict=True))
    assert errors["cup/good"] is None
    assert "9" in errors["cup/broken"]
    assert set(tables["semantic_maps"]["shape_id"].to_pylist()) == {"cup/good"}


def test_regions_that_all_diverge_are_counted_as_such() -> None:
    spec = {**REGIONS, "classes": "cup=1", "methods": "naive", "kinds": "robust", "eta": 1e9, "half_width": 30}
    found = computed(**spec)["regions"].to_pylist()
    assert [row["diverged"] for row in found] == [True, True]
    assert [(row["volume"], row["mean_score"], row["holds"], row["evidence_points"]) for row in found] == [
        (None, None, None, 0)
    ] * 2


def test_scores_that_are_not_finite_are_unknown(tmp_path: Path) -> None:
    """A network that breaks down on bright pictures only, which the first two of a scan are not."""
    file = tmp_path / "breaks.py"
    file.write_text(
        "import torch\n"
        "class Breaks(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        mean = images.mean((1, 2, 3))\n"
        "        return torch.stack((mean, torch.where(mean > 0.8, torch.nan, -mean)), dim=1)\n"
        "def network():\n"
        "    return Breaks()\n"
    )
    tables = computed(
        model=f"{file}:network", shapes="procedural?variants=1", classes="cup=1", size=16, axes="background",
        maps="background:0.5", initial="0;1", evaluations=50,
    )  # fmt: skip
    maps, regions = tables["semantic_maps"].to_pylist(), tables["regions"].to_pylist()
    assert [row["score"] is None for row in maps] == [False, False, True]
    assert [row["predicted"] is None for row in maps] == [False, False, True]
    assert [row["u0_score"] is None for row in regions] == [False, True]


def test_classes_of_images_are_chosen_before_the_limit() -> None:
    spec = {"model": "digits", "data": "digits", "split": "test", "maps": "rotation:180", "methods": "none"}
    assert set(computed(**spec, classes="3", limit=2)["subjects"]["label"].to_pylist()) == {3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shapes": None}, "either shapes or data"),
        ({"data": "digits"}, "either shapes or data"),
        ({"methods": "newton"}, "methods 'newton' is unknown"),
        ({"methods": "none"}, "nothing to compute without maps"),
        ({"kinds": "strange"}, "kinds 'strange' is unknown"),
        ({"methods": "oir_w", "black_box": True}, "black_box allows no gradients"),
        ({"influence": True, "black_box": True}, "black_box allows no gradients"),
        ({"influence": True, "antialias": False}, "without antialias"),
        ({"axes": "azimuth,elevatoin"}, "no axis 'elevatoin'"),
        ({"axes": "elevation=60:0"}, "inverted"),
        ({"axes": "rotation,scale"}, "these are axes of images; give --data"),
        ({"initial": "30:100"}, "lies outside the space"),
        ({"maps": "roll:10"}, "not among the axes"),
        ({"maps": "azimuth:10;azimuth:20"}, "asked for twice"),
        ({"classes": "cup"}, "say which it is: --classes cup=CLASS"),
        ({"classes": "cup=4"}, "0 to 3"),
        ({"classes": "cups=1"}, "no such folder; it has"),
        ({"samples": "cup/77"}, "no such shape"),
        ({"split": "test"}, "shapes have no splits"),
        ({"shapes": "/nowhere/shapes"}, "/nowhere/shapes"),
        ({"model": "raysense.studies.networks:plain?channels=1&classes=4"}, "does not take the renders of the shapes"),
        ({"renderer": "opengl"}, "renderer"),
        ({"size": 0}, "size"),
        ({"classes": "cup=1,cup=2"}, "'cup' is named twice"),
        ({"maps": "azimuth:60,elevation:50;elevation:50,azimuth:60"}, "asked for twice"),
        ({"shapes": None, "data": "digits", "model": "digits", "classes": None}, "size, renderer and antialias"),
        ({"initial": ";"}, "names no point"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_computed(changes: dict[str, Any], words: str) -> None:
    spec = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    with pytest.raises(UsageError) as caught:
        SemanticScan(validated(SemanticSpec, spec)).prepare(ComputeOptions(device="cpu"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_cells_are_announced() -> None:
    spec = {**SMALL, "methods": "none", "maps": "azimuth:1,elevation:1"}
    prepared = SemanticScan(validated(SemanticSpec, spec)).prepare(ComputeOptions(device="cpu"))
    assert any("36,360 cells" in note for note in prepared.notes)


def test_what_many_corners_cost_is_said() -> None:
    spec = {**SMALL, "methods": "naive,oir_b", "axes": "azimuth,elevation,distance,roll,red,green"}
    prepared = SemanticScan(validated(SemanticSpec, spec)).prepare(ComputeOptions(device="cpu"))
    assert any("score up to 768 corners" in note for note in prepared.notes)


@pytest.mark.usefixtures("local_ray")
def test_from_the_command_line_to_sql(tmp_path: Path) -> None:
    out = tmp_path / "scan"
    arguments = [
        *("--model", NETWORK, "--shapes", "procedural?variants=1", "--classes", "cup=1,chair=2", "--size", "16"),
        *("--maps", "azimuth:120,elevation:50", "--initial", "2", "--evaluations", "60"),
        *("--workers", "1", "--worker-cpus", "1"),
    ]
    done = CliRunner().invoke(main, ["scan", "semantic", *arguments, "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "scan.json").read_text())["facts"]
    assert [axis["name"] for axis in facts["space"]["axes"]] == ["azimuth", "elevation"]
    with raysense.open_results(out) as database:
        (row,) = database.query("FROM srvr()").rows()
        cells = database.query("SELECT count(*) AS n FROM semantic_maps").rows()
    assert (row["method"], row["n_boxes"], cells[0]["n"]) == ("constrained", 4, 2 * 9)
    assert 0 <= row["srvr"] <= 1
    raysense.write_report([out], tmp_path / "report.html", formats=())
    assert "azimuth" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("local_ray")
def test_the_study_of_several_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "model": (NETWORK, f"{NETWORK}&seed=1"),
        "shapes": "procedural?variants=2&classes=cup",
        "classes": "cup=1",
        "maps": "azimuth:120,elevation:50",
        "methods": "constrained,naive",
        "initial": "1",
        "evaluations": 50,
        "iterations": 2,
        "size": 16,
        "influence": True,
    }
    monkeypatch.setattr("raysense.engine.run.Dispatcher", Here)
    assert run_semantic(tmp_path, options, {"workers": 1, "worker_cpus": 1, "device": "cpu"}, quiet=True) == 0
    printed = capsys.readouterr().out
    assert "Semantic robust volume ratio" in printed
    assert "Does FI foretell" in printed
    assert "constrained" in printed
    page = (tmp_path / "report.html").read_text()
    assert "All scans" in page
    with raysense.open_results([tmp_path / "plain", tmp_path / "plain-2"]) as database:
        rows = database.query("SELECT scan, method, n_boxes FROM srvr() ORDER BY ALL").rows()
    assert len(rows) == 4
    assert {row["n_boxes"] for row in rows} == {2}
