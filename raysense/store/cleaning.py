"""Removing what no reader needs any more from a scan directory: superseded files, and what dead attempts left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from raysense.store.files import Directory, Entry
from raysense.store.lock import running
from raysense.store.manifests import Manifest, read_manifest, whole
from raysense.store.naming import (
    COMMITS,
    MANIFESTS,
    TABLES,
    ManifestName,
    changed,
    commit_file,
    manifests_in,
    parts_in,
    table_file,
    units_in,
)
from raysense.store.parts import unswept
from raysense.store.reading import for_each, threads_for
from raysense.store.store import Store

LITTER_SECONDS = 600.0
"""How long a table's file without a commit stays at least: the worker that wrote it may have outlived its driver."""

_CLOCK_FILE = f"{MANIFESTS}/clock.json"


@dataclass(frozen=True)
class Cleaned:
    """Files removed, and files that are superseded and stay for the grace."""

    removed: int
    superseded: int


def clean(store: Store, published: int, grace: float, check: Callable[[], None]) -> Cleaned:
    """Remove what a manifest older than the grace has superseded, and files of attempts that died before that.

    Args:
        store: The scan directory, claimed for compaction.
        published: Number of the first manifest that this compaction may have published. What that supersedes stays, unless
            the grace is 0 and no driver is at work.
        grace: Seconds, by the clock of the file system.
        check: Raises where the claim was lost.
    """
    directory = store.directory
    now = _time(directory)
    at_once = grace == 0 and running(directory, now) is None
    names = manifests_in(directory)
    aged = [name for name, entry in names if now - changed(entry) >= grace and (at_once or name.number < published)]
    latest = store.manifest()
    # Readers that opened within the grace know this manifest or a later one.
    reference = _manifest(directory, aged[-1], latest) if aged else Manifest.empty()
    with ThreadPoolExecutor(threads_for(directory), "raysense-clean") as pool:
        cleaner = _Cleaner(store, latest, reference, pool, check, now)
        cleaner.manifests([name for name, _ in names])
        cleaner.parts()
        cleaner.units(now - max(grace, LITTER_SECONDS))
    return Cleaned(cleaner.removed, cleaner.superseded)


def _time(directory: Directory) -> float:
    """Now, on the clock by which the directory's files are dated."""
    unswept(lambda: directory.write_json(_CLOCK_FILE, {}))
    (now,) = [changed(entry) for entry in directory.list(MANIFESTS) if entry.name == _CLOCK_FILE.rsplit("/", 1)[1]]
    directory.delete(_CLOCK_FILE)
    return now


def _manifest(directory: Directory, name: ManifestName, latest: Manifest) -> Manifest:
    return latest if name == latest.name else read_manifest(directory, name)


class _Cleaner:
    """Removes files, and counts.

    Whatever happens, what the latest manifest needs stays, and so does everything of a unit that is not in it and may
    still be committed.
    """

    def __init__(
        self,
        store: Store,
        latest: Manifest,
        reference: Manifest,
        pool: ThreadPoolExecutor,
        check: Callable[[], None],
        now: float,
    ) -> None:
        self.removed = self.superseded = 0
        self._directory = store.directory
        self._tables = list(store.schemas())
        self._latest, self._reference = latest, reference
        self._pool = pool
        self._check = check
        self._now = now
        # Then nobody commits any more, and all that is in the folders of units may go.
        self._ended = len(reference) >= whole(store.document()["units"]) and running(store.directory, now) is None

    def manifests(self, names: Sequence[ManifestName]) -> None:
        """Manifests, in rising order: those before the reference."""
        before = names.index(self._reference.name) if self._reference.name is not None else 0
        self._remove(name.file for name in names[:before])
        self.superseded += max(0, len(names) - before - 1)

    def parts(self) -> None:
        """Parts that were merged, or written by a compaction that died."""
        latest = {part.name for part in self._latest.parts}
        needed = latest | {part.name for part in self._reference.parts}
        for table in self._tables:
            there = list(parts_in(self._directory, table))
            doomed = [name for name in there if name.number <= self._reference.number and name not in needed]
            self._remove(name.file(table) for name in doomed)
            self.superseded += sum(name not in latest for name in there) - len(doomed)

    def units(self, litter_before: float) -> None:
        """Files of single units that are in parts by now, and table files, so old, that no commit names."""
        litter: list[tuple[str, str, str]] = []
        for table in self._tables:
            entries = list(units_in(self._directory, f"{TABLES}/{table}"))
            known, gone = self._states(entries)
            files = (table_file(table, *entries[index][:2]) for index in np.flatnonzero(gone))
            self._remove(files, f"{TABLES}/{table}")
            self.superseded += int((known & ~gone).sum())
            for index in np.flatnonzero(~known):
                unit, token, entry = entries[index]
                if changed(entry) <= litter_before < math.inf:
                    litter.append((table, unit, token))
        # Commits after tables, so that no file is taken for litter whose commit was just about to come.
        entries = list(units_in(self._directory, COMMITS))
        known, gone = self._states(entries)
        self._remove((commit_file(*entries[index][:2]) for index in np.flatnonzero(gone)), COMMITS)
        self.superseded += int((known & ~gone).sum())
        if litter and running(self._directory, self._now) is None:
            committed = {(unit, token) for unit, token, _ in entries}
            self._remove(table_file(*file) for file in litter if file[1:] not in committed)

    def _states(self, entries: Sequence[tuple[str, str, Entry]]) -> tuple[np.ndarray, np.ndarray]:
        """Which entries are of units in the latest manifest, and which of them may go."""
        units = [unit for unit, _, _ in entries]
        known = self._latest.places(units) >= 0
        return known, known & (self._reference.places(units) >= 0)

    def _remove(self, files: Iterable[str], folder: str = "") -> None:
        """Remove files; where they are all that is in the folder of units, with few requests."""
        doomed = list(files)
        if not doomed:
            return
        self._check()
        directory = self._directory
        if folder and self._ended and directory.clears_at_once and len(directory.names(folder)) == len(doomed):
            directory.clear(folder)
            self.removed += len(doomed)
            return
        for _ in for_each(directory, self._pool, directory.delete, doomed):
            self.removed += 1
