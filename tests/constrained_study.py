"""Constrained boxes on the recorded maps, judged by the exact moments of the maps and by the exhaustive search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from region_oracle import AUTHORS_GRID, box_moments, cell_integrals, largest_boxes, nearest_moments, nearest_scores
from semantic_maps import SPACE, STARTS, recording
from torch import Tensor

from raysense.measures.boxes import Evaluator
from raysense.measures.constrained_growth import Constrained, ConstrainedSettings, grow

AREA = float(SPACE.extent.prod())


class NearestMaps:
    """The recorded maps as a function that is constant on every grid point's cell."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        return nearest_scores(AUTHORS_GRID, self.values, points, subjects)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("constrained growth is black-box")


class Study(NamedTuple):
    """Boxes of maps x 4 initial points, in this order, and the truth about them.

    Attributes:
        networks: Network of every box.
        grown: The boxes and their evidence.
        volume: [B] float64, share of the space.
        largest: [B] float64, that of the largest feasible box of whole cells.
        mean: [B] float64, true mean over the box; NaN without volume.
        variance: [B] float64, true variance.
        seconds: Processor time of the growth, the function's included.
    """

    networks: list[str]
    grown: Constrained
    volume: Tensor
    largest: Tensor
    mean: Tensor
    variance: Tensor
    seconds: float

    @property
    def found(self) -> Tensor:
        """[B] bool, which boxes have a volume."""
        return self.volume > 0

    @property
    def feasible(self) -> Tensor:
        """[B] bool, which boxes with a volume truly satisfy Eq. (2)."""
        return self.found & (self.mean >= 0.5) & (self.variance <= 0.05)

    @property
    def covered(self) -> Tensor:
        """[B] bool, which boxes with a volume have their true mean in the interval."""
        proof = self.grown.evidence
        return self.found & (self.mean >= proof.mean_lower) & (self.mean <= proof.mean_upper)

    def only(self, rows: Tensor) -> Figures:
        """Figures over some boxes [B] bool."""
        some = rows & self.found
        possible = rows & (self.largest > 0)
        evaluations = self.grown.growth.evaluations[rows]
        return Figures(
            int(rows.sum()),
            int(possible.sum()),
            int(some.sum()),
            _share(self.feasible, some),
            _share(self.covered, some),
            float(self.volume[rows].sum() / self.largest[rows].sum()),
            float((self.volume[possible] / self.largest[possible]).mean()),
            float(evaluations.double().mean()),
            int(evaluations.max()),
        )


class Figures(NamedTuple):
    """How many boxes there are, could have a volume, have one; shares of the latter; ratios of volumes; evaluations."""

    boxes: int
    possible: int
    found: int
    feasible: float
    covered: float
    ratio_of_sums: float
    mean_ratio: float
    evaluations: float
    most_evaluations: int


def study(maps: Sequence[int], settings: ConstrainedSettings | None = None, nearest: bool = False) -> Study:
    """Grow on some of the recorded maps, bilinear or constant on every cell, and compare."""
    data = recording()
    values = data.maps.values[list(maps)]
    start = STARTS.repeat(len(maps), 1)
    subjects = torch.arange(len(maps)).repeat_interleave(len(STARTS))
    function = NearestMaps(values) if nearest else type(data.maps)(values)
    began = time.process_time()
    grown = grow(
        Evaluator(function), SPACE, start, subjects, torch.zeros(len(start), dtype=torch.bool), settings=settings
    )
    seconds = time.process_time() - began
    lower, upper = grown.growth.lower, grown.growth.upper
    volume = (upper - lower).prod(1) / AREA
    judge: Callable[..., tuple[float, float]] = nearest_moments if nearest else box_moments
    truth = torch.full((len(start), 2), torch.nan, dtype=torch.float64)
    for row in volume.nonzero()[:, 0].tolist():
        truth[row] = torch.tensor(judge(AUTHORS_GRID, values, int(subjects[row]), lower[row], upper[row]))
    integrals = cell_integrals(AUTHORS_GRID, values, nearest)
    largest = [largest_boxes(AUTHORS_GRID, integrals, tuple(point.tolist())).volume for point in STARTS]
    return Study(
        [data.networks[row] for row in maps for _ in STARTS],
        grown,
        volume,
        torch.stack(largest, dim=1).flatten() / AREA,
        truth[:, 0],
        truth[:, 1],
        seconds,
    )


def _share(which: Tensor, among: Tensor) -> float:
    return float(which[among].double().mean())
