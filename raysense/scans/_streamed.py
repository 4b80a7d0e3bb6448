"""The samples of a unit in batches of the measured size, read as a stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raysense.batching import BatchSizer, in_batches
from raysense.loading import SampleLoader, Samples
from raysense.scans.base import Unit

Work = Callable[[list[int], np.ndarray], None]
"""Measures images [n, C, H, W], uint8 or float32 in [0, 1], of some rows of the listing; keeps nothing when it raises."""


def in_streamed_batches(
    loader: SampleLoader, unit: Unit, upcoming: Unit | None, sizer: BatchSizer, errors: dict[int, str], work: Work
) -> None:
    """Call ``work`` on all readable samples of a unit in order; a batch that exhausts memory is done again in halves.

    Args:
        loader: Reads the samples.
        unit: Their unit.
        upcoming: The unit that comes next, if known, so that its samples can be read meanwhile.
        sizer: Gives the size of each batch.
        errors: Takes the messages of the samples that cannot be read, by row.
        work: What is done with a batch.
    """
    following = None if upcoming is None else (upcoming.start, upcoming.stop)
    pending: list[Samples] = []
    waiting = 0
    for chunk in loader.stream(unit.start, unit.stop, following):
        errors.update(chunk.errors)
        pending.append(chunk)
        waiting += len(chunk.rows)
        # Whole batches only, so that decoded images never pile up beyond a batch and a chunk.
        if waiting >= sizer.size:
            rest = _worked(pending, waiting - waiting % sizer.size, sizer, work)
            pending, waiting = [rest], len(rest.rows)
    _worked(pending, waiting, sizer, work)


def _worked(pending: list[Samples], count: int, sizer: BatchSizer, work: Work) -> Samples:
    """Work on the first ``count`` pending samples; returns the others."""
    full = [chunk for chunk in pending if chunk.rows]
    if not full:
        return Samples([], np.zeros((0,), np.uint8), {})
    images = np.concatenate([chunk.images for chunk in full])
    rows = [row for chunk in full for row in chunk.rows]
    in_batches(count, sizer, lambda start, stop: work(rows[start:stop], images[start:stop]))
    return Samples(rows[count:], images[count:], {})
