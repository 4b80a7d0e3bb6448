"""The studies: simulated outliers, training with them, and each study from its options to its report."""

from __future__ import annotations

import json
import pickle
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from click.testing import CliRunner
from in_process import Here

import raysense
from raysense.datasets import open_data
from raysense.digits import load_digits
from raysense.errors import RaysenseError, UsageError
from raysense.models import load_model
from raysense.references import absolute_reference
from raysense.scans.influence import InfluenceSpec
from raysense.studies.architectures import run_architectures
from raysense.studies.command import study_command
from raysense.studies.networks import plain, residual
from raysense.studies.outliers import at_the_size_of, run_outliers
from raysense.studies.overlaps import Overlaps, overlaps_reference, shifted
from raysense.studies.pixels import PixelOptions, run_pixels
from raysense.studies.recipes import Recipe, TrainingTask
from raysense.studies.study import Workspace, model_names
from raysense.studies.train_test import TrainTestOptions, run_train_test
from raysense.studies.training import train
from raysense.training import Adam

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = "raysense.studies.networks"
RUN = {"workers": 1, "worker_cpus": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysense.engine.run.Dispatcher", Here)


def columns(reference: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = open_data(reference).list().table.to_pydict()
    return found


def test_overlaps_are_maxima_of_shifted_images_of_two_classes() -> None:
    source = open_data(overlaps_reference("digits", fraction=0.1, shift=2, limit=200), ("train", "outlier"))
    listing = source.list()
    table = listing.table
    assert table["split"].to_pylist() == ["train"] * 200 + ["outlier"] * 20
    reader = pickle.loads(pickle.dumps(source.reader(table))).over(table.slice(190))
    base = {f"train/{row:07d}": image for row, image in zip(*_rows_and_images(), strict=True)}
    for row, entry in enumerate(table.slice(190).to_pylist()):
        image = reader.read(row)
        first = base[entry["first_sample_id"]]
        if entry["split"] == "train":
            assert entry["sample_id"] == entry["first_sample_id"]
            assert torch.equal(image, first)
            continue
        second = base[entry["second_sample_id"]]
        assert entry["label"] == entry["first_label"] != entry["second_label"]
        moves = [entry[f"{part}_{axis}"] for part in ("first", "second") for axis in ("down", "right")]
        expected = np.maximum(_moved(first, *moves[:2]), _moved(second, *moves[2:]))
        assert np.array_equal(image.numpy(), expected)
    outliers = table.slice(200)
    assert pc.min_max(outliers["first_down"]).as_py() == {"min": -2, "max": 2}
    assert sorted(outliers["label"].to_pylist()) == sorted(2 * list(range(10))), "evenly over the classes"
    assert len(set(outliers["first_sample_id"].to_pylist())) == 20
    assert listing.classes == tuple("0123456789")


def _rows_and_images() -> tuple[list[int], torch.Tensor]:
    digits = load_digits("train")
    return digits.index.tolist(), digits.images


def _moved(image: torch.Tensor, down: int, right: int) -> np.ndarray:
    """Shift by padding and cropping."""
    padded = np.pad(image.numpy(), ((0, 0), (9, 9), (9, 9)))
    return np.asarray(padded[:, 9 - down : 17 - down, 9 - right : 17 - right])


@pytest.mark.parametrize("move", [(0, 0), (3, -2), (-8, 1), (0, 9), (-20, 20)])
def test_shifted(move: tuple[int, int]) -> None:
    image = torch.rand(1, 8, 8)
    down, right = move
    inside = np.zeros((1, 8, 8), np.float32)
    for row in range(8):
        for column in range(8):
            if 0 <= row - down < 8 and 0 <= column - right < 8:
                inside[:, row, column] = image[:, row - down, column - right]
    assert np.array_equal(shifted(image, down, right).numpy(), inside)


def test_overlaps_depend_on_the_seed_alone() -> None:
    first, again, other = (columns(overlaps_reference("digits", seed=seed)) for seed in (0, 0, 1))
    assert first == again
    outliers = slice(1347, None)
    assert len(first["split"][outliers]) == 67, "5 %"
    assert max(first["first_down"]) == 1, "4 pixels of 28 are 1 of 8"
    assert first["second_sample_id"][outliers] != other["second_sample_id"][outliers]
    assert not set(first["sample_id"][outliers]) & set(other["sample_id"][outliers])
    fingerprints = {open_data(overlaps_reference("digits", shift=shift)).list().fingerprint for shift in (1, 2)}
    assert len(fingerprints) == 2


def test_overlaps_of_any_data_at_the_size_of_the_model(tmp_path: Path) -> None:
    from torchvision.io import write_png

    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for index in range(4):
            size = (3, 20 + 2 * index, 24)
            write_png(torch.randint(0, 256, size, dtype=torch.uint8), str(tmp_path / label / f"{index}.png"))
    reference = overlaps_reference(f"folder:{tmp_path}?resize=16&crop=16", base="", fraction=0.5)
    assert absolute_reference(reference, "data") == reference
    source = open_data(reference)
    listing = source.list()
    assert listing.classes == ("cat", "dog")
    assert source.preprocessing is not None
    assert source.preprocessing.apply(torch.zeros(3, 20, 30)).shape == (3, 20, 30), "the geometry is the base's"
    reader = source.reader(listing.table)
    assert not reader.in_memory
    assert {tuple(reader.read(row).shape) for row in range(12)} == {(3, 16, 16)}
    raw = open_data(overlaps_reference(f"folder:{tmp_path}", base="", fraction=1))
    with pytest.raises(raysense.SampleError, match=r"outlier-0/000000\d cannot be read: its two images are .*resize"):
        _ = [raw.reader(raw.list().table).read(row) for row in range(8, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0}, "fraction 0 must be above 0 and at most 1"),
        ({"shift": -1}, "shift -1 must be a whole number, 0 or more, or auto"),
        ({"seed": "x"}, "seed 'x' must be a whole number"),
        ({"base": "dev"}, "there is no split dev"),
        ({"colour": 1}, "no option colour; there are data, base"),
    ],
)
def test_overlaps_say_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_data(overlaps_reference("digits", **options))


