"""What is committed in a scan directory at one moment, wherever its rows are by now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysense.errors import RaysenseError
from raysense.store.files import Directory
from raysense.store.manifests import Manifest
from raysense.store.naming import table_file

_BATCHES_AT_ONCE = 8


@dataclass(frozen=True)
class Commit:
    """The commit of a unit that counts: its token, empty in a store of format 1, and when it was published (UTC)."""

    token: str
    time: datetime | None


@dataclass(frozen=True)
class Piece:
    """Rows of one file, of one unit or of several that follow each other.

    Attributes:
        file: Path, relative to the scan directory.
        units: The units; empty where nobody asks of which the rows are.
        rows: Rows of each; None where all rows of the file or of the batches are meant.
        batches: First and last (exclusive) record batch that hold them; None where all the file is of one unit.
        skip: Rows of the first batch that belong to units before them.
    """

    file: str
    units: Sequence[str]
    rows: np.ndarray | None = None
    batches: tuple[int, int] | None = None
    skip: int = 0


class Snapshot:
    """The units that were committed when it was taken: those of the latest manifest, and those committed since.

    Immutable. Its files stay for the grace of a compaction after a later one has superseded them.

    Args:
        directory: The scan directory.
        manifest: The latest manifest.
        loose: Commits of the units that are not in it.
    """

    def __init__(self, directory: Directory, manifest: Manifest, loose: Mapping[str, Commit]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.loose = loose

    def __len__(self) -> int:
        return len(self.manifest) + len(self.loose)

    def __contains__(self, unit: str) -> bool:
        return unit in self.loose or unit in self.manifest

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __eq__(self, other: object) -> bool:
        """Whether another one has the same units in the same files."""
        if not isinstance(other, Snapshot):
            return NotImplemented
        same = self.directory.location == other.directory.location and self.manifest.name == other.manifest.name
        return same and self.loose == other.loose

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def units(self) -> list[str]:
        """Ids of the units, sorted."""
        compacted: list[str] = self.manifest.units.to_pylist()
        return sorted([*compacted, *self.loose]) if self.loose else compacted

    def times(self) -> dict[str, datetime | None]:
        """When each unit was committed (UTC), sorted by unit; None where the file system does not tell."""
        # By way of numpy: a million times take pyarrow itself seconds.
        moments: list[datetime | None] = self.manifest.table["committed"].to_numpy().astype("M8[us]").tolist()
        utc = [None if moment is None else moment.replace(tzinfo=UTC) for moment in moments]
        times = dict(zip(self.manifest.units.to_pylist(), utc, strict=True))
        times.update((unit, commit.time) for unit, commit in self.loose.items())
        return {unit: times[unit] for unit in self.units} if self.loose else times

    def latest_times(self, since: datetime, most: int) -> list[datetime]:
        """Times of the latest commits after a moment, sorted, at most so many."""
        times = self.manifest.table["committed"]
        later = times.filter(pc.greater(times, pa.scalar(since, times.type)))
        # As in `times`, and only as many as are wanted.
        latest = np.sort(later.to_numpy().astype("M8[us]"))[-most:]
        found = [moment.replace(tzinfo=UTC) for moment in latest.tolist()]
        found += [commit.time for commit in self.loose.values() if commit.time is not None and commit.time > since]
        return sorted(found)[-most:]

    def files(self, table: str) -> list[str]:
        """Files of a table, relative to the directory: parts, then those of single units."""
        parts = [part.name.file(table) for part in self.manifest.parts if part.batches.get(table)]
        return parts + [table_file(table, unit, commit.token) for unit, commit in self.loose.items()]

    def pieces(self, table: str) -> list[Piece]:
        """All rows of a table, file by file."""
        found = [
            Piece(part.name.file(table), (), batches=(start, min(start + _BATCHES_AT_ONCE, len(rows))))
            for part in self.manifest.parts
            for rows in [part.batches.get(table, ())]
            for start in range(0, len(rows), _BATCHES_AT_ONCE)
        ]
        return found + [Piece(table_file(table, unit, commit.token), (unit,)) for unit, commit in self.loose.items()]

    def paths(self, table: str) -> list[str]:
        """Paths of the files of a table, on the directory's filesystem."""
        return [self.directory.path(file) for file in self.files(table)]

    def select(self, units: Sequence[str] | None = None) -> Selection:
        """Some units in the given order, or all of them, sorted.

        Raises:
            RaysenseError: one is not committed.
        """
        wanted = self.units if units is None else list(units)
        places = self.manifest.places(wanted)
        for index in np.flatnonzero(places < 0):
            if wanted[index] not in self.loose:
                raise RaysenseError(f"{self.directory.location} has no committed unit {wanted[index]!r}")
        return Selection(self, wanted, places)


