"""Where in a listing a calibration takes its pieces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from raysense.scans import Prepared, Scan, Unit

_KIND_COLUMNS = ("task", "map")
"""Columns of a listing that say what kind of work its items are, where they are of several kinds."""


class Pieces:
    """Pieces of a listing, which are the units that a scan would have, were they of another size.

    Args:
        scan: The scan.
        prepared: Its listing.
    """

    def __init__(self, scan: Scan, prepared: Prepared) -> None:
        self._scan = scan
        self._prepared = prepared
        listing = prepared.listing
        columns = [listing[name].to_pylist() for name in _KIND_COLUMNS if name in listing.column_names]
        self._kinds = [str(values) for values in zip(*columns, strict=True)]
        self._known: dict[int, tuple[Sequence[Unit], Sequence[Unit]]] = {}

    def at(self, size: int, part: float) -> Unit:
        """A piece at a part, from 0 to 1, of the listing; of one ordered by kinds of work, so that each gets its share."""
        _, by_kind = self._of(size)
        return by_kind[min(int(part * len(by_kind)), len(by_kind) - 1)]

    def beside(self, unit: Unit, size: int) -> Unit:
        """A piece after another one; before it, or of it, where there is none."""
        units, _ = self._of(size)
        after = bisect_left([each.start for each in units], unit.stop)
        if after < len(units):
            return units[after]
        return units[max(0, bisect_left([each.stop for each in units], unit.start + 1) - 1)]

    def _of(self, size: int) -> tuple[Sequence[Unit], Sequence[Unit]]:
        """All pieces of a size: in the listing's order, and by the kind of work of their first item."""
        if size not in self._known:
            units = self._scan.units(replace(self._prepared, unit_size=size))
            by_kind = sorted(units, key=lambda unit: self._kinds[unit.start]) if self._kinds else units
            self._known[size] = units, by_kind
        return self._known[size]


def scattered(count: int) -> list[int]:
    """The numbers below ``count`` in an order of which every beginning is spread evenly."""
    digits = max(1, (count - 1).bit_length())
    turned = (int(f"{number:0{digits}b}"[::-1], 2) for number in range(2**digits))
    return [number for number in turned if number < count]
