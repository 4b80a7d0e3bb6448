"""Rows of the tables of the significance scan, gathered over one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysense.measures.layer_inputs import LinearLayer
from raysense.measures.path_counts import PathCounts
from raysense.scans._significance_tables import ACTIVATIONS, CLASS_ACTIVATIONS, CLASS_OUTPUTS, SIGNIFICANCE

_DENSE_FROM = 0.5
"""Share of a row's paths that are exceptions from which a list of all is smaller than a list with their columns."""


def significance_table(layers: Sequence[LinearLayer], counts: Sequence[PathCounts], label: int, split: str) -> pa.Table:
    """Rows of table ``significance``: one a layer and output of it, none where no sample was counted."""
    parts = [
        _layer_table(layer.name, found, label, split)
        for layer, found in zip(layers, counts, strict=True)
        if found.samples
    ]
    return pa.concat_tables(parts) if parts else SIGNIFICANCE.empty_table()


def _layer_table(layer: str, found: PathCounts, label: int, split: str) -> pa.Table:
    rows = len(found.rows)
    columns, counts = _lists(found)
    same = {
        "layer": layer,
        "class": label,
        "split": split,
        "n_samples": found.samples,
        "n_observations": found.observations,
        "n_inputs": found.inputs,
    }
    arrays = [pa.repeat(pa.scalar(value, SIGNIFICANCE.field(name).type), rows) for name, value in same.items()]
    arrays += [pa.array(np.arange(rows), pa.int32()), pa.array(found.rows), columns, counts]
    return pa.table(arrays, schema=SIGNIFICANCE)


def _lists(found: PathCounts) -> tuple[pa.Array, pa.Array]:
    """Exceptions of every row: their columns (null where all columns are listed) and their counts."""
    rows, inputs = len(found.rows), found.inputs
    row = found.index // inputs
    per_row = np.bincount(row, minlength=rows)
    dense = per_row > _DENSE_FROM * inputs
    if not dense.any():
        offsets = pa.array(np.concatenate([[0], per_row.cumsum()]), pa.int32())
        lists = (pa.array((found.index % inputs).astype(np.int32)), pa.array(found.counts.astype(np.int32)))
        return pa.ListArray.from_arrays(offsets, lists[0]), pa.ListArray.from_arrays(offsets, lists[1])
    columns: list[NDArray[np.int32] | None] = []
    counts: list[NDArray[np.int32]] = []
    edges = np.concatenate([[0], per_row.cumsum()])
    for place in range(rows):
        part = slice(edges[place], edges[place + 1])
        own, often = found.index[part] % inputs, found.counts[part]
        if dense[place]:
            every = np.zeros(inputs, np.int32)
            every[own] = often
        columns.append(None if dense[place] else own.astype(np.int32))
        counts.append(every if dense[place] else often.astype(np.int32))
    return pa.array(columns, pa.list_(pa.int32())), pa.array(counts, pa.list_(pa.int32()))


class ClassSums:
    """What the ablations need of one class: sums of activations and of outputs, and some activations.

    Args:
        layers: The layers.
        kept: Rows of the listing whose activations are kept.
    """

    def __init__(self, layers: Sequence[LinearLayer], kept: frozenset[int]) -> None:
        self._layers, self._kept = layers, kept
        self._activation_sums: list[NDArray[np.float64]] = [np.zeros(()) for _ in layers]
        self._observations = [0] * len(layers)
        self._samples = 0
        self._outputs: NDArray[np.float64] = np.zeros(())
        self._activations: list[tuple[int, str, NDArray[np.float32]]] = []

    def add_activations(self, layer: int, row: int, columns: Tensor) -> None:
        """Add one sample: the inputs of a layer [G, I, T], float64."""
        total = columns.sum(-1).flatten().cpu().numpy()
        # Sample by sample, so that the sum does not depend on how samples are grouped.
        self._activation_sums[layer] = self._activation_sums[layer] + total
        positions = columns.shape[-1]
        self._observations[layer] += positions
        if row in self._kept:
            self._activations.append((row, self._layers[layer].name, (total / positions).astype(np.float32)))

    def add_outputs(self, logits: Tensor) -> None:
        """Add the logits [n, K] of some samples."""
        for row in logits.double().cpu():
            log_p = torch.log_softmax(row, dim=0).numpy()
            p = np.exp(log_p)
            found = np.stack((p, log_p, np.where(p > 0, p * log_p, 0.0)))
            self._outputs = self._outputs + found
            self._samples += 1

    def tables(self, listing: pa.Table, label: int, split: str) -> Mapping[str, pa.Table]:
        """Tables ``class_activations``, ``class_outputs`` and ``activations``; empty where no sample was added."""
        if not self._samples:
            return {
                "class_activations": CLASS_ACTIVATIONS.empty_table(),
                "class_outputs": CLASS_OUTPUTS.empty_table(),
                "activations": ACTIVATIONS.empty_table(),
            }
        whose: dict[str, Any] = {"class": label, "split": split}
        common = {**whose, "n_samples": self._samples}
        sums = [
            {**common, "layer": layer.name, "n_observations": seen, "activation_sum": total}
            for layer, seen, total in zip(self._layers, self._observations, self._activation_sums, strict=True)
        ]
        p, log_p, p_log_p = self._outputs
        outputs = {**common, "p_sum": p, "log_p_sum": log_p, "p_log_p_sum": float(p_log_p.sum())}
        kept = [
            {**whose, "sample_id": listing["sample_id"][row].as_py(), "layer": layer, "activation": values}
            for row, layer, values in self._activations
        ]
        return {
            "class_activations": pa.Table.from_pylist(sums, schema=CLASS_ACTIVATIONS),
            "class_outputs": pa.Table.from_pylist([outputs], schema=CLASS_OUTPUTS),
            "activations": pa.Table.from_pylist(kept, schema=ACTIVATIONS),
        }
