"""Computing a unit of the influence scan: images in, Arrow tables out."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pyarrow as pa
import torch

from raysense.batching import BatchSizer, in_batches, memory_gauge
from raysense.loading import Samples, as_float
from raysense.measures.input_influence import (
    GRADIENT_BYTES,
    InputInfluence,
    bound_influence,
    certified_influence,
    exact_influence,
)
from raysense.options import ComputeOptions
from raysense.scans._sampled import open_samples, samples_table
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.influence import InfluenceScan, InfluenceSpec


class InfluenceComputer(Computer):
    """The influence scan opened in one process."""

    def __init__(self, spec: InfluenceSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec = spec
        self._prepared = prepared
        self._schema = InfluenceScan.schemas()["influence"]
        model, self._loader, self.device = open_samples(spec, prepared, options)
        self._model = model.module
        self._labels = prepared.listing["label"].to_numpy()
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))
        self._gradient_bytes = gradient_memory(self.device)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """Tables samples and influence of one unit."""
        following = None if upcoming is None else (upcoming.start, upcoming.stop)
        pending: list[Samples] = []
        waiting = 0
        measured = _Rows(self._schema)
        for chunk in self._loader.stream(unit.start, unit.stop, following):
            measured.errors.update(chunk.errors)
            pending.append(chunk)
            waiting += len(chunk.rows)
            # Whole batches only, so that decoded images never pile up beyond a batch and a chunk.
            if waiting >= self._sizer.size:
                rest = self._measure(pending, measured, waiting - waiting % self._sizer.size)
                pending, waiting = [rest], len(rest.rows)
        self._measure(pending, measured, waiting)
        return {
            "samples": samples_table(self._prepared, unit.start, unit.stop, measured.scores, measured.errors),
            "influence": measured.table(self._prepared, self._spec),
        }

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()

    def _measure(self, pending: list[Samples], measured: _Rows, count: int) -> Samples:
        """Measure the first ``count`` pending samples; returns the others."""
        full = [chunk for chunk in pending if chunk.rows]
        if not full:
            return Samples([], np.zeros((0,), np.uint8), {})
        images = np.concatenate([chunk.images for chunk in full])
        rows = [row for chunk in full for row in chunk.rows]

        def work(start: int, stop: int) -> None:
            batch = as_float(images[start:stop], self.device)
            labels = torch.as_tensor(self._labels[rows[start:stop]].astype(np.int64))
            classes = labels.to(self.device) if self._spec.objective == "label" else None
            measured.add(rows[start:stop], labels, self._influence(batch, classes))

        in_batches(count, self._sizer, work)
        return Samples(rows[count:], images[count:], {})

    def _influence(self, images: torch.Tensor, classes: torch.Tensor | None) -> InputInfluence:
        spec = self._spec
        if spec.method == "bound":
            return bound_influence(self._model, images, classes)
        if spec.method == "certified":
            return certified_influence(self._model, images, classes, spec.tolerance, self._gradient_bytes)
        return exact_influence(self._model, images, classes, spec.rank_rule, self._gradient_bytes)


class _Rows:
    """Collects the measured rows of a unit on the host; logits are dropped batch by batch."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[int] = []
        self._columns: dict[str, list[np.ndarray]] = {}
        self.scores: dict[int, tuple[int, float, float]] = {}
        self.errors: dict[int, str] = {}

    def add(self, rows: list[int], labels: torch.Tensor, part: InputInfluence) -> None:
        """Add a batch; samples without finite logits or gradients go to the errors."""
        logits = part.logits.cpu()
        probabilities = torch.softmax(logits, dim=1)
        predicted = logits.argmax(1)
        p_label = probabilities.gather(1, labels[:, None]).squeeze(1).tolist()
        p_predicted = probabilities.gather(1, predicted[:, None]).squeeze(1).tolist()
        finite_logits = torch.isfinite(logits).all(1)
        good = finite_logits & ~part.upper.isnan().cpu()
        for position, row in enumerate(rows):
            if good[position]:
                self.scores[row] = (int(predicted[position]), p_label[position], p_predicted[position])
                self._rows.append(row)
            else:
                kind = "gradients of the logits" if finite_logits[position] else "logits"
                self.errors[row] = f"{kind} are not finite"
        for field in fields(part):
            if field.name != "logits":
                self._columns.setdefault(field.name, []).append(getattr(part, field.name).cpu()[good].numpy())

    def table(self, prepared: Prepared, spec: InfluenceSpec) -> pa.Table:
        """The rows of table ``influence``."""
        count = len(self._rows)
        if not count:
            return self._schema.empty_table()
        column = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        arrays = {
            "sample_id": prepared.listing["sample_id"].take(pa.array(self._rows)),
            "target": pa.array([spec.target] * count, pa.string()),
            "layer": pa.nulls(count, pa.string()),
            "objective": pa.array([spec.objective] * count, pa.string()),
            "method": pa.array([spec.method] * count, pa.string()),
            "fi": _known(column["fi"], ~np.isnan(column["fi"])),
            "fi_lower": pa.array(column["lower"], pa.float64()),
            "fi_upper": pa.array(column["upper"], pa.float64()),
            "rank": _known(column["rank"], column["rank"] >= 0).cast(pa.int32()),
            "n_backward": pa.array(column["n_backward"].astype(np.int32), pa.int32()),
            "jacobian_norm": _known(column["jacobian_norm"], ~np.isnan(column["jacobian_norm"])),
            "cook": pa.nulls(count, pa.float64()),
        }
        return pa.table([arrays[field.name] for field in self._schema], schema=self._schema)


def gradient_memory(device: str) -> int:
    """Bytes of logit gradients to hold at once: a quarter of the GPU's memory, or half a GiB per CPU worker."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // 4)
    return GRADIENT_BYTES


def _known(values: np.ndarray, known: np.ndarray) -> pa.Array:
    return pa.array(values, mask=~known)
