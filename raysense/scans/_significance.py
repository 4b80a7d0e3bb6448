"""Computing a unit of the significance scan: images of one class in, Arrow tables out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch

from raysense.batching import out_of_memory
from raysense.errors import RaysenseError
from raysense.loading import Samples, as_float
from raysense.measures.layer_inputs import Activations, LayerInputs
from raysense.measures.significance import WORKING_BYTES, PathCounter
from raysense.options import ComputeOptions
from raysense.scans._sampled import class_scores, open_samples, samples_table
from raysense.scans._significance_prepare import layers_of_scan, spaced_by_class
from raysense.scans._significance_rows import ClassSums, significance_table
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.significance import SignificanceSpec

_GPU_SHARE = 16


class SignificanceComputer(Computer):
    """The significance scan opened in one process."""

    def __init__(self, spec: SignificanceSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec, self._prepared = spec, prepared
        model, self._loader, self.device = open_samples(spec, prepared, options)
        if self.device == "cpu":
            # The last digits of activations, and with them decisions at a threshold, depend on the number of threads.
            torch.set_num_threads(1)
        self._layers = layers_of_scan(prepared.facts)
        self._inputs = LayerInputs(model.module, self._layers)
        self._bytes = working_memory(self.device)
        self._counters = [
            PathCounter(layer.weight(model.module), spec.threshold, spec.positions, self._bytes)
            for layer in self._layers
        ]
        self._labels = prepared.listing["label"].to_numpy()
        rows = spaced_by_class(prepared.listing, spec.activations) if spec.activations else np.zeros(0, np.int64)
        self._kept = frozenset(rows.tolist())
        self._most = None if options.batch_size == "auto" else options.batch_size

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples whose paths are counted at once, at the most; a pass has ``pass_size``."""
        return min(self._spec.pass_size, self._most or self._spec.pass_size)

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        errors: dict[int, str] = {}
        scores: dict[int, tuple[int, float, float]] = {}
        sums = ClassSums(self._layers, self._kept) if self._spec.activations else None
        for counter in self._counters:
            counter.reset()
        for samples in self._passes(unit, upcoming, errors):
            with self._memory_explained(len(samples.rows)):
                done = 0
                for part in self._inputs.run(as_float(samples.images, self.device)):
                    rows = samples.rows[done : done + part.samples]
                    done += part.samples
                    self._count(part, rows, scores, errors, sums)
        listing, label = self._prepared.listing, int(self._labels[unit.start])
        split = listing["split"][unit.start].as_py()
        counts = [counter.counts() for counter in self._counters]
        return {
            "samples": samples_table(self._prepared, unit.start, unit.stop, scores, errors),
            "significance": significance_table(self._layers, counts, label, split),
            **({} if sums is None else sums.tables(listing, label, split)),
        }

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()

    def _passes(self, unit: Unit, upcoming: Unit | None, errors: dict[int, str]) -> Iterator[Samples]:
        """The readable samples in runs of ``pass_size``, whatever the batch size."""
        following = None if upcoming is None else (upcoming.start, upcoming.stop)
        size = self._spec.pass_size
        rows: list[int] = []
        images: list[np.ndarray] = []
        for chunk in self._loader.stream(unit.start, unit.stop, following):
            errors.update(chunk.errors)
            rows += chunk.rows
            images += list(chunk.images)[: len(chunk.rows)]
            while len(rows) >= size:
                yield Samples(rows[:size], np.stack(images[:size]), {})
                rows, images = rows[size:], images[size:]
        if rows:
            yield Samples(rows, np.stack(images), {})

    @contextmanager
    def _memory_explained(self, images: int) -> Iterator[None]:
        """Counts are of fixed passes, so that a pass is not cut where it does not fit."""
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise RaysenseError(
                f"a pass of {images} images does not fit into memory; start the scan anew with a smaller --pass-size than "
                f"{self._spec.pass_size}"
            ) from error

    def _count(
        self,
        part: Activations,
        rows: list[int],
        scores: dict[int, tuple[int, float, float]],
        errors: dict[int, str],
        sums: ClassSums | None,
    ) -> None:
        """Count the samples of a pass, those that are finite throughout."""
        logits = part.logits.cpu()
        names = ["logits", *(f"inputs of layer {layer.name}" for layer in self._layers)]
        finite = torch.stack(
            [logits.isfinite().all(1), *(part.finite(index).cpu() for index in range(len(self._layers)))]
        )
        for position in (~finite.all(0)).nonzero()[:, 0].tolist():
            errors[rows[position]] = f"{names[int((~finite[:, position]).nonzero()[0])]} are missing or not finite"
        good = finite.all(0).nonzero()[:, 0]
        if not len(good):
            return
        known = class_scores(logits[good], torch.as_tensor(self._labels[rows], dtype=torch.int64)[good])
        scores.update({rows[position]: score for position, score in zip(good.tolist(), known, strict=True)})
        for index, counter in enumerate(self._counters):
            for chosen in good.split(self._at_once(index)):
                columns = part.columns(index, chosen)
                counter.add(columns, part.exact_products(index))
                if sums is not None:
                    seen = columns[..., :1] if self._spec.positions == "first" else columns
                    for position, own in zip(chosen.tolist(), seen, strict=True):
                        sums.add_activations(index, rows[position], own)
        if sums is not None:
            sums.add_outputs(logits[good])

    def _at_once(self, index: int) -> int:
        """Samples of a layer to count at once, so that their patches and sums fit into the working memory."""
        layer = self._layers[index]
        bytes_each = 8 * layer.positions * (3 * layer.groups * layer.inputs + 5 * layer.rows)
        return max(1, min(self.batch_size, self._bytes // bytes_each))


def working_memory(device: str) -> int:
    """Bytes to work with at a time: a sixteenth of a GPU's memory; on a CPU what its caches can still help with."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // _GPU_SHARE)
    return WORKING_BYTES
