"""Scans whose items are random draws from the samples, such as pairs and groups: their units, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from raysense.batching import BatchSizer, in_batches
from raysense.errors import SampleError
from raysense.loading import as_float
from raysense.measures.boundary.classified import UNKNOWN, Runs, predicted_classes
from raysense.scans._sampled import sample_decoder
from raysense.scans.base import Prepared, Unit
from raysense.scans.sampled import SampledSpec

_UNITS_WANTED = 64
_DIGITS = 4

FIRST_FORWARD = 64
"""Images that batches without a graph begin with, which take little memory."""


@dataclass(frozen=True)
class Draw:
    """One item: number ``number``, from 0, of those that are called ``name``."""

    name: str
    number: int
    id: str


def units_of_draws(names: Sequence[str], count: int, unit_size: int) -> list[Unit]:
    """Runs of at most ``unit_size`` of the ``count`` items of each name; units hold positions among all of them."""
    digits = _digits(count)
    units = []
    for place, name in enumerate(names):
        for first in range(0, count, unit_size):
            last = min(first + unit_size, count)
            label = f"{name}-{first:0{digits}d}-{last:0{digits}d}"
            units.append(Unit(label, place * count + first, place * count + last))
    return units


def draws_of(unit: Unit, names: Sequence[str], count: int) -> list[Draw]:
    """The items of a unit of :func:`units_of_draws`."""
    digits = _digits(count)
    draws = []
    for position in range(unit.start, unit.stop):
        place, number = divmod(position, count)
        draws.append(Draw(names[place], number, f"{names[place]}-{number:0{digits}d}"))
    return draws


def with_units_of_draws(prepared: Prepared, spec: SampledSpec, total: int, smallest: int, largest: int) -> Prepared:
    """With units of ``smallest`` to ``largest`` of ``total`` items, enough of them to share, unless the spec says."""
    size = max(smallest, min(largest, total // _UNITS_WANTED))
    return replace(prepared, unit_size=spec.unit_size or size)


def runs_of_sizer(sizer: BatchSizer) -> Runs:
    """Batches of the measured size; one that exhausts memory is done again in halves."""
    return lambda items, work: in_batches(items, sizer, work)


class SamplePool:
    """The listed samples, to draw from: their images, and the classes that the model predicts.

    Args:
        spec: Names the data.
        prepared: Holds the listing.
        module: The model, on the device.
        device: The device.
        runs: Runs of images that are classified at once.
    """

    def __init__(self, spec: SampledSpec, prepared: Prepared, module: nn.Module, device: str, runs: Runs) -> None:
        self._decoder = sample_decoder(spec, prepared)
        self._ids = prepared.listing["sample_id"]
        self._labels = prepared.listing["label"].to_numpy()
        self._module, self._device, self._runs = module, device, runs
        self._classes: dict[int, int] = {}
        self._errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, row: int) -> str:
        """The id of a sample."""
        return str(self._ids[row].as_py())

    def names(self, rows: Sequence[int]) -> list[str]:
        """The ids of samples."""
        ids: list[str] = self._ids.take(pa.array(rows, pa.int64())).to_pylist()
        return ids

    def listed_as(self, label: int) -> Tensor:
        """Rows of the samples of a label, int64."""
        return torch.from_numpy(np.flatnonzero(self._labels == label))

    def images(self, rows: Sequence[int]) -> Tensor:
        """Images of readable samples, float32 on the device, [n, C, H, W].

        Raises:
            SampleError: one of them cannot be read.
        """
        return torch.cat([as_float(self._decoder.decode(row)[None], self._device) for row in rows])

    def classes(self, rows: Sequence[int]) -> list[int]:
        """Predicted classes of samples; -1 where one cannot be read or has no finite logits."""
        unknown = [row for row in dict.fromkeys(rows) if row not in self._classes]
        readable: list[int] = []
        decoded: list[Tensor] = []
        for row in unknown:
            try:
                decoded.append(self._decoder.decode(row))
                readable.append(row)
            except SampleError as error:
                self._classes[row], self._errors[row] = UNKNOWN, str(error)
        if readable:
            images = torch.stack(decoded)
            found = predicted_classes(
                self._module,
                len(readable),
                lambda start, stop: as_float(images[start:stop], self._device),
                self._runs,
            )
            self._classes |= dict(zip(readable, found.tolist(), strict=True))
        return [self._classes[row] for row in rows]

    def complaint(self, row: int) -> str:
        """Why a sample has no predicted class."""
        return f"sample {self.name(row)!r}: {self._errors.get(row, 'logits are not finite')}"

    def first_that(
        self, queues: Sequence[Sequence[int]], accepted: Sequence[Callable[[int], bool]], wanted: int
    ) -> list[list[int]]:
        """The first ``wanted`` samples of each queue whose predicted class is accepted; fewer where it has fewer.

        Args:
            queues: Rows, in the order in which they are tried.
            accepted: One for each queue: whether a class will do.
            wanted: How many of each queue.
        """
        found: list[list[int]] = [[] for _ in queues]
        tried = [0] * len(queues)
        while True:
            batch = [
                (index, row)
                for index, queue in enumerate(queues)
                for row in queue[tried[index] : tried[index] + wanted - len(found[index])]
            ]
            if not batch:
                return found
            for (index, row), label in zip(batch, self.classes([row for _, row in batch]), strict=True):
                tried[index] += 1
                if label != UNKNOWN and accepted[index](label):
                    found[index].append(row)


TRIES = 20
"""Samples that are looked at, at the most, for each one that is wanted."""


def shuffled(rows: Tensor, without: int, seed: int, most: int) -> list[int]:
    """At most ``most`` of the rows in random order, without one of them."""
    rows = rows[rows != without]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen: list[int] = rows[order[:most]].tolist()
    return chosen


def any_row(count: int, seed: int) -> int:
    """One of ``count`` rows, all as likely."""
    return int(torch.randint(count, (), generator=torch.Generator().manual_seed(seed)))


def _digits(count: int) -> int:
    return max(_DIGITS, len(str(count)))
