"""Computing a unit of the influence scan: images in, Arrow tables out."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pyarrow as pa
import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.loading import as_float
from raysense.measures.cook import cook_of_input, cook_of_parameters
from raysense.measures.influence import (
    GRADIENT_BYTES,
    TargetInfluence,
    bound_influence,
    certified_influence,
    exact_influence,
)
from raysense.measures.perturbed import Perturbed
from raysense.measures.pixel_attack import one_pixel_attack
from raysense.measures.pixel_maps import PixelMaps, pixel_maps
from raysense.measures.targets import Target
from raysense.options import ComputeOptions
from raysense.scans._influence_rows import Cook, InfluenceRows, MapRows
from raysense.scans._influence_targets import image_influence, semantic_space, targets_of
from raysense.scans._sampled import open_samples, samples_table
from raysense.scans._streamed import in_streamed_batches
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.influence import InfluenceSpec

_MOST_HELD = 2**32


class InfluenceComputer(Computer):
    """The influence scan opened in one process."""

    def __init__(self, spec: InfluenceSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec = spec
        self._prepared = prepared
        self._model, self._loader, self.device = open_samples(spec, prepared, options)
        self._perturbed = Perturbed(self._model.module, targets_of(spec, self._model))
        self._space = semantic_space(spec)
        self._targets = [*self._perturbed.targets, *([Target("semantic")] if self._space is not None else [])]
        self._labels = prepared.listing["label"].to_numpy()
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))
        self._gradient_bytes = gradient_memory(self.device, options.threads)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        measured = InfluenceRows(self._spec, self._targets, self._prepared)
        maps = MapRows(self._spec, self._prepared)
        in_streamed_batches(
            self._loader,
            unit,
            upcoming,
            self._sizer,
            measured.errors,
            lambda rows, images: self._measure(rows, images, measured, maps),
        )
        return {
            "samples": samples_table(self._prepared, unit.start, unit.stop, measured.scores, measured.errors),
            "influence": measured.table(),
            **maps.tables(measured.errors),
        }

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()

    def _measure(self, rows: list[int], images: np.ndarray, measured: InfluenceRows, maps: MapRows) -> None:
        """Measure a batch."""
        batch = as_float(images, self.device)
        labels = torch.as_tensor(self._labels[rows].astype(np.int64))
        classes = labels.to(self.device) if self._spec.objective == "label" else None
        part = self._influence(batch, classes)
        chosen = part.logits.argmax(1) if classes is None else classes
        cook = self._cook(batch, chosen) if self._spec.cook else None
        pixels = self._maps(batch, chosen) if "pixels" in self._spec.target else None
        finite = None if pixels is None else ~pixels.bound.isnan()
        measured.add(rows, labels, part, cook, finite)
        if pixels is not None:
            attack = None
            if self._spec.attack:
                peaks = pixels.maps[1, None].flatten(1).nan_to_num(-1.0).argmax(1)
                places = torch.stack((peaks // batch.shape[3], peaks % batch.shape[3]), dim=1)
                attack = (places, one_pixel_attack(self._model.module, batch, places))
            maps.add(rows, pixels, attack)

    def _influence(self, images: Tensor, classes: Tensor | None) -> TargetInfluence:
        part = self._of_targets(images, classes)
        if self._space is None:
            return part
        if self._spec.method == "bound":
            return part.with_bound()
        return part.with_directions(image_influence(self._model, self._space, images, classes, self._spec.rank_rule))

    def _of_targets(self, images: Tensor, classes: Tensor | None) -> TargetInfluence:
        spec = self._spec
        if spec.method == "bound" or not self._perturbed.targets:
            return bound_influence(self._perturbed, images, classes)
        if spec.method == "certified":
            return certified_influence(self._perturbed, images, classes, spec.tolerance, self._gradient_bytes)
        return exact_influence(self._perturbed, images, classes, spec.rank_rule, self._gradient_bytes)

    def _maps(self, images: Tensor, classes: Tensor) -> PixelMaps:
        spec = self._spec
        return pixel_maps(
            self._model.module,
            images,
            classes,
            scales=spec.scales,
            channels=spec.channels,
            rank_rule=spec.rank_rule,
            memory_bytes=self._gradient_bytes,
        )

    def _cook(self, images: Tensor, classes: Tensor) -> Cook:
        """Cook's local influence of every sample and target."""
        shape = (len(images), len(self._targets))
        value, error = (torch.full(shape, torch.nan, dtype=torch.float64) for _ in range(2))
        module, seed = self._model.module, self._spec.seed
        for index, target in enumerate(self._perturbed.targets):
            if not target.parameters:
                part = cook_of_input(module, images, classes, seed=seed)
                value[:, index], error[:, index] = part.value.cpu(), part.error.cpu()
                continue
            names = sorted(target.parameters)
            for row in range(len(images)):
                part = cook_of_parameters(
                    module, names, images[row], int(classes[row]), with_input=target.input is not None, seed=seed
                )
                value[row, index], error[row, index] = part.value.item(), part.error.item()
        return Cook(value, error)


def gradient_memory(device: str, threads: int | None = None) -> int:
    """Bytes of logit gradients to hold at once.

    A quarter of the GPU's memory; or, of a CPU worker's share of the host's, an eighth, of half a GiB to 4 GiB.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // 4)
    cores = os.cpu_count() or 1
    share = psutil.virtual_memory().total * min(threads or cores, cores) // cores
    return max(GRADIENT_BYTES, min(_MOST_HELD, int(share) // 8))
