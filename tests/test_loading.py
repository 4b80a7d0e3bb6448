"""Reading samples beside the computation: order, bad samples, dying loaders, bounded look-ahead."""

from __future__ import annotations

import os
import resource
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from raysense.batching import BatchSizer, in_batches, memory_gauge, out_of_memory
from raysense.errors import SampleError
from raysense.loading import CHUNK, SampleDecoder, SampleLoader, as_float
from raysense.preprocessing import Preprocessing


@dataclass(frozen=True)
class Reader:
    """Images of one value, their row; some rows misbehave."""

    bad: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    wide: tuple[int, ...] = ()
    marks: str = ""
    in_memory: bool = False
    floating: bool = False
    table: pa.Table = field(default_factory=lambda: pa.table({"row": range(2000)}))

    def over(self, table: pa.Table) -> Reader:
        return replace(self, table=table)

    def read(self, row: int) -> torch.Tensor:
        row = self.table["row"][row].as_py()
        if self.marks:
            (Path(self.marks) / str(row)).touch()
        if row in self.bad:
            raise SampleError(f"row {row} is corrupt")
        if row in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        width = 6 if row in self.wide else 4
        if self.floating:
            return torch.full((1, 4, width), row / 10)
        return torch.full((1, 4, width), row % 256, dtype=torch.uint8)


def decoder(**reader: object) -> SampleDecoder:
    return SampleDecoder(Reader(**reader), None, (1, 4, 4))  # type: ignore[arg-type]


def collect(loader: SampleLoader, start: int, stop: int, upcoming: tuple[int, int] | None = None) -> dict[int, object]:
    found: dict[int, object] = {}
    for samples in loader.stream(start, stop, upcoming):
        assert len(samples.images) == len(samples.rows)
        for row, image in zip(samples.rows, samples.images, strict=True):
            found[row] = int(image[0, 0, 0])
        found.update(samples.errors)
    assert sorted(found) == list(range(start, stop))
    return found


@pytest.fixture(params=[0, 2], ids=["inline", "processes"])
def loaders(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_samples_arrive_in_order_with_their_errors(loaders: int) -> None:
    loader = SampleLoader(decoder(bad=(3, 40), wide=(17,)), loaders)
    rows = [row for samples in loader.stream(0, 50) for row in samples.rows]
    assert rows == [row for row in range(50) if row not in (3, 40, 17)]
    found = collect(loader, 0, 50)
    assert found[3] == "row 3 is corrupt"
    assert "1 x 4 x 6" in str(found[17])
    assert "resize=" in str(found[17])
    assert found[49] == 49
    loader.close()


def test_units_follow_each_other_whatever_was_announced() -> None:
    loader = SampleLoader(decoder(), 2)
    for start, stop, upcoming in (
        (0, 40, (40, 80)),
        (40, 80, (200, 240)),
        (80, 100, None),
        (0, 8, (8, 9)),
        (8, 9, None),
    ):
        assert collect(loader, start, stop, upcoming) == {row: row for row in range(start, stop)}
    loader.close()


def test_the_next_unit_is_read_ahead_within_bounds(tmp_path: Path) -> None:
    loader = SampleLoader(decoder(marks=str(tmp_path)), 1)
    for _ in loader.stream(0, 2 * CHUNK, (2 * CHUNK, 100 * CHUNK)):
        pass
    deadline = time.monotonic() + 20
    while not (tmp_path / str(3 * CHUNK)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) <= 6 * CHUNK
    loader.close()


def test_a_sample_that_kills_its_loader_is_found_and_its_neighbours_are_read() -> None:
    loader = SampleLoader(decoder(deadly=(20,)), 2)
    found = collect(loader, 0, 64)
    assert "killed the loader" in str(found[20])
    assert all(found[row] == row for row in range(64) if row != 20)
    loader.close()


def test_loaders_end_with_their_process() -> None:
    context = torch.multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    parent = context.Process(target=_hold_loaders, args=(sender,))
    parent.start()
    pids = receiver.recv()
    assert pids
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert alive == []


def _hold_loaders(sender) -> None:  # type: ignore[no-untyped-def]
    loader = SampleLoader(decoder(), 2)
    collect(loader, 0, 64)
    sender.send([child.pid for child in psutil.Process().children(recursive=True)])
    time.sleep(60)


def test_floats_must_be_in_range() -> None:
    found = collect(SampleLoader(decoder(floating=True)), 0, 12)
    assert found[10] == 1
    assert "0 to 1.1" in str(found[11]) or "1.1 to 1.1" in str(found[11])


def test_preprocessing_is_applied_and_bytes_become_floats() -> None:
    reader = Reader()
    image = SampleDecoder(reader, Preprocessing(2, (2, 2)), (1, 2, 2)).decode(51)  # type: ignore[arg-type]
    assert image.shape == (1, 2, 2)
    assert image.dtype == torch.uint8
    assert as_float(np.asarray(image)[None], "cpu").unique().tolist() == [pytest.approx(0.2)]


class TestBatches:
    def test_auto_grows_while_it_pays_and_then_stays(self) -> None:
        sizer = BatchSizer("auto")
        sizes = []
        for _ in range(12):
            sizes.append(sizer.size)
            sizer.record(sizer.size, max(1.0, sizer.size / 64))
            sizer.record(sizer.size - 1, 100.0)  # ragged ends say nothing
        assert sizes[0] == 8
        assert max(sizes) == 128
        assert set(sizes[-3:]) == {64}

    def test_auto_does_not_grow_past_half_the_memory(self) -> None:
        sizer = BatchSizer("auto", lambda: sizer.size / 100)
        for _ in range(12):
            sizer.record(sizer.size, 1.0)
        assert sizer.size == 64

    def test_the_gauge_sees_what_a_batch_takes(self) -> None:
        gauge = memory_gauge("cpu", None)
        before = gauge()
        peak, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, []
        while psutil.Process().memory_info().rss < peak + 2**26:  # beyond what earlier tests have taken
            taken.append(np.ones(2**23))
        assert gauge() > before
        assert memory_gauge("cpu", 1)() <= gauge()

    def test_memory_that_runs_out_halves_the_batch_and_every_item_is_computed_once(self) -> None:
        sizer, done = BatchSizer(64), list[int]()

        def work(start: int, stop: int) -> None:
            if stop - start > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            done.extend(range(start, stop))

        in_batches(100, sizer, work)
        assert done == list(range(100))
        assert sizer.size == 8

    def test_one_item_that_does_not_fit_raises(self) -> None:
        def work(start: int, stop: int) -> None:
            raise MemoryError

        with pytest.raises(MemoryError):
            in_batches(4, BatchSizer(4), work)

    def test_other_errors_are_not_swallowed(self) -> None:
        def work(start: int, stop: int) -> None:
            raise RuntimeError("shapes differ")

        with pytest.raises(RuntimeError, match="shapes differ"):
            in_batches(4, BatchSizer(4), work)

    def test_what_counts_as_memory(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**50)
        assert out_of_memory(caught.value)
        assert not out_of_memory(RuntimeError("no"))
