"""Counts of significant paths (Khaitan & Banerjee 2026, section 3.1), exact and without visiting the dense matrix.

A path is a weight and the activation that it meets, N_ij = W_ij a_j. It is significant where |N_ij| exceeds a threshold
t_i that is the same for the whole row i, with n the number of inputs and without the bias:

    sum        t_i = n sum_k N_ik, as published
    mean       t_i = sum_k N_ik / n
    mean_abs   t_i = sum_k |N_ik| / n

Where t_i < 0 the whole row is significant, also paths with N_ij = 0. Elsewhere entries are significant one by one, which
for ``sum`` is rare: a row needs a look only if max_j |W_ij| max_j |a_j| > t_i. So counts are kept as counts of whole rows
and a list of exceptions.

Every decision is that of exact arithmetic on the given weights and activations, as long as no product over- or underflows
in float64, which those of float32 or less cannot: sums are formed by a matrix product, and those that its rounding error
could turn round are formed again without (:mod:`raysense.measures.exact_sums`). So counts do not depend on the order of
sums, and with it not on batch sizes, threads or devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from raysense.measures.exact_sums import ROUNDOFF, compare, granularity, magnitudes, sum_roundoff, sums
from raysense.measures.path_counts import DenseExceptions, PathCounts, SparseExceptions

Threshold = Literal["sum", "mean", "mean_abs"]
Positions = Literal["each", "any", "first"]

WORKING_BYTES = 2**26
_MANY = 64
"""Doubtful pairs from which it pays to ask whether weights and inputs are so coarse that nothing was rounded."""


class PathCounter:
    """Counts the significant paths of one layer over many samples.

    Args:
        weight: [G, O, I], finite: G groups (1 but for grouped convolutions) of O rows with I inputs.
        threshold: ``sum``, ``mean`` or ``mean_abs``.
        positions: With several positions (tokens, patches) a sample: ``each`` counts every position as an observation;
            ``any`` every sample, where a path is significant if it is at any position; ``first`` only the first position.
        working_bytes: Memory for the rows that are looked at entry by entry at a time, about.

    Raises:
        ValueError: the weight is not finite, or an option is unknown.
    """

    def __init__(
        self,
        weight: Tensor,
        threshold: Threshold = "sum",
        positions: Positions = "each",
        working_bytes: int = WORKING_BYTES,
    ) -> None:
        if threshold not in get_args(Threshold) or positions not in get_args(Positions):
            raise ValueError(f"threshold {threshold!r} or positions {positions!r} is unknown")
        if not bool(weight.isfinite().all()):
            raise ValueError("the weight is not finite")
        groups, outputs, inputs = weight.shape
        self._step = max(1, working_bytes // (32 * inputs))
        single = weight.dtype != torch.float64
        self._groups = [_Rows(part, threshold, single, self._step) for part in weight.double()]
        self._positions = positions
        self._inputs = inputs
        self._row_total = groups * outputs
        self._device = weight.device
        self._gather = partial(
            SparseExceptions if threshold == "sum" else DenseExceptions, self._row_total, inputs, weight.device
        )
        self.reset()

    def reset(self) -> None:
        """Forget what has been counted."""
        self._exceptions = self._gather()
        self._rows = torch.zeros(self._row_total, dtype=torch.int64, device=self._device)
        self._samples = self._observations = 0

    def add(self, columns: Tensor, exact_products: bool = True) -> None:
        """Count some samples.

        Args:
            columns: Inputs of the layer, [n, G, I, T] for n samples with T positions each; finite.
            exact_products: Whether the inputs are of single precision or less, so that their products with weights that
                are too have no rounding error in float64.

        Raises:
            ValueError: an input is not finite.
        """
        if self._positions == "first":
            columns = columns[..., :1]
        samples, _, _, positions = columns.shape
        parts = [columns[:, group].double().transpose(1, 2).flatten(0, 1) for group in range(len(self._groups))]
        compared = [rows.against(inputs, exact_products) for rows, inputs in zip(self._groups, parts, strict=True)]
        for group, found in enumerate(compared):
            self._add_group(group, found, positions)
        self._samples += samples
        self._observations += samples if self._positions == "any" else samples * positions

    def counts(self) -> PathCounts:
        """What has been counted so far."""
        index, counts = self._exceptions.counted()
        return PathCounts(self._samples, self._observations, self._inputs, self._rows.cpu().numpy(), index, counts)

    def _add_group(self, group: int, compared: _Compared, positions: int) -> None:
        whole = compared.negative
        joined = positions if self._positions == "any" else 1
        if joined > 1:
            whole = whole.unflatten(0, (-1, joined)).any(1)
        outputs = whole.shape[1]
        self._rows[group * outputs : (group + 1) * outputs] += whole.sum(0)
        single = compared.reaching & ~whole.repeat_interleave(joined, 0)
        observation, row = single.nonzero(as_tuple=True)
        if joined == 1:
            for rows, exceeding in self._exceeding(compared, observation, row, group * outputs):
                self._exceptions.add_rows(rows, exceeding)
            return
        for at, of in _by_sample(observation, row, joined):
            self._exceptions.add_once(self._exceeding(compared, at, of, group * outputs))

    def _exceeding(self, compared: _Compared, at: Tensor, of: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [P] of the layer, and which of their entries exceed the thresholds [P, I], a part at a time."""
        for some, rows in zip(at.split(self._step), of.split(self._step), strict=True):
            yield first + rows, compared.exceeding(some, rows)


