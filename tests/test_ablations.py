"""Ablations: every metric against its definition; the scan on a significance scan, what it refuses, and resuming."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from in_process import prepared, scanned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysense.cli import main
from raysense.digits import DigitsNet
from raysense.errors import RaysenseError, UsageError
from raysense.measures import energy, interactions
from raysense.measures.energy import Between, Kept, Within, between, energy_distance, within
from raysense.measures.interactions import prototypes
from raysense.measures.outputs_kl import OutputSums, output_divergences
from raysense.models import load_model
from raysense.options import ComputeOptions
from raysense.query.connection import open_results
from raysense.scans.ablations import AblationsSpec
from raysense.scans.base import Unit
from raysense.store.compaction import compact
from raysense.store.naming import commit_file, table_file
from raysense.store.store import Store
from raysense.validation import validated

NETWORK = "raysense.digits:DigitsNet"
METRICS = ("interactions", "activations", "energy")
OPTIONS = ComputeOptions(device="cpu", batch_size=16, threads=1)
MEMORY = 2**28


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- mean interactions -------------------------------------------------------------------------------------------------


def exact_divergence(weight: Tensor, a: Tensor, b: Tensor) -> tuple[mpmath.mpf, mpmath.mpf]:
    """KL(a || b) and the entropy of a, means over rows, in 60 digits, visiting every entry."""
    groups, outputs, inputs = weight.shape
    with mpmath.workdps(60):
        divergence = entropy = mpmath.mpf(0)
        for group, row in itertools.product(range(groups), range(outputs)):
            logits = [
                [mpmath.mpf(w) * mpmath.mpf(x) for w, x in zip(weight[group, row].tolist(), part.tolist(), strict=True)]
                for part in (a.reshape(groups, inputs)[group], b.reshape(groups, inputs)[group])
            ]
            log_p, log_q = ([z - mpmath.log(sum(map(mpmath.exp, row))) for z in row] for row in logits)
            divergence += sum(mpmath.exp(x) * (x - y) for x, y in zip(log_p, log_q, strict=True))
            entropy -= sum(mpmath.exp(x) * x for x in log_p)
        return divergence / (groups * outputs), entropy / (groups * outputs)


@pytest.mark.parametrize(
    ("shape", "scale", "spread"),
    [
        ((1, 4, 9), 1.0, 1.0),
        ((1, 4, 9), 1e-3, 1e-2),  # as far down as 1e-16
        ((3, 2, 4), 1.0, 1e-6),
        ((1, 3, 5), 400.0, 1.0),  # exponentials overflow
        ((2, 2, 1), 1.0, 1.0),
    ],
)
def test_interactions_keep_their_relative_accuracy(
    shape: tuple[int, int, int], scale: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = scale * random(*shape)
    means = random(shape[0] * shape[2], seed=1).abs() + spread * random(4, shape[0] * shape[2], seed=2)
    means[2] = means[0] + 1e-4 * (means[1] - means[0])  # two classes much nearer to each other than to the others
    means[3] = means[0]
    found = prototypes(weight, means)
    divergences = found.divergences(0, 4)
    exact = [[exact_divergence(weight, a, b) for b in means] for a in means]
    for a, b in itertools.product(range(4), range(4)):
        value, entropy = exact[a][b]
        if shape[2] == 1 or a == b or {a, b} == {0, 3}:
            assert divergences[a, b] == 0
        else:
            assert abs(divergences[a, b].item() - value) < 2e-12 * value
        assert abs(found.entropy[a].item() - entropy) < 2e-14
    assert (shape[2] == 1) == (float(divergences.max()) == 0)
    # In blocks of few entries, class by class and row by row; and a few classes at a time.
    for block in (2 * shape[2], shape[1] * shape[2] + 1):
        monkeypatch.setitem(interactions._BLOCK, "cpu", block)
        again = prototypes(weight, means)
        for start, stop in ((0, 1), (1, 4)):
            torch.testing.assert_close(again.divergences(start, stop), divergences[start:stop], rtol=2e-12, atol=0)
        torch.testing.assert_close(again.entropy, found.entropy, rtol=1e-13, atol=1e-14)


def test_interactions_of_many_classes_equal_the_dense_definition() -> None:
    weight, means = random(1, 30, 64) / 8, random(12, 64, seed=1).abs()
    log_p = (weight * means[:, None]).log_softmax(-1)
    dense = (log_p.exp()[:, None] * (log_p[:, None] - log_p[None])).sum(-1).mean(-1)
    found = prototypes(weight, means)
    torch.testing.assert_close(found.divergences(0, 12), dense, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.entropy, -(log_p.exp() * log_p).sum(-1).mean(-1), rtol=1e-13, atol=0)


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_outputs_equal_the_mean_over_all_pairs() -> None:
    counts = (5, 1, 4)
    log_p = [(3 * random(count, 6, seed=count)).log_softmax(1) for count in counts]
    log_p[2][1:] = log_p[2][0]  # a class whose outputs are all the same
    p = [part.exp() for part in log_p]
    sums = OutputSums(
        torch.tensor(counts, dtype=torch.float64),
        torch.stack([part.sum(0) for part in p]),
        torch.stack([part.sum(0) for part in log_p]),
        torch.stack([(a * b).sum() for a, b in zip(p, log_p, strict=True)]),
    )
    found = torch.cat([output_divergences(sums, 0, 1), output_divergences(sums, 1, 3)])
    for a, b in itertools.product(range(3), range(3)):
        pairs = [
            float((p[a][x] * (log_p[a][x] - log_p[b][y])).sum())
            for x in range(counts[a])
            for y in range(counts[b])
            if a != b or x != y
        ]
        if pairs:
            assert found[a, b].item() == pytest.approx(np.mean(pairs), rel=1e-12, abs=1e-15)
            assert found[a, b] >= 0
        else:
            assert found[a, b].isnan()


# -- distances between activations -------------------------------------------------------------------------------------


def whole(x: Tensor, y: Tensor, memory: int = MEMORY) -> tuple[Within, Within, Between]:
    kept = Kept(len(x), len(x)), Kept(len(y), len(y))
    return within(x, kept[0], memory), within(y, kept[1], memory), between(x, y, kept, memory)


def differences(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).square().sum(-1).sqrt()


@pytest.mark.parametrize("memory", [MEMORY, 40_000, 1])
def test_distances_equal_those_of_every_pair(memory: int) -> None:
    x, y = random(40, 30), 0.5 + random(25, 30, seed=1)
    y[0], y[1], x[3] = x[0], x[1] + 1e-9, x[2]
    first, second, cross = whole(x, y, memory)
    pairs, own, other = differences(x, y), differences(x, x), differences(y, y)
    assert cross.mean == pytest.approx(pairs.mean().item(), rel=1e-12)
    np.testing.assert_allclose(cross.effects[0], (pairs.mean(1) - pairs.mean()).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(cross.effects[1], (pairs.mean(0) - pairs.mean()).numpy(), rtol=0, atol=1e-12)
    assert first.mean == pytest.approx(own.sum().item() / (40 * 39), rel=1e-12)
    assert second.mean == pytest.approx(other.sum().item() / (25 * 24), rel=1e-12)
    estimate, error = energy_distance(cross, first, second)
    assert estimate == pytest.approx(2 * cross.mean - first.mean - second.mean, rel=1e-14)
    assert error == first.stderr == cross.stderr == 0


def test_near_samples_keep_their_distances() -> None:
    x = 100 + random(1, 8)
    y = x + 1e-6 * random(3, 8, seed=1)
    far = -x  # about the centre, 0, pairs are near; the plain matrix product loses all digits
    exact = differences(x, y).mean().item()
    for others, expected in ((y, exact), (torch.cat((y, far)), (3 * exact + differences(x, far).item()) / 4)):
        assert whole(x, others)[2].mean == pytest.approx(expected, rel=1e-12)
    assert whole(x, x.clone())[2].mean == 0
    assert whole(x.repeat(5, 1), far)[0].mean == 0


class _LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operator gives."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.numel() * value.element_size())
        return out


def test_distances_take_bounded_memory() -> None:
    x, y = random(400, 20), random(500, 20, seed=1)
    y[:200] = x[:200]
    for memory in (2**20, 2**17):
        with _LargestTensor() as noted:
            whole(x, y, memory)
        # What is given may be the sets themselves; 8 blocks would be 1.6 MB each.
        assert noted.largest <= max(memory // 4, y.nbytes)


Figures = list[tuple[float, float, float]]


def enumerated(n: int, m: int) -> tuple[Figures, Figures]:
    """Mean within x, mean between x and y and energy, and their errors, over every choice of n of 6 and m of 5 samples."""
    x, y = random(6, 2), 0.5 + 1.5 * random(5, 2, seed=1)
    values, errors = [], []
    for i, j in itertools.product(itertools.combinations(range(6), n), itertools.combinations(range(5), m)):
        kept = Kept(n, 6), Kept(m, 5)
        first, second = within(x[list(i)], kept[0], MEMORY), within(y[list(j)], kept[1], MEMORY)
        cross = between(x[list(i)], y[list(j)], kept, MEMORY)
        estimate, error = energy_distance(cross, first, second)
        values.append((first.mean, cross.mean, estimate))
        errors.append((first.stderr, cross.stderr, error))
    return values, errors


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (6, 4), (5, 5)])
def test_variances_are_unbiased_over_every_choice_of_samples(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, exact = enumerated(6, 5)
    assert exact == [(0, 0, 0)]
    # Without what keeps them above 0 the estimates are unbiased exactly.
    monkeypatch.setattr(energy, "_corrected", lambda square, bias: square - bias)
    monkeypatch.setattr(energy, "_root", lambda variance: variance)
    values, variances = enumerated(n, m)
    np.testing.assert_allclose(np.mean(values, axis=0), truth[0], rtol=1e-12)
    np.testing.assert_allclose(np.mean(variances, axis=0), np.var(values, axis=0), rtol=1e-10, atol=1e-15)


def test_standard_errors_cover_the_truth() -> None:
    x, y = random(60, 10), 0.3 + random(45, 10, seed=1)
    truth = whole(x, y)
    expected = energy_distance(truth[2], truth[0], truth[1])[0]
    generator = np.random.default_rng(0)
    hits = np.zeros(3)
    kept = Kept(20, 60), Kept(12, 45)
    for _ in range(400):
        i, j = generator.choice(60, 20, replace=False), generator.choice(45, 12, replace=False)
        first, second = within(x[i], kept[0], MEMORY), within(y[j], kept[1], MEMORY)
        cross = between(x[i], y[j], kept, MEMORY)
        estimate, error = energy_distance(cross, first, second)
        hits += [
            abs(first.mean - truth[0].mean) < 1.96 * first.stderr,
            abs(cross.mean - truth[2].mean) < 1.96 * cross.stderr,
            abs(estimate - expected) < 1.96 * error,
        ]
    assert ((hits / 400 > 0.88) & (hits / 400 < 0.99)).all()


def test_too_few_samples_have_no_spread_or_no_error() -> None:
    x = random(3, 4)
    assert np.isnan(within(x[:1], Kept(1, 9), MEMORY).mean)
    assert np.isnan(within(x, Kept(3, 9), MEMORY).stderr)
    assert within(x, Kept(3, 3), MEMORY).stderr == 0
    # One of a class that has one is all of it: only the other class's choice counts.
    cross = between(x[:1], x, (Kept(1, 1), Kept(3, 9)), MEMORY)
    assert cross.stderr == pytest.approx(np.std(cross.effects[1], ddof=1) * (2 / 3 / 3) ** 0.5)
    assert np.isnan(between(x[:1], x, (Kept(1, 2), Kept(3, 3)), MEMORY).stderr)


# -- the scan ----------------------------------------------------------------------------------------------------------


def distances(store: Store) -> pa.Table:
    with open_results(store.location) as database:
        table = database.query(
            "SELECT * EXCLUDE scan FROM class_distances ORDER BY split, layer NULLS FIRST, metric, class_a, class_b"
        ).table()
    assert isinstance(table, pa.Table)
    return table


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A significance scan of an untrained network on 45 digits of each split, all activations kept."""
    out = tmp_path_factory.mktemp("base") / "sig"
    spec = {"limit": 45, "split": "test,train", "layers": "conv3,output", "unit_size": 3}
    scanned("significance", out, OPTIONS, model=NETWORK, data="digits", activations=100, **spec)
    return out


