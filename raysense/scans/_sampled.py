"""What scans over the samples of a data set share: preparing them, and opening model and loader in a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysense.datasets import DataSource, Listing, open_data
from raysense.errors import SampleError, UsageError
from raysense.loading import SampleDecoder, SampleLoader, as_float
from raysense.models import LoadedModel, load_model
from raysense.options import ComputeOptions
from raysense.preprocessing import Preprocessing
from raysense.scans._model import check_gradients, checked_classes, model_facts, opened_model
from raysense.scans.base import Prepared
from raysense.scans.sampled import SampledSpec

_PROBED = 4
_LARGEST_UNIT = 256
_SMALLEST_UNIT = 16
_UNITS_WANTED = 64
_PASSES_PER_UNIT = 16384


@dataclass(frozen=True)
class Examined:
    """What a scan finds out about a model on the first images.

    Attributes:
        facts: More facts of the model, for scan.json.
        notes: Sentences the user should read.
    """

    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


Examine = Callable[[LoadedModel, torch.Tensor], Examined]
"""Looks at a model and the first images [n, C, H, W]; raises UsageError where the scan cannot work on them."""


def prepare_samples(
    spec: SampledSpec,
    passes_per_sample: Callable[[int], int],
    gradients: bool,
    examine: Examine | None = None,
    mend: str | None = None,
) -> Prepared:
    """List the data, open the model, and check that they fit, before anything is computed.

    Args:
        spec: Names the model and the data.
        passes_per_sample: Rough cost of one sample in passes, from the number of classes; sizes the units.
        gradients: Whether the scan needs gradients with respect to the input.
        examine: What else the scan checks.
        mend: What else can be done with a model that has no gradients; None where nothing can.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    model = load_model(spec.model)
    source = open_data(spec.data, spec.split)
    listing = source.list()
    table = limited(_chosen(spec, listing.table), spec.limit)
    preprocessing = source.preprocessing or model.preprocessing
    batch, classes = _probe(spec, model, source, table, preprocessing)
    if gradients:
        otherwise = "" if mend is None else f", or {mend}"
        check_gradients(
            spec.model, model.module, batch[:1], f"scan a model that is differentiable throughout{otherwise}"
        )
    _check_labels(spec, table, classes)
    examined = Examined({}) if examine is None else examine(model, batch)
    return Prepared(
        listing=table,
        facts={
            "model": {**model_facts(model, classes, batch), **examined.facts},
            "data": {
                "reference": spec.data,
                "n_samples": table.num_rows,
                "splits": split_sizes(table),
                "classes": None if listing.classes is None else list(listing.classes),
            },
            "preprocessing": None if preprocessing is None else preprocessing.as_dict(),
            "fingerprints": _fingerprints(model, listing),
        },
        notes=(*listing.notes, *examined.notes),
        unit_size=spec.unit_size or _unit_size(table.num_rows, passes_per_sample(classes)),
    )


def current_fingerprints(spec: SampledSpec) -> dict[str, str]:
    """Fingerprints of the model and the data that the spec names, as they are now."""
    return _fingerprints(load_model(spec.model), open_data(spec.data, spec.split).list())


def open_samples(
    spec: SampledSpec, prepared: Prepared, options: ComputeOptions
) -> tuple[LoadedModel, SampleLoader, str]:
    """Model on the device and a loader of the listed samples, in a worker's process.

    Raises:
        UsageError: the model is not the one the scan was started with.
    """
    model, device = opened_model(spec.model, prepared, options)
    return model, SampleLoader(sample_decoder(spec, prepared), options.loaders), device


def sample_decoder(spec: SampledSpec, prepared: Prepared) -> SampleDecoder:
    """Reads the images of the listing as the model wants them."""
    facts = prepared.facts["preprocessing"]
    return SampleDecoder(
        open_data(spec.data, spec.split).reader(prepared.listing),
        None if facts is None else Preprocessing.from_dict(facts),
        tuple(prepared.facts["model"]["input_shape"]),
    )


def _fingerprints(model: LoadedModel, listing: Listing) -> dict[str, str]:
    return {"model": model.fingerprint, "data": listing.fingerprint}


def _chosen(spec: SampledSpec, table: pa.Table) -> pa.Table:
    """The samples that the spec names, all where it names none."""
    if not spec.samples:
        return table
    ids = table["sample_id"].to_pylist()
    row = {sample_id: index for index, sample_id in enumerate(ids)}
    for sample_id in spec.samples:
        if sample_id not in row:
            raise UsageError(
                f"samples {sample_id!r}: data {spec.data!r} has no such sample; its ids are like {ids[0]!r} (table samples)"
            )
    return table.take(pa.array(sorted({row[sample_id] for sample_id in spec.samples}))).combine_chunks()