class _Rows:
    """The rows of a group.

    Args:
        weight: [O, I], float64.
        threshold: Which.
        single: Whether the weights are of single precision or less.
        step: Pairs of a row and an observation to expand at a time.
    """

    def __init__(self, weight: Tensor, threshold: Threshold, single: bool, step: int) -> None:
        inputs = weight.shape[1]
        self.weight = weight
        self.absolute = threshold == "mean_abs"
        self._summed = weight.abs() if self.absolute else weight
        self._norms = weight.norm(dim=1)
        self.largest = weight.abs().amax(1)
        self._single = single
        self._step = step
        # An entry exceeds where left |N_ij| > right s_i, with whole numbers.
        self.left, self.right = (1, inputs) if threshold == "sum" else (inputs, 1)
        self._roundoff = sum_roundoff(inputs)
        self._grain: float | None = None

    def against(self, inputs: Tensor, single: bool) -> _Compared:
        """Compare with activations [B, I], float64.

        Raises:
            ValueError: an activation is not finite.
        """
        peaks = inputs.abs().amax(1)
        if not bool(peaks.isfinite().all()):
            raise ValueError("activations are not finite")
        summed = (inputs.abs() if self.absolute else inputs) @ self._summed.T
        error = torch.outer(self._roundoff * inputs.norm(dim=1), self._norms)
        exact = single and self._single
        at, of = (summed.abs() <= error).nonzero(as_tuple=True)
        if len(at):
            self._settle(inputs, summed, error, at, of, exact)
        reach = torch.outer(peaks, self.largest * ((1 + 8 * ROUNDOFF) * self.left / self.right))
        return _Compared(self, inputs, exact, summed, error, summed < 0, reach > summed - 2 * error)

    def rounds(self, inputs: Tensor) -> bool:
        """Whether anything can be rounded: not where values are few multiples of a power of two, as quantised ones are."""
        if self._grain is None:
            self._grain = granularity(self.weight)
        terms = self.weight.shape[1]
        largest = terms * terms * float(self.largest.max()) * float(inputs.abs().max())
        return not largest < 2.0**53 * self._grain * granularity(inputs)

    def _settle(self, inputs: Tensor, summed: Tensor, error: Tensor, at: Tensor, of: Tensor, exact: bool) -> None:
        """Make sure of the signs of sums [B, O] that their rounding error leaves open, in place."""
        if len(at) > _MANY and not self.rounds(inputs):
            error.zero_()
            return
        # A bound of each sum's own; it is 0 where all its terms are, and so is the sum.
        own = self._roundoff * magnitudes(inputs, self.weight, at, of, self._step)
        error[at, of] = own
        summed[at, of] = torch.where(own > 0, summed[at, of], 0.0)
        doubtful = (own > 0) & (summed[at, of].abs() <= own)
        at, of = at[doubtful], of[doubtful]
        if len(at):
            totals = sums(inputs, self.weight, at, of, exact)
            summed[at, of], error[at, of] = totals, 2 * ROUNDOFF * totals.abs()


@dataclass(frozen=True)
class _Compared:
    """Rows against B observations.

    Attributes:
        rows: The rows.
        inputs: [B, I], float64.
        exact: Whether products have no rounding error.
        sums: s_i, or that of magnitudes, [B, O]; the sign is certain.
        error: [B, O], what the sum may be wrong by.
        negative: [B, O], whether t_i < 0.
        reaching: [B, O], whether any entry of the row may exceed t_i.
    """

    rows: _Rows
    inputs: Tensor
    exact: bool
    sums: Tensor
    error: Tensor
    negative: Tensor
    reaching: Tensor

    def exceeding(self, at: Tensor, of: Tensor) -> Tensor:
        """Which entries of rows ``of`` [P] at observations ``at`` [P] exceed their thresholds: [P, I]."""
        rows = self.rows
        entries = self.inputs[at].mul_(rows.weight[of]).abs_().mul_(rows.left)
        limit = rows.right * self.sums[at, of, None]
        error = rows.right * self.error[at, of, None]
        # Of both sides' own rounding; only what comes of exact products and sums of them has none.
        error = error + 4 * ROUNDOFF * limit.abs()
        if not self.exact:
            error = error + 4 * ROUNDOFF * entries
        exceeding = entries > limit + error
        doubtful = ((entries >= limit - error) & (error > 0)).logical_and_(~exceeding).any(1)
        places = doubtful.nonzero()[:, 0]
        if len(places) > _MANY and not rows.rounds(self.inputs):
            return entries > limit
        if len(places):
            part = at[places], of[places]
            exceeding[places] = compare(self.inputs, rows.weight, *part, rows.absolute, rows.left, rows.right)
        return exceeding


def _by_sample(observation: Tensor, row: Tensor, positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of an observation, ascending, and a row, sample by sample of ``positions`` observations each."""
    counts = (observation // positions).unique_consecutive(return_counts=True)[1].tolist()
    yield from zip(observation.split(counts), row.split(counts), strict=True) if counts else ()
