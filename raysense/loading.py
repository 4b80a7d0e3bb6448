"""Reading samples beside the computation: decoder processes with a bounded number of images in flight."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from raysense.errors import SampleError

if TYPE_CHECKING:
    from raysense.datasets import ImageReader
    from raysense.preprocessing import Preprocessing

CHUNK = 16
"""Samples decoded by one call of a loader process."""


@dataclass(frozen=True)
class Samples:
    """Consecutive samples; those that could not be read have an error instead of an image.

    Attributes:
        rows: Row of each image in the listing.
        images: uint8 or float32 [len(rows), C, H, W].
        errors: Row and message of each sample that could not be read.
    """

    rows: list[int]
    images: np.ndarray
    errors: dict[int, str]


@dataclass(frozen=True)
class SampleDecoder:
    """Reads a row of the listing as an image of one fixed shape. Picklable: it goes to the loader processes."""

    reader: ImageReader
    preprocessing: Preprocessing | None
    shape: tuple[int, ...] | None

    def decode(self, row: int) -> torch.Tensor:
        """One image, uint8 or float32 in [0, 1], [C, H, W].

        Raises:
            SampleError: the sample cannot be read, has another shape than the rest, or values outside [0, 1].
        """
        image = self.reader.read(row)
        if self.preprocessing is not None:
            image = self.preprocessing.apply(image)
        if image.dtype != torch.uint8:
            image = image.float()
            low, high = float(image.min()), float(image.max())
            if not (low >= 0 and high <= 1):
                raise SampleError(f"pixel values span {low:g} to {high:g}, not [0, 1]")
        if self.shape is not None and tuple(image.shape) != self.shape:
            raise SampleError(
                f"image is {_shape(image.shape)}, the scan's first is {_shape(self.shape)}; "
                "add resize=... and crop=... to the data reference"
            )
        return image

    def over(self, table: pa.Table) -> SampleDecoder:
        """The same decoder for other rows."""
        return replace(self, reader=self.reader.over(table))

    def decode_rows(self, start: int, stop: int, shift: int = 0) -> Samples:
        """Rows ``start`` to ``stop`` (exclusive), reported as rows ``shift`` further on."""
        rows, images, errors = [], [], {}
        for row in range(start, stop):
            try:
                images.append(self.decode(row).numpy())
                rows.append(row + shift)
            except SampleError as error:
                errors[row + shift] = str(error)
        return Samples(rows, np.stack(images) if images else np.zeros((0, 1, 1, 1), np.uint8), errors)


class SampleLoader:
    """Streams samples in order. With loader processes, decodes ahead: through this unit and into the next one.

    At most ``4 * loaders`` chunks of 16 images are decoded and not yet used.
    """

    def __init__(self, decoder: SampleDecoder, loaders: int = 0) -> None:
        self._decoder = decoder
        self._loaders = 0 if decoder.reader.in_memory else loaders
        self._pool: ProcessPoolExecutor | None = None
        self._ahead: deque[_Chunk] = deque()

    def stream(self, start: int, stop: int, upcoming: tuple[int, int] | None = None) -> Iterator[Samples]:
        """Samples of rows ``start`` to ``stop`` in order, in chunks; then begins to read the ``upcoming`` rows."""
        chunks = _chunks(start, stop)
        if not self._loaders:
            for chunk in chunks:
                yield self._decoder.decode_rows(*chunk)
            return
        ahead = [*chunks, *(_chunks(*upcoming) if upcoming else [])]
        # What is in flight already is the beginning of these rows, unless the caller changed its mind.
        in_flight = [chunk.rows for chunk in self._ahead]
        if in_flight != ahead[: len(in_flight)]:
            self._ahead.clear()
            in_flight = []
        waiting = deque(ahead[len(in_flight) :])
        for chunk in chunks:
            while waiting and len(self._ahead) < 4 * self._loaders:
                self._submit(waiting.popleft())
            first = self._ahead.popleft()
            assert first.rows == chunk
            try:
                yield first.future.result()
            except (BrokenProcessPool, CancelledError):
                if first.pool is self._pool:
                    self.close()
                yield self._decode_one_by_one(*chunk)

    def _submit(self, chunk: tuple[int, int]) -> None:
        pool = self._started_pool()
        try:
            future = self._send(pool, *chunk)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self._ahead.append(_Chunk(chunk, future, pool))

    def _send(self, pool: ProcessPoolExecutor, start: int, stop: int) -> Future[Samples]:
        """Only the rows to decode travel, copied out: a pickled slice would carry the whole listing to every loader."""
        rows = self._decoder.reader.table.take(pa.array(range(start, stop), pa.int64()))
        return pool.submit(_decode_in_process, rows, start)

    def _decode_one_by_one(self, start: int, stop: int) -> Samples:
        """After a loader process died: find the sample that kills it, if one does."""
        parts = []
        for row in range(start, stop):
            try:
                parts.append(self._send(self._started_pool(), row, row + 1).result())
            except BrokenProcessPool:
                self.close()
                parts.append(
                    Samples([], np.zeros((0, 1, 1, 1), np.uint8), {row: "decoding it killed the loader process"})
                )
        images = [part.images for part in parts if part.rows]
        return Samples(
            [row for part in parts for row in part.rows],
            np.concatenate(images) if images else np.zeros((0, 1, 1, 1), np.uint8),
            {row: message for part in parts for row, message in part.errors.items()},
        )

    def _started_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # forkserver: forking a process with threads and an open device is unsafe; the server imports torch once.
            context = multiprocessing.get_context("forkserver")
            empty = self._decoder.over(self._decoder.reader.table.schema.empty_table())
            context.set_forkserver_preload(["raysense.loading"])
            self._pool = ProcessPoolExecutor(self._loaders, context, initializer=_start, initargs=(empty,))
        return self._pool

    def close(self) -> None:
        """End the loader processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


@dataclass(frozen=True)
class _Chunk:
    """Rows being decoded, and the pool that does it."""

    rows: tuple[int, int]
    future: Future[Samples]
    pool: ProcessPoolExecutor


def as_float(images: np.ndarray | torch.Tensor, device: str) -> torch.Tensor:
    """Images as float32 in [0, 1] on a device; uint8 is divided by 255 there, so that bytes travel."""
    tensor = torch.as_tensor(images).to(device, non_blocking=True)
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor


def _chunks(start: int, stop: int) -> list[tuple[int, int]]:
    return [(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]


def _shape(shape: torch.Size | tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


_decoder: SampleDecoder | None = None


def _start(decoder: SampleDecoder) -> None:
    """Set up a loader process: one thread, and an end when its worker's process ends, however that ends."""
    global _decoder
    torch.set_num_threads(1)
    _decoder = decoder
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(0)), daemon=True).start()


def _decode_in_process(rows: pa.Table, shift: int) -> Samples:
    assert _decoder is not None
    return _decoder.over(rows).decode_rows(0, rows.num_rows, shift)
