"""Computing a unit of the paths scan: pairs of points of one predicted class, and paths between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import eq, ne
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.measures.boundary.classified import UNKNOWN
from raysense.measures.boundary.deepfool import FOUND, nearest_boundary
from raysense.measures.boundary.paths import Path, find_paths, moved_into_class
from raysense.measures.boundary.sections import CrossSection, cross_section
from raysense.options import ComputeOptions
from raysense.scans._draws import (
    FIRST_FORWARD,
    TRIES,
    Draw,
    SamplePool,
    any_row,
    draws_of,
    runs_of_sizer,
    shuffled,
    with_units_of_draws,
)
from raysense.scans._model import opened_model
from raysense.scans._records import Records
from raysense.scans._sampled import prepare_samples
from raysense.scans._seeds import seed_of
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.paths import PathsScan, PathsSpec

_SMALLEST_UNIT, _LARGEST_UNIT = 4, 32
_MARGIN = 0.1
_HALF_HEIGHT = 3
"""Half the height of a cross-section, in norms of r(x1)."""
_PICTURES_WIDTH = 8
_FEWEST_COLUMNS = 16


@dataclass
class _Pair:
    """What is connected, or why nothing is: a pair begins without, and is filled in step by step."""

    draw: Draw
    row_a: int
    label: int
    error: str | None = None
    row_b: int | None = None
    start: Tensor | None = None
    end: Tensor | None = None
    perturbation: float | None = None


def prepare_paths(spec: PathsSpec) -> Prepared:
    """List the data and check it against the model.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    prepared = prepare_samples(spec, lambda classes: 1, gradients=True)
    return with_units_of_draws(prepared, spec, len(spec.scenarios) * spec.pairs, _SMALLEST_UNIT, _LARGEST_UNIT)


