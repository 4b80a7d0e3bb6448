"""The significance scan at ImageNet scale: counting, storing and comparing the paths of 1000 classes.

1000 classes x 50 samples through a layer of 2048 inputs and 1000 outputs, with activations drawn around one prototype a
class, and a weight that has learnt them. Against the dense comparison of every path, dense bytes, and the dense KL matrix
as blocked float64 matrix products.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Memory, Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_significance import significance_document

from raysense.measures.layer_inputs import LinearLayer
from raysense.measures.path_counts import PathCounts
from raysense.measures.significance import PathCounter
from raysense.measures.uses import Piece
from raysense.query.connection import open_results
from raysense.scans._significance_rows import significance_table
from raysense.store.store import Store

CLASSES, SAMPLES, INPUTS, OUTPUTS = 1000, 50, 2048, 1000
ROUNDS = 5
COUNTED = 8
SMOOTHING = 0.5
BLOCK_ROWS = 25
MIB = 2**20


def layer_and_activations() -> tuple[Tensor, Iterator[Tensor]]:
    """The weight [O, I], and the activations [N, I] of class after class, float32."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLASSES, INPUTS, generator=generator)
    weight = (0.3 * prototypes + torch.randn(OUTPUTS, INPUTS, generator=generator)) / INPUTS**0.5

    def classes() -> Iterator[Tensor]:
        drawn = torch.Generator().manual_seed(1)
        for prototype in prototypes:
            yield (prototype + torch.randn(SAMPLES, INPUTS, generator=drawn)).relu()

    return weight, classes()