def test_overlaps_need_two_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.zeros(4, np.int64))
    with pytest.raises(UsageError, match="all of one class"):
        open_data(overlaps_reference(f"npz:{tmp_path}/one.npz", base="")).list()
    with pytest.raises(UsageError, match="there is no split test; there are train and outlier"):
        Overlaps(open_data(overlaps_reference("digits")).reference, ("test",))


@pytest.mark.parametrize("size", [8, 28])
def test_networks_take_any_size(size: int) -> None:
    images = torch.rand(3, 1, size, size)
    for build in (plain, residual):
        state = torch.get_rng_state()
        network = build(width=4, classes=7).eval()
        assert torch.equal(torch.get_rng_state(), state)
        assert network(images).shape == (3, 7)


def test_training_is_saved_resumed_and_read_by_reference(tmp_path: Path) -> None:
    data = overlaps_reference("digits", limit=300)
    model = f"{NETWORKS}:plain?width=8"
    recipe = Recipe(epochs=6, batch_size=32, method=Adam(1e-2), seed=0)

    def task(name: str, recipe: Recipe = recipe) -> TrainingTask:
        return TrainingTask(model, data, ("train", "outlier"), ("digits", "test"), recipe, str(tmp_path / name))

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = train(task("a"))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.accuracy is not None
    assert first.accuracy > 0.8
    assert first.unreadable == 0
    loaded = load_model(first.model)
    test = load_digits("test")
    right = (loaded.module(test.images).argmax(1) == test.labels).float().mean()
    assert float(right) == pytest.approx(first.accuracy)
    assert not loaded.module.training
    written = (tmp_path / "a" / "network.pt").stat().st_mtime_ns
    assert train(task("a")) == first
    assert (tmp_path / "a" / "network.pt").stat().st_mtime_ns == written, "trained once"
    second = load_model(train(task("b")).model)
    assert second.fingerprint != load_model(model).fingerprint
    for ours, theirs in zip(loaded.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UsageError, match=r"trained with another seed \(it was 0, is 1\)"):
        train(task("a", Recipe(6, 32, Adam(1e-2), 1)))
    (tmp_path / "a" / "network.pt").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"network\.pt cannot be loaded"):
        load_model(first.model)


