"""What scans do that measure the samples of a unit batch by batch and gather rows of several tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.loading import as_float
from raysense.measures.gradients import forward
from raysense.options import ComputeOptions
from raysense.scans._records import Records
from raysense.scans._sampled import class_scores, open_samples, samples_table
from raysense.scans._streamed import in_streamed_batches
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.sampled import SampledSpec

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of tables, by the table's name."""

Entries = list[tuple[int, dict[str, Any]]]
"""Rows of a table without their sample, each with the sample's position in the batch."""


@dataclass(frozen=True)
class Batch:
    """Samples whose logits are finite, n of them.

    Attributes:
        rows: Their rows in the listing.
        ids: Their ids.
        images: [n, C, H, W] float32 in [0, 1], on the device.
        logits: [n, K], on the device.
        labels: [n] int64, true classes, on the device.
    """

    rows: Sequence[int]
    ids: Sequence[str]
    images: Tensor
    logits: Tensor
    labels: Tensor

    def named(self, tables: Mapping[str, Entries]) -> Rows:
        """The rows of tables with the ids of their samples."""
        return {
            table: [{"sample_id": self.ids[place], **entry} for place, entry in entries]
            for table, entries in tables.items()
        }


class MeasuringComputer(Computer):
    """A scan of samples opened in one process.

    Args:
        spec: Names the model and the samples.
        prepared: Holds the listing.
        options: How this process computes.
        schemas: The tables that the scan writes.
    """

    def __init__(
        self, spec: SampledSpec, prepared: Prepared, options: ComputeOptions, schemas: Mapping[str, pa.Schema]
    ) -> None:
        loaded, self._loader, self.device = open_samples(spec, prepared, options)
        self._prepared, self._module = prepared, loaded.module
        self._schemas = {name: schema for name, schema in schemas.items() if name not in ("samples", "units")}
        self._ids, self._labels = prepared.listing["sample_id"], prepared.listing["label"].to_numpy()
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        errors: dict[int, str] = {}
        scores: dict[int, tuple[int, float, float]] = {}
        records = Records(self._schemas)

        def work(rows: list[int], images: np.ndarray) -> None:
            batch, wrong = self._batch(rows, as_float(images, self.device))
            found = self.measured(batch) if batch.rows else {}
            # Nothing is kept before this, so that a batch that exhausts memory can be done again in halves.
            errors.update(dict.fromkeys(wrong, "logits are not finite"))
            scores.update(zip(batch.rows, class_scores(batch.logits.cpu(), batch.labels.cpu()), strict=True))
            for table, entries in found.items():
                records.add(table, entries)

        in_streamed_batches(self._loader, unit, upcoming, self._sizer, errors, work)
        samples = samples_table(self._prepared, unit.start, unit.stop, scores, errors)
        return {"samples": samples, **records.tables()}

    @abstractmethod
    def measured(self, batch: Batch) -> Rows:
        """Rows of the scan's own tables for at least one sample; those of tables that it does not write are dropped."""

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()

    def _batch(self, rows: Sequence[int], images: Tensor) -> tuple[Batch, list[int]]:
        """The samples whose logits are finite, and the rows of the others."""
        logits = forward(self._module, images)
        finite = logits.isfinite().all(1)
        good = finite.nonzero().squeeze(1)
        kept = [rows[place] for place in good.tolist()]
        ids = self._ids.take(pa.array(kept, pa.int64())).to_pylist()
        labels = torch.as_tensor(self._labels[kept].astype(np.int64), device=images.device)
        wrong = [rows[place] for place in (~finite).nonzero().squeeze(1).tolist()]
        return Batch(kept, ids, images[good], logits[good], labels), wrong
