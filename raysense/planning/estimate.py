"""What a scan takes on any number of GPUs: units, passes, bytes, files, hours of computing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from raysense.planning.calibration import Calibration, Piece
from raysense.planning.costs import Floats, Interval, Line, fit_line, residuals
from raysense.scans import Unit

_HOUR = 3600.0
_FILES_OF_A_SCAN = 2
"""scan.json and the listing."""


@dataclass(frozen=True)
class Estimate:
    """What a scan takes, whatever the number of GPUs. Hours are of one worker.

    Attributes:
        units: Units of work.
        items: Items (samples, ...) in them.
        unit_size: Items of a unit at the most.
        passes: Images that go forward or backward through the network; None where the scan does not count them.
        size: Bytes written, the listing included.
        table_sizes: Bytes of each table.
        listing_size: Bytes of the listing.
        files: Files written, which are as many PUT requests on an object store.
        hours: Hours of computing and publishing units.
        computing: Part of it that depends on the items.
        overhead: Part of it that each unit takes besides.
        publishing: Part of it that publishing the files takes.
    """

    units: int
    items: int
    unit_size: int
    passes: Interval | None
    size: Interval
    table_sizes: dict[str, Interval]
    listing_size: int
    files: int
    hours: Interval
    computing: Interval
    overhead: Interval
    publishing: float


@dataclass(frozen=True)
class UnitCosts:
    """What units cost by their size, as measured.

    Attributes:
        seconds: Time to compute one.
        residuals: Measured times relative to that, with mean 1.
        passes: Images through the network.
        tables: Bytes of each table.
        files: Files of a unit.
        publishing: Time to publish them, s.
    """

    seconds: Line
    residuals: Floats
    passes: Line
    tables: dict[str, Line]
    files: int
    publishing: float


def unit_costs(calibration: Calibration, latency: float, seed: int) -> UnitCosts:
    """Fit the pieces of a calibration.

    Args:
        calibration: What was measured.
        latency: Time to publish one file, s; where the calibrated worker took longer on its own disk, that counts.
        seed: Of the resampling.
    """
    pieces = calibration.pieces
    sizes = [piece.items for piece in pieces]
    places = [piece.place for piece in pieces]

    def fitted(cost: Callable[[Piece], float]) -> Line:
        return fit_line(sizes, [cost(piece) for piece in pieces], places, seed, calibration.unit_size)

    def bytes_of(table: str) -> Line:
        return fitted(lambda piece: float(piece.table_bytes.get(table, 0)))

    seconds = fitted(lambda piece: piece.seconds)
    tables = sorted({table for piece in pieces for table in piece.table_bytes})
    files = max(piece.files for piece in pieces)
    measured = sum(piece.publishing for piece in pieces) / len(pieces)
    return UnitCosts(
        seconds,
        residuals(seconds, sizes, [piece.seconds for piece in pieces]),
        fitted(lambda piece: float(piece.passes)),
        {table: bytes_of(table) for table in tables},
        files,
        max(files * latency, measured),
    )


def estimated(costs: UnitCosts, units: Sequence[Unit], unit_size: int, listing: pa.Table) -> Estimate:
    """The costs of all the units of a scan."""
    count, items = len(units), sum(unit.size for unit in units)
    tables = {name: line.total(count, items) for name, line in costs.tables.items()}
    listed = int(listing.nbytes)
    value, low, high = (
        listed + sum(getattr(size, end) for size in tables.values()) for end in ("value", "low", "high")
    )
    publishing = count * costs.publishing / _HOUR
    seconds = costs.seconds.total(count, items).scaled(1 / _HOUR)
    passes = costs.passes.total(count, items)
    return Estimate(
        count,
        items,
        unit_size,
        passes if passes.value else None,
        Interval(value, low, high),
        tables,
        listed,
        count * costs.files + _FILES_OF_A_SCAN,
        Interval(seconds.value + publishing, seconds.low + publishing, seconds.high + publishing),
        costs.seconds.total(0, items).scaled(1 / _HOUR),
        costs.seconds.total(count, 0).scaled(1 / _HOUR),
        publishing,
    )