@pytest.fixture(scope="module")
def ablations(base: Path) -> Store:
    return scanned("ablations", base.parent / "ablations", OPTIONS, of=str(base), unit_size=4)


def forward(split: str) -> dict[str, np.ndarray]:
    """Inputs of the layers [n, inputs] (of the convolution averaged over patches), log p and labels of the samples."""
    from raysense.datasets import open_data
    from raysense.scans._sampled import limited

    source = open_data("digits", (split,))
    listing = limited(source.list().table, 45)
    images = np.stack([np.asarray(source.reader(listing).read(row)) for row in range(listing.num_rows)])
    network = load_model(NETWORK).module
    assert isinstance(network, DigitsNet)
    noted: dict[str, Tensor] = {}
    hooks = [
        getattr(network, name).register_forward_pre_hook(
            lambda module, inputs, name=name: noted.update({name: inputs[0]})
        )
        for name in ("conv3", "output")
    ]
    logits = network(torch.from_numpy(images).float()).double()
    for hook in hooks:
        hook.remove()
    patches = torch.nn.functional.unfold(noted["conv3"].double(), 3, padding=1).mean(-1)
    return {
        "conv3": patches.numpy(),
        "output": noted["output"].double().numpy(),
        "log_p": logits.log_softmax(1).numpy(),
        "label": listing["label"].to_numpy(),
    }


