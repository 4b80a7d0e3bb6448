"""Computing a unit of the convexity scan: groups of images of one predicted class, and their convex combinations."""

from __future__ import annotations

from functools import partial
from operator import eq
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from raysense.batching import BatchSizer, memory_gauge
from raysense.measures.boundary.classified import UNKNOWN
from raysense.measures.boundary.convex import combinations_inside, convex_weights
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
from raysense.scans._topology_tables import CONVEXITY
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.convexity import ConvexitySpec

_SMALLEST_UNIT, _LARGEST_UNIT = 16, 256
_IMAGES_HELD = 512


class _Group(NamedTuple):
    """Images of one predicted class.

    Attributes:
        rows: They, k unless there is an error.
        label: The class; -1 where the first has none.
        error: Why there are fewer; None where there are not.
    """

    rows: list[int]
    label: int
    error: str | None


def prepare_convexity(spec: ConvexitySpec) -> Prepared:
    """List the data and check it against the model.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    prepared = prepare_samples(spec, lambda classes: 1, gradients=False)
    return with_units_of_draws(prepared, spec, len(spec.k) * spec.groups, _SMALLEST_UNIT, _LARGEST_UNIT)


class ConvexityComputer(Computer):
    """The convexity scan opened in one process."""

    def __init__(self, spec: ConvexitySpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec = spec
        self._model, self.device = opened_model(spec.model, prepared, options)
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads), FIRST_FORWARD)
        self._runs = runs_of_sizer(self._sizer)
        self._pool = SamplePool(spec, prepared, self._model.module, self.device, self._runs)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Images per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        draws = draws_of(unit, [f"k{k}" for k in self._spec.k], self._spec.groups)
        k = self._spec.k[unit.start // self._spec.groups]
        records = Records({"convexity": CONVEXITY})
        at_once = max(1, _IMAGES_HELD // k)
        for first in range(0, len(draws), at_once):
            records.add("convexity", self._rows(draws[first : first + at_once], k))
        return records.tables()

    def _rows(self, draws: list[Draw], k: int) -> list[dict[str, Any]]:
        """The rows of groups of k images each."""
        groups = self._groups(draws, k)
        full = [place for place, group in enumerate(groups) if group.error is None]
        inside = {}
        if full:
            spec = self._spec
            weights = [
                convex_weights(k, spec.combinations, seed_of(spec.seed, "weights", draws[place].id)) for place in full
            ]
            found = combinations_inside(
                self._model.module,
                torch.stack([self._pool.images(groups[place].rows) for place in full]),
                torch.tensor([groups[place].label for place in full]),
                torch.stack(weights),
                runs=self._runs,
            )
            inside = dict(zip(full, found.sum(1).tolist(), strict=True))
        rows = []
        for place, (draw, group) in enumerate(zip(draws, groups, strict=True)):
            rows.append(
                {
                    "group": draw.id,
                    "k": k,
                    "class": None if group.label == UNKNOWN else group.label,
                    "samples": self._pool.names(group.rows),
                    "combinations": self._spec.combinations if place in inside else 0,
                    "inside": inside.get(place, 0),
                    "error": group.error,
                }
            )
        return rows

    def _groups(self, draws: list[Draw], k: int) -> list[_Group]:
        """An image drawn from all samples, and others listed and predicted as its predicted class."""
        pool, seed = self._pool, self._spec.seed
        first = [any_row(len(pool), seed_of(seed, "first", draw.id)) for draw in draws]
        labels = pool.classes(first)
        queues = [
            shuffled(pool.listed_as(label), row, seed_of(seed, "others", draw.id), TRIES * (k - 1))
            for draw, row, label in zip(draws, first, labels, strict=True)
        ]
        others = pool.first_that(queues, [partial(eq, label) for label in labels], k - 1)
        groups = []
        for row, label, queue, found in zip(first, labels, queues, others, strict=True):
            error = None
            if label == UNKNOWN:
                error = pool.complaint(row)
            elif len(found) < k - 1:
                error = f"only {1 + len(found)} of {k} images: of {len(queue)} others of class {label} no more are such"
            groups.append(_Group([row, *found], label, error))
        return groups
