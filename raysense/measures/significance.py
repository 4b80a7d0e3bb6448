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

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from raysense.measures.exact_sums import (
    ROUNDOFF,
    CoarseSums,
    compare,
    granularity,
    pair_sums,
    sum_roundoff,
    sums,
)
from raysense.measures.path_counts import DenseExceptions, PathCounts, SparseExceptions

Threshold = Literal["sum", "mean", "mean_abs"]
Positions = Literal["each", "any", "first"]

WORKING_BYTES = 2**26
_COARSE_FROM = 512
"""Inputs of a row from which sums in single precision come first."""
_ROOM = 1 + 2.0**-20
"""For the rounding of bounds that are in single precision."""
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

    def _add_group(self, group: int, found: _Compared, positions: int) -> None:
        whole, at, of = found.negative, found.at, found.of
        first = group * whole.shape[1]
        joined = self._positions == "any" and positions > 1
        if joined:
            whole = whole.unflatten(0, (-1, positions)).any(1)
        self._rows[first : first + whole.shape[1]] += whole.sum(0)
        if not joined:
            for part in torch.arange(len(at), device=at.device).split(self._step):
                self._exceptions.add_rows(first + of[part], found.exceeding(part))
            return
        sample = at // positions
        pairs = (~whole[sample, of]).nonzero()[:, 0]
        for own in pairs.split(sample[pairs].unique_consecutive(return_counts=True)[1].tolist()):
            self._exceptions.add_once((first + of[part], found.exceeding(part)) for part in own.split(self._step))


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
        self._largest = weight.abs().amax(1)
        self._single = single
        self._step = step
        # An entry exceeds where left |N_ij| > right s_i, with whole numbers.
        self.left, self.right = (1, inputs) if threshold == "sum" else (inputs, 1)
        self._reach = self._largest * ((1 + 8 * ROUNDOFF) * self.left / self.right)
        self._roundoff = sum_roundoff(inputs)
        self._grain: float | None = None
        # Where few rows need a look, which are then looked at in double precision.
        coarse = single and threshold == "sum" and inputs >= _COARSE_FROM
        self._coarse = CoarseSums(weight) if coarse else None

    def against(self, inputs: Tensor, single: bool) -> _Compared:
        """Compare with activations [B, I], float64.

        Raises:
            ValueError: an activation is not finite.
        """
        peaks = torch.maximum(inputs.amax(1), -inputs.amin(1))
        if not bool(peaks.isfinite().all()):
            raise ValueError("activations are not finite")
        norms, exact = inputs.norm(dim=1), single and self._single
        coarse = self._coarse if single and torch.get_float32_matmul_precision() == "highest" else None
        estimate = None if coarse is None else coarse.of(inputs)
        if coarse is None or estimate is None:
            coarse = None
            estimate = (inputs.abs() if self.absolute else inputs) @ self._summed.T
        scale = norms * (self._roundoff if coarse is None else coarse.roundoff)
        # Beyond this the sign is certain, and no entry of the row exceeds its threshold.
        kind = estimate.dtype
        margin = torch.outer((2 * _ROOM * scale).to(kind), self._norms.to(kind))
        margin.addr_((_ROOM * peaks).to(kind), self._reach.to(kind))
        if coarse is not None:
            margin += 2 * coarse.slack
        at, of = (estimate.abs() <= margin).nonzero(as_tuple=True)
        total, error = estimate[at, of].double(), scale[at] * self._norms[of]
        again = (
            torch.arange(len(at), device=at.device) if coarse is not None else (total.abs() <= error).nonzero()[:, 0]
        )
        self._settle(inputs, at, of, total, error, again, exact)
        negative = estimate < 0
        negative[at, of] = total < 0
        keep = (total >= 0) & (peaks[at] * self._reach[of] > total - 2 * error)
        return _Compared(self, inputs, exact, negative, at[keep], of[keep], total[keep], error[keep])

    def rounds(self, inputs: Tensor) -> bool:
        """Whether anything can be rounded: not where values are few multiples of a power of two, as quantised ones are."""
        if self._grain is None:
            self._grain = granularity(self.weight)
        terms = self.weight.shape[1]
        largest = terms * terms * float(self._largest.max()) * float(inputs.abs().max())
        return not largest < 2.0**53 * self._grain * granularity(inputs)

    def _settle(
        self, inputs: Tensor, at: Tensor, of: Tensor, total: Tensor, error: Tensor, again: Tensor, exact: bool
    ) -> None:
        """Form sums again, in place, until their signs are certain.

        Args:
            inputs: [B, I].
            at: Observations of pairs [P].
            of: Their rows [P].
            total: Their sums [P].
            error: What these may be wrong by [P].
            again: Which of the pairs, [Q].
            exact: Whether products have no rounding error.
        """
        signed, magnitude = pair_sums(inputs, self.weight, at[again], of[again], self._step)
        # The bound is 0 where all terms are, and so is the sum.
        total[again] = torch.where(magnitude > 0, magnitude if self.absolute else signed, 0.0)
        error[again] = self._roundoff * magnitude
        doubtful = again[(magnitude > 0) & (total[again].abs() <= error[again])]
        if len(doubtful) > _MANY and not self.rounds(inputs):
            error[again] = 0.0
        elif len(doubtful):
            total[doubtful] = sums(inputs, self.weight, at[doubtful], of[doubtful], exact)
            error[doubtful] = 2 * ROUNDOFF * total[doubtful].abs()


@dataclass(frozen=True)
class _Compared:
    """Rows against B observations.

    Attributes:
        rows: The rows.
        inputs: [B, I], float64.
        exact: Whether products have no rounding error.
        negative: [B, O], whether t_i < 0.
        at: Observations of the P pairs of which single entries may exceed t_i, ascending.
        of: Their rows [P].
        sums: s_i, or that of magnitudes, of the pairs [P]; not negative.
        error: What these may be wrong by [P].
    """

    rows: _Rows
    inputs: Tensor
    exact: bool
    negative: Tensor
    at: Tensor
    of: Tensor
    sums: Tensor
    error: Tensor

    def exceeding(self, pairs: Tensor) -> Tensor:
        """Which entries of some of the pairs [Q] exceed their thresholds: [Q, I]."""
        rows, at, of = self.rows, self.at[pairs], self.of[pairs]
        entries = self.inputs[at].mul_(rows.weight[of]).abs_().mul_(rows.left)
        limit = rows.right * self.sums[pairs, None]
        # What the sum may be wrong by, and both sides' own rounding.
        error = rows.right * self.error[pairs, None] + 4 * ROUNDOFF * limit
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
