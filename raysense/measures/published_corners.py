"""The corners at which a function is evaluated for boxes that advance together, and what is found there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.boxes import RegionFunction, corners
from raysense.measures.published_updates import METHODS, Boxes, Method


class Group(NamedTuple):
    """Boxes of one method, which lie together.

    Attributes:
        method: Their method.
        rows: Where they lie.
    """

    method: Method
    rows: slice


class _Request(NamedTuple):
    """Boxes whose corners are evaluated in one call.

    Attributes:
        rows: [S] int64.
        widening: [S, 1] float64, share of its sides by which a box reaches further on each side.
        subjects: [S * 2^n] int64, of every corner.
        flipped: [S, 1] bool, whether 1 - f takes the place of f; None where it nowhere does.
    """

    rows: Tensor
    widening: Tensor
    subjects: Tensor
    flipped: Tensor | None

    def points(self, lower: Tensor, upper: Tensor, sides: Tensor) -> Tensor:
        """The corners, [S * 2^n, n]."""
        margin = self.widening * sides[self.rows]
        return corners(lower[self.rows] - margin, upper[self.rows] + margin).flatten(0, 1)


class CornerEvaluation:
    """What is evaluated for boxes of several methods: per call one batch of scores and one of scores with gradients.

    Attributes:
        groups: The boxes of each method.
        asked: [B] int64, points that one evaluation asks for, by box.
    """

    def __init__(
        self,
        methods: Sequence[str],
        subjects: Tensor,
        adversarial: Tensor,
        dimensions: int,
        alpha: float,
        *,
        updates: bool = True,
        losses: bool = False,
    ) -> None:
        """Plan the evaluation.

        Args:
            methods: Of B boxes, equal ones next to each other.
            subjects: [B] int64.
            adversarial: [B] bool, whether a box is grown on 1 - f.
            dimensions: n.
            alpha: Boundary factor of outer boxes.
            updates: Whether update directions are wanted.
            losses: Whether losses are.
        """
        self.groups = list(_groups(methods))
        self._shape = (len(methods), 2**dimensions)
        rows = torch.arange(len(methods), device=subjects.device)
        graded, plain, outer = (
            _united(rows, [group.rows for group in self.groups if wanted(group.method)])
            for wanted in (
                lambda method: updates and method.gradients,
                lambda method: not (updates and method.gradients),
                lambda method: (updates and method.outer) or (losses and method.outer_loss),
            )
        )
        self._plain = len(plain)
        widening = torch.zeros(len(plain) + len(outer), 1, dtype=torch.float64, device=subjects.device)
        widening[len(plain) :] = alpha / 2

        def request(rows: Tensor, widening: Tensor) -> _Request | None:
            if not len(rows):
                return None
            flipped = adversarial[rows, None]
            each = subjects[rows].repeat_interleave(self._shape[1])
            return _Request(rows, widening, each, flipped if bool(flipped.any()) else None)

        self._scored = request(torch.cat((plain, outer)), widening)
        self._graded = request(graded, widening.new_zeros(len(graded), 1))
        self.asked = torch.bincount(torch.cat((plain, outer, graded)), minlength=len(methods)) * self._shape[1]

    def boxes(self, function: RegionFunction, lower: Tensor, upper: Tensor) -> list[Boxes]:
        """Evaluate the function at the corners of boxes [B, n]; what is known of each group's boxes."""
        sides = upper - lower
        inner = lower.new_empty(self._shape)
        outer = gradients = None
        if self._scored is not None:
            points = self._scored.points(lower, upper, sides)
            scores = self._values(function.scores(points, self._scored.subjects), self._scored)
            inner[self._scored.rows[: self._plain]] = scores[: self._plain]
            if len(scores) > self._plain:
                outer = torch.empty_like(inner)
                outer[self._scored.rows[self._plain :]] = scores[self._plain :]
        if self._graded is not None:
            points = self._graded.points(lower, upper, sides)
            found, slopes = function.scores_and_gradients(points, self._graded.subjects)
            inner[self._graded.rows] = self._values(found, self._graded)
            slopes = slopes.view(len(self._graded.rows), *inner.shape[1:], -1)
            if self._graded.flipped is not None:
                slopes = torch.where(self._graded.flipped[:, None], -slopes, slopes)
            gradients = slopes.new_empty(*inner.shape, slopes.shape[2])
            gradients[self._graded.rows] = slopes
        return [
            Boxes(
                sides[rows],
                inner[rows],
                None if outer is None else outer[rows],
                None if gradients is None else gradients[rows],
            )
            for _, rows in self.groups
        ]

    def _values(self, scores: Tensor, request: _Request) -> Tensor:
        """Values [S, 2^n] of the function that the boxes grow on (Eq. 4)."""
        values = scores.view(-1, self._shape[1])
        return values if request.flipped is None else torch.where(request.flipped, 1 - values, values)


def _groups(methods: Sequence[str]) -> list[Group]:
    """The runs of equal methods."""
    found, begin = [], 0
    for name, members in groupby(methods):
        end = begin + sum(1 for _ in members)
        found.append(Group(METHODS[name], slice(begin, end)))
        begin = end
    return found


def _united(rows: Tensor, parts: list[slice]) -> Tensor:
    """Rows of several slices."""
    return torch.cat([rows[:0], *(rows[part] for part in parts)])