@dataclass(frozen=True, eq=False)
class Selection:
    """Units of a snapshot, in an order.

    Attributes:
        snapshot: The snapshot.
        units: Their ids.
        places: Where they are in the snapshot's manifest, -1 for those that are not.
    """

    snapshot: Snapshot
    units: Sequence[str]
    places: np.ndarray

    def part(self, start: int, stop: int) -> Selection:
        """The units from ``start`` to ``stop`` (exclusive)."""
        return Selection(self.snapshot, self.units[start:stop], self.places[start:stop])

    def rows(self, table: str) -> np.ndarray:
        """Rows of each unit in a table, -1 where only its file knows."""
        if not len(self.snapshot.manifest):
            return np.full(len(self.units), -1)
        return np.where(self.places < 0, -1, self._of_manifest(table)[0][self.places])

    def pieces(self, table: str) -> list[Piece]:
        """What must be read of a table, in the order of the units.

        Raises:
            RaysenseError: the manifest does not know the table.
        """
        manifest, loose = self.snapshot.manifest, self.places < 0
        if not len(manifest):
            return [self._loose_piece(table, index) for index in range(len(self.units))]
        all_rows, all_offsets = self._of_manifest(table)
        part = np.where(loose, -1, manifest.part_of[self.places])
        rows, offsets = all_rows[self.places], all_offsets[self.places]
        bounds = {index: _bounds(manifest, index, table) for index in np.unique(part) if index >= 0}
        group = np.zeros(len(part), np.int64)
        for index, ends in bounds.items():
            here = part == index
            group[here] = (np.searchsorted(ends, offsets[here], "right") - 1) // _BATCHES_AT_ONCE
        cut = np.ones(len(part) + 1, bool)
        cut[1:-1] = (
            loose[1:] | (part[1:] != part[:-1]) | (group[1:] != group[:-1]) | (offsets[1:] != offsets[:-1] + rows[:-1])
        )
        pieces = []
        for start, stop in pairwise(np.flatnonzero(cut).tolist()):
            if loose[start]:
                pieces.append(self._loose_piece(table, start))
                continue
            first, last = int(offsets[start]), int(offsets[stop - 1] + rows[stop - 1])
            if first < last:
                ends = bounds[part[start]]
                batch = int(np.searchsorted(ends, first, "right")) - 1
                pieces.append(
                    Piece(
                        manifest.parts[part[start]].name.file(table),
                        self.units[start:stop],
                        rows[start:stop],
                        (batch, int(np.searchsorted(ends, last, "left"))),
                        first - int(ends[batch]),
                    )
                )
        return pieces

    def _of_manifest(self, table: str) -> tuple[np.ndarray, np.ndarray]:
        manifest = self.snapshot.manifest
        if table not in manifest.tables:
            raise RaysenseError(f"{self.snapshot.directory.location} was compacted without its table {table!r}")
        return manifest.rows(table), manifest.offsets(table)

    def _loose_piece(self, table: str, index: int) -> Piece:
        unit = self.units[index]
        return Piece(table_file(table, unit, self.snapshot.loose[unit].token), (unit,))


def _bounds(manifest: Manifest, part: int, table: str) -> np.ndarray:
    """Row of a part's table at which each record batch begins, and the number of its rows."""
    return np.concatenate(([0], np.cumsum(manifest.parts[part].batches.get(table, ()), dtype=np.int64)))
