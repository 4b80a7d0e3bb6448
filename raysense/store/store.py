"""The directory of one scan: exactly once, readable while it grows.

Layout::

    scan.json                               spec, versions, fingerprints; created once
    listing.arrow                           what the scan's units range over, listed once
    tables/<table>/<unit>~<token>.arrow     Arrow IPC files of one attempt
    commits/<unit>~<token>.json             published last: the unit exists for readers only when this file does
    manifests/<number>~<token>.arrow        which units a compaction has gathered in which parts; the highest counts
    compacted/<table>/...                   the parts: `raysense.store.compaction`
    attempts/, failures/                    what went wrong with units: `raysense.store.failures`

Attempts of one unit may overlap, so each writes files of its own, told apart by their token; of several commits of a unit
readers take the first, or what a manifest says. Format 1, which is still read, had no tokens and no manifests.
"""

from __future__ import annotations

import base64
import os
import shlex
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pyarrow as pa

from raysense.errors import RaysenseError, UsageError, first_line
from raysense.store.failures import FailureRecords
from raysense.store.files import TEMPORARY_SUFFIX, Directory
from raysense.store.lock import LEFTOVERS
from raysense.store.manifests import Manifest, read_manifest, whole
from raysense.store.naming import (
    COMMITS,
    changed,
    check_table,
    check_unit,
    commit_file,
    manifests_in,
    new_token,
    table_file,
    units_in,
)
from raysense.store.reading import for_each, threads_for
from raysense.store.snapshot import Commit, Snapshot

SCAN_FILE = "scan.json"
LISTING_FILE = "listing.arrow"
FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
_DOCUMENT_KEYS = frozenset({"kind", "spec", "facts", "unit_size", "units", "items", "schemas"})
_PLAIN_BYTES = 16 * 2**10
"""Tables up to this size are not compressed: it would save nothing and make reading ten times as slow."""
_SLOW_COMMIT_SECONDS = 300.0
_MANIFEST_TRIES = 5


