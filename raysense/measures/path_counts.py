"""Counts of paths: whole rows, and exceptions that are gathered sparsely or densely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PENDING = 2**22
"""Exceptions that are gathered before they are counted."""


@dataclass(frozen=True)
class PathCounts:
    """In how many observations each path of a layer is significant: ``rows[i]`` plus the count of exception (i, j).

    Attributes:
        samples: Samples counted.
        observations: Observations counted: samples, or their positions where each counts.
        inputs: n, paths of a row.
        rows: int64 [m], observations in which the whole row is significant.
        index: int64 [E], ascending: row * n + column of the paths that are significant in other observations too.
        counts: int64 [E], in how many; positive.
    """

    samples: int
    observations: int
    inputs: int
    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    counts: NDArray[np.int64]

    def dense(self) -> NDArray[np.int64]:
        """Counts of all paths, int64 [m, n]."""
        every = np.repeat(self.rows, self.inputs)
        every[self.index] += self.counts
        return every.reshape(len(self.rows), self.inputs)


class SparseExceptions:
    """Exceptions as a list, for thresholds under which they are rare.

    Args:
        rows: m.
        inputs: n.
        device: Where they are found.
    """

    def __init__(self, rows: int, inputs: int, device: torch.device) -> None:
        self._inputs = inputs
        self._pending: list[Tensor] = []
        self._waiting = 0
        self._index = torch.zeros(0, dtype=torch.int64, device=device)
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)

    def add_rows(self, rows: Tensor, exceeding: Tensor) -> None:
        """Count the paths that are True in ``exceeding`` [P, n], of rows [P]."""
        self.add(self._index_of(rows, exceeding))

    def add(self, index: Tensor) -> None:
        """Count paths row * n + column, int64 [E]; one that is there several times counts as often."""
        self._pending.append(index)
        self._waiting += len(index)
        if self._waiting > _PENDING:
            self._settle()

    def add_once(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Count the paths that are True in any of several parts, each as for `add_rows`, once."""
        found = [self._index_of(rows, exceeding) for rows, exceeding in parts]
        if found:
            self.add(torch.cat(found).unique())

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The paths in ascending order, and how often each was counted."""
        self._settle()
        return self._index.cpu().numpy(), self._counts.cpu().numpy()

    def _index_of(self, rows: Tensor, exceeding: Tensor) -> Tensor:
        place, column = exceeding.nonzero(as_tuple=True)
        return rows[place] * self._inputs + column

    def _settle(self) -> None:
        fresh = torch.cat([self._index, *self._pending])
        weights = torch.cat([self._counts, torch.ones(self._waiting, dtype=torch.int64, device=fresh.device)])
        self._index, place = fresh.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._index).index_add_(0, place, weights)
        self._pending, self._waiting = [], 0


class DenseExceptions:
    """Exceptions as a matrix of counts, for thresholds under which they are common; arguments as `SparseExceptions`."""

    def __init__(self, rows: int, inputs: int, device: torch.device) -> None:
        self._counts = torch.zeros((rows, inputs), dtype=torch.int32, device=device)

    def add_rows(self, rows: Tensor, exceeding: Tensor) -> None:
        """Count the paths that are True in ``exceeding`` [P, n], of rows [P]."""
        self._counts.index_add_(0, rows, exceeding.int())

    def add_once(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Count the paths that are True in any of several parts, each as for `add_rows`, once."""
        seen = torch.zeros_like(self._counts)
        for rows, exceeding in parts:
            seen.index_add_(0, rows, exceeding.int())
        self._counts += seen > 0

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The paths in ascending order, and how often each was counted."""
        counts = self._counts.view(-1)
        index = counts.nonzero()[:, 0]
        return index.cpu().numpy(), counts[index].long().cpu().numpy()