class PathsComputer(Computer):
    """The paths scan opened in one process."""

    def __init__(self, spec: PathsSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec = spec
        loaded, self.device = opened_model(spec.model, prepared, options)
        self._module = loaded.module
        gauge = memory_gauge(self.device, options.threads)
        # Images with a graph take several times the memory of those without, so that they have a size of their own.
        self._sizer = BatchSizer(options.batch_size, gauge, FIRST_FORWARD)
        self._gradient_sizer = BatchSizer(options.batch_size, gauge)
        self._runs, self._gradient_runs = runs_of_sizer(self._sizer), runs_of_sizer(self._gradient_sizer)
        self._pool = SamplePool(spec, prepared, self._module, self.device, self._runs)
        self._shape = tuple(prepared.facts["model"]["input_shape"])
        self._box = spec.bounds
        self._schemas = {name: schema for name, schema in PathsScan(spec).tables().items() if name != "units"}

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Images classified per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        records = Records(self._schemas)
        pairs = self._pairs(draws_of(unit, self._spec.scenarios, self._spec.pairs))
        made = [pair for pair in pairs if pair.error is None]
        paths = iter(self._connected(made))
        for pair in pairs:
            path = None if pair.error is not None else next(paths)
            records.add("paths", [self._row(pair, path)])
            if path is not None and pair.draw.number < self._spec.pictures:
                records.add("cross_sections", self._sections(pair, path))
        return records.tables()

    def _connected(self, pairs: list[_Pair]) -> list[Path]:
        if not pairs:
            return []
        return find_paths(
            self._module,
            torch.stack([pair.start for pair in pairs if pair.start is not None]),
            torch.stack([pair.end for pair in pairs if pair.end is not None]),
            torch.tensor([pair.label for pair in pairs], device=self.device),
            spacing=self._spec.spacing,
            max_depth=self._spec.max_depth,
            max_iterations=self._spec.max_iterations,
            box=self._box,
            runs=self._runs,
            gradient_runs=self._gradient_runs,
        )

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def _pairs(self, draws: list[Draw]) -> list[_Pair]:
        """The pairs of one scenario."""
        pool, seed = self._pool, self._spec.seed
        rows = [any_row(len(pool), seed_of(seed, "first", draw.id)) for draw in draws]
        pairs = [_Pair(*made) for made in zip(draws, rows, pool.classes(rows), strict=True)]
        for pair in pairs:
            if pair.label == UNKNOWN:
                pair.error = pool.complaint(pair.row_a)
            else:
                pair.start = pool.images([pair.row_a])[0]
        scenario = draws[0].name
        usable = [pair for pair in pairs if pair.error is None]
        if scenario == "noise":
            for pair in usable:
                generator = torch.Generator().manual_seed(seed_of(seed, "noise", pair.draw.id))
                pair.end = torch.rand(self._shape, generator=generator).to(self.device)
        else:
            self._find_second(usable, scenario)
        if scenario != "data":
            self._move_into_class([pair for pair in usable if pair.error is None])
        return pairs

    def _find_second(self, pairs: list[_Pair], scenario: str) -> None:
        """Another image of the predicted class; or, adversarial, one of any other."""
        pool, same = self._pool, scenario == "data"
        everything = torch.arange(len(pool))
        queues = [
            shuffled(
                pool.listed_as(pair.label) if same else everything,
                pair.row_a,
                seed_of(self._spec.seed, "second", pair.draw.id),
                TRIES,
            )
            for pair in pairs
        ]
        found = pool.first_that(queues, [partial(eq if same else ne, pair.label) for pair in pairs], 1)
        for pair, queue, rows in zip(pairs, queues, found, strict=True):
            if rows:
                pair.row_b = rows[0]
                pair.end = pool.images(rows)[0]
            elif same:
                pair.error = f"none of {len(queue)} other samples of class {pair.label} is predicted so"
            else:
                pair.error = f"none of {len(queue)} other samples is predicted as another class than {pair.label}"

    def _move_into_class(self, pairs: list[_Pair]) -> None:
        """Perturb the second of each pair into the class of the first."""

        def work(start: int, stop: int) -> None:
            chosen = pairs[start:stop]
            found = moved_into_class(
                self._module,
                torch.stack([pair.end for pair in chosen if pair.end is not None]),
                torch.tensor([pair.label for pair in chosen], device=self.device),
                max_iterations=self._spec.max_iterations,
                box=self._box,
            )
            ends = zip(chosen, found.points, found.distance.tolist(), found.reached.tolist(), strict=True)
            for pair, point, distance, reached in ends:
                if reached:
                    pair.end, pair.perturbation = point, distance
                else:
                    pair.error = f"the second could not be moved into class {pair.label}; raise --max-iterations"

        self._gradient_runs(len(pairs), work)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _row(self, pair: _Pair, path: Path | None) -> dict[str, Any]:
        row: dict[str, Any] = {
            "pair": pair.draw.id,
            "scenario": pair.draw.name,
            "sample_a": self._pool.name(pair.row_a),
            "sample_b": None if pair.row_b is None else self._pool.name(pair.row_b),
            "class": None if pair.label == UNKNOWN else pair.label,
            "perturbation": pair.perturbation,
            "error": pair.error,
        }
        if path is None:
            missing = ("connected", "straight", "anchors", "length_ratio", "depth", "distance", "spacing")
            return row | dict.fromkeys((*missing, "checked", "bad_segments"))
        distance = path.distance
        return row | {
            "connected": path.connected,
            "straight": path.straight,
            "anchors": len(path.anchors) - 2,
            "length_ratio": path.length_ratio,
            "depth": path.depth,
            "distance": distance,
            "spacing": self._spec.spacing * distance,
            "checked": path.checked,
            "bad_segments": path.bad_segments,
        }

    def _sections(self, pair: _Pair, path: Path) -> list[dict[str, Any]]:
        """Cross-sections along the straight segment and, where the path is another, each of its own."""
        first = path.anchors[:1]
        nearest = nearest_boundary(
            self._module,
            first,
            candidates=self._spec.candidates,
            max_iterations=self._spec.max_iterations,
            box=self._box,
        )
        if int(nearest.status) != FOUND:
            return []
        upwards, height = (nearest.points - first)[0], _HALF_HEIGHT * float(nearest.distance)
        anchors, columns = list(path.anchors), self._spec.resolution
        segments = [(anchors[0], anchors[-1])]
        if len(anchors) > 2:
            segments += pairwise(anchors)
        shared = (
            max(_FEWEST_COLUMNS, _PICTURES_WIDTH * columns // (len(segments) - 1)) if len(segments) > 1 else columns
        )
        rows = []
        for number, (start, end) in enumerate(segments):
            section = cross_section(
                self._module,
                start,
                end,
                upwards,
                columns=columns if number == 0 else min(columns, shared),
                rows=max(2, 3 * columns // 4),
                half_height=height,
                margin=_MARGIN,
                runs=self._runs,
            )
            if section is not None:
                rows.append(_section_row(pair, number, section))
        return rows


def _section_row(pair: _Pair, number: int, section: CrossSection) -> dict[str, Any]:
    return {
        "pair": pair.draw.id,
        "segment": number,
        "from_x": 0.0,
        "to_x": section.length,
        "low_x": section.low_x,
        "high_x": section.high_x,
        "low_y": section.low_y,
        "high_y": section.high_y,
        "width": section.predicted.shape[1],
        "height": section.predicted.shape[0],
        "predicted": section.predicted.flatten().tolist(),
    }
