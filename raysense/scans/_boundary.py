"""Computing a unit of the boundary scan: images in, Arrow tables out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.loading import as_float
from raysense.measures.boundary.curvature import (
    Spectrum,
    curvature_at_steps,
    extreme_curvatures,
    mean_curvature,
    spectrum,
)
from raysense.measures.boundary.deepfool import FOUND, NAMES, NearestBoundary, nearest_boundary
from raysense.measures.boundary.shape_operator import ShapeOperator
from raysense.measures.gradients import forward
from raysense.options import ComputeOptions
from raysense.scans._records import Records
from raysense.scans._sampled import class_scores, open_samples, samples_table
from raysense.scans._second_order import SecondOrder, second_order_of
from raysense.scans._seeds import seed_of
from raysense.scans._streamed import in_streamed_batches
from raysense.scans.base import Computer, Prepared, Unit
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
_SPECTRUM_PASS = 32
"""Images of a pass, of directions at one point, whatever the batch."""

_RITZ_TOLERANCE = 1e-2
_RITZ_ITERATIONS = {"exact": 80, "differences": 40}
"""Differences of a network with kinks do not converge: what more products add is noise."""


class _Curves(NamedTuple):
    """Principal curvatures of one sample, and where they are among all P - 1.

    Attributes:
        ranks: [m], 1 is the largest.
        curvatures: [m] float64, descending.
        residuals: [m] float64.
        directions: [m, P].
        whole: The whole spectrum, where it was computed.
    """

    ranks: list[int]
    curvatures: Tensor
    residuals: Tensor
    directions: Tensor
    whole: Spectrum | None


class BoundaryComputer(Computer):
    """The boundary scan opened in one process."""

    def __init__(self, spec: BoundarySpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec, self._prepared = spec, prepared
        loaded, self._loader, self.device = open_samples(spec, prepared, options)
        self._module = loaded.module
        self._second = second_order_of(prepared) if spec.curvature or spec.step_study else SecondOrder("exact", None)
        self._labels = prepared.listing["label"].to_numpy()
        self._ids = prepared.listing["sample_id"]
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))
        own = BoundaryScan(spec).tables()
        self._schemas = {name: schema for name, schema in own.items() if name not in ("samples", "units")}

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Samples per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        errors: dict[int, str] = {}
        scores: dict[int, tuple[int, float, float]] = {}
        records = Records(self._schemas)
        in_streamed_batches(
            self._loader,
            unit,
            upcoming,
            self._sizer,
            errors,
            lambda rows, images: self._measure(rows, images, scores, errors, records),
        )
        samples = samples_table(self._prepared, unit.start, unit.stop, scores, errors)
        return {"samples": samples, **records.tables()}

    def close(self) -> None:
        """End the loader processes."""
        self._loader.close()

    def _measure(
        self,
        rows: Sequence[int],
        images: np.ndarray,
        scores: dict[int, tuple[int, float, float]],
        errors: dict[int, str],
        records: Records,
    ) -> None:
        """Measure a batch; notes nothing unless all of it succeeds."""
        spec = self._spec
        batch = as_float(images, self.device)
        labels = torch.as_tensor(self._labels[list(rows)].astype(np.int64))
        logits = forward(self._module, batch)
        finite = logits.isfinite().all(1)
        good = finite.nonzero().squeeze(1)
        kept = [rows[position] for position in good.tolist()]
        found = batch[good]
        from_class = logits[good].argmax(1) if spec.region == "predicted" else labels.to(self.device)[good]
        nearest = nearest_boundary(
            self._module,
            found,
            from_class,
            norm=spec.norm,
            candidates=spec.candidates,
            max_iterations=spec.max_iterations,
            box=(0.0, 1.0) if spec.box else None,
            tolerance=spec.tolerance,
            polish=spec.polish,
        )
        curved = self._curved(nearest, kept)
        known = class_scores(logits[good].cpu(), labels[good.cpu()])
        ids = self._ids.take(pa.array(kept, pa.int64())).to_pylist()
        boundary, others = self._boundary_rows(ids, found, nearest), curved.others
        for place, entry in curved.boundary.items():
            boundary[place].update(entry)
        # Nothing above is kept where memory runs out, so that the batch can be done again in halves.
        errors.update({rows[at]: "logits are not finite" for at in (~finite).nonzero().squeeze(1).tolist()})
        scores.update(dict(zip(kept, known, strict=True)))
        records.add("boundary", boundary)
        for table, entries in others.items():
            records.add(table, [{"sample_id": ids[place], **entry} for place, entry in entries])

    def _boundary_rows(self, ids: Sequence[str], images: Tensor, nearest: NearestBoundary) -> list[dict[str, Any]]:
        order = 2 if self._spec.norm == "l2" else torch.inf
        norms = torch.linalg.vector_norm(images.flatten(1).double(), ord=order, dim=1).tolist()
        columns = {
            name: getattr(nearest, name).tolist()
            for name in ("from_class", "to_class", "distance", "iterations", "residual", "alignment", "slack")
        }
        columns["gradient_norm"] = nearest.gradient_norm.tolist()
        columns["status"] = [NAMES[status] for status in nearest.status.tolist()]
        made = []
        for place, (sample_id, norm) in enumerate(zip(ids, norms, strict=True)):
            row = {name: values[place] for name, values in columns.items()}
            row["to_class"] = None if row["to_class"] < 0 else row["to_class"]
            # All classes were looked at: no other can be nearer.
            row["slack"] = None if row["slack"] == float("inf") else row["slack"]
            made.append({"sample_id": sample_id, "norm": self._spec.norm, "image_norm": norm, **row, **_NOT_COMPUTED})
        return made

    def _curved(self, nearest: NearestBoundary, rows: Sequence[int]) -> _Curved:
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
        ids = self._ids.take(pa.array([rows[place] for place in chosen], pa.int64())).to_pylist()
        seeds = [seed_of(spec.seed, "curvature", sample_id) for sample_id in ids]
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
            made: list[_Curves | None] = []
            for point, from_class, to_class, seed in zip(*at, seeds, strict=True):
                pair, images = (from_class, to_class), max(_SPECTRUM_PASS, self._sizer.size)
                one = spectrum(self._module, point, *pair, *self._second, pass_size=images, seed=seed)
                made.append(_Curves(list(range(1, size)), one.curvatures, one.residual, one.directions, one))
            return made
        if "extremes" not in spec.curvature:
            return [None] * len(points)
        operator = ShapeOperator(self._module, *at, *self._second)
        iterations = max(_RITZ_ITERATIONS[self._second.derivatives], 4 * spec.extremes)
        found = extreme_curvatures(operator, spec.extremes, seeds, _RITZ_TOLERANCE, iterations)
        ranks = [*range(1, spec.extremes + 1), *range(size - spec.extremes, size)]
        parts = zip(found.curvatures, found.residuals, found.directions, strict=True)
        return [_Curves(ranks, *part, None) for part in parts]

    def _add_principal(self, result: _Curved, place: int, curves: _Curves | None) -> None:
        if curves is None or not curves.curvatures.isfinite().all():
            return
        values = curves.curvatures.tolist()
        entry = result.boundary[place]
        entry |= {"largest_curvature": values[0], "smallest_curvature": values[-1]}
        n = curves.directions.shape[1] - 1
        if curves.whole is not None:
            mean = {"mean_curvature": float(curves.curvatures.mean()), "curvature_stderr": curves.whole.stderr}
            entry |= {**mean, "hessian_asymmetry": curves.whole.asymmetry}
        columns = zip(curves.ranks, values, curves.residuals.tolist(), strict=True)
        result.others.setdefault("curvatures", []).extend(
            (place, {"rank": rank, "n": n, "curvature": value, "residual": residual})
            for rank, value, residual in columns
        )
        most = curves.curvatures.abs().argsort(descending=True, stable=True)[: self._spec.keep_directions]
        kept = curves.directions[most].float().cpu().numpy()
        result.others.setdefault("principal_directions", []).extend(
            (place, {"place": number, "curvature": values[at], "direction": direction})
            for number, (at, direction) in enumerate(zip(most.tolist(), kept, strict=True), start=1)
        )


class _Curved(NamedTuple):
    """What was found of a batch's curvature.

    Attributes:
        boundary: More columns of table ``boundary``, by position in the batch.
        others: Rows of other tables, each with the position in the batch of its sample.
    """

    boundary: dict[int, dict[str, Any]]
    others: dict[str, list[tuple[int, dict[str, Any]]]]
