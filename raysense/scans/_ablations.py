"""Computing a unit of the ablations scan: a run of classes against all classes of their split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysense.measures.energy import Between, Kept, Within, between, energy_distance, within
from raysense.measures.interactions import Prototypes, prototypes
from raysense.measures.outputs_kl import OutputSums, output_divergences
from raysense.models import LoadedModel
from raysense.options import ComputeOptions
from raysense.scans._ablations_base import ClassEntry, SignificanceResults, listed_classes
from raysense.scans._ablations_tables import CLASS_DISTANCES
from raysense.scans._model import opened_model
from raysense.scans._significance_prepare import layers_of_scan
from raysense.scans.ablations import AblationsSpec
from raysense.scans.base import Computer, Prepared, Unit

_MEMORY = 2**28
"""Bytes of a block of distances, and of the activations of the first classes that are held at once."""


class _Distances(NamedTuple):
    """A metric for classes a of a run and all classes b, [A, C] each; ``samples`` [C] are those behind them."""

    layer: str | None
    metric: str
    value: np.ndarray
    stderr: np.ndarray
    samples: np.ndarray


class _Split(NamedTuple):
    """The classes of a split, and where they begin in the listing."""

    name: str
    classes: list[ClassEntry]
    start: int


class AblationsComputer(Computer):
    """The ablations scan opened in one process."""

    def __init__(self, spec: AblationsSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._base = SignificanceResults(spec.of)
        model, self.device = opened_model(self._base.model, prepared, options)
        self._weights = layer_weights(self._base, model)
        self._splits: list[_Split] = []
        for name, classes in groupby(listed_classes(prepared), key=lambda entry: entry.split):
            start = sum(len(split.classes) for split in self._splits)
            self._splits.append(_Split(name, list(classes), start))
        self._prototypes: dict[tuple[str, str], Prototypes] = {}
        self._centres: dict[tuple[str, str], Tensor] = {}
        self._outputs: dict[str, OutputSums] = {}
        self._within: dict[tuple[str, str, int], Within | None] = {}
        self.batch_size = prepared.unit_size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """Rows of class_distances of the unit's classes as class_a."""
        parts = []
        for split in self._splits:
            start, stop = max(unit.start - split.start, 0), min(unit.stop - split.start, len(split.classes))
            if start < stop:
                parts += [_table(split, start, found) for found in self._compare(split, start, stop)]
        return {"class_distances": pa.concat_tables(parts).combine_chunks()}

    def _compare(self, split: _Split, start: int, stop: int) -> Iterator[_Distances]:
        """Every metric of classes ``start`` to ``stop`` of a split against all of it."""
        samples = np.array([entry.samples for entry in split.classes])
        value = output_divergences(self._output_sums(split), start, stop).cpu().numpy()
        yield _Distances(None, "outputs", value, np.zeros_like(value), samples)
        for layer in self._weights:
            made = self._prototypes_of(split, layer)
            value = made.divergences(start, stop).cpu().numpy()
            value[range(stop - start), range(start, stop)] = made.entropy[start:stop].cpu().numpy()
            yield _Distances(layer, "interactions", value, np.zeros_like(value), samples)
            yield from self._activations(split, layer, start, stop)

    def _output_sums(self, split: _Split) -> OutputSums:
        if split.name not in self._outputs:
            sums = self._base.class_sums("class_outputs", split.classes)
            self._outputs[split.name] = OutputSums(*map(self._tensor, sums))
        return self._outputs[split.name]

    def _prototypes_of(self, split: _Split, layer: str) -> Prototypes:
        """Computed once in a process for all units: for a thousand classes this is most of the work."""
        key = split.name, layer
        if key not in self._prototypes:
            counts, sums = map(self._tensor, self._base.class_sums("class_activations", split.classes, layer))
            self._prototypes[key] = prototypes(self._weights[layer], sums / counts[:, None])
            self._centres[key] = sums.sum(0) / counts.sum()
        return self._prototypes[key]

    def _activations(self, split: _Split, layer: str, start: int, stop: int) -> Iterator[_Distances]:
        """Mean distances and energy distances."""
        shape = stop - start, len(split.classes)
        means, energies = np.full((*shape, 2), np.nan), np.full((*shape, 2), np.nan)
        kept = np.zeros(len(split.classes), np.int64)
        for first, held in self._held(split, layer, start, stop):
            for b, entry in enumerate(split.classes):
                y = held[b - first] if first <= b < first + len(held) else self._centred(split, layer, entry)
                own, kept[b] = self._within_of(split, layer, b, y), len(y)
                for a, x in enumerate(held, start=first):
                    row = a - start
                    theirs = self._within_of(split, layer, a, x)
                    if own is None or theirs is None:
                        continue
                    if a == b:
                        means[row, b], energies[row, b] = (own.mean, own.stderr), (0, 0)
                        continue
                    found: Between = between(x, y, (theirs.kept, own.kept), _MEMORY)
                    means[row, b] = found.mean, found.stderr
                    energies[row, b] = energy_distance(found, theirs, own)
        yield _Distances(layer, "activations", means[..., 0], means[..., 1], kept)
        yield _Distances(layer, "energy", energies[..., 0], energies[..., 1], kept)

    def _held(self, split: _Split, layer: str, start: int, stop: int) -> Iterator[tuple[int, list[Tensor]]]:
        """Activations of classes ``start`` to ``stop`` in runs that memory holds, each with its first class."""
        held: list[Tensor] = []
        for a in range(start, stop):
            held.append(self._centred(split, layer, split.classes[a]))
            if a == stop - 1 or sum(x.nbytes for x in held) + held[-1].nbytes > _MEMORY:
                yield a + 1 - len(held), held
                held = []

    def _centred(self, split: _Split, layer: str, entry: ClassEntry) -> Tensor:
        """Activations that were kept of a class about the mean of all, [n, inputs]."""
        found = self._tensor(self._base.activations(entry, layer))
        return found - self._centres[split.name, layer] if len(found) else found

    def _within_of(self, split: _Split, layer: str, place: int, x: Tensor) -> Within | None:
        """Distances within a class; None where no sample of it was kept."""
        key = split.name, layer, place
        if key not in self._within:
            of = split.classes[place].samples
            self._within[key] = within(x, Kept(len(x), of), _MEMORY) if len(x) else None
        return self._within[key]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float64)).to(self.device)


def layer_weights(base: SignificanceResults, model: LoadedModel) -> dict[str, Tensor]:
    """The weights [G, O, I] of a significance scan's layers, float64, by the layers' names.

    Args:
        base: The scan.
        model: Its model.
    """
    return {layer.name: layer.weight(model.module).double() for layer in layers_of_scan(base.document["facts"])}


def _table(split: _Split, start: int, found: _Distances) -> pa.Table:
    """Rows of a metric."""
    rows, columns = found.value.shape
    labels = np.array([entry.label for entry in split.classes], np.int32)
    a = np.repeat(np.arange(start, start + rows), columns)
    b = np.tile(np.arange(columns), rows)
    count = rows * columns
    unknown = np.isnan(found.value).ravel()
    arrays = [
        pa.array([found.layer] * count, pa.string()),
        pa.array([found.metric] * count, pa.string()),
        pa.array([split.name] * count, pa.string()),
        pa.array(labels[a]),
        pa.array(labels[b]),
        pa.array(found.value.ravel(), mask=unknown),
        pa.array(found.stderr.ravel(), mask=unknown | np.isnan(found.stderr).ravel()),
        *(pa.array(found.samples[places].astype(np.int32)) for places in (a, b)),
    ]
    return pa.table(arrays, schema=CLASS_DISTANCES)