def limited(table: pa.Table, limit: int | None) -> pa.Table:
    """At most ``limit`` samples of every split, evenly spaced, since many data sets are sorted by class."""
    if limit is None:
        return table
    splits = table["split"].to_numpy(zero_copy_only=False)
    chosen = []
    for split in dict.fromkeys(splits.tolist()):
        rows = np.flatnonzero(splits == split)
        chosen.append(rows[evenly_spaced(len(rows), limit)])
    return table.take(pa.array(np.concatenate(chosen))).combine_chunks()


def evenly_spaced(total: int, limit: int) -> np.ndarray:
    """At most ``limit`` of the numbers 0 to ``total`` - 1, ascending."""
    count = min(limit, total)
    return np.arange(count) * total // max(1, count)


def split_sizes(table: pa.Table) -> dict[str, int]:
    """Samples of every split of a listing."""
    return {entry["values"]: entry["counts"] for entry in table["split"].value_counts().to_pylist()}


def _unit_size(samples: int, passes: int) -> int:
    """64 units or more, of 16 (worth a batch) to 256 samples and at most about 16,384 passes."""
    return max(_SMALLEST_UNIT, min(_LARGEST_UNIT, samples // _UNITS_WANTED, _PASSES_PER_UNIT // max(1, passes)))


def _check_labels(spec: SampledSpec, table: pa.Table, classes: int) -> None:
    labels = table["label"].to_numpy()
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UsageError(
            f"data {spec.data!r}: label {labels[wrong[0]]} of sample {table['sample_id'][int(wrong[0])].as_py()!r} is "
            f"out of range ({len(wrong)} such samples); the model {spec.model!r} has classes 0 to {classes - 1}"
        )


def _probe(
    spec: SampledSpec,
    model: LoadedModel,
    source: DataSource,
    table: pa.Table,
    preprocessing: Preprocessing | None,
) -> tuple[torch.Tensor, int]:
    """Run the first readable samples; returns their images and the number of classes."""
    decoder = SampleDecoder(source.reader(table), preprocessing, None)
    images, names = _first_images(spec, decoder, table)
    if len({image.shape for image in images}) > 1:
        raise UsageError(
            f"data {spec.data!r}: images differ in size ({' and '.join(str(list(image.shape)) for image in images[:2])}); "
            "add ?resize=256&crop=224 (as the model wants it) to the data reference"
        )
    batch = as_float(torch.stack(images), "cpu")
    classes = checked_classes(spec.model, model.module, batch, names, f"images of data {spec.data!r}")
    return batch, classes


def _first_images(spec: SampledSpec, decoder: SampleDecoder, table: pa.Table) -> tuple[list[torch.Tensor], list[str]]:
    images: list[torch.Tensor] = []
    names: list[str] = []
    first_error: SampleError | None = None
    for row in range(min(table.num_rows, 16 * _PROBED)):
        try:
            images.append(decoder.decode(row))
            names.append(table["sample_id"][row].as_py())
        except SampleError as error:
            first_error = first_error or error
        if len(images) == _PROBED:
            break
    if not images:
        raise UsageError(f"data {spec.data!r}: none of the first samples can be read ({first_error}); check the files")
    return images, names


def class_scores(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, float, float]]:
    """For `samples_table`: predicted class, p of the label and p of the predicted class.

    Args:
        logits: [n, K], on the host.
        labels: True classes [n].
    """
    probabilities = torch.softmax(logits.double(), dim=1)
    predicted = logits.argmax(1)
    chosen = probabilities.gather(1, torch.stack((labels, predicted), dim=1))
    return [(int(top), p_label, p_top) for top, (p_label, p_top) in zip(predicted, chosen.tolist(), strict=True)]


def samples_table(
    prepared: Prepared, start: int, stop: int, scores: dict[int, tuple[int, float, float]], errors: dict[int, str]
) -> pa.Table:
    """Rows of table ``samples`` for rows ``start`` to ``stop`` of the listing.

    Args:
        prepared: Holds the listing.
        start: First row.
        stop: Last row, exclusive.
        scores: Predicted class, p of the label and p of the predicted class, by row.
        errors: Messages of the samples that failed, by row.
    """
    from raysense.scans.tables import SAMPLES

    listed = prepared.listing.slice(start, stop - start)
    rows = range(start, stop)
    columns = [listed["sample_id"], listed["split"], listed["label"]]
    for index, kind in enumerate((pa.int32(), pa.float64(), pa.float64())):
        columns.append(pa.array([scores[row][index] if row in scores else None for row in rows], kind))
    columns.append(pa.array([errors.get(row) for row in rows], pa.string()))
    return pa.table(columns, schema=SAMPLES)