def test_the_scan_equals_the_definitions_on_the_networks_own_activations(ablations: Store) -> None:
    table = distances(ablations)
    classes = 10
    assert table.num_rows == 2 * (1 + 2 * 3) * classes**2
    assert set(table["stderr"].to_pylist()) <= {0.0, None}
    network = load_model(NETWORK).module
    for split in ("test", "train"):
        truth = forward(split)
        for layer, metric in [
            (None, "outputs"),
            *itertools.product(("conv3", "output"), METRICS),
        ]:
            rows = [
                row
                for row in table.to_pylist()
                if (row["split"], row["layer"], row["metric"]) == (split, layer, metric)
            ]
            expected = definition(metric, truth, layer, network)
            counts = np.bincount(truth["label"], minlength=classes)
            assert [row["n_a"] for row in rows] == np.repeat(counts, classes).tolist()
            assert [row["n_b"] for row in rows] == np.tile(counts, classes).tolist()
            values = [np.nan if row["value"] is None else row["value"] for row in rows]
            # Images of a pass are computed together, and activations kept in single precision.
            np.testing.assert_allclose(values, expected.ravel(), rtol=2e-5, atol=1e-9)
            alone = [row["n_a"] == 1 and row["class_a"] == row["class_b"] for row in rows]
            unknown = np.isnan(values)
            if metric in ("outputs", "activations"):
                assert (unknown == alone).all()


