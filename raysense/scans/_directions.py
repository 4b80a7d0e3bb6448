"""Computing a unit of the scan of shared directions: unseen images in, Arrow tables out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysense.errors import RaysenseError, SampleError
from raysense.loading import as_float
from raysense.measures.boundary.deepfool import FOUND, nearest_boundary
from raysense.measures.boundary.margins import UnitVectors, margin_gradient
from raysense.measures.boundary.shape_operator import ShapeOperator
from raysense.measures.boundary.shared import noise_in, projected_share, relative_curvature, shared_directions
from raysense.measures.gradients import forward
from raysense.options import ComputeOptions
from raysense.scans._directions_base import CurvedDirections, content_hash
from raysense.scans._measured import Batch, Entries, MeasuringComputer, Rows
from raysense.scans._sampled import sample_decoder
from raysense.scans._second_order import second_order_of
from raysense.scans._seeds import seed_of
from raysense.scans.base import Prepared
from raysense.scans.directions import DirectionsScan, DirectionsSpec

_TRIED = 20


class DirectionsComputer(MeasuringComputer):
    """The scan of shared directions opened in one process."""

    def __init__(self, spec: DirectionsSpec, prepared: Prepared, options: ComputeOptions) -> None:
        super().__init__(spec, prepared, options, DirectionsScan(spec).tables())
        self._spec = spec
        self._decoder = sample_decoder(spec, prepared)
        self._second = second_order_of(prepared)
        facts = prepared.facts["directions"]
        base = CurvedDirections(spec.of)
        directions = base.directions(facts["units"])
        if content_hash(directions) != facts["content"]:
            raise RaysenseError(f"of {spec.of!r} is not the scan it was when this one was started; restore it")
        self._basis = shared_directions(torch.tensor(directions, device=self.device), facts["shared"]).basis
        self._image_norm = float(facts["image_norm"])

    def measured(self, batch: Batch) -> Rows:
        """Rows of all tables but samples and units."""
        noise = list(self._noise(batch.images, batch.logits.argmax(1), batch.ids))
        return batch.named({"direction_noise": noise, **self._at_boundary(batch.images, batch.rows, batch.ids)})

    def _at_boundary(self, images: Tensor, rows: Sequence[int], ids: Sequence[str]) -> dict[str, Entries]:
        """Curvature along the shared directions at the nearest boundary, and perturbations projected on their span."""
        spec = self._spec
        nearest = nearest_boundary(
            self._module,
            images,
            candidates=spec.candidates,
            max_iterations=spec.max_iterations,
            box=spec.bounds,
        )
        at = (nearest.status == FOUND).nonzero().squeeze(1)
        places = at.tolist()
        if not places:
            return {"direction_curvatures": [], "direction_norms": []}
        pair = nearest.from_class[at], nearest.to_class[at]
        operator = ShapeOperator(self._module, nearest.points[at], *pair, *self._second)
        seeds = [seed_of(spec.seed, "random", ids[place]) for place in places]
        relative = relative_curvature(operator, self._basis, seeds, spec.directions, pass_size=2 * self._sizer.size)
        how = {"method": self._second.derivatives, "step": self._second.step}
        curvatures: Entries = []
        columns = (relative.rho.tolist(), relative.curvature.tolist(), relative.random_magnitude.tolist())
        for place, rho, curvature, magnitude in zip(places, *columns, strict=True):
            curvatures += [
                (place, {"direction": number, "rho": one, "curvature": other, "random_magnitude": magnitude, **how})
                for number, (one, other) in enumerate(zip(rho, curvature, strict=True), start=1)
                if np.isfinite(one)
            ]
        chosen = images[at]
        kinds = {
            "random": UnitVectors([seed_of(spec.seed, "norm", ids[place]) for place in places], chosen).draw(),
            "adversarial": (nearest.points[at] - chosen).flatten(1),
            "difference": (self._others([rows[place] for place in places], ids, places) - chosen).flatten(1),
            "image gradient": spatial_gradient(chosen).flatten(1),
            "logit gradient": margin_gradient(self._module, chosen, *pair)[1],
        }
        norms = [
            (place, {"perturbation": kind, "share": share})
            for kind, vectors in kinds.items()
            for place, share in zip(places, projected_share(vectors, self._basis).tolist(), strict=True)
            if np.isfinite(share)
        ]
        return {"direction_curvatures": curvatures, "direction_norms": norms}

    def _others(self, rows: Sequence[int], ids: Sequence[str], places: Sequence[int]) -> Tensor:
        """For every sample the image of another one of the listing, at random; NaN where none can be read."""
        total = self._prepared.listing.num_rows
        images = []
        for row, place in zip(rows, places, strict=True):
            generator = np.random.default_rng(seed_of(self._spec.seed, "other", ids[place]))
            images.append(self._readable(row, generator.permutation(total)[:_TRIED].tolist()))
        return torch.stack(images).to(self.device)

    def _readable(self, row: int, candidates: Sequence[int]) -> Tensor:
        for other in candidates:
            if other != row:
                try:
                    return as_float(self._decoder.decode(other), "cpu")
                except SampleError:
                    continue  # it has a row of its own in table samples, which says why
        return torch.full(tuple(self._prepared.facts["model"]["input_shape"]), torch.nan)

    def _noise(self, images: Tensor, predicted: Tensor, ids: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """How often noise in S and in its complement changes the predicted class."""
        spec = self._spec
        for space in ("S", "complement"):
            changed = torch.zeros((len(spec.noise), len(images)), dtype=torch.int64, device=images.device)
            norms = torch.full((len(images),), self._image_norm, dtype=torch.float64, device=images.device)
            for draw in range(spec.draws):
                seeds = [seed_of(spec.seed, space, draw, sample_id) for sample_id in ids]
                noise = noise_in(self._basis, space != "S", norms, seeds).view_as(images)
                for place, magnitude in enumerate(spec.noise):
                    noisy = images + magnitude * noise
                    changed[place] += forward(self._module, noisy).argmax(1) != predicted
            for magnitude, counts in zip(spec.noise, changed.tolist(), strict=True):
                for place, count in enumerate(counts):
                    yield place, {"space": space, "magnitude": magnitude, "draws": spec.draws, "changed": count}


def spatial_gradient(images: Tensor) -> Tensor:
    """Magnitude of the spatial gradient of images [N, C, H, W], by forward differences: zero at the far edges."""
    down, right = torch.zeros_like(images), torch.zeros_like(images)
    down[:, :, :-1] = images.diff(dim=2)
    right[..., :-1] = images.diff(dim=3)
    return torch.hypot(down, right)
