"""Batch size: measured on the work itself, halved when memory runs out."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Literal

import psutil
import torch

SMALLEST_AUTO = 8
LARGEST_AUTO = 1024
_GAIN = 1.05  # a doubled batch must be this much faster to be worth its memory


class BatchSizer:
    """Chooses the batch size. ``auto`` doubles it while that pays, on real batches, so that no work is thrown away.

    Args:
        size: Samples per batch, or ``auto``.
        memory_used: Gives the share of this process's memory that batches have taken at the most so far; ``auto`` does
            not double the size where that could exceed it.
        first: What ``auto`` begins with.
    """

    def __init__(
        self,
        size: int | Literal["auto"],
        memory_used: Callable[[], float] = lambda: 0.0,
        first: int = SMALLEST_AUTO,
    ) -> None:
        self.size = first if size == "auto" else size
        self._exploring = size == "auto"
        self._memory_used = memory_used
        self._best_rate = 0.0
        self._warm = False

    def record(self, items: int, seconds: float) -> None:
        """Take note of the time that a batch took, and perhaps double the size."""
        if not self._exploring or items < self.size:
            return
        if not self._warm:  # the first batch pays for allocations and kernel selection
            self._warm = True
            return
        rate = items / max(seconds, 1e-9)
        if rate < _GAIN * self._best_rate:
            self.size //= 2
            self._exploring = False
        elif 2 * self.size > LARGEST_AUTO or self._memory_used() > 0.5:
            self._exploring = False
        else:
            self._best_rate = rate
            self.size *= 2

    def halve(self) -> bool:
        """Shrink after memory ran out; False where the batch is one item already."""
        self._exploring = False
        if self.size == 1:
            return False
        self.size //= 2
        return True


def memory_gauge(device: str, threads: int | None) -> Callable[[], float]:
    """A function that tells the largest share of this process's memory used since now, 0 to 1 and beyond.

    Args:
        device: ``cuda`` counts the GPU's memory, anything else the host's.
        threads: CPU threads of this process, which say what part of the host is its own; None for all.
    """
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return lambda: torch.cuda.max_memory_allocated() / total
    own = min(1.0, (threads or sys.maxsize) / (os.cpu_count() or 1))
    limit = 0.8 * own * psutil.virtual_memory().available
    before = _peak_bytes()
    return lambda: (_peak_bytes() - before) / limit


def _peak_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or device memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_batches(items: int, sizer: BatchSizer, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` over consecutive runs of items; a run that exhausts memory is done again in halves.

    Args:
        items: Number of items.
        sizer: Gives the size of each run.
        work: Computes items ``start`` to ``stop`` and keeps nothing when it raises.
    """
    start = 0
    while start < items:
        stop = min(start + sizer.size, items)
        began = time.perf_counter()
        try:
            work(start, stop)
        except Exception as error:
            if not out_of_memory(error) or stop - start == 1 or not sizer.halve():
                raise
            while sizer.size >= stop - start and sizer.halve():
                pass
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        sizer.record(stop - start, time.perf_counter() - began)
        start = stop