def definition(metric: str, truth: dict[str, np.ndarray], layer: str | None, network: Any) -> np.ndarray:
    """A metric between all classes, [10, 10], as the paper defines it."""
    of = [truth["log_p" if layer is None else layer][truth["label"] == label] for label in range(10)]
    found = np.zeros((10, 10))
    for a, b in itertools.product(range(10), range(10)):
        different = np.ones((len(of[a]), len(of[b])), bool)
        if a == b:
            np.fill_diagonal(different, False)
        if metric == "interactions":
            assert layer is not None
            weight = getattr(network, layer).weight.flatten(1).double()
            log_p, log_q = ((weight * torch.from_numpy(part.mean(0))).log_softmax(1) for part in (of[a], of[b]))
            found[a, b] = (log_p.exp() * ((0 if a == b else log_p) - (log_p if a == b else log_q))).sum(1).mean()
        elif metric == "outputs":
            pairs = (np.exp(of[a])[:, None] * (of[a][:, None] - of[b][None])).sum(-1)
            found[a, b] = pairs[different].mean() if different.any() else np.nan
        else:
            pairs = np.linalg.norm(of[a][:, None] - of[b][None], axis=-1)
            found[a, b] = pairs[different].mean() if different.any() else np.nan
    if metric == "energy":
        spread = np.diag(found)
        found = 2 * found - spread[:, None] - spread[None]
        np.fill_diagonal(found, 0)
    return found