def test_training_says_when_it_diverges(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=32, method=Adam(1e30), seed=0)
    data = overlaps_reference("digits", limit=64)
    with pytest.raises(RaysenseError, match=r"training diverged .*lower --learning-rate"):
        train(TrainingTask(f"{NETWORKS}:plain?width=4", data, ("train",), None, recipe, str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_model_names() -> None:
    references = [
        "digits", f"{NETWORKS}:plain?width=4", "torchvision:resnet50?weights=none", "zoo.py:resnet?checkpoint=/x/r20.pt",
        "zoo.py:resnet?checkpoint=/y/r20.pt", "/models/net.pt2",
    ]  # fmt: skip
    names = model_names(references)
    assert list(names) == ["digits", "plain", "resnet50", "r20", "r20-2", "net"]
    assert list(names.values()) == references


def test_commands_make_options_of_fields() -> None:
    seen: list[tuple[object, ...]] = []

    def study(out: str, options: object, run: object, quiet: bool) -> int:
        """Look at something.

        Not shown.
        """
        seen.append((out, options, run, quiet))
        return 1

    command = study_command(study, TrainTestOptions)
    text = CliRunner().invoke(command, ["--help"]).output
    assert "Look at something." in text
    assert "Not shown" not in text
    assert "may be given several times" in text
    result = CliRunner().invoke(
        command, ["--out", "o", "--model", "a", "--model", "b", "--limit", "3", "--workers", "2"]
    )
    assert result.exit_code == 1
    assert (
        CliRunner().invoke(study_command(study, PixelOptions), ["--out", "o", "--no-correct", "--quiet"]).exit_code == 1
    )
    assert seen == [
        ("o", {"model": ("a", "b"), "limit": "3"}, {"workers": "2"}, False),
        ("o", {"correct": False}, {}, True),
    ]


@pytest.mark.parametrize("name", ["outliers", "architectures", "train_test", "pixels"])
def test_job_scripts_are_one_call(name: str) -> None:
    script = (ROOT / "jobs" / f"influence_{name}.py").read_text()
    namespace: dict[str, Any] = {"__name__": "job"}
    exec(compile(script, name, "exec"), namespace)
    text = CliRunner().invoke(namespace["main"], ["--help"]).output
    for option in (
        "--out",
        "--model",
        "--data",
        "--split",
        "--limit",
        "--method",
        "--tolerance",
        "--address",
        "--workers",
    ):
        assert f"  {option} " in text


def test_job_says_what_is_wrong_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "jobs" / "influence_train_test.py")
    models = ("--model", f"{NETWORKS}:plain", "--model", f"{NETWORKS}:plain?classes=5")
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path / "out"), *models])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(script, run_name="__main__")
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("raysense: data 'digits': label ")
    assert "is out of range" in line
    assert not (tmp_path / "out").exists()


