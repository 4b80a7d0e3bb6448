"""The region growth that Hamdi & Ghanem (2020) published, for all boxes of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from raysense.measures.boxes import Domain, RegionFunction
from raysense.measures.growth import Growth, Trace
from raysense.measures.published_corners import CornerEvaluation
from raysense.measures.published_updates import METHODS, PublishedSettings, masks

__all__ = ["CORNERS", "PublishedSettings", "grow"]

CORNERS = 2**18
"""Corners of the boxes that advance together, at most: what bounds the memory where 2^n is large."""

_ORDER = {name: place for place, name in enumerate(METHODS)}


def grow(
    function: RegionFunction,
    domain: Domain | None,
    start: Tensor,
    subjects: Tensor,
    methods: Sequence[str],
    adversarial: Tensor,
    *,
    settings: PublishedSettings | None = None,
    record: bool = False,
) -> Growth:
    """Grow boxes around initial points by the published methods, Eqs. (7) to (18) and Algorithms 1 and 2.

    All boxes advance together: per iteration one evaluation of scores and one of scores with gradients. Boxes are not
    kept in the space. Every loss of OIR_W costs 2^n scores that its updates do not need, in a trace for each iteration.

    Args:
        function: f; adversarial boxes grow on 1 - f (Eq. 4). With ``oir_w`` or ``trapezoid`` it must have gradients.
        domain: The space, by whose extent a box is too long and has diverged; None allows any length.
        start: Initial points, [B, n] float64, in the units of the axes.
        subjects: [B] int64.
        methods: B of ``naive``, ``oir_b``, ``oir_w`` and ``trapezoid``.
        adversarial: [B] bool.
        settings: None for the published ones.
        record: Keep a trace.

    Raises:
        ValueError: A method is unknown, the arguments disagree on B or n, or a method needs gradients that the function
            does not have.
    """
    _check(function, domain, start, subjects, methods, adversarial)
    growing = _Growing(function, domain, start, subjects, methods, adversarial, settings or PublishedSettings(), record)
    # Boxes of one method lie together.
    order = torch.tensor(sorted(range(len(start)), key=lambda row: _ORDER[methods[row]]), dtype=torch.int64)
    for rows in order.to(start.device).split(max(1, CORNERS >> start.shape[1])):
        growing.advance(rows)
    return growing.growth()


class _Growing:
    """All boxes of a growth: their first bounds, later their last ones, and how it went."""

    def __init__(
        self,
        function: RegionFunction,
        domain: Domain | None,
        start: Tensor,
        subjects: Tensor,
        methods: Sequence[str],
        adversarial: Tensor,
        settings: PublishedSettings,
        record: bool,
    ) -> None:
        count, dimensions = start.shape
        self._function, self._subjects, self._methods, self._adversarial = function, subjects, methods, adversarial
        self._settings, self._record = settings, record
        self._masks = masks(dimensions, start.device)
        self._longest = None if domain is None else settings.limit * domain.extent
        self._lower, self._upper = start - settings.half_width, start + settings.half_width
        self._loss = start.new_full((count,), torch.nan)
        self._iterations, self._evaluations = torch.zeros(2, count, dtype=torch.int64, device=start.device)
        self._converged, self._diverged = torch.zeros(2, count, dtype=torch.bool, device=start.device)
        self._trace: list[Trace] = []

    def advance(self, rows: Tensor) -> None:
        """Grow some of the boxes to their ends; those of one method are next to each other."""
        active, lower, upper = rows, self._lower[rows], self._upper[rows]
        corners, since = self._corners(active, updates=True, losses=self._record), 0
        for iteration in range(self._settings.iterations):
            by_lower, by_upper = self._steps(corners, active, lower, upper, iteration)
            sides = upper - lower
            lower, upper = lower - by_lower, upper - by_upper
            resting = torch.maximum(by_lower.abs(), by_upper.abs()) <= self._settings.settled * sides.abs()
            converged, diverged = resting.all(dim=1), self._lost(lower, upper)
            ended = converged | diverged
            if ended.any():
                self._converged[active], self._diverged[active] = converged, diverged
                self._keep(active, lower, upper, iteration + 1, corners.asked * (iteration + 1 - since))
                active, lower, upper = active[~ended], lower[~ended], upper[~ended]
                if not len(active):
                    break
                corners, since = self._corners(active, updates=True, losses=self._record), iteration + 1
        else:
            self._keep(
                active, lower, upper, self._settings.iterations, corners.asked * (self._settings.iterations - since)
            )
        self._lose(rows[~self._diverged[rows]])

    def growth(self) -> Growth:
        """What the growth ended with."""
        gone = self._diverged[:, None]
        return Growth(
            self._lower.masked_fill(gone, torch.nan),
            self._upper.masked_fill(gone, torch.nan),
            self._loss,
            self._iterations,
            self._converged,
            self._diverged,
            self._evaluations,
            self._ordered_trace() if self._record else None,
        )

    def _corners(self, rows: Tensor, *, updates: bool, losses: bool) -> CornerEvaluation:
        """The evaluation of some of the boxes."""
        return CornerEvaluation(
            [self._methods[row] for row in rows.tolist()],
            self._subjects[rows],
            self._adversarial[rows],
            self._lower.shape[1],
            self._settings.alpha,
            updates=updates,
            losses=losses,
        )

    def _steps(
        self, corners: CornerEvaluation, active: Tensor, lower: Tensor, upper: Tensor, iteration: int
    ) -> tuple[Tensor, Tensor]:
        """eta dL/da and eta dL/db, [A, n]; the states and their losses are kept where that is asked for."""
        boxes = corners.boxes(self._function, lower, upper)
        if self._record:
            loss = torch.cat(
                [group.method.loss(b, self._settings) for group, b in zip(corners.groups, boxes, strict=True)]
            )
            self._trace.append(Trace(torch.full_like(active, iteration), active, lower, upper, loss))
        directions = [
            group.method.directions(b, self._masks, self._settings)
            for group, b in zip(corners.groups, boxes, strict=True)
        ]
        by_lower, by_upper = (torch.cat(parts) for parts in zip(*directions, strict=True))
        return self._settings.eta * by_lower, self._settings.eta * by_upper

    def _lost(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Boxes [A] bool that whose bounds are no numbers or too far apart, or crossed (section 3.1 assumes r > 0)."""
        sides = upper - lower
        usable = sides < torch.inf if self._longest is None else sides <= self._longest
        return ~(usable & (sides >= 0)).all(dim=1)

    def _keep(self, rows: Tensor, lower: Tensor, upper: Tensor, iterations: int, asked: Tensor) -> None:
        """Note what boxes have come to so far, and what they asked for since that was last noted."""
        self._lower[rows], self._upper[rows] = lower, upper
        self._iterations[rows] = iterations
        self._evaluations[rows] += asked

    def _lose(self, rows: Tensor) -> None:
        """Compute the losses of boxes' last states."""
        corners = self._corners(rows, updates=False, losses=True)
        boxes = corners.boxes(self._function, self._lower[rows], self._upper[rows])
        for group, b in zip(corners.groups, boxes, strict=True):
            self._loss[rows[group.rows]] = group.method.loss(b, self._settings)
        self._evaluations[rows] += corners.asked

    def _ordered_trace(self) -> Trace:
        """The trace by iteration and box."""
        columns = [torch.cat([getattr(part, field.name) for part in self._trace]) for field in fields(Trace)]
        order = torch.argsort(columns[0] * len(self._lower) + columns[1])
        return Trace(*(column[order] for column in columns))


def _check(
    function: RegionFunction,
    domain: Domain | None,
    start: Tensor,
    subjects: Tensor,
    methods: Sequence[str],
    adversarial: Tensor,
) -> None:
    """Raise ValueError for arguments that do not fit each other."""
    if start.ndim != 2 or not len(start) or start.dtype != torch.float64:
        raise ValueError(f"start must be [B, n] float64 with B > 0, not {list(start.shape)} {start.dtype}")
    if domain is not None and len(domain.lower) != start.shape[1]:
        raise ValueError(f"the space has {len(domain.lower)} axes, but start has points of {start.shape[1]}")
    for name, values in (("subjects", subjects), ("methods", methods), ("adversarial", adversarial)):
        if len(values) != len(start):
            raise ValueError(f"{name} must name one a box: {len(values)} for {len(start)} boxes")
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
        if METHODS[name].gradients and not hasattr(function, "scores_and_gradients"):
            raise ValueError(
                f"method {name!r} needs gradients, which the function does not have; choose naive or oir_b"
            )
