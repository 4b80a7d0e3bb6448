"""Computing a unit of the boundary scan: images in, Arrow tables out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysense.measures.boundary.curvature import (
    curvature_at_steps,
    extreme_curvatures,
    mean_curvature,
    spectrum,
)
from raysense.measures.boundary.deepfool import FOUND, NAMES, NearestBoundary, nearest_boundary
from raysense.measures.boundary.shape_operator import ShapeOperator
from raysense.options import ComputeOptions
from raysense.scans._measured import Batch, Entries, MeasuringComputer, Rows
from raysense.scans._second_order import SecondOrder, second_order_of
from raysense.scans._seeds import seed_of
from raysense.scans.base import Prepared
from raysense.scans.boundary import BoundaryScan, BoundarySpec

_NOT_COMPUTED = {
    "mean_curvature": None,
    "curvature_stderr": None,
    "largest_curvature": None,
    "smallest_curvature": None,
    "method": None,
    "step": None,
    "hessian_asymmetry": None,
}
_MOST_BASES, _BASES_VALUES = 8, 1024
"""Random bases that a spectrum by differences is averaged over, for small images: up to 8, of about 1024 products."""

_RITZ_TOLERANCE = 1e-2
_RITZ_ITERATIONS = {"exact": 80, "differences": 40}
"""Differences of a network with kinks do not converge: what more products add is noise."""


class _Curves(NamedTuple):
    """Principal curvatures of one sample, and where they are among all n = P - 1.

    Attributes:
        n: How many there are.
        ranks: [m], 1 is the largest.
        curvatures: [m] float64, descending.
        residuals: [m] float64.
        directions: [k, P], those that are kept, the most curved one first.
        means: More columns of table ``boundary``, where the spectrum is whole.
    """

    n: int
    ranks: Sequence[int]
    curvatures: Tensor
    residuals: Tensor
    directions: Tensor
    means: dict[str, float]


class BoundaryComputer(MeasuringComputer):
    """The boundary scan opened in one process."""

    def __init__(self, spec: BoundarySpec, prepared: Prepared, options: ComputeOptions) -> None:
        super().__init__(spec, prepared, options, BoundaryScan(spec).tables())
        self._spec = spec
        self._second = second_order_of(prepared) if spec.curvature or spec.step_study else SecondOrder("exact", None)

    def measured(self, batch: Batch) -> Rows:
        """Rows of all tables but samples and units."""
        spec = self._spec
        nearest = nearest_boundary(
            self._module,
            batch.images,
            batch.logits.argmax(1) if spec.region == "predicted" else batch.labels,
            norm=spec.norm,
            candidates=spec.candidates,
            max_iterations=spec.max_iterations,
            box=spec.bounds,
            tolerance=spec.tolerance,
            polish=spec.polish,
        )
        curved = self._curved(nearest, batch.ids)
        boundary = self._boundary_rows(batch, nearest)
        for place, entry in curved.boundary.items():
            boundary[place].update(entry)
        return {"boundary": boundary, **batch.named(curved.others)}

    def _boundary_rows(self, batch: Batch, nearest: NearestBoundary) -> list[dict[str, Any]]:
        order = 2 if self._spec.norm == "l2" else torch.inf
        norms = torch.linalg.vector_norm(batch.images.flatten(1).double(), ord=order, dim=1).tolist()
        columns = {
            name: getattr(nearest, name).tolist()
            for name in ("from_class", "to_class", "distance", "iterations", "residual", "alignment", "slack")
        }
        columns["gradient_norm"] = nearest.gradient_norm.tolist()
        columns["status"] = [NAMES[status] for status in nearest.status.tolist()]
        made = []
        for place, (sample_id, norm) in enumerate(zip(batch.ids, norms, strict=True)):
            row = {name: values[place] for name, values in columns.items()}
            row["to_class"] = None if row["to_class"] < 0 else row["to_class"]
            # All classes were looked at: no other can be nearer.
            row["slack"] = None if row["slack"] == float("inf") else row["slack"]
            made.append({"sample_id": sample_id, "norm": self._spec.norm, "image_norm": norm, **row, **_NOT_COMPUTED})
        return made

    def _curved(self, nearest: NearestBoundary, ids: Sequence[str]) -> _Curved:
        """What is asked for of the curvature, at the points that were found."""
        spec, result = self._spec, _Curved({}, {})
        places = (nearest.status == FOUND).nonzero().squeeze(1)
        if spec.keep_points:
            points = nearest.points[places].flatten(1).cpu().numpy()
            result.others["boundary_points"] = [
                (place, {"point": point}) for place, point in zip(places.tolist(), points, strict=True)
            ]
        if not len(places) or not (spec.curvature or spec.step_study):
            return result
        at = nearest.points[places], nearest.from_class[places], nearest.to_class[places]
        chosen = places.tolist()
        seeds = [seed_of(spec.seed, "curvature", ids[place]) for place in chosen]
        for place in chosen:
            result.boundary[place] = {"method": self._second.derivatives, "step": self._second.step}
        self._add_means(result, chosen, at, seeds)
        for place, curves in zip(chosen, self._principal(at, seeds), strict=True):
            self._add_principal(result, place, curves)
        return result

    def _add_means(
        self, result: _Curved, chosen: Sequence[int], at: tuple[Tensor, Tensor, Tensor], seeds: Sequence[int]
    ) -> None:
        spec = self._spec
        if "mean" in spec.curvature and "spectrum" not in spec.curvature:
            mean = mean_curvature(ShapeOperator(self._module, *at, *self._second), seeds, spec.directions)
            for place, value, stderr in zip(chosen, mean.mean.tolist(), mean.stderr.tolist(), strict=True):
                result.boundary[place] |= {"mean_curvature": value, "curvature_stderr": stderr}
        if spec.step_study:
            study = curvature_at_steps(self._module, *at, spec.step_study, seeds, spec.directions)
            rows = []
            for step, found in zip(spec.step_study, study, strict=True):
                columns = (found.mean.tolist(), found.stderr.tolist(), found.magnitude.tolist())
                for place, value, stderr, magnitude in zip(chosen, *columns, strict=True):
                    entry = {"step": step, "mean_curvature": value, "curvature_stderr": stderr}
                    rows.append((place, {**entry, "mean_magnitude": magnitude}))
            result.others["curvature_steps"] = rows

    def _principal(self, at: tuple[Tensor, Tensor, Tensor], seeds: Sequence[int]) -> list[_Curves | None]:
        """Principal curvatures of every point, as far as they are asked for."""
        spec, points = self._spec, at[0]
        size = points[0].numel()
        if "spectrum" in spec.curvature:
            return [self._spectrum(*one, seed) for one, seed in zip(zip(*at, strict=True), seeds, strict=True)]
        if "extremes" not in spec.curvature:
            return [None] * len(points)
        operator = ShapeOperator(self._module, *at, *self._second)
        iterations = max(_RITZ_ITERATIONS[self._second.derivatives], 4 * spec.extremes)
        found = extreme_curvatures(
            operator, spec.extremes, seeds, _RITZ_TOLERANCE, iterations, pass_size=2 * self._sizer.size
        )
        ranks = [*range(1, spec.extremes + 1), *range(size - spec.extremes, size)]
        most = _most_curved(found.curvatures)[:, : spec.keep_directions]
        kept = found.directions.gather(1, most[:, :, None].expand(-1, -1, size))
        parts = zip(found.curvatures, found.residuals, kept, strict=True)
        return [_Curves(size - 1, ranks, *part, {}) for part in parts]

    def _spectrum(self, point: Tensor, from_class: Tensor, to_class: Tensor, seed: int) -> _Curves:
        n = point.numel() - 1
        one = spectrum(
            self._module,
            point,
            from_class,
            to_class,
            *self._second,
            pass_size=2 * self._sizer.size,
            seed=seed,
            bases=max(1, min(_MOST_BASES, _BASES_VALUES // n)),
            keep=self._spec.keep_directions,
        )
        mean = {"mean_curvature": float(one.curvatures.mean()), "curvature_stderr": one.stderr}
        means = {**mean, "hessian_asymmetry": one.asymmetry}
        return _Curves(n, range(1, n + 1), one.curvatures, one.residual, one.directions, means)

    def _add_principal(self, result: _Curved, place: int, curves: _Curves | None) -> None:
        if curves is None or not curves.curvatures.isfinite().all():
            return
        values = curves.curvatures.tolist()
        ends = {"largest_curvature": values[0], "smallest_curvature": values[-1]}
        result.boundary[place] |= {**ends, **curves.means}
        columns = zip(curves.ranks, values, curves.residuals.tolist(), strict=True)
        result.others.setdefault("curvatures", []).extend(
            (place, {"rank": rank, "n": curves.n, "curvature": value, "residual": residual})
            for rank, value, residual in columns
        )
        kept = curves.directions.float().cpu().numpy()
        most = _most_curved(curves.curvatures)[: len(kept)].tolist()
        result.others.setdefault("principal_directions", []).extend(
            (place, {"place": number, "curvature": values[at], "direction": direction})
            for number, (at, direction) in enumerate(zip(most, kept, strict=True), start=1)
        )


def _most_curved(curvatures: Tensor) -> Tensor:
    """Positions of curvatures [..., m] in the order of their magnitudes, the largest first."""
    return curvatures.abs().argsort(dim=-1, descending=True, stable=True)


class _Curved(NamedTuple):
    """What was found of a batch's curvature.

    Attributes:
        boundary: More columns of table ``boundary``, by position in the batch.
        others: Rows of other tables, each with the position in the batch of its sample.
    """

    boundary: dict[int, dict[str, Any]]
    others: dict[str, Entries]
