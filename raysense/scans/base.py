"""What a scan is to the rest of raysense: tables, units, and a computer that turns a unit into rows.

A scan knows nothing of Ray, files or retries, so it also runs in one process, in a test or a notebook.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from raysense.passes import METER

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class ScanSpec(BaseModel):
    """What to scan: everything that determines the numbers. One subclass per scan; readable from TOML, hashable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Unit:
    """A piece of work that is computed and committed as a whole: rows ``start`` to ``stop`` (exclusive) of the listing.

    ``id`` is a deterministic function of the spec and the data, and a plain file name.
    """

    id: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many items (samples, initial points, ...) the unit holds."""
        return self.stop - self.start


@dataclass(frozen=True)
class Prepared:
    """What the driver finds out once, before any unit is computed; goes into scan.json except for the listing.

    Attributes:
        listing: What the units range over, one row an item.
        facts: JSON-serialisable facts: model, data, preprocessing, classes, fingerprints under ``"fingerprints"``.
        unit_size: Items per unit.
        notes: Sentences the user should read before the scan runs.
    """

    listing: pa.Table
    facts: dict[str, Any]
    unit_size: int
    notes: tuple[str, ...] = ()


class Computer(ABC):
    """A scan opened in one process: the model on its device, and whatever else a unit needs."""

    device: str
    batch_size: int

    @property
    def passes(self) -> int:
        """Images that have gone forward or backward through networks so far, in this process."""
        return METER.images

    @abstractmethod
    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """Rows of every table of the scan for one unit.

        Args:
            unit: The unit to compute.
            upcoming: The unit that comes next, if known, so that its data can be read meanwhile.
        """

    def close(self) -> None:  # noqa: B027 - nothing to release unless a scan says so
        """Release what the computer holds (loader processes)."""


class Scan(ABC):
    """One kind of scan, bound to a spec."""

    kind: ClassVar[str]
    spec_type: ClassVar[type[ScanSpec]]
    summary: ClassVar[str]
    noun: ClassVar[str] = "samples"
    """What the rows of the listing are, in words."""

    def __init__(self, spec: ScanSpec) -> None:
        self.spec = spec

    @classmethod
    @abstractmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Arrow schema of every table of the kind, documentation and unit of each column in the field metadata."""

    def tables(self) -> Mapping[str, pa.Schema]:
        """The tables that this scan writes: all of the kind, unless its spec says otherwise."""
        return self.schemas()

    @abstractmethod
    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data, open the model once, check all input.

        Raises:
            UsageError: the model, the data or their combination cannot be scanned.
        """

    @abstractmethod
    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of the model and the data as they are now, to compare with those in scan.json."""

    @abstractmethod
    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The scan opened on this process's device."""

    def units(self, prepared: Prepared) -> Sequence[Unit]:
        """Every unit, in a deterministic order: runs of ``unit_size`` rows of the listing."""
        total = prepared.listing.num_rows
        return [
            Unit(
                f"{start:010d}-{min(start + prepared.unit_size, total):010d}",
                start,
                min(start + prepared.unit_size, total),
            )
            for start in range(0, total, prepared.unit_size)
        ]