def test_units_do_not_change_the_numbers(
    base: Path, ablations: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysense.scans import _ablations

    monkeypatch.setattr(_ablations, "_MEMORY", 6000)  # one class at a time, in blocks
    other = scanned("ablations", tmp_path / "other", OPTIONS, of=str(base), unit_size=20)
    assert len(ablations.committed()) == 5
    assert len(other.committed()) == 1
    check_same(distances(ablations), distances(other))


def test_compacting_the_significance_scan_changes_nothing(base: Path, tmp_path: Path) -> None:
    out = copied(base, tmp_path / "sig")
    bound, loose = prepared("ablations", {"of": str(out)}, OPTIONS)
    before = bound.open(loose, OPTIONS).compute(Unit("x", 0, loose.listing.num_rows))
    compact(out, 0)
    bound, compacted = prepared("ablations", {"of": str(out)}, OPTIONS)
    assert compacted.listing.equals(loose.listing)
    assert compacted.facts == loose.facts
    after = bound.open(compacted, OPTIONS).compute(Unit("x", 0, loose.listing.num_rows))
    assert after["class_distances"].equals(before["class_distances"])


def check_same(one: pa.Table, other: pa.Table) -> None:
    """Equal but for the last digits, which depend on how work is cut and on threads."""
    for name in one.column_names:
        if pa.types.is_floating(one[name].type):
            np.testing.assert_allclose(one[name].to_numpy(), other[name].to_numpy(), rtol=1e-12, atol=1e-13)
        else:
            assert one[name].equals(other[name])


def test_a_subsample_estimates_what_all_samples_give(ablations: Store, tmp_path: Path) -> None:
    spec = {"limit": 45, "split": "test", "layers": "output"}
    scanned("significance", tmp_path / "sig", OPTIONS, model=NETWORK, data="digits", activations=4, **spec)
    found = prepared("ablations", {"of": str(tmp_path / "sig")}, OPTIONS)[1]
    assert len(found.notes) == 1
    assert "activations of at most 4 of up to 9 samples" in found.notes[0]
    some = distances(scanned("ablations", tmp_path / "out", OPTIONS, of=str(tmp_path / "sig"))).to_pylist()
    every = {
        (row["metric"], row["class_a"], row["class_b"]): row
        for row in distances(ablations).to_pylist()
        if row["split"] == "test" and row["layer"] in ("output", None)
    }
    errors = []
    for row in some:
        full = every[row["metric"], row["class_a"], row["class_b"]]
        if row["metric"] in ("outputs", "interactions"):
            # Passes differ in size, and with them last digits in single precision.
            assert row["value"] == (None if full["value"] is None else pytest.approx(full["value"], rel=1e-5))
            assert row["stderr"] == full["stderr"]
        else:
            assert row["n_a"] == min(4, full["n_a"])
            if row["stderr"]:
                errors.append((row["value"] - full["value"]) / row["stderr"])
            else:
                assert row["value"] == (None if full["value"] is None else pytest.approx(full["value"], rel=1e-5))
    # Four samples make rough errors of errors: their size is right all the same.
    assert len(errors) > 100
    assert 0.5 < np.sqrt(np.mean(np.square(np.clip(errors, -5, 5)))) < 2.5


def test_macros_lay_out_table_3(base: Path, ablations: Store) -> None:
    table = distances(ablations).to_pylist()

    def mean(wanted: Callable[[dict[str, Any]], bool]) -> float:
        return float(np.mean([row["value"] for row in table if wanted(row) and row["value"] is not None]))

    with open_results(ablations.location) as database:
        assert "ablation_table" not in {macro.name for macro in database.macros}
        summary = database.query("FROM ablation_summary()").rows()
        classes = database.query("SELECT name FROM classes ORDER BY class").rows()
    assert [row["name"] for row in classes] == list("0123456789")
    assert [(row["layer"], row["metric"]) for row in summary[:7]] == [
        *itertools.product(("conv3", "output"), METRICS),
        (None, "outputs"),
    ]
    for row in summary:
        same = {name: row[name] for name in ("split", "layer", "metric")}
        for name, within_class in (("separation", False), ("spread", True)):
            expected = mean(
                lambda r, same=same, within_class=within_class: (
                    {**r, **same} == r and (r["class_a"] == r["class_b"]) is within_class
                )
            )
            assert row[name] == pytest.approx(expected, rel=1e-12)
        assert (row["n_classes"], row["largest_stderr"]) == (10, 0)
    with open_results([str(base), ablations.location]) as database:
        rows = database.query("FROM ablation_table(smoothing := 0.25)").rows()
        paths = database.query("FROM path_summary(smoothing := 0.25)").rows()
    assert {row["scan"] for row in rows} == {"sig"}
    assert list(dict.fromkeys(row["metric"] for row in rows)) == [
        "paths",
        "interactions",
        "outputs",
        "activations",
        "energy",
    ]
    # DuckDB adds up in any order.
    separations = {
        (row["split"], row["layer"], row["metric"]): (row["separation"], row["spread"])
        for row in [
            *summary,
            *(
                {
                    **row,
                    "metric": "paths",
                    "separation": row["mean_inter_class_kl"],
                    "spread": row["mean_class_entropy"],
                }
                for row in paths
            ),
        ]
    }
    assert len(rows) == len(separations) == 18
    for row in rows:
        assert row["ablations"] == (None if row["metric"] == "paths" else "ablations")
        expected = separations[row["split"], row["layer"], row["metric"]]
        assert (row["separation"], row["spread"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("local_ray")
def test_the_command_finishes_what_was_begun(base: Path, ablations: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(ablations.location, out)
    store = Store.open(out)
    # As if the driver had been stopped after two units.
    for unit, commit in sorted(store.snapshot().loose.items())[2:]:
        store.directory.delete(commit_file(unit, commit.token))
        store.directory.delete(table_file("class_distances", unit, commit.token))
    assert distances(store).num_rows < distances(ablations).num_rows
    arguments = ["scan", "ablations", "--of", str(base), "--out", str(out), "--unit-size", "4", "--resume", "--quiet"]
    done = CliRunner().invoke(main, [*arguments, "--workers", "1", "--worker-cpus", "1", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    check_same(distances(store), distances(ablations))


# -- what is refused ---------------------------------------------------------------------------------------------------


def copied(base: Path, out: Path, edit: Callable[[dict[str, Any]], None] = lambda document: None) -> Path:
    shutil.copytree(base, out)
    document = json.loads((out / "scan.json").read_text())
    edit(document)
    (out / "scan.json").write_text(json.dumps(document))
    return out


def test_what_it_cannot_work_on_is_refused(base: Path, ablations: Store, tmp_path: Path) -> None:
    def refused(of: Path | str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            prepared("ablations", {"of": str(of)}, OPTIONS)

    refused(tmp_path / "nothing", "holds no scan")
    refused("", "of is empty")
    refused(ablations.location, "holds a scan of kind 'ablations'; name a significance scan")
    without = copied(base, tmp_path / "without", lambda document: document["schemas"].pop("activations"))
    refused(without, "was run without --activations")
    other = copied(base, tmp_path / "other", lambda document: document["facts"]["fingerprints"].update(model="f" * 64))
    refused(other, f"model '{NETWORK}' changed since, its fingerprint was ffffffffffff")
    empty = copied(base, tmp_path / "empty")
    shutil.rmtree(empty / "commits")
    refused(empty, "has no committed units yet; finish it with `raysense resume")
    with pytest.raises(UsageError, match="'of' is missing; give directory"):
        validated(AblationsSpec, {})


def test_an_unfinished_scan_is_noted_and_its_growth_noticed(base: Path, tmp_path: Path) -> None:
    partial = copied(base, tmp_path / "sig")
    units = sorted((partial / "commits").iterdir())
    hidden = units[-1].read_bytes()
    for unit in units[4:]:
        unit.unlink()
    bound, found = prepared("ablations", {"of": f"{tmp_path}/x/../sig/"}, OPTIONS)
    assert bound.spec.of == str(partial)
    assert found.notes == (f"the significance scan has 4 of {len(units)} units; its other samples are left out",)
    assert found.listing.num_rows < 10
    assert bound.fingerprints(OPTIONS) == found.facts["fingerprints"]
    store = scanned("ablations", tmp_path / "out", OPTIONS, of=str(partial))
    assert {row["split"] for row in distances(store).to_pylist()} == {"test"}
    units[-1].write_bytes(hidden)
    now = bound.fingerprints(OPTIONS)
    assert now["model"] == found.facts["fingerprints"]["model"]
    assert now["data"] != found.facts["fingerprints"]["data"]
    (partial / "tables" / "class_outputs" / f"{units[0].stem}.arrow").write_bytes(b"")
    with pytest.raises(RaysenseError, match="a file of table class_outputs cannot be read"):
        prepared("ablations", {"of": str(partial)}, OPTIONS)