def dense_counts(weight: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Counts of all paths [O, I], uint8, comparing every path of every sample in float64, in place throughout."""
    counts = np.zeros(weight.shape, np.uint8)
    paths = np.empty(weight.shape)
    for sample in activations:
        np.multiply(weight, sample, out=paths)
        limits = INPUTS * paths.sum(1, keepdims=True)
        np.abs(paths, out=paths)
        counts += paths > limits
    return counts


def plain_counts(weight: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """The same as the definition reads, with arrays for its intermediate results."""
    counts = np.zeros(weight.shape, np.int64)
    for sample in activations:
        paths = weight * sample
        counts += np.abs(paths) > INPUTS * paths.sum(1, keepdims=True)
    return counts


def counting(weight: Tensor, classes: list[Tensor]) -> list[Verdict]:
    """Our counts of some classes against the dense comparison, one thread each."""
    print_title(f"counting the {INPUTS * OUTPUTS:,} paths of {len(classes)} classes of {SAMPLES} samples, one thread")
    counter = PathCounter(weight[None])
    exact = weight.double().numpy()

    def ours() -> list[PathCounts]:
        return [_counted(counter, activations).counts() for activations in classes]

    def dense(count: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[np.ndarray]:
        return [count(exact, activations.double().numpy()) for activations in classes]

    sides = {"dense, as defined": partial(dense, plain_counts), "dense, in place": partial(dense, dense_counts)}
    for side in sides.values():
        assert all((mine.dense() == theirs).all() for mine, theirs in zip(ours(), side(), strict=True))
    seconds = interleaved({**sides, "ours": ours}, ROUNDS, time.process_time)
    print_sides(seconds, len(classes) * SAMPLES, "ms/sample")
    return [verdict for name in sides for verdict in print_ratio(seconds, name, "ours", 50)]


def _counted(counter: PathCounter, activations: Tensor) -> PathCounter:
    counter.reset()
    counter.add(activations[:, None, :, None])
    return counter


def store_all(location: str, weight: Tensor, classes: Iterator[Tensor]) -> tuple[Store, list[PathCounts]]:
    """A scan of all classes, written through the real store; and its counts."""
    layer = LinearLayer("fc", Piece("fc.weight", 0, OUTPUTS, (OUTPUTS, INPUTS)), "linear", 1, OUTPUTS, INPUTS, 1)
    document = significance_document(
        {layer.name: (OUTPUTS, INPUTS)}, {"val": [SAMPLES] * CLASSES}, None, CLASSES, {layer.name: 1},
        "synthetic", "synthetic", "sum", SAMPLES,
    )  # fmt: skip
    store = Store.create(location, document, None)
    counter, found = PathCounter(weight[None]), []
    schema = {name: schema for name, schema in store.schemas().items() if name != "significance"}
    for label, activations in enumerate(classes):
        counter.reset()
        counter.add(activations[:, None, :, None])
        found.append(counter.counts())
        tables = {name: columns.empty_table() for name, columns in schema.items()}
        tables["significance"] = significance_table([layer], [found[-1]], label, "val")
        store.commit(f"{label * SAMPLES:010d}-{(label + 1) * SAMPLES:010d}", tables, {})
    return store, found


def dense_kl(found: list[PathCounts]) -> np.ndarray:
    """KL of all pairs of classes [C, C] by float64 matrix products, a few rows of the layer at a time."""
    constant, cross = np.zeros(CLASSES), np.zeros((CLASSES, CLASSES))
    rest = np.zeros(CLASSES)
    width = BLOCK_ROWS * INPUTS
    p, q = np.empty((CLASSES, width)), np.empty((CLASSES, width))
    for start in range(0, OUTPUTS, BLOCK_ROWS):
        for label, counts in enumerate(found):
            part = p[label]
            part[:] = np.repeat(counts.rows[start : start + BLOCK_ROWS], INPUTS)
            low, high = np.searchsorted(counts.index, [start * INPUTS, (start + BLOCK_ROWS) * INPUTS])
            part[counts.index[low:high] - start * INPUTS] += counts.counts[low:high]
        p += SMOOTHING
        p /= SAMPLES + 2 * SMOOTHING
        log_rest = np.log1p(-p)
        np.log(p, out=q)
        q -= log_rest
        constant += np.einsum("ij,ij->i", p, q) + log_rest.sum(1)
        rest += log_rest.sum(1)
        cross += p @ q.T
    return (constant[:, None] - rest - cross) / (OUTPUTS * INPUTS)


def main() -> list[Verdict]:
    """Counting, bytes, and the KL matrix of 1000 classes, in one run."""
    torch.set_num_threads(1)
    weight, classes = layer_and_activations()
    some = [activations for activations, _ in zip(classes, range(COUNTED), strict=False)]
    verdicts = counting(weight, some)
    with tempfile.TemporaryDirectory() as folder:
        print_title(f"all {CLASSES} classes counted and stored")
        began = time.perf_counter()
        store, found = store_all(folder, *layer_and_activations())
        print(f"  {time.perf_counter() - began:.1f} s, drawing the activations included")
        files = list(Path(folder, "tables", "significance").iterdir())
        stored, dense = sum(file.stat().st_size for file in files), CLASSES * OUTPUTS * INPUTS
        exceptions = np.mean([len(counts.index) for counts in found])
        print(f"  {exceptions:.0f} exceptions a class, of {OUTPUTS * INPUTS:,} paths; {len(files)} files")
        figure = f"{stored / MIB:.1f} MiB against {dense / MIB:.0f} MiB as dense uint8, {dense / stored:.0f}x smaller"
        verdicts.append(print_verdict("bytes stored", figure, ">= 100x smaller", dense >= 100 * stored))
        verdicts += compare_kl(store, found)
    return verdicts


def compare_kl(store: Store, found: list[PathCounts]) -> list[Verdict]:
    """kl_matrix() against dense matrix products, all cores each."""
    print_title(f"KL matrix of {CLASSES} x {CLASSES} classes over {OUTPUTS * INPUTS:,} paths, all cores")
    seconds: dict[str, list[float]] = {"dense": [], "sql": []}
    peaks: dict[str, int] = {}
    results: dict[str, np.ndarray] = {}
    # The dense side takes minutes: once, between two of SQL.
    for name in ("sql", "dense", "sql"):
        memory = Memory()
        before = memory.peak
        began = time.perf_counter()
        with memory.watched():
            results[name] = dense_kl(found) if name == "dense" else sql_kl(store)
        seconds[name].append(time.perf_counter() - began)
        peaks[name] = max(peaks.get(name, 0), memory.peak - before)
    print_sides(seconds)
    slowest = max(seconds["sql"])
    print(f"  dense / sql: {seconds['dense'][0] / slowest:.1f}x")
    print(f"  more memory: dense {peaks['dense'] / MIB:.0f} MiB in blocks, sql {peaks['sql'] / MIB:.0f} MiB")
    worst = float(np.abs(results["dense"] - results["sql"]).max())
    return [
        print_verdict("kl_matrix() of 1000 classes", f"{slowest:.1f} s", "< 30 s", slowest < 30),
        print_verdict("largest difference to dense float64", f"{worst:.1e} nats", "<= 1e-12", worst <= 1e-12),
    ]


def sql_kl(store: Store) -> np.ndarray:
    """The matrix from SQL, opening the results included."""
    with open_results([store.location]) as database:
        table = database.query(
            "SELECT class_a, class_b, kl FROM kl_matrix('fc') WHERE class_a IS NOT NULL AND class_b IS NOT NULL"
        ).table()
    matrix = np.empty((CLASSES, CLASSES))
    matrix[table["class_a"].to_numpy(), table["class_b"].to_numpy()] = table["kl"].to_numpy()
    return matrix


if __name__ == "__main__":
    main()
