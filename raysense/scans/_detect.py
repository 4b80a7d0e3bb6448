"""Computing a unit of the detection scan: images, perturbed and noisy versions of them, and Algorithm 2 on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.measures.boundary.deepfool import FOUND, nearest_boundary
from raysense.measures.boundary.detection import detect
from raysense.measures.boundary.margins import UnitVectors
from raysense.options import ComputeOptions
from raysense.scans._draws import runs_of_sizer
from raysense.scans._measured import Batch, MeasuringComputer, Rows
from raysense.scans._sampled import prepare_samples
from raysense.scans._second_order import examined_derivatives, second_order_of
from raysense.scans._seeds import seed_of
from raysense.scans.base import Prepared
from raysense.scans.detect import DetectScan, DetectSpec


class _Versions(NamedTuple):
    """Images as they are and perturbed, M of them in all.

    Attributes:
        images: [M, C, H, W].
        places: M, the image of the batch that each is a version of.
        attacks: M, none, deepfool or noise.
        scales: M, what r(x) was multiplied by; 0 for none.
    """

    images: Tensor
    places: list[int]
    attacks: list[str]
    scales: list[float]


def prepare_detect(spec: DetectSpec) -> Prepared:
    """List the samples, open the model, and find out which derivatives it has.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    return prepare_samples(
        spec,
        lambda classes: _passes(spec, classes),
        gradients=True,
        examine=lambda model, images: examined_derivatives(spec, model, images),
    )


def _passes(spec: DetectSpec, classes: int) -> int:
    """Rough number of passes per sample, which sizes the units."""
    versions = 1 + len(spec.scales) * (2 if spec.noise else 1)
    others = min(spec.top, classes - 1) if spec.top else classes - 1
    return versions * (2 * spec.directions + 3 * others)


class DetectComputer(MeasuringComputer):
    """The detection scan opened in one process."""

    def __init__(self, spec: DetectSpec, prepared: Prepared, options: ComputeOptions) -> None:
        super().__init__(spec, prepared, options, DetectScan(spec).tables())
        self._spec = spec
        self._second = second_order_of(prepared)
        # A batch of samples has many times as many versions and directions, which go in runs of their own size.
        self._run_sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))

    def measured(self, batch: Batch) -> Rows:
        """Rows of table detections."""
        spec = self._spec
        ids, images, originals = batch.ids, batch.images, batch.logits.argmax(1).tolist()
        versions = self._versions(ids, images)
        named = list(zip(versions.places, versions.attacks, versions.scales, strict=True))
        found = detect(
            self._module,
            versions.images,
            [seed_of(spec.seed, "detect", ids[place], attack, scale) for place, attack, scale in named],
            directions=spec.directions,
            top=spec.top,
            derivatives=self._second.derivatives,
            step=self._second.step,
            runs=runs_of_sizer(self._run_sizer),
        )
        logits = found.logits.double()
        moved = (versions.images - images[versions.places]).flatten(1)
        columns = {
            "distance": torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64),
            "predicted": found.predicted,
            "rho": found.rho,
            "rho_stderr": found.stderr,
            "recovered_label": found.recovered,
            "n_classes": found.n_classes,
            "max_softmax": logits.softmax(1).amax(1),
            "energy": -logits.logsumexp(1),
        }
        values = {name: column.tolist() for name, column in columns.items()}
        made = []
        for index, (place, attack, scale) in enumerate(named):
            row = {name: column[index] for name, column in values.items()}
            made.append(
                row
                | {
                    "sample_id": ids[place],
                    "perturbed": attack == "deepfool" and row["predicted"] != originals[place],
                    "attack": attack,
                    "scale": scale,
                    "original": originals[place],
                    "recovered_label": None if row["recovered_label"] < 0 else row["recovered_label"],
                    "n_directions": spec.directions,
                    "method": self._second.derivatives,
                    "step": self._second.step,
                }
            )
        return {"detections": made}

    def _versions(self, ids: Sequence[str], images: Tensor) -> _Versions:
        """Every image as it is and, where its boundary was found, beyond it and with noise of the same norms."""
        spec = self._spec
        box = spec.bounds
        nearest = nearest_boundary(
            self._module, images, candidates=spec.candidates, max_iterations=spec.max_iterations, box=box
        )
        made, places, attacks, scales = [images], list(range(len(images))), ["none"] * len(images), [0.0] * len(images)
        found = (nearest.status == FOUND).nonzero().squeeze(1)
        chosen, start = found.tolist(), images[found]
        across = nearest.points[found] - start
        for scale in spec.scales if chosen else ():
            perturbations = {"deepfool": scale * across}
            if spec.noise:
                seeds = [seed_of(spec.seed, "noise", ids[place], scale) for place in chosen]
                norms = (scale * nearest.distance[found]).to(images).view(-1, *[1] * (images.ndim - 1))
                perturbations["noise"] = norms * UnitVectors(seeds, start).draw().view_as(start)
            for attack, perturbation in perturbations.items():
                version = start + perturbation
                made.append(version if box is None else version.clamp(*box))
                places += chosen
                attacks += [attack] * len(chosen)
                scales += [scale] * len(chosen)
        return _Versions(torch.cat(made), places, attacks, scales)
