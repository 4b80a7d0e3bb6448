"""Counts of significant paths against the dense definition, entry by entry."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysense.digits import load_digits, trained_digits
from raysense.measures.path_counts import SparseExceptions
from raysense.measures.significance import PathCounter, Positions, Threshold

THRESHOLDS = get_args(Threshold)


def dense(weight: Tensor, columns: Tensor, threshold: str, positions: str) -> np.ndarray:
    """Counts [G * O, I] by the definition, in float64, visiting every entry of every position."""
    total = np.zeros((weight.shape[0] * weight.shape[1], weight.shape[2]), np.int64)
    inputs = weight.shape[2]
    for sample in columns.double():
        seen = []
        for position in range(1 if positions == "first" else sample.shape[2]):
            paths = weight.double() * sample[:, None, :, position]
            of = {
                "sum": inputs * paths.sum(-1),
                "mean": paths.sum(-1) / inputs,
                "mean_abs": paths.abs().sum(-1) / inputs,
            }
            seen.append((paths.abs() > of[threshold][..., None]).flatten(0, 1).numpy())
        total += np.any(seen, axis=0) if positions == "any" else np.sum(seen, axis=0)
    return total


def exactly(weight: Tensor, activation: Tensor, threshold: str) -> np.ndarray:
    """Significance [O, I] of one observation in rational arithmetic."""
    found = []
    for row in weight.tolist():
        paths = [Fraction(w) * Fraction(a) for w, a in zip(row, activation.tolist(), strict=True)]
        sums = {"sum": sum(paths) * len(paths), "mean": sum(paths) / len(paths)}
        sums["mean_abs"] = sum(map(abs, paths)) / len(paths)
        found.append([abs(path) > sums[threshold] for path in paths])
    return np.array(found)


def count(
    weight: Tensor, columns: Tensor, threshold: str = "sum", positions: str = "each", **options: int
) -> PathCounter:
    counter = PathCounter(weight, threshold, positions, **options)  # type: ignore[arg-type]
    counter.add(columns)
    return counter


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("shape", [(1, 20, 64, 1), (1, 10, 16, 7), (3, 4, 18, 5), (1, 5, 1, 2)], ids=str)
def test_equals_the_dense_definition(threshold: str, positions: str, shape: tuple[int, int, int, int]) -> None:
    groups, outputs, inputs, tokens = shape
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(groups, outputs, inputs, generator=generator) + 0.1
    columns = torch.randn(40, groups, inputs, tokens, generator=generator)
    columns[::2].relu_()
    columns[3] = 0
    for working_bytes in (1, 2**26):
        found = count(weight, columns, threshold, positions, working_bytes=working_bytes).counts()
        np.testing.assert_array_equal(found.dense(), dense(weight, columns, threshold, positions))
        assert found.samples == 40
        assert found.observations == 40 * (tokens if positions == "each" else 1)
        assert (np.diff(found.index) > 0).all()
        assert (found.counts > 0).all()


def test_wide_layers_whose_sums_are_coarse_first() -> None:
    """Sums from nothing to far beyond what single precision can tell, among them exact zeros and ties."""
    generator = torch.Generator().manual_seed(6)
    weight, columns = torch.randn(1, 16, 600, generator=generator), torch.randn(12, 1, 600, 1, generator=generator)
    # Row after row closer to orthogonal to the observations, as far as single precision goes.
    basis = torch.linalg.qr(columns[:, 0, :, 0].double().T)[0]
    for row in range(16):
        part = weight[0, row].double()
        weight[0, row] = (part - (1 - 4.0 ** (-row)) * (basis @ (basis.T @ part))).float()
    weight[0, 7, 300:] = -weight[0, 7, :300]
    columns[:5, 0, 300:] = columns[:5, 0, :300]
    columns[6, 0, :, 0] *= 1e-30
    columns[7, 0, :, 0] *= 1e30
    found = count(weight, columns).counts().dense()
    expected = sum(exactly(weight[0], row[0, :, 0], "sum").astype(int) for row in columns)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_trained_layer_equals_the_dense_definition_and_is_sparse(threshold: str) -> None:
    network, digits = trained_digits(), load_digits("test")
    inputs: list[Tensor] = []
    hook = network.output.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        network(digits.images[:100])
    hook.remove()
    weight, columns = network.output.weight.detach()[None], inputs[0][:, None, :, None]
    found = count(weight, columns, threshold).counts()
    np.testing.assert_array_equal(found.dense(), dense(weight, columns, threshold, "each"))
    if threshold == "sum":
        assert 0 < found.counts.sum() < 0.02 * (100 * found.dense().size - 64 * found.rows.sum())
    if threshold == "mean_abs":
        assert not found.rows.any()


def test_samples_may_come_in_any_order_and_number() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, columns = torch.randn(1, 30, 40, generator=generator), torch.randn(50, 1, 40, 3, generator=generator).relu()
    whole = count(weight, columns).counts()
    parts = PathCounter(weight, "sum", "each")
    for part in columns[torch.randperm(50, generator=generator)].split(7):
        parts.add(part)
    for name in ("rows", "index", "counts"):
        np.testing.assert_array_equal(getattr(parts.counts(), name), getattr(whole, name))
    parts.reset()
    parts.add(columns[:3])
    np.testing.assert_array_equal(parts.counts().dense(), count(weight, columns[:3]).counts().dense())


def test_zero_weights_and_zero_activations() -> None:
    """A row without any path that is not 0 has none that is significant; one whose sum is negative has all, zeros too."""
    weight = torch.tensor([[[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    ones, zeros, half = torch.ones(3), torch.zeros(3), torch.tensor([1.0, 1.0, 0.0])
    expected = {
        "sum": [[0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]],
        "mean": [[0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]],
        "mean_abs": [[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]],
    }
    for threshold, rows in expected.items():
        found = count(weight, ones[None, None, :, None], threshold).counts()
        np.testing.assert_array_equal(found.dense(), rows)
        assert not count(weight, zeros[None, None, :, None], threshold).counts().dense().any()
    # |N| = 1 exceeds the mean 2/3, not 3 times the sum.
    assert count(weight[:, 3:], half[None, None, :, None], "mean").counts().dense().tolist() == [[1, 1, 0]]
    assert count(weight[:, 3:], half[None, None, :, None], "sum").counts().dense().tolist() == [[0, 0, 0]]


_SMALL = st.sampled_from([-3.0, -1.0, -0.1, 0.0, 0.1, 0.3, 1.0, 1e-8, 3.3e7, 2.0**-20])


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(THRESHOLDS), st.sampled_from([torch.float32, torch.float64]))
def test_ties_and_cancellation_are_decided_exactly(data: st.DataObject, threshold: str, dtype: torch.dtype) -> None:
    """Sums that cancel to nothing, or to less than rounding leaves: what decides is the exact value."""
    inputs = data.draw(st.integers(1, 6))
    rows = [[data.draw(_SMALL) for _ in range(inputs)] for _ in range(3)]
    activation = torch.tensor([data.draw(_SMALL) for _ in range(inputs)], dtype=dtype)
    weight = torch.tensor(rows, dtype=dtype)
    counter = PathCounter(weight[None], threshold)  # type: ignore[arg-type]
    counter.add(activation.double()[None, None, :, None], exact_products=dtype == torch.float32)
    np.testing.assert_array_equal(counter.counts().dense() > 0, exactly(weight, activation, threshold))


@settings(max_examples=250, deadline=None)
@given(st.data(), st.sampled_from(THRESHOLDS), st.sampled_from([torch.float32, torch.float64]))
def test_entries_within_an_ulp_of_the_threshold(data: st.DataObject, threshold: str, dtype: torch.dtype) -> None:
    """Values that differ in the last bits; for ``sum`` one weight is such that |N_i0| is about n times the sum."""
    inputs = data.draw(st.sampled_from([1, 2, 3, 5, 6, 7, 10, 11, 49]))
    base = data.draw(st.sampled_from([1.0, 1.5, 0.1, 1 / 3, 0.7]))
    ulp = 2.0**-52 if dtype == torch.float64 else 2.0**-23
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def values(*shape: int) -> Tensor:
        drawn = base * (1 + ulp * rng.integers(-2, 3, shape)) * rng.choice([1, 1, 1, -1], shape)
        return torch.tensor(drawn, dtype=dtype)

    weight, activation = values(4, inputs), values(inputs)
    if threshold == "mean_abs":
        weight = weight.abs()
    elif threshold == "sum" and inputs > 1:
        rest = weight[:, 1:].double() @ activation[1:].double()
        weight[:, 0] = (-inputs * rest / (inputs + 1) / activation[0].double()).to(dtype)
    counter = PathCounter(weight[None], threshold)  # type: ignore[arg-type]
    counter.add(activation.double()[None, None, :, None], exact_products=dtype == torch.float32)
    np.testing.assert_array_equal(counter.counts().dense() > 0, exactly(weight, activation, threshold))


STRUCTURED = {
    "binary": lambda draw, shape: 2.0 * torch.randint(0, 2, shape, generator=draw) - 1,
    "quantised": lambda draw, shape: torch.randint(-3, 4, shape, generator=draw) / 4,
    "pruned": lambda draw, shape: torch.randn(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.1),
    "flat": lambda draw, shape: torch.full(shape, 0.1) if shape[0] > 64 else _zero_sums(draw, shape),
}


def _zero_sums(draw: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Kernels of whole tenths that add up to nothing."""
    values = torch.randint(-5, 6, shape, generator=draw).float()
    values[..., -1] -= values.sum(-1)
    return values / 10