class Store:
    """Reads and writes one scan directory, local or on an object store. Safe to use from many processes at once."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.failures = FailureRecords(directory)
        self._document: dict[str, Any] | None = None
        self._manifest = Manifest.empty()
        self._attempted: set[tuple[str, str]] = set()

    @classmethod
    def create(cls, location: str | os.PathLike[str], document: Mapping[str, Any], listing: pa.Table | None) -> Store:
        """Start a new scan directory.

        Raises:
            UsageError: the directory holds a scan or something else already, or cannot be written.
        """
        directory = Directory(location)
        cls.check_free(directory)
        try:
            if listing is not None:
                directory.write_table(LISTING_FILE, listing, compression=None)
            directory.write_json(SCAN_FILE, {"format": FORMAT_VERSION, **document})
        except OSError as error:
            raise _unwritable(directory, error) from error
        return cls(directory)

    @staticmethod
    def check_free(directory: Directory) -> None:
        """Raise UsageError unless a new scan can be written into the directory; leaves nothing behind."""
        try:
            if directory.exists(SCAN_FILE):
                raise UsageError(
                    f"out {directory.location!r} already holds a scan; finish it with `raysense resume "
                    f"{shlex.quote(directory.location)}`, or name another directory"
                )
            # These are what a driver leaves that died while it was starting.
            leftovers = {LISTING_FILE, *LEFTOVERS}
            if not all(name in leftovers or name.endswith(TEMPORARY_SUFFIX) for name in directory.names()):
                raise UsageError(
                    f"out {directory.location!r} holds something that is not a raysense scan; "
                    "name a new or empty directory"
                )
            directory.check_writable()
        except OSError as error:
            raise _unwritable(directory, error) from error

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Store:
        """Open an existing scan directory.

        Raises:
            UsageError: there is no scan, it cannot be read, or it was written by a newer version.
        """
        directory = Directory(location, argument="directory")
        store = cls(directory)
        try:
            document = store.document()
            version = document["format"]
            if version in READ_VERSIONS and not document.keys() >= _DOCUMENT_KEYS:
                raise KeyError(f"no {', '.join(sorted(_DOCUMENT_KEYS - document.keys()))}")
            if version in READ_VERSIONS:
                for key in ("unit_size", "units", "items"):
                    whole(document[key])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"directory {directory.location!r} holds no scan (no {SCAN_FILE}); "
                "name a directory that `raysense scan` wrote"
            ) from error
        except OSError as error:
            raise UsageError(
                f"directory {directory.location!r} cannot be read ({error.strerror or first_line(error)}); see to the "
                "address and your permissions"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{directory.path(SCAN_FILE)} is not a raysense scan document: {error}") from error
        if version not in READ_VERSIONS:
            known = " and ".join(map(str, READ_VERSIONS))
            raise UsageError(
                f"directory {directory.location!r} has store format {version}, this version reads formats {known}; "
                "use the raysense version that wrote it"
            )
        store._document = document
        return store

    @property
    def location(self) -> str:
        """Absolute path or URI of the directory."""
        return self.directory.location

    @property
    def name(self) -> str:
        """Short name of the scan: the directory's last component."""
        return self.directory.name

    def document(self) -> dict[str, Any]:
        """The parsed scan.json, of which only the format ever changes; read once by `open`."""
        if self._document is not None:
            return self._document
        document: dict[str, Any] = self.directory.read_json(SCAN_FILE)
        return document

    def schemas(self) -> dict[str, pa.Schema]:
        """Schemas of the tables as the scan wrote them; reading results runs no code of the scan.

        Raises:
            RaysenseError: there are none that can be read, or a table has a name that could lead out of the directory.
        """
        try:
            schemas = decode_schemas(self.document()["schemas"])
            for table in schemas:
                check_table(table)
        except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
            raise RaysenseError(f"{self.directory.path(SCAN_FILE)}: {first_line(error)}; start a new scan") from error
        return schemas

    def listing(self) -> pa.Table:
        """The stored listing of the data (memory-mapped on a local disk).

        Raises:
            RaysenseError: the file is missing or damaged.
        """
        try:
            return self.directory.read_table(LISTING_FILE)
        except (pa.ArrowInvalid, OSError) as error:
            raise RaysenseError(
                f"{self.directory.path(LISTING_FILE)} is damaged ({error}); start a new scan"
            ) from error

    # -- units ---------------------------------------------------------------------------------------------------------

    def commit(
        self, unit: str, tables: Mapping[str, pa.Table], record: Mapping[str, Any], token: str | None = None
    ) -> int:
        """Publish a unit's tables, then its commit; returns the bytes written.

        Committing a unit again, also at the same time, is harmless: readers see the first commit.

        Args:
            unit: Id of the unit.
            tables: Its rows, by table.
            record: What else the commit says of it.
            token: Token of the worker, by which `is_committed` finds the commit with one request; None for a new one. It
                counts once a unit: files that may be committed already are never overwritten.
        """
        if token is None or (unit, token) in self._attempted:
            token = new_token()
        self._attempted.add((unit, token))
        began = time.time()
        sizes = {name: self._write_rows(table_file(name, unit, token), table) for name, table in tables.items()}
        self._write_again_if_slow(unit, tables, token, began)
        size = sum(sizes.values())
        rows = {name: table.num_rows for name, table in tables.items()}
        self.directory.write_json(
            commit_file(unit, token), {"unit": unit, "token": token, "rows": rows, "bytes": size, **record}
        )
        self._write_again_if_slow(unit, tables, token, began)
        return size

    def _write_again_if_slow(self, unit: str, tables: Mapping[str, pa.Table], token: str, began: float) -> None:
        """Who slept so long may have been taken for dead, and a compaction have removed what no commit named then."""
        if time.time() - began > _SLOW_COMMIT_SECONDS:
            for name, table in tables.items():
                if not self.directory.exists(table_file(name, unit, token)):
                    self._write_rows(table_file(name, unit, token), table)

    def _write_rows(self, file: str, table: pa.Table) -> int:
        return self.directory.write_table(file, table, compression="zstd" if table.nbytes > _PLAIN_BYTES else None)

    def snapshot(self) -> Snapshot:
        """What is committed now. A listing of commits, one of manifests, and the latest manifest unless it is known.

        Raises:
            RaysenseError: the directory holds names that no scan gives, or a damaged manifest.
        """
        # Commits first: a commit that is removed before this listing is in a manifest that is there by the next.
        commits = self._commits()
        manifest = self.manifest()
        if len(manifest):
            for unit, place in zip(list(commits), manifest.places(list(commits)), strict=True):
                if place >= 0:
                    del commits[unit]
        return Snapshot(self.directory, manifest, commits)

    def manifest(self) -> Manifest:
        """The latest manifest.

        Raises:
            RaysenseError: it is damaged.
        """
        for _ in range(_MANIFEST_TRIES):
            names = manifests_in(self.directory)
            if not names:
                return Manifest.empty()
            name, _ = names[-1]
            if name != self._manifest.name:
                try:
                    self._manifest = read_manifest(self.directory, name)
                except FileNotFoundError:  # superseded and removed since it was listed
                    continue
            return self._manifest
        raise RaysenseError(f"{self.location} is compacted without a pause; try again")

    def _commits(self) -> dict[str, Commit]:
        """The first commit of every unit that has one in the folder of commits."""
        found: dict[str, tuple[float, str, datetime | None]] = {}
        for unit, token, entry in units_in(self.directory, COMMITS):
            candidate = (changed(entry), token, entry.modified)
            if unit not in found or candidate[:2] < found[unit][:2]:
                found[unit] = candidate
        return {unit: Commit(token, modified) for unit, (_, token, modified) in found.items()}

    def committed(self) -> dict[str, datetime | None]:
        """Committed unit ids, sorted, with the time of their commit (UTC); see `snapshot`."""
        return self.snapshot().times()

    def is_committed(self, unit: str, token: str | None = None) -> bool:
        """Whether one unit is committed; with a token, whether by that worker, as far as its commit is still there.

        With a token it costs a request or two, without one the listings of `snapshot`.
        """
        if token is None:
            check_unit(unit)
            return unit in self.snapshot()
        return self.directory.exists(commit_file(unit, token)) or unit in self.manifest()

    def records(self, commits: Mapping[str, Commit]) -> list[dict[str, Any]]:
        """What the given commits say of their units, read by several threads.

        Raises:
            FileNotFoundError: a compaction has removed one meanwhile.
            RaysenseError: one is damaged.
        """
        files = [commit_file(unit, commit.token) for unit, commit in commits.items()]
        with ThreadPoolExecutor(threads_for(self.directory), "raysense-records") as pool:
            return list(for_each(self.directory, pool, self._record, files))

    def _record(self, file: str) -> dict[str, Any]:
        try:
            record = self.directory.read_json(file)
        except ValueError as error:
            raise RaysenseError(f"{self.location}/{file} is damaged ({first_line(error)}); remove it") from error
        if not isinstance(record, dict):
            raise RaysenseError(f"{self.location}/{file} is no commit of a unit; remove it")
        return record


def encode_schemas(schemas: Mapping[str, pa.Schema]) -> dict[str, str]:
    """Arrow schemas, metadata included, as text for scan.json."""
    return {name: base64.b64encode(schema.serialize()).decode() for name, schema in schemas.items()}


def decode_schemas(encoded: Mapping[str, str]) -> dict[str, pa.Schema]:
    """The inverse of :func:`encode_schemas`."""
    return {name: pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))) for name, text in encoded.items()}


def _unwritable(directory: Directory, error: OSError) -> UsageError:
    reason = error.strerror or first_line(error)
    return UsageError(f"out {directory.location!r} cannot be written ({reason}); name a directory you may write to")
