"""Counts of significant paths (Khaitan & Banerjee 2026, section 3.1), exact and without visiting the dense matrix.

A path is a weight and the activation that it meets, N_ij = W_ij a_j. It is significant where |N_ij| exceeds a threshold
t_i that is the same for the whole row i, with n the number of inputs and without the bias:

    sum        t_i = n sum_k N_ik, as published
    mean       t_i = sum_k N_ik / n
    mean_abs   t_i = sum_k |N_ik| / n

Where t_i < 0 the whole row is significant, also paths with N_ij = 0. Elsewhere entries are significant one by one, which
for ``sum`` is rare: a row needs a look only if max_j |W_ij| max_j |a_j| > t_i. So counts are kept as counts of whole rows
and a list of exceptions.

Every decision is that of exact arithmetic on the given weights and activations: sums are formed in float64 by a matrix
product, and those that its rounding error could turn round are formed again without rounding. So counts do not depend on
the order of sums, and with it not on batch sizes, threads or devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from raysense.measures.path_counts import DenseExceptions, PathCounts, SparseExceptions

Threshold = Literal["sum", "mean", "mean_abs"]
Positions = Literal["each", "any", "first"]

WORKING_BYTES = 2**26
_ROUNDOFF = 2.0**-53


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
        self._groups = [_Rows(part, threshold, weight.dtype != torch.float64) for part in weight.double()]
        self._positions, self._inputs, self._row_total, self._device = (
            positions,
            inputs,
            groups * outputs,
            weight.device,
        )
        self._step = max(1, working_bytes // (32 * inputs))
        self._gather = partial(
            SparseExceptions if threshold == "sum" else DenseExceptions, groups * outputs, inputs, weight.device
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
        # In the order of observations, so that the positions of a sample stay together.
        observation, row = single.nonzero(as_tuple=True)
        for start, stop in _runs(observation // joined if joined > 1 else None, len(observation), self._step):
            at, of = observation[start:stop], row[start:stop]
            exceeding = compared.exceeding(at, of)
            of = group * outputs + of
            if joined == 1:
                self._exceptions.add_rows(of, exceeding)
                continue
            place, column = exceeding.nonzero(as_tuple=True)
            paths = self._row_total * self._inputs
            once = ((at[place] // joined) * paths + of[place] * self._inputs + column).unique()
            self._exceptions.add(once % paths)


class _Rows:
    """The rows of a group.

    Args:
        weight: [O, I], float64.
        threshold: Which.
        single: Whether the weights are of single precision or less.
    """

    def __init__(self, weight: Tensor, threshold: Threshold, single: bool) -> None:
        inputs = weight.shape[1]
        self.weight, self.magnitude = weight, weight.abs()
        self._threshold, self._single = threshold, single
        self._summed = self.magnitude if threshold == "mean_abs" else weight
        self._norms, self._largest = weight.norm(dim=1), self.magnitude.amax(1)
        self._factor = float(inputs) if threshold == "sum" else 1.0 / inputs
        # Of a sum of products, relative to the product of the norms (Higham 2002, Eq. 3.5), with room for their rounding.
        self._roundoff = 1.1 * (inputs + 4) * _ROUNDOFF

    def against(self, inputs: Tensor, single: bool) -> _Compared:
        """Compare with activations [B, I], float64.

        Raises:
            ValueError: an activation is not finite.
        """
        exact = single and self._single
        magnitude = inputs.abs()
        peaks = magnitude.amax(1)
        if not bool(peaks.isfinite().all()):
            raise ValueError("activations are not finite")
        sums = (magnitude if self._threshold == "mean_abs" else inputs) @ self._summed.T
        scale = self._roundoff * inputs.norm(dim=1)
        # Where the sign is not certain, the sum is formed again. An error bound of 0 means that all terms are 0.
        error = torch.outer(scale, self._norms)
        for at, of in (sums.abs() <= error).nonzero().tolist():
            if error[at, of] > 0:
                total = _total(self._products(inputs, at, of), exact)
                sums[at, of], error[at, of] = total, 2 * _ROUNDOFF * abs(total)
        reach = torch.outer(peaks, self._largest * ((1 + 8 * _ROUNDOFF) / self._factor))
        return _Compared(self, inputs, exact, sums, error, sums < 0, reach > sums - 2 * error)

    def limits(self, compared: _Compared, at: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """t_i [P] of rows ``of`` at observations ``at``, and what its difference to an entry may be wrong by [P]."""
        threshold = compared.sums[at, of] * self._factor
        error = compared.error[at, of] * self._factor + 2 * _ROUNDOFF * threshold.abs()
        if not compared.exact:
            error = error + 4 * _ROUNDOFF * compared.inputs[at].abs().amax(1) * self._largest[of]
        return threshold, error

    def exceeds(self, inputs: Tensor, exact: bool, at: int, of: int, columns: Sequence[int]) -> list[bool]:
        """Whether entries of a row exceed its threshold, without rounding error."""
        weights, activations = self._products(inputs, at, of)
        terms = [abs(w * a) for w, a in zip(weights, activations, strict=True)]
        signed = terms if self._threshold == "mean_abs" else [w * a for w, a in zip(weights, activations, strict=True)]
        if exact:
            # The sum is then correct to half a unit in the last place, which decides nearly always.
            threshold = math.fsum(signed) * self._factor
            if all(abs(terms[j] - threshold) > 8 * _ROUNDOFF * max(terms[j], abs(threshold)) for j in columns):
                return [terms[j] > threshold for j in columns]
        rational = [Fraction(w) * Fraction(a) for w, a in zip(weights, activations, strict=True)]
        total = sum(map(abs, rational) if self._threshold == "mean_abs" else rational, Fraction(0))
        limit = total * len(rational) if self._threshold == "sum" else total / len(rational)
        return [abs(rational[j]) > limit for j in columns]

    def _products(self, inputs: Tensor, at: int, of: int) -> tuple[list[float], list[float]]:
        """Weights and activations of a row."""
        return self.weight[of].tolist(), inputs[at].tolist()


@dataclass(frozen=True)
class _Compared:
    """Rows against B observations.

    Attributes:
        rows: The rows.
        inputs: [B, I], float64.
        exact: Whether products have no rounding error.
        sums: What t_i is made of, [B, O], its sign certain.
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
        entries = self.inputs[at].abs_().mul_(self.rows.magnitude[of])
        threshold, error = (part[:, None] for part in self.rows.limits(self, at, of))
        exceeding = entries > threshold + error
        doubtful = (entries >= threshold - error) & (error > 0) & ~exceeding
        for place in doubtful.any(1).nonzero()[:, 0].tolist():
            columns = doubtful[place].nonzero()[:, 0]
            found = self.rows.exceeds(self.inputs, self.exact, int(at[place]), int(of[place]), columns.tolist())
            exceeding[place, columns] = torch.tensor(found, device=exceeding.device)
        return exceeding


def _total(products: tuple[list[float], list[float]], exact: bool) -> float:
    """The sum of products, rounded once."""
    weights, activations = products
    if exact:
        return math.fsum(w * a for w, a in zip(weights, activations, strict=True))
    return float(sum((Fraction(w) * Fraction(a) for w, a in zip(weights, activations, strict=True)), Fraction(0)))


def _runs(samples: Tensor | None, total: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut ``total`` entries into runs of about ``step``; where they belong to samples, sorted, never within a sample."""
    if samples is None or total <= step:
        yield from ((start, min(start + step, total)) for start in range(0, total, step))
        return
    start = stop = 0
    for end in samples.unique_consecutive(return_counts=True)[1].cumsum(0).tolist():
        if end - start > step and stop > start:
            yield start, stop
            start = stop
        stop = end
    yield start, stop
