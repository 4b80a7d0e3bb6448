"""The directory of one scan: exactly once, readable while it grows.

Layout::

    scan.json                       spec, versions, fingerprints; created once
    listing.arrow                   what the scan's units range over, listed once
    tables/<table>/<unit>.arrow     Arrow IPC files, zstd
    commits/<unit>.json             published last: the unit exists for readers only when this file does
    attempts/<unit>.json            the errors of a unit so far
    failures/<unit>.json            a unit given up on
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from raysense.engine.files import TEMPORARY_SUFFIX, Directory
from raysense.engine.lock import KERNEL_LOCK_FILE, LOCK_FILE
from raysense.errors import RaysenseError, UsageError, first_line

SCAN_FILE = "scan.json"
LISTING_FILE = "listing.arrow"
FORMAT_VERSION = 1
_DOCUMENT_KEYS = frozenset({"kind", "spec", "facts", "unit_size", "units", "items", "schemas"})
_UNIT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,199}")


class Store:
    """Reads and writes one scan directory, local or on an object store. Safe to use from many processes at once."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

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
                    f"{directory.location}`, or name another directory"
                )
            # These are what a driver leaves that died while it was starting.
            leftovers = {LISTING_FILE, LOCK_FILE, KERNEL_LOCK_FILE}
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
            UsageError: there is no scan, or it was written by a newer version.
        """
        directory = Directory(location, argument="directory")
        store = cls(directory)
        try:
            document = store.document()
            version = document["format"]
            if version == FORMAT_VERSION and not document.keys() >= _DOCUMENT_KEYS:
                raise KeyError(f"no {', '.join(sorted(_DOCUMENT_KEYS - document.keys()))}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"directory {directory.location!r} holds no scan (no {SCAN_FILE}); "
                "name a directory that `raysense scan` wrote"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{directory.path(SCAN_FILE)} is not a raysense scan document: {error}") from error
        if version != FORMAT_VERSION:
            raise UsageError(
                f"directory {directory.location!r} has store format {version}, this version reads format {FORMAT_VERSION}; "
                "use the raysense version that wrote it"
            )
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
        """The parsed scan.json."""
        document: dict[str, Any] = self.directory.read_json(SCAN_FILE)
        return document

    def schemas(self) -> dict[str, pa.Schema]:
        """Schemas of the tables as the scan wrote them; reading results runs no code of the scan."""
        return decode_schemas(self.document()["schemas"])

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
        """Publish a unit's tables, then its commit; returns the bytes written. Committing twice is harmless."""
        _check_unit_id(unit)
        size = sum(self.directory.write_table(self.table_file(name, unit), table) for name, table in tables.items())
        rows = {name: table.num_rows for name, table in tables.items()}
        self.directory.write_json(f"commits/{unit}.json", {"unit": unit, "rows": rows, "bytes": size, **record})
        return size

    def committed(self) -> dict[str, datetime | None]:
        """Committed unit ids, sorted, with the time of their commit (UTC). One listing, no file is read."""
        return {
            entry.name.removesuffix(".json"): entry.modified
            for entry in self.directory.list("commits")
            if entry.name.endswith(".json")
        }

    def is_committed(self, unit: str, token: str | None = None) -> bool:
        """Whether one unit is committed."""
        _check_unit_id(unit)
        return self.directory.exists(f"commits/{unit}.json")

    def commit_record(self, unit: str) -> dict[str, Any]:
        """What a unit's commit says of it."""
        record: dict[str, Any] = self.directory.read_json(f"commits/{unit}.json")
        return record

    @staticmethod
    def table_file(table: str, unit: str) -> str:
        """Path of a unit's file of a table, relative to the scan directory."""
        return f"tables/{table}/{unit}.arrow"

    def table_paths(self, table: str, units: Iterable[str]) -> list[str]:
        """Paths of the files of a table for the given units, on the directory's filesystem."""
        return [self.directory.path(self.table_file(table, unit)) for unit in units]

    # -- failures ------------------------------------------------------------------------------------------------------

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record the charged attempts of a unit so far."""
        _check_unit_id(unit)
        self.directory.write_json(f"attempts/{unit}.json", attempts)

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """Charged attempts of every unit that had any."""
        return {
            entry.name.removesuffix(".json"): self.directory.read_json(f"attempts/{entry.name}")
            for entry in self.directory.list("attempts")
        }

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record that a unit is given up on, with all its attempts and their tracebacks."""
        _check_unit_id(unit)
        self.directory.write_json(f"failures/{unit}.json", {"unit": unit, "attempts": attempts})

    def clear_failure(self, unit: str) -> None:
        """Forget a failure (the unit is tried again or done)."""
        _check_unit_id(unit)
        self.directory.delete(f"failures/{unit}.json")

    def failures(self) -> list[dict[str, Any]]:
        """Failure records of units that are not committed."""
        names = [entry.name for entry in self.directory.list("failures")]
        if not names:
            return []
        committed = self.committed()
        return [
            self.directory.read_json(f"failures/{name}")
            for name in names
            if name.removesuffix(".json") not in committed
        ]


def encode_schemas(schemas: Mapping[str, pa.Schema]) -> dict[str, str]:
    """Arrow schemas, metadata included, as text for scan.json."""
    return {name: base64.b64encode(schema.serialize()).decode() for name, schema in schemas.items()}


def decode_schemas(encoded: Mapping[str, str]) -> dict[str, pa.Schema]:
    """The inverse of :func:`encode_schemas`."""
    return {name: pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))) for name, text in encoded.items()}


def _check_unit_id(unit: str) -> None:
    if not _UNIT_ID.fullmatch(unit):
        raise ValueError(f"unit id {unit!r} is not a plain file name")


def _unwritable(directory: Directory, error: OSError) -> UsageError:
    reason = error.strerror or first_line(error)
    return UsageError(f"out {directory.location!r} cannot be written ({reason}); name a directory you may write to")
