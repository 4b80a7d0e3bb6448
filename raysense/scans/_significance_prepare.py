"""What the driver of a significance scan finds out once: the samples class by class, the layers, the units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from raysense.errors import UsageError
from raysense.measures.layer_inputs import LayerInputs, LinearLayer, find_layers
from raysense.measures.targets import matching
from raysense.measures.uses import Piece
from raysense.models import LoadedModel
from raysense.scans._model import shown_name
from raysense.scans._sampled import Examined, evenly_spaced, prepare_samples, split_sizes
from raysense.scans.base import Prepared, Unit
from raysense.scans.significance import SignificanceSpec

_DEFAULT_LAYERS = 2
_MANY_PATHS = 2**24


def prepare_significance(spec: SignificanceSpec) -> Prepared:
    """List the samples, sorted by split and class, and check that the model has the layers.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    prepared = prepare_samples(
        spec, lambda classes: 1, gradients=False, examine=lambda model, images: _examined(spec, model, images)
    )
    listing = _by_class(prepared.listing, spec.per_class)
    data = {**prepared.facts["data"], "n_samples": listing.num_rows, "splits": split_sizes(listing)}
    model = dict(prepared.facts["model"])
    counted = {"layers": model.pop("significance"), "threshold": spec.threshold, "positions": spec.positions}
    facts = {**prepared.facts, "model": model, "data": data, "significance": counted}
    return replace(prepared, listing=listing, facts=facts)


def class_units(prepared: Prepared) -> Sequence[Unit]:
    """Runs of at most ``unit_size`` samples of one class and split of a listing that is sorted by them."""
    listing, size = prepared.listing, prepared.unit_size
    units = []
    for first, last in _class_runs(listing):
        # Of nearly equal size, so that no unit is a remainder of a few samples.
        parts = -(-(last - first) // size)
        edges = [first + (last - first) * part // parts for part in range(parts + 1)]
        units += [Unit(f"{start:010d}-{stop:010d}", start, stop) for start, stop in pairwise(edges)]
    return units


def spaced_by_class(listing: pa.Table, count: int) -> NDArray[np.int64]:
    """Rows of at most ``count`` samples of every split and class, evenly spaced, of a listing that is sorted by them."""
    return np.concatenate([first + evenly_spaced(last - first, count) for first, last in _class_runs(listing)])


def layers_of_scan(facts: Mapping[str, Any]) -> list[LinearLayer]:
    """The layers that a scan counts, from the facts of its scan.json: in every process the same."""
    return [
        LinearLayer(
            entry["name"],
            Piece(entry["parameter"], entry["start"], entry["stop"], tuple(entry["shape"])),
            entry["operator"],
            entry["groups"],
            entry["rows"] // entry["groups"],
            entry["inputs"],
            entry["positions"],
        )
        for entry in facts["significance"]["layers"]
    ]


def _described(layer: LinearLayer) -> dict[str, Any]:
    """A layer in scan.json."""
    piece = layer.piece
    return {
        "name": layer.name,
        "operator": layer.operator,
        "rows": layer.rows,
        "inputs": layer.inputs,
        "groups": layer.groups,
        "positions": layer.positions,
        "parameter": piece.parameter,
        "start": piece.start,
        "stop": piece.stop,
        "shape": list(piece.shape),
    }


def _chosen_layers(spec: SignificanceSpec, model: LoadedModel, image: torch.Tensor) -> list[LinearLayer]:
    """The layers that a spec names, under the names the user knows, in the order in which they are applied.

    Args:
        spec: Names them.
        model: Has them.
        image: [1, C, H, W], run once to see what the network applies.

    Raises:
        UsageError: a pattern matches no layer, there is none, or a weight is not finite.
    """
    layers = [replace(layer, name=shown_name(model, layer.name)) for layer in find_layers(model.module, image)]
    if not layers:
        raise UsageError(
            f"model {spec.model!r} applies no linear layer or convolution whose weight is a parameter; scan one that does"
        )
    if spec.layers:
        try:
            names = set(matching([layer.name for layer in layers], spec.layers))
        except ValueError as error:
            raise UsageError(f"layers: {error} (the layers that the first image passes through)") from error
        chosen = [layer for layer in layers if layer.name in names]
    else:
        linear = [layer for layer in layers if layer.operator == "linear"]
        chosen = (linear or layers)[-_DEFAULT_LAYERS:]
    for layer in chosen:
        if not bool(layer.weight(model.module).isfinite().all()):
            raise UsageError(f"layers: the weight of {layer.name} is not finite; check the checkpoint")
    return chosen


def _examined(spec: SignificanceSpec, model: LoadedModel, images: torch.Tensor) -> Examined:
    layers = _chosen_layers(spec, model, images[:1])
    parts = LayerInputs(model.module, layers).run(images)
    notes = list(_notes(spec, layers, one_by_one=len(parts) > 1, classes=parts[0].logits.shape[1]))
    described = [_described(layer) for layer in layers]
    return Examined({"layers": [layer.name for layer in layers], "significance": described}, tuple(notes))


def _notes(spec: SignificanceSpec, layers: Sequence[LinearLayer], one_by_one: bool, classes: int) -> Iterator[str]:
    if one_by_one:
        yield "the samples of a batch cannot be told apart inside the model: they go one by one, which is slower"
    for layer in layers:
        paths = layer.rows * layer.inputs
        if paths > _MANY_PATHS:
            dense = "; its counts are dense, a table of that size a unit" if spec.threshold != "sum" else ""
            yield f"layer {layer.name} has {paths:,} paths: every worker takes some {16 * paths / 2**30:.1f} GiB{dense}"
    if spec.layers:
        return
    names = ", ".join(layer.name for layer in layers)
    if layers[0].operator == "convolution":
        yield f"the model has no linear layer; its last convolutions are scanned, {names}"
    elif len(layers) < _DEFAULT_LAYERS:
        yield f"the model has one linear layer, {names}; name convolutions with --layers to scan them too"
    if layers[-1].rows != classes:
        yield (
            f"the last layer found, {layers[-1].name}, has {layers[-1].rows} outputs, not the {classes} classes: a later "
            "layer computes its weight first, or applies it otherwise, and is not scanned"
        )


def _by_class(listing: pa.Table, per_class: int | None) -> pa.Table:
    """The listing sorted by split (in its order) and class, at most ``per_class`` samples of each, evenly spaced."""
    splits = listing["split"].to_numpy(zero_copy_only=False)
    order = {split: place for place, split in enumerate(dict.fromkeys(splits.tolist()))}
    places = np.array([order[split] for split in splits.tolist()])
    rows = np.lexsort((listing["label"].to_numpy(), places))  # stable
    table = listing.take(pa.array(rows))
    if per_class is not None:
        table = table.take(pa.array(spaced_by_class(table, per_class)))
    return table.combine_chunks()


def _class_runs(listing: pa.Table) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of the runs of one split and class."""
    places = pc.dictionary_encode(listing["split"].combine_chunks()).indices.to_numpy()
    changes = (np.diff(places) != 0) | (np.diff(listing["label"].to_numpy()) != 0)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), listing.num_rows]
    return pairwise(borders)
