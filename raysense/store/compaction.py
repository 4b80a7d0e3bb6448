"""Compaction: the many small files of committed units gathered into few large parts.

Every step leaves the directory readable. Parts are written first, under names that nobody has; a manifest that names them
is published; what it supersedes is removed by a later compaction, when readers that opened before have had the time to end.
So a compaction can be killed at any moment, and run while a scan or readers are at work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.errors import RaysenseError, first_line
from raysense.store.cleaning import Cleaned, clean
from raysense.store.lock import DriverLock
from raysense.store.manifests import Manifest, Part, manifest_schema, whole
from raysense.store.naming import ManifestName, PartName, new_token
from raysense.store.parts import PartWriter, publish_part, unswept
from raysense.store.reading import read_pieces, threads_for
from raysense.store.snapshot import Selection, Snapshot
from raysense.store.store import FORMAT_VERSION, SCAN_FILE, Store

Progress = Callable[[int, int], None]
"""Called with how many units have been gathered, and how many there are to gather."""

GRACE_SECONDS = 3600.0
"""How long files stay that a manifest has superseded, for readers that opened before."""

PART_BYTES = 128 * 2**20
_MOST_SMALL = 8
_ROUND_UNITS = 100_000
_CHUNK_UNITS = 1024
_CHUNK_BYTES = 32 * 2**20
_FACTS = ["unit", "token", "committed", "items", "bad_items", "bytes"]
_PART = manifest_schema(()).get_field_index("part")


@dataclass(frozen=True)
class Compaction:
    """What a compaction did.

    Attributes:
        units: Committed units that are in parts now.
        added: Those that were not before.
        files_before: Files of tables and commits that readers had to open or list.
        files_after: The same now, parts and the manifest.
        bytes_before: Bytes of those files.
        bytes_after: The same now, without the manifest.
        removed: Files removed: superseded ones, and what attempts left that lost or died.
        superseded: Files that are superseded and stay for the grace; a later compaction removes them.
    """

    units: int
    added: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    removed: int
    superseded: int


def compact(
    location: str | os.PathLike[str], grace: float = GRACE_SECONDS, progress: Progress | None = None
) -> Compaction:
    """Gather the files of a scan's committed units into parts of some 128 MB, and remove what is no longer read.

    Rows stay in the order of the units; a unit is never divided. Only units that are new are read, and small parts once
    there are many of them. May be run while the scan runs, and while its results are read.

    Args:
        location: Scan directory, local or a URI.
        grace: Seconds that superseded files stay for readers that opened before, by the clock of the file system. Files
            that this very call supersedes stay for a later one, unless the grace is 0 and no driver is at work.
        progress: Called after every few units.

    Raises:
        UsageError: there is no scan, or it is being compacted already.
        RaysenseError: a file cannot be read, or another process took the compaction over.
    """
    store = Store.open(location)
    with DriverLock(store.directory, purpose="compact") as lock:
        upgrade(store)
        compactor = _Compactor(store, lambda: _check_held(lock, store), progress)
        before, after = compactor.run()
        cleaned = clean(store, before.manifest.number + 1, grace, lambda: _check_held(lock, store))
    return _summary(before, after, compactor, cleaned)


def upgrade(store: Store) -> None:
    """A version that knows format 1 alone would find nothing after a compaction, so the format is raised first."""
    document = store.document()
    if document["format"] != FORMAT_VERSION:
        store.directory.write_json(SCAN_FILE, {**document, "format": FORMAT_VERSION})


def _check_held(lock: DriverLock, store: Store) -> None:
    if lock.lost:
        raise RaysenseError(f"another process took the compaction of {store.location} over; run it again")


def _summary(before: Snapshot, after: Snapshot, compactor: _Compactor, cleaned: Cleaned) -> Compaction:
    tables = len(compactor.schemas)

    def files(snapshot: Snapshot) -> int:
        parts = sum(len(part.batches) for part in snapshot.manifest.parts)
        return parts + (snapshot.manifest.name is not None) + len(snapshot.loose) * (tables + 1)

    old, new = (sum(part.size for part in snapshot.manifest.parts) for snapshot in (before, after))
    return Compaction(
        units=len(after.manifest),
        added=len(before.loose),
        files_before=files(before),
        files_after=files(after),
        bytes_before=old + compactor.loose_bytes,
        bytes_after=new,
        removed=cleaned.removed,
        superseded=cleaned.superseded,
    )


class _Compactor:
    """Gathers units round by round; each publishes a manifest, so that little is lost when it is killed."""

    def __init__(self, store: Store, check: Callable[[], None], progress: Progress | None) -> None:
        self.schemas = dict(store.schemas())
        self.loose_bytes = 0
        self._store = store
        self._directory = store.directory
        self._check = check
        self._progress = progress
        self._done = self._total = 0

    def run(self) -> tuple[Snapshot, Snapshot]:
        """The snapshots before and after."""
        before = snapshot = self._store.snapshot()
        self._total = len(before.loose)
        with ThreadPoolExecutor(threads_for(self._directory), "raysense-compact") as pool:
            while True:
                small = [number for number, part in enumerate(snapshot.manifest.parts) if 2 * part.size < PART_BYTES]
                # What one round wrote stays as it is: rows that compress well make parts that are small and full.
                rounds = {snapshot.manifest.parts[number].name.number for number in small}
                merged = small if len(rounds) > _MOST_SMALL else []
                new = sorted(snapshot.loose)[:_ROUND_UNITS]
                if not new and not merged:
                    return before, snapshot
                try:
                    snapshot = self._round(snapshot, new, merged, pool)
                except (pa.ArrowException, OSError) as error:
                    raise RaysenseError(
                        f"{self._store.location} cannot be compacted ({first_line(error)}); nothing of it was removed"
                    ) from error

    def _round(self, snapshot: Snapshot, new: list[str], merged: list[int], pool: ThreadPoolExecutor) -> Snapshot:
        """Write the new units, and those of the parts that are merged, into parts; publish the manifest."""
        old = snapshot.manifest
        schema = manifest_schema(list(self.schemas))
        known = old.table.select(schema.names) if len(old) else schema.empty_table()
        moved = np.isin(old.part_of, merged)
        facts = pa.concat_tables([known.filter(pa.array(moved)).select(_FACTS), self._facts(snapshot, new)])
        facts = facts.sort_by("unit")
        self._total += int(moved.sum())
        name = ManifestName(old.number + 1, new_token())
        selection = snapshot.select(facts["unit"].to_pylist())
        parts, part_of, rows = self._write_parts(name, selection, facts["bytes"].to_pylist(), pool)

        kept = [number for number in range(len(old.parts)) if number not in set(merged)]
        renumbered = np.full(len(old.parts), -1)
        renumbered[kept] = np.arange(len(kept))
        staying = known.set_column(_PART, schema.field(_PART), pa.array(renumbered[old.part_of], pa.int32()))
        arrived = facts.append_column("part", pa.array(part_of + len(kept), pa.int32()))
        for table, counts in rows.items():
            arrived = arrived.append_column(f"rows:{table}", pa.array(counts, pa.int64()))
        both = pa.concat_tables([staying.filter(pa.array(~moved)), arrived.select(schema.names)])
        manifest = Manifest(name, (*(old.parts[number] for number in kept), *parts), both.sort_by("unit"))
        self._check()
        unswept(lambda: manifest.write(self._directory))
        taken = set(new)
        return Snapshot(
            self._directory, manifest, {unit: commit for unit, commit in snapshot.loose.items() if unit not in taken}
        )

    def _facts(self, snapshot: Snapshot, units: list[str]) -> pa.Table:
        """What the commits of some units say of them."""
        commits = {unit: snapshot.loose[unit] for unit in units}
        records = self._store.records(commits)
        columns: dict[str, list[Any]] = {
            "unit": units,
            "token": [commit.token for commit in commits.values()],
            "committed": [commit.time for commit in commits.values()],
            "items": [_count(record, "items") for record in records],
            "bad_items": [_count(record, "bad_items") for record in records],
            "bytes": [_count(record, "bytes") or 0 for record in records],
        }
        self.loose_bytes += sum(columns["bytes"])
        return pa.table(columns, schema=pa.schema([manifest_schema(()).field(name) for name in _FACTS]))

    def _write_parts(
        self, name: ManifestName, selection: Selection, sizes: list[int], pool: ThreadPoolExecutor
    ) -> tuple[list[Part], np.ndarray, dict[str, np.ndarray]]:
        """Write the rows of the units; the parts, and for each unit its part and its rows by table."""
        rows = {table: selection.rows(table) for table in self.schemas}
        part_of = np.zeros(len(selection.units), np.int64)
        publishing: list[Future[Part]] = []
        writer = PartWriter(self.schemas)
        with ThreadPoolExecutor(1, "raysense-publish") as publisher:
            for start, stop in _chunks(sizes):
                self._read(selection.part(start, stop), start, writer, rows, pool)
                part_of[start:stop] = len(publishing)
                if writer.size >= PART_BYTES or stop == len(sizes):
                    if publishing:
                        publishing[-1].result()  # at most one part waits to be written while the next is made
                    part = PartName(name.number, len(publishing), name.token)
                    publishing.append(publisher.submit(publish_part, self._directory, part, writer.finish()))
                    writer = PartWriter(self.schemas)
                self._done += stop - start
                if self._progress is not None:
                    self._progress(self._done, self._total)
            return [future.result() for future in publishing], part_of, rows

    def _read(
        self, chunk: Selection, start: int, writer: PartWriter, rows: dict[str, np.ndarray], pool: ThreadPoolExecutor
    ) -> None:
        """Read the rows of a few units; how many each has goes into ``rows``, from ``start`` on."""
        index = {unit: start + place for place, unit in enumerate(chunk.units)}
        for table, schema in self.schemas.items():
            for piece, found in read_pieces(self._directory, chunk.pieces(table), schema, pool=pool):
                writer.add(table, found)
                if piece.rows is None:
                    rows[table][index[piece.units[0]]] = found.num_rows


def _chunks(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of units that are read together: a part ends only between them."""
    start = size = 0
    for stop, own in enumerate(sizes, start=1):
        size += own
        if stop - start == _CHUNK_UNITS or size >= _CHUNK_BYTES or stop == len(sizes):
            yield start, stop
            start, size = stop, 0


def _count(record: Mapping[str, Any], key: str) -> int | None:
    try:
        return whole(record.get(key))
    except ValueError:
        return None
