"""The three conditions: the modified AlexNet, training that is killed and goes on, the study from options to tables."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from in_process import Here
from processes import kill, wait_for
from torch import Tensor, nn

import raysense
from raysense.digits import load_digits
from raysense.errors import RaysenseError, UsageError
from raysense.models import load_model
from raysense.options import RunOptions
from raysense.studies.alexnet import centre, modified_alexnet, standardised
from raysense.studies.examples import Feed, epoch_seed, open_examples
from raysense.studies.recipes import Recipe, TrainingTask
from raysense.studies.significance import ConditionOptions, run_conditions
from raysense.studies.training import curve, finished, train
from raysense.studies.trainings import train_all, train_network
from raysense.training import Adam, Sgd

ROOT = Path(__file__).resolve().parents[1]
TINY = "raysense.studies.alexnet:modified_alexnet?channels=1&crop=8&width=4&hidden=16"
RUN = {"workers": 1, "worker_cpus": 1, "batch_size": 32}

_RANDOM_LAYERS = """
import torch
from torch import nn

def dropping():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10)
    )
"""
_TRAIN = """
import sys, torch
torch.set_num_threads(1)
from raysense.studies.recipes import Recipe, TrainingTask
from raysense.studies.training import train
from raysense.training import Adam, Sgd
train(eval(sys.argv[1]))
"""


@pytest.fixture
def dropping(tmp_path: Path) -> str:
    """Reference of a network with batch normalisation and dropout."""
    file = tmp_path / "random_layers.py"
    file.write_text(_RANDOM_LAYERS)
    return f"{file}:dropping"


def weights(task: TrainingTask, name: str = "network.pt") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(Path(task.out) / name, weights_only=True)
    return state


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


# -- the network -------------------------------------------------------------------------------------------------------


def test_alexnet_is_that_of_the_paper() -> None:
    network = modified_alexnet()
    assert sum(weight.numel() for weight in network.parameters()) == 1_387_786, "as Zhang et al. (2017) report"
    kinds = [type(part) for part in network.block1]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.LocalResponseNorm]
    norm = network.block2[3]
    assert (norm.size, norm.alpha, norm.beta, norm.k) == (5, 1e-4, 0.75, 2)
    assert (network.hidden1.out_features, network.hidden2.out_features, network.output.out_features) == (384, 192, 10)


@pytest.mark.parametrize(
    ("channels", "crop", "size"), [(3, 28, (32, 32)), (3, 28, (28, 45)), (1, 8, (8, 8)), (1, 7, (9, 8))]
)
def test_alexnet_sees_the_standardised_centre(channels: int, crop: int, size: tuple[int, int]) -> None:
    state = torch.get_rng_state()
    network = modified_alexnet(channels, classes=7, crop=crop, width=8, hidden=24).eval()
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(5, channels, *size)
    logits = network(images)
    assert logits.shape == (5, 7)
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    inner = images[:, :, top : top + crop, left : left + crop]
    assert torch.equal(centre(images, crop), inner)
    assert torch.equal(network(inner), logits)
    other = images.clone()
    other[:, :, :top], other[:, :, top + crop :] = 0, 1
    other[..., :left], other[..., left + crop :] = 1, 0
    assert torch.equal(network(other), logits), "what is cut off does not matter"
    assert torch.allclose(network(0.25 * images + 0.5), logits, atol=1e-5), "nor do brightness and contrast"
    assert not torch.allclose(network(images.flip(0)), logits, atol=1e-3)
    with pytest.raises(ValueError, match="smaller than the crop"):
        network(images[:, :, :, : crop - 1])


def test_alexnet_is_seeded() -> None:
    same, again, other = (modified_alexnet(width=4, hidden=8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert_equal(same, again)
    assert not torch.equal(same["output.weight"], other["output.weight"])


def test_every_image_is_standardised_by_itself() -> None:
    images = torch.rand(3, 2, 5, 4, dtype=torch.float64)
    images[1] = 0.3
    images[2] = 0
    images[2, 0, 0, 0] = 1 / 255
    images.requires_grad_()
    result = standardised(images)
    values = images.detach().numpy()
    assert np.allclose(result[0].detach(), (values[0] - values[0].mean()) / values[0].std())
    assert bool((result[1] == 0).all())
    # A single grey level in one value: its deviation sqrt(39) / 40 / 255 is below the floor 1 / 255 / sqrt(40).
    assert np.allclose(result[2].detach(), (values[2] - values[2].mean()) * 255 * 40**0.5)
    (gradient,) = torch.autograd.grad(result.square().sum() + result[1].sum(), images)
    assert bool(gradient.isfinite().all())


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [False, True])
def test_sgd_is_the_textbooks(tmp_path: Path, shuffled: bool) -> None:
    recipe = Recipe(3, 100, Sgd(0.05, decay=0.5, momentum=0.9), seed=4, shuffled_labels=shuffled)
    task = TrainingTask(TINY, "digits", ("train",), ("digits", "test"), recipe, str(tmp_path / "out"))
    result = train(task)
    network = modified_alexnet(1, crop=8, width=4, hidden=16)
    data = load_digits("train")
    labels = data.labels
    if shuffled:
        labels = labels[torch.from_numpy(np.random.RandomState(4).permutation(1347))]
    velocity = [torch.zeros_like(weight) for weight in network.parameters()]
    for epoch in range(3):
        order = torch.randperm(1347, generator=torch.Generator().manual_seed(epoch_seed(4, epoch)))
        for rows in order[:1300].split(100):
            loss = nn.functional.cross_entropy(network(data.images[rows]), labels[rows])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            for weight, speed, gradient in zip(network.parameters(), velocity, gradients, strict=True):
                speed.mul_(0.9).add_(gradient)
                weight.data.sub_(0.05 * 0.5**epoch * speed)
    for ours, theirs in zip(weights(task).values(), network.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [entry["learning_rate"] for entry in result.curve] == [0.05, 0.025, 0.0125]
    assert [entry["epoch"] for entry in result.curve] == [1, 2, 3]
    right = (network(data.images).argmax(1) == labels).double().mean()
    assert result.train_accuracy == pytest.approx(float(right), abs=0.003)
    assert result.epoch == 3
    assert result.accuracy == result.curve[-1]["validation_accuracy"]
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_labels_are_permuted_over_the_training_set() -> None:
    examples, _ = open_examples("digits", ("train", "test"), None)
    shuffled, again, other = (examples.with_shuffled_labels(seed) for seed in (0, 0, 1))
    assert sorted(shuffled.labels) == sorted(examples.labels), "every class is as frequent as it was"
    assert shuffled.labels == again.labels
    assert shuffled.labels != other.labels
    alike = np.mean(np.array(shuffled.labels) == np.array(examples.labels))
    assert alike == pytest.approx(0.1, abs=0.03)
    item, own = shuffled[5], examples[5]
    assert item is not None
    assert own is not None
    assert torch.equal(item[0], own[0])


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    examples, _ = open_examples("digits", ("test",), None)

    def order(feed: Feed, epoch: int) -> list[bytes]:
        return [image.numpy().tobytes() for images, _ in feed(epoch) for image in images]

    feed = Feed(examples, 64, "cpu", seed=3)
    state = torch.get_rng_state()
    first, second = order(feed, 0), order(feed, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert order(Feed(examples, 64, "cpu", seed=3), 1) == second
    assert order(Feed(examples, 64, "cpu", seed=2), 0) not in (first, second)
    assert len(first) == 448, "without the last two"
    assert len(set(first)) == 448
    assert len(set(first) & set(second)) > 440
    assert first != second
    assert len(order(Feed(examples, 64, "cpu"), 0)) == 450


def test_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path, dropping: str) -> None:
    recipe = Recipe(30, 32, Adam(1e-3), seed=1, keep="best")
    task = TrainingTask(dropping, "digits", ("train",), ("digits", "test"), recipe, str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", _TRAIN, repr(task)], cwd=ROOT)
    try:
        wait_for(lambda: len(curve(task)) >= 3)
    finally:
        kill(process)
        process.wait()
    before = curve(task)
    assert len(before) < 30, "it was killed in the middle"
    assert finished(task) is None
    with pytest.raises(UsageError, match=r"trained with another seed \(it was 1, is 2\)"):
        train(replace(task, recipe=replace(recipe, seed=2)))
    result = train(task)
    assert list(result.curve[: len(before)]) == before, "epochs done are not done again"
    whole = train(replace(task, out=str(tmp_path / "whole")))
    for name in ("network.pt", "last.pt"):
        assert_equal(weights(task, name), weights(replace(task, out=str(tmp_path / "whole")), name))
    best = max(entry["validation_accuracy"] for entry in whole.curve)
    assert (result.epoch, result.accuracy, result.loss) == (whole.epoch, best, whole.loss)
    test = load_digits("test")
    right = (load_model(result.model).module(test.images).argmax(1) == test.labels).double().mean()
    assert float(right) == pytest.approx(best)
    assert result.epoch == 1 + [entry["validation_accuracy"] for entry in whole.curve].index(best), "the first such"


def test_a_best_epoch_needs_validation(tmp_path: Path) -> None:
    task = TrainingTask(
        TINY, "digits", ("train",), None, Recipe(1, 32, Sgd(0.01), 0, keep="best"), str(tmp_path / "out")
    )
    with pytest.raises(UsageError, match="nothing to tell it by"):
        train(task)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"junk")
    task = TrainingTask(TINY, "digits", ("test",), None, Recipe(1, 32, Sgd(0.01), 0), str(tmp_path))
    with pytest.raises(UsageError, match=r"checkpoint\.pt cannot be loaded .*remove it to train anew"):
        train(task)
    error = train_network(task, "cpu", None)
    assert isinstance(error, UsageError), "a task's own errors are values"


@pytest.mark.usefixtures("local_ray")
def test_trainings_go_on_in_another_process(tmp_path: Path, dropping: str) -> None:
    recipe = Recipe(36, 32, Sgd(0.01, 0.99, 0.9), seed=0)
    first = TrainingTask(dropping, "digits", ("train",), None, recipe, str(tmp_path / "first"))
    second = replace(first, recipe=replace(recipe, epochs=2, shuffled_labels=True), out=str(tmp_path / "second"))
    killed = []

    def kill_once() -> None:
        wait_for(lambda: len(curve(first)) >= 3)
        for process in psutil.Process().children(recursive=True):
            if "train_network" in " ".join(process.cmdline()):
                killed.append(len(curve(first)))
                kill(process)

    killer = threading.Thread(target=kill_once)
    killer.start()
    results = train_all({"first": first, "second": second}, RunOptions(workers=2))
    killer.join()
    assert killed
    assert killed[0] < 36
    assert list(results) == ["first", "second"]
    alone = replace(first, out=str(tmp_path / "alone"))
    assert train(alone).curve[-1]["loss"] == results["first"].loss
    assert_equal(weights(first), weights(alone))
    assert train_all({"first": first, "second": second}, RunOptions(address="127.0.0.1:1")) == results, "all is done"


@pytest.mark.usefixtures("local_ray")
def test_a_training_that_kills_its_process_is_given_up_on(tmp_path: Path) -> None:
    file = tmp_path / "fatal.py"
    file.write_text(
        "import os\nfrom torch import nn\n"
        "class Fatal(nn.Linear):\n    def forward(self, x):\n        os._exit(1)\n"
        "def fatal():\n    return nn.Sequential(nn.Flatten(), Fatal(64, 10))\n"
    )
    task = TrainingTask(f"{file}:fatal", "digits", ("test",), None, Recipe(1, 32, Sgd(0.1), 0), str(tmp_path / "out"))
    with pytest.raises(RaysenseError, match=r"network it lost its process after 0 epochs .*given up on"):
        train_all({"it": task}, RunOptions(max_losses=1))


# -- the study ---------------------------------------------------------------------------------------------------------


def test_options_follow_the_data() -> None:
    digits, other = (
        ConditionOptions().plan(),
        ConditionOptions(data="npz:/x/{split}.npz", split="test", ood=("a=b:c",)).plan(),
    )
    assert (digits.model, digits.recipe.epochs, digits.validation) == (
        "raysense.studies.networks:plain?width=24",
        40,
        "test",
    )
    assert list(digits.ood) == ["noise", "turned"]
    assert (other.model, other.recipe.epochs) == ("raysense.studies.alexnet:modified_alexnet", 250)
    assert (other.recipe.method, other.recipe.batch_size) == (Sgd(0.01, 0.95, 0.9), 32), "as Zhang et al. (2017)"
    assert (other.split, other.train_splits, other.validation, other.ood) == (("test",), ("train",), None, {"a": "b:c"})
    assert ConditionOptions(ood=()).plan().ood == {}


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        (["digits"], "ood 'digits' has no name; write NAME=REFERENCE"),
        (["raysense.studies.shifts:Shifted?data=digits"], "has no name"),
        (["a=digits", "a=digits"], "the name a is taken"),
        (["ablations=digits"], "the name ablations is taken"),
        (["a=digit"], "no data reference"),
        (["a=digits?resize=6"], "smaller than the crop of 8"),
    ],
)
def test_study_says_what_is_wrong_first(tmp_path: Path, ood: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_conditions(tmp_path / "out", {"ood": ood, "model": f"{TINY}&classes=10"}, RUN, quiet=True)
    assert not (tmp_path / "out").exists()


def rows(directories: list[Path], query: str) -> list[dict[str, Any]]:
    with raysense.open_results(directories) as database:
        return database.query(query).rows()


@pytest.mark.usefixtures("local_ray")
def test_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[list[str]] = []
    monkeypatch.setattr(
        "raysense.studies.study.write_report", lambda directories, page, run_code: reports.append(directories)
    )
    monkeypatch.setattr("raysense.engine.run.Dispatcher", Here)
    monkeypatch.setenv("COLUMNS", "200")
    options = {
        "model": TINY, "epochs": 2, "per_class": 4, "activations": 0, "unit_size": 64, "threshold": "mean_abs",
        "ood": ["dark=raysense.studies.shifts:Shifted?data=digits&brightness=-0.3"],
    }  # fmt: skip
    earlier = train(_task(tmp_path, "trained"))
    train(_task(tmp_path, "shuffled"))
    assert run_conditions(tmp_path, options, RUN, quiet=True) == 0
    text = capsys.readouterr().out
    names = [f"{condition}{data}" for data in ("", "-dark") for condition in ("untrained", "shuffled", "trained")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["networks", *names])
    assert reports == [[str(tmp_path / name) for name in names]]
    titles = ("Learning curves", "networks that are scanned", "Accuracy", "Tables 1, 2, 5-7", "Figures 6 and 20")
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "of the labels it was trained on only: train longer" in text, "two epochs do not do"
    shown = [line for line in text.splitlines() if "│ in-distribution │ test  │ output" in line]
    assert [line.split("│")[4].strip() for line in shown] == ["untrained", "shuffled", "trained"]
    directories = [tmp_path / name for name in names]
    for line, condition in zip(shown, ("untrained", "shuffled", "trained"), strict=True):
        query = f"FROM path_summary(layer := 'output') WHERE scan = '{condition}'"
        (row,) = rows(directories, query)
        assert [float(cell) for cell in line.split("│")[5:7]] == pytest.approx(
            [row["mean_inter_class_kl"], row["mean_class_entropy"]], rel=1e-4
        )
    (same,) = rows(
        directories,
        "SELECT avg(kl) AS kl FROM kl_between('trained', 'trained-dark') WHERE class_a = class_b AND layer = 'output'",
    )
    (shift,) = [line for line in text[places[-1] :].splitlines() if "│ output  │ trained" in line]
    assert float(shift.split("│")[6]) == pytest.approx(same["kl"], rel=1e-4)
    models = rows(directories, "SELECT DISTINCT spec ->> 'model' AS model FROM scans WHERE scan LIKE 'trained%'")
    assert models == [{"model": earlier.model}]
    assert load_model(earlier.model).fingerprint != load_model(TINY).fingerprint
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run_conditions(tmp_path, options, RUN, quiet=True) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files, "nothing is computed twice"
    assert capsys.readouterr().out == text


def _task(out: Path, condition: str) -> TrainingTask:
    """A training of the study above, done before it: a study goes on with what is there."""
    recipe = Recipe(2, 32, Sgd(0.01, 0.95, 0.9), 0, keep="best")
    if condition == "shuffled":
        recipe = replace(recipe, shuffled_labels=True, keep="last")
    return TrainingTask(TINY, "digits", ("train",), ("digits", "test"), recipe, str(out / "networks" / condition))


def test_what_a_training_saw_is_part_of_what_it_is(tmp_path: Path) -> None:
    """The same files at another size, or another shift under a class map, are another training."""
    (tmp_path / "map.toml").write_text('classes = ["low", "high"]\n[map]\nlow = ["0", "1"]\nhigh = ["2"]\n')
    shift = f"raysense.studies.shifts:Shifted?data=digits&split=test&class_map={tmp_path}/map.toml&noise"
    found = [
        open_examples(data, (), None)[1] for data in ("digits", "digits?resize=16", f"{shift}=0.1", f"{shift}=0.2")
    ]
    assert len(set(found)) == 4


def test_a_network_that_has_nothing_to_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "frozen.py").write_text(
        "from raysense.studies.networks import plain\ndef frozen(): return plain(width=4).requires_grad_(False)\n"
    )
    recipe = Recipe(1, 32, Sgd(0.01), 0)
    with pytest.raises(UsageError, match="none of its parameters requires gradients"):
        train(TrainingTask(f"{tmp_path}/frozen.py:frozen", "digits", ("test",), None, recipe, str(tmp_path / "out")))


def test_a_lost_network_is_trained_again(tmp_path: Path) -> None:
    recipe = Recipe(1, 64, Sgd(0.01), 0)
    task = TrainingTask("raysense.studies.networks:plain?width=4", "digits", ("test",), None, recipe, str(tmp_path))
    first = train(task)
    weights = (tmp_path / "network.pt").read_bytes()
    (tmp_path / "network.pt").unlink()
    assert finished(task) is None
    again = train(task)
    assert again.loss == first.loss
    assert (tmp_path / "network.pt").read_bytes() == weights


def test_data_in_distribution_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name in-distribution is taken"):
        run_conditions(tmp_path, {"ood": ("in-distribution=digits",)}, {}, quiet=True)