@pytest.mark.parametrize("kind", STRUCTURED)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_structured_weights_and_inputs_are_counted_exactly_and_soon(kind: str, threshold: str) -> None:
    """Quantised, binary and pruned networks, flat backgrounds: thousands of sums that cancel or tie."""
    draw = torch.Generator().manual_seed(4)
    weight, inputs = (STRUCTURED[kind](draw, shape) for shape in ((20, 27), (400, 27)))
    counter = PathCounter(weight[None], threshold)  # type: ignore[arg-type]
    began = time.process_time()
    counter.add(inputs[:, None, :, None])
    assert time.process_time() - began < 8
    few = torch.cat((inputs[:6], inputs[-6:]))
    expected = sum(exactly(weight, row, threshold).astype(int) for row in few)
    counter.reset()
    counter.add(few[:, None, :, None])
    np.testing.assert_array_equal(counter.counts().dense(), expected)


def test_dense_thresholds_with_any_position_stay_within_memory() -> None:
    """One sample with thousands of positions, whose entries exceed nearly everywhere."""
    draw = torch.Generator().manual_seed(5)
    weight, columns = torch.randn(1, 40, 50, generator=draw), torch.rand(1, 1, 50, 3000, generator=draw)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for part in tree_leaves(result):
                if isinstance(part, Tensor):
                    largest = max(largest, part.untyped_storage().nbytes())
            return result

    with Watch():
        found = count(weight, columns, "mean_abs", "any", working_bytes=2**20).counts()
    np.testing.assert_array_equal(found.dense(), dense(weight, columns, "mean_abs", "any"))
    assert largest <= 4 * columns.nbytes