def rows(directory: Path, query: str) -> list[dict[str, Any]]:
    with raysense.open_results([directory]) as database:
        return database.query(query).rows()


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take seconds, and the reports of other studies are written in full."""
    monkeypatch.setattr("raysense.studies.study.write_report", lambda directories, page, run_code: [page])


@pytest.mark.usefixtures("local_ray", "_no_report")
def test_outlier_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"limit": 200, "epochs": 12, "model": f"{NETWORKS}:plain?width=8", "learning_rate": 0.01, "fraction": 0.1}
    assert run_outliers(tmp_path, options, RUN, quiet=True) == 0
    text = capsys.readouterr().out
    for word in (
        "trained 12 epochs",
        "of split test right",
        "fi_bound",
        "cook",
        "jacobian_norm",
        "roc_area",
        "pr_lower",
    ):
        assert word in text
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["curve.json", "influence", "network.pt", "training.json"]
    scan = tmp_path / "influence"
    query = "SELECT split, count(fi) AS fi, count(cook) AS cook FROM influence JOIN samples USING (scan, sample_id)"
    assert rows(scan, f"{query} GROUP BY split ORDER BY split") == [
        {"split": "outlier", "fi": 20, "cook": 20},
        {"split": "train", "fi": 200, "cook": 200},
    ]
    (area,) = rows(scan, "SELECT roc_area FROM outlier_areas(replicates := 1) WHERE measure = 'fi'")
    assert area["roc_area"] > 0.6, "outliers have larger FI"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".html"}
    assert run_outliers(tmp_path, options, RUN, quiet=True) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files, "nothing is computed twice"
    assert "trained 12 epochs" in capsys.readouterr().out
    with pytest.raises(UsageError, match="network trained with another epochs"):
        run_outliers(tmp_path, {**options, "epochs": 5}, RUN, quiet=True)


def test_outlier_study_of_a_network_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def started(self: Workspace, name: str, **spec: Any) -> str:
        raise Started(InfluenceSpec(**spec))

    monkeypatch.setattr(Workspace, "scan", started)
    monkeypatch.setattr(Workspace, "cluster", lambda self: nullcontext())
    options = {"limit": 24, "epochs": 0, "cook": False, "method": "certified", "shift": 2, "seed": 7}
    with pytest.raises(Started) as caught:
        run_outliers(tmp_path / "out", options, RUN, quiet=True)
    (spec,) = caught.value.args
    assert spec.model == f"{NETWORKS}:plain"
    assert spec.data == overlaps_reference("digits", base="train", fraction=0.05, shift=2, seed=7, limit=24)
    assert (spec.split, spec.objective, spec.method, spec.cook) == (("train", "outlier"), "label", "certified", False)
    assert not (tmp_path / "out").exists(), "nothing is trained"


def test_outliers_are_overlapped_at_the_size_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "zoo.py").write_text(
        "import torch\n"
        "def net():\n"
        "    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10))\n"
        "    net.preprocessing = {'resize': 7, 'crop': 6}\n"
        "    return net\n"
    )
    options = {"model": f"{tmp_path}/zoo.py:net", "epochs": 0, "limit": 20}
    with pytest.raises(UsageError, match="tolerance"):
        run_outliers(tmp_path / "out", {**options, "method": "certified", "tolerance": 1e-7}, RUN, quiet=True)
    data = at_the_size_of(options["model"], "digits", "train")
    assert data == "digits?resize=7&crop=6x6&interpolation=bilinear&antialias=true"
    assert at_the_size_of(options["model"], "digits?resize=5", "train") == "digits?resize=5"
    assert at_the_size_of(f"{NETWORKS}:plain", "digits", "train") == "digits"
    source = open_data(overlaps_reference(data))
    assert source.reader(source.list().table).read(1350).shape == (1, 6, 6)


@pytest.mark.usefixtures("local_ray")
def test_architecture_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": [f"{NETWORKS}:plain?width=4", f"{NETWORKS}:residual?width=4"], "limit": 6, "layers": 2}
    assert run_architectures(tmp_path, options, RUN, quiet=True) == 0
    text = capsys.readouterr().out
    for word in ("all parameters", "Most sensitive layers", "Least sensitive layers", "plain", "residual", "block1"):
        assert word in text
    query = (
        "SELECT target, count(DISTINCT layer) AS layers, count(*) AS n FROM influence GROUP BY target ORDER BY target"
    )
    assert rows(tmp_path / "residual", query) == [
        {"target": "layer", "layers": 18, "n": 108},
        {"target": "parameters", "layers": 0, "n": 6},
    ]
    assert json.loads((tmp_path / "plain" / "scan.json").read_text())["spec"]["split"] == ["train"]


@pytest.mark.usefixtures("local_ray", "_no_report")
def test_train_test_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": [f"{NETWORKS}:plain?width=4"], "limit": 6}
    assert run_train_test(tmp_path, options, RUN, quiet=True) == 0
    text = capsys.readouterr().out
    order = [text.index(f"plain/{split}") for split in ("train", "test")]
    assert order == sorted(order)
    table = text[order[0] :].splitlines()
    percentiles = [line.split("\u2502")[1].strip() for line in table if line.startswith("\u2502")]
    assert percentiles == ["75", "80", "85", "90", "95", "98", "99", "100"]


@pytest.mark.usefixtures("local_ray", "_no_report")
def test_pixel_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": f"{NETWORKS}:plain?width=4", "limit": 20, "top": 2, "correct": False, "scales": "1,3"}
    assert run_pixels(tmp_path, options, RUN, quiet=True) == 0
    text = capsys.readouterr().out
    for word in ("The images with the largest FI", "p_before_after", "class_after"):
        assert word in text
    largest = rows(tmp_path / "images", "SELECT sample_id FROM influence ORDER BY fi DESC, sample_id LIMIT 2")
    query = "SELECT DISTINCT sample_id FROM influence_maps"
    assert sorted(row["sample_id"] for row in rows(tmp_path / "pixels", query)) == sorted(
        row["sample_id"] for row in largest
    )
    attacks = rows(tmp_path / "pixels", "FROM pixel_attacks")
    assert len(attacks) == 2
    for attack in attacks:
        assert attack["p_before_after"] <= attack["p_before"]


def test_pixel_study_refuses_bad_scales_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 must be odd"):
        run_pixels(tmp_path / "out", {"scales": "1,2"}, RUN, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", sorted((Path(__file__).parents[1] / "jobs").glob("*.py")), ids=lambda job: job.stem)
def test_every_job_explains_itself(job: Path) -> None:
    shown = CliRunner().invoke(runpy.run_path(str(job))["main"], ["--help"])
    assert shown.exit_code == 0, shown.output
    assert "--out" in shown.output
    assert "--model" in shown.output
