"""What went wrong with units: their failed attempts so far, and those given up on.

In a scan directory::

    attempts/<unit>.json    the errors of a unit so far
    failures/<unit>.json    a unit given up on
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raysense.errors import RaysenseError, first_line
from raysense.store.files import Directory
from raysense.store.naming import check_unit
from raysense.store.reading import for_each, threads_for
from raysense.store.snapshot import Snapshot


class FailureRecords:
    """The failed attempts of a scan: a `raysense.engine.ledger.Journal`.

    Attributes:
        directory: The scan directory.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record the charged attempts of a unit so far."""
        check_unit(unit)
        self.directory.write_json(f"attempts/{unit}.json", attempts)

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """Charged attempts of every unit that had any, read by several threads.

        Raises:
            RaysenseError: a record is damaged.
        """
        names = [entry.name for entry in self.directory.list("attempts") if entry.name.endswith(".json")]
        found = self._read_all([f"attempts/{name}" for name in names])
        for name, attempts in zip(names, found, strict=True):
            if attempts is not None and not _are_attempts(attempts):
                raise RaysenseError(f"{self.directory.location}/attempts/{name} is no list of attempts; remove it")
        return {name.removesuffix(".json"): each for name, each in zip(names, found, strict=True) if each is not None}

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record that a unit is given up on, with all its attempts and their tracebacks."""
        check_unit(unit)
        self.directory.write_json(f"failures/{unit}.json", {"unit": unit, "attempts": attempts})

    def clear_failure(self, unit: str) -> None:
        """Forget a failure (the unit is tried again or done)."""
        check_unit(unit)
        self.directory.delete(f"failures/{unit}.json")

    def given_up(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Failure records of units that are not committed, read by several threads.

        Args:
            snapshot: What is committed.

        Raises:
            RaysenseError: a record is damaged.
        """
        units = [entry.name[:-5] for entry in self.directory.list("failures") if entry.name.endswith(".json")]
        if not units:
            return []
        places = snapshot.manifest.places(units)
        left = [unit for unit, place in zip(units, places, strict=True) if place < 0 and unit not in snapshot.loose]
        found = self._read_all([f"failures/{unit}.json" for unit in left])
        for unit, record in zip(left, found, strict=True):
            if record is not None and not (
                isinstance(record, dict)
                and record.get("unit") == unit
                and record.get("attempts")
                and _are_attempts(record["attempts"])
            ):
                raise RaysenseError(
                    f"{self.directory.location}/failures/{unit}.json is no record of a failure; remove it"
                )
        return [record for record in found if record is not None]

    def _read_all(self, files: list[str]) -> list[Any]:
        """JSON documents; None for those that were removed meanwhile."""

        def read(file: str) -> Any:
            try:
                return self.directory.read_json(file)
            except FileNotFoundError:
                return None
            except ValueError as error:
                raise RaysenseError(
                    f"{self.directory.location}/{file} is damaged ({first_line(error)}); remove it"
                ) from error

        with ThreadPoolExecutor(threads_for(self.directory), "raysense-records") as pool:
            return list(for_each(self.directory, pool, read, files))


def _are_attempts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(attempt, dict) and isinstance(attempt.get("error"), str) for attempt in value
    )
