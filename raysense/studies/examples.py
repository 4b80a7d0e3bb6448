"""Labelled images as a network is trained on them: decoded, in batches, in an order that can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from raysense.datasets import open_data
from raysense.engine.runtime import local_cpus
from raysense.errors import SampleError, UsageError
from raysense.loading import SampleDecoder, as_float
from raysense.preprocessing import Preprocessing
from raysense.training import Batches

_PROBED = 16
_MOST_LOADERS = 16


class Examples(Dataset[tuple[Tensor, int] | None]):
    """Decoded images with their labels; None where an image cannot be read."""

    def __init__(self, decoder: SampleDecoder, labels: list[int]) -> None:
        self.decoder = decoder
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int] | None:
        try:
            return self.decoder.decode(row), self.labels[row]
        except SampleError:
            return None  # counted by `Feed`, and a row with an error in the scan that follows

    @property
    def in_memory(self) -> bool:
        """Whether reading an image is cheap."""
        return self.decoder.reader.in_memory

    def with_shuffled_labels(self, seed: int) -> Examples:
        """The same images with their labels permuted over all of them, so that every class stays as frequent as it is."""
        draw = np.random.RandomState(seed)  # its stream is frozen by NumPy, unlike Generator's
        return Examples(self.decoder, [self.labels[row] for row in draw.permutation(len(self.labels))])


def open_examples(data: str, splits: Sequence[str], geometry: Preprocessing | None) -> tuple[Examples, str]:
    """Open splits of a data set; returns a fingerprint too. Images of another size than the first are unreadable.

    Args:
        data: Data reference.
        splits: Its splits.
        geometry: Resize and crop where the data reference says none.

    Raises:
        UsageError: the data cannot be opened, or none of the first images can be read.
    """
    source = open_data(data, splits)
    listing = source.list()
    decoder = SampleDecoder(source.reader(listing.table), source.preprocessing or geometry, None)
    examples = Examples(decoder, listing.table["label"].to_pylist())
    first = next((item for item in map(examples.__getitem__, range(min(_PROBED, len(examples)))) if item), None)
    if first is None:
        raise UsageError(f"data {data!r}: none of the first {_PROBED} samples can be read; check the files")
    examples.decoder = replace(decoder, shape=tuple(first[0].shape))
    applied = decoder.preprocessing
    seen = listing.fingerprint if applied is None else f"{listing.fingerprint} {applied.as_dict()}"
    return examples, hashlib.sha256(seen.encode()).hexdigest()


class Feed:
    """Batches of examples on a device; counts what could not be read.

    With a seed, in an order that is a function of the seed and of ``epoch`` alone, without the last, smaller batch; else
    all examples in their own order.
    """

    def __init__(self, examples: Examples, batch_size: int, device: str, seed: int | None = None) -> None:
        loaders = 0 if examples.in_memory else min(_MOST_LOADERS, local_cpus())
        self._order = None if seed is None else _Order(len(examples), seed)
        # One image left over would be a batch without variance for batch normalisation.
        self._loader = DataLoader(
            examples,
            batch_size=batch_size,
            sampler=self._order,
            generator=torch.Generator(),  # else the loader would draw from the global one, which layers draw from
            drop_last=self._order is not None and len(examples) > batch_size,
            num_workers=loaders,
            # Forking a process with threads and an open device is unsafe.
            multiprocessing_context="forkserver" if loaders else None,
            persistent_workers=loaders > 0,
            collate_fn=_collate,
        )
        self._device = device
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __call__(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, counted from 0."""
        self.unreadable = 0
        if self._order is not None:
            self._order.epoch = epoch
        for images, labels, unreadable in self._loader:
            self.unreadable += unreadable
            if len(labels):
                yield as_float(images, self._device), labels.to(self._device)


class _Order(Sampler[int]):
    """All rows in the order of an epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self.epoch))
        return iter(torch.randperm(self._rows, generator=generator).tolist())


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a seed of its own for every epoch of every seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8], "little") >> 1


def _collate(items: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor, int]:
    """Stack what could be read; the last number is how many items could not."""
    read = [item for item in items if item is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.zeros(0)
    return images, torch.tensor([label for _, label in read], dtype=torch.int64), len(items) - len(read)


def accuracy(module: nn.Module, batches: Batches) -> float:
    """Return the fraction of samples whose label has the largest logit; NaN without samples."""
    right, seen = 0, 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((module(images).argmax(1) == labels).sum())
            seen += len(labels)
    return right / seen if seen else float("nan")
