"""Names of the files in a scan directory, made and parsed in one place.

Whoever wrote a directory may not be trusted, so every part of a name is checked before it becomes a path: nothing that is
read from a listing, a manifest or scan.json can lead out of the directory.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from raysense.errors import RaysenseError
from raysense.store.files import Directory, Entry

UNIT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.=+-]{0,179}"
TOKEN_PATTERN = r"[0-9a-f]{12}"

COMMITS, TABLES, MANIFESTS, COMPACTED = "commits", "tables", "manifests", "compacted"
"""Folders of a scan directory."""

_UNIT = re.compile(UNIT_PATTERN)
_TOKEN = re.compile(TOKEN_PATTERN)
_TABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_OF_UNIT = re.compile(rf"({UNIT_PATTERN})(?:~({TOKEN_PATTERN}))?\.(?:json|arrow)")
_MANIFEST = re.compile(rf"([0-9]{{10}})~({TOKEN_PATTERN})\.arrow")
_PART = re.compile(rf"([0-9]{{10}})-([0-9]{{6}})~({TOKEN_PATTERN})\.arrow")
_MOST_NUMBER, _MOST_PARTS = 10**10 - 1, 10**6 - 1


def new_token() -> str:
    """A token that no other attempt has: 12 hexadecimal digits."""
    return secrets.token_hex(6)


def check_unit(unit: str) -> None:
    """Raise ValueError unless the id of a unit is a plain file name."""
    if not _UNIT.fullmatch(unit):
        raise ValueError(f"unit id {unit!r} is not a plain file name")


def check_token(token: str) -> None:
    """Raise ValueError unless a token is one."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"token {token!r} is not 12 hexadecimal digits")


def check_table(table: str) -> None:
    """Raise ValueError unless the name of a table is a plain file name."""
    if not _TABLE.fullmatch(table):
        raise ValueError(f"table name {table!r} is not a plain file name")


def commit_file(unit: str, token: str) -> str:
    """Path of a commit, relative to the scan directory; the token is empty where the store has format 1."""
    return f"{COMMITS}/{_stem(unit, token)}.json"


def table_file(table: str, unit: str, token: str) -> str:
    """Path of an attempt's file of a table, relative to the scan directory."""
    check_table(table)
    return f"{TABLES}/{table}/{_stem(unit, token)}.arrow"


def _stem(unit: str, token: str) -> str:
    check_unit(unit)
    if not token:
        return unit
    check_token(token)
    return f"{unit}~{token}"


def units_in(directory: Directory, folder: str) -> Iterator[tuple[str, str, Entry]]:
    """Files of units in ``commits`` or ``tables/<table>``: unit, token, entry of the listing; other files are left out.

    Raises:
        RaysenseError: a file has a name that no scan gives.
    """
    suffix = ".json" if folder == COMMITS else ".arrow"
    for entry in directory.list(folder):
        if not entry.name.endswith(suffix) or entry.name.startswith("."):
            continue
        match = _OF_UNIT.fullmatch(entry.name)
        if match is None:
            raise _foreign(directory, folder, entry, "unit")
        yield match[1], match[2] or "", entry


@dataclass(frozen=True)
class ManifestName:
    """Number and token of a manifest.

    Raises:
        ValueError: they cannot be.
    """

    number: int
    token: str

    def __post_init__(self) -> None:
        if not 0 < self.number <= _MOST_NUMBER:
            raise ValueError(f"manifest number {self.number} is out of range")
        check_token(self.token)

    @property
    def file(self) -> str:
        """Path, relative to the scan directory."""
        return f"{MANIFESTS}/{self.number:010d}~{self.token}.arrow"


def manifests_in(directory: Directory) -> list[tuple[ManifestName, Entry]]:
    """The manifests of a directory, the one that counts last; of two with one number the first that was there counts.

    Raises:
        RaysenseError: a file has a name that no compaction gives.
    """
    found = []
    for entry in directory.list(MANIFESTS):
        match = _MANIFEST.fullmatch(entry.name)
        if match is not None:
            found.append((ManifestName(int(match[1]), match[2]), entry))
        elif entry.name.endswith(".arrow"):
            raise _foreign(directory, MANIFESTS, entry, "manifest")
    return sorted(found, key=lambda one: (one[0].number, -changed(one[1]), -int(one[0].token, 16)))


def changed(entry: Entry) -> float:
    """Seconds since the epoch of the last change; infinite where the file system does not tell."""
    return float("inf") if entry.modified is None else entry.modified.timestamp()


def _foreign(directory: Directory, folder: str, entry: Entry, what: str) -> RaysenseError:
    return RaysenseError(
        f"{directory.location}/{folder} holds a file {entry.name!r}, which is no name of a {what}; remove it"
    )


@dataclass(frozen=True)
class PartName:
    """Which part of which compaction.

    Raises:
        ValueError: it cannot be.
    """

    number: int
    index: int
    token: str

    def __post_init__(self) -> None:
        if not (0 < self.number <= _MOST_NUMBER and 0 <= self.index <= _MOST_PARTS):
            raise ValueError(f"part {self.index} of manifest {self.number} is out of range")
        check_token(self.token)

    def file(self, table: str) -> str:
        """Path of the part's file of a table, relative to the scan directory."""
        check_table(table)
        return f"{COMPACTED}/{table}/{self.number:010d}-{self.index:06d}~{self.token}.arrow"


def parts_in(directory: Directory, table: str) -> Iterator[PartName]:
    """Parts of a table that are there, published or not."""
    check_table(table)
    for entry in directory.list(f"{COMPACTED}/{table}"):
        match = _PART.fullmatch(entry.name)
        if match is not None:
            yield PartName(int(match[1]), int(match[2]), match[3])
