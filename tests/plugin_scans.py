"""A scan of our own kind for the engine's tests: squares of numbers, with units that misbehave on demand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from raysense.errors import UsageError
from raysense.options import ComputeOptions
from raysense.scans import Computer, Prepared, Scan, ScanSpec, Unit
from raysense.scans.tables import UNITS


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class NumbersSpec(ScanSpec):
    items: int = 40
    unit_size: int = 4
    seconds: float = 0.0
    raising: tuple[int, ...] = ()
    raising_once: tuple[int, ...] = ()
    killing: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    hanging_once: tuple[int, ...] = ()
    marks: str = ""
    opens: bool = True
    bad_opens: int = 0
    unprintable: tuple[int, ...] = ()


class NumbersScan(Scan):
    kind = f"{Path(__file__).resolve()}:NumbersScan"
    spec_type = NumbersSpec
    summary = "squares"
    spec: NumbersSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        return {"squares": pa.schema([("number", pa.int64()), ("square", pa.int64())]), "units": UNITS}

    def prepare(self, options: ComputeOptions) -> Prepared:
        listing = pa.table({"number": pa.array(range(self.spec.items), pa.int64())})
        return Prepared(listing, {"fingerprints": self.fingerprints(options)}, self.spec.unit_size)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        return {"model": "none", "data": str(self.spec.items)}

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        if not self.spec.opens:
            raise UsageError("this scan cannot be opened here")
        if self.spec.bad_opens:
            mark = Path(self.spec.marks) / f"open.{os.getpid()}"
            mark.touch()
            if len(list(Path(self.spec.marks).glob("open.*"))) <= self.spec.bad_opens:
                raise UsageError("this worker is a bad one")
            time.sleep(2)
        return NumbersComputer(self.spec, prepared)


class NumbersComputer(Computer):
    batch_size = 1

    def __init__(self, spec: NumbersSpec, prepared: Prepared) -> None:
        self.device = f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}"
        self._spec = spec
        self._numbers = prepared.listing["number"]

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        spec = self._spec
        number = unit.start // spec.unit_size
        if spec.marks:
            (Path(spec.marks) / f"{unit.id}.{time.time_ns()}").touch()
        if number in spec.raising:
            raise ValueError(f"unit {number} always fails")
        if number in spec.raising_once and spec.marks and len(list(Path(spec.marks).glob(f"{unit.id}.*"))) == 1:
            raise ValueError(f"unit {number} fails once")
        if number in spec.unprintable:
            raise UnprintableError
        if number in spec.killing:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in spec.hanging or (
            number in spec.hanging_once and len(list(Path(spec.marks).glob(f"{unit.id}.*"))) == 1
        ):
            time.sleep(1000)
        time.sleep(spec.seconds)
        values = [self._numbers[row].as_py() for row in range(unit.start, unit.stop)]
        return {
            "squares": pa.table(
                {"number": values, "square": [value * value for value in values]},
                schema=NumbersScan.schemas()["squares"],
            )
        }