def test_a_sum_that_rounding_turns_round() -> None:
    """Terms that cancel but for 2^-60 of the largest: the matrix product cannot tell the sign."""
    weight = torch.tensor([[[1.0, -1.0, 2.0**-60], [1.0, -1.0, -(2.0**-60)], [2.0**-60, -1.0, 1.0]]])
    found = count(weight, torch.ones(1, 1, 3, 1)).counts()
    assert found.rows.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(found.dense(), [[1, 1, 0], [1, 1, 1], [0, 1, 1]])


def test_many_exceptions_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysense.measures.path_counts._PENDING", 10)
    gathered, truth = SparseExceptions(7, 9, torch.device("cpu")), np.zeros(63, int)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        index = torch.randint(63, (8,), generator=generator)
        gathered.add(index)
        np.add.at(truth, index.numpy(), 1)
    index, counts = gathered.counted()
    np.testing.assert_array_equal(index, np.flatnonzero(truth))
    np.testing.assert_array_equal(counts, truth[truth > 0])


def test_what_is_not_finite_is_refused() -> None:
    weight = torch.ones(1, 2, 2)
    counter = PathCounter(weight)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="activations are not finite"):
            counter.add(torch.tensor([1.0, bad])[None, None, :, None])
        with pytest.raises(ValueError, match="weight is not finite"):
            PathCounter(weight * bad)
    assert counter.counts().samples == 0
    with pytest.raises(ValueError, match="'median'"):
        PathCounter(weight, "median")  # type: ignore[arg-type]
