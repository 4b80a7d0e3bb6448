"""How far a scan is, here or on an object store, also while another machine runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raysense.errors import RaysenseError
from raysense.store.lock import running
from raysense.store.manifests import whole
from raysense.store.snapshot import Snapshot
from raysense.store.store import Store

_MOST_READ, _MOST_READ_LOCALLY = 1_000, 50_000
_LATEST = 200


@dataclass(frozen=True)
class Driver:
    """The driver at work on a scan.

    Attributes:
        name: Its process and host.
        since: When it took the directory (UTC).
        progress: What it said of its run with its last heartbeat (every 10 s): ``items_done``, ``rate`` (items per second),
            ``bad_items``, ``units_waiting``, ``units_failed``, ``workers_busy``, ``workers_ready``, ``workers_requested``;
            empty where it has said nothing yet.
    """

    name: str
    since: datetime
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Status:
    """How far a scan is.

    Attributes:
        kind: Kind of scan.
        units: Units of the scan.
        committed: Units in the store.
        failed: Records of the units given up on: ``unit`` and ``attempts`` (each with error and traceback).
        samples: Samples of the scan.
        samples_done: Samples in committed units.
        rate: Samples per second over the latest commits of the driver at work; None where it cannot be told.
        driver: The driver at work; None where there is none.
        noun: What is counted as samples: samples, or tasks.
        errors_in: The table that says why samples could not be computed, and its column of ids; None where there is none.
        bad_samples: Samples in committed units that could not be computed; None where counting them would be dear (very
            many units that are not compacted: ask `SELECT count(*) FROM samples WHERE error IS NOT NULL`).
    """

    kind: str
    units: int
    committed: int
    failed: tuple[dict[str, Any], ...]
    samples: int
    samples_done: int
    rate: float | None
    driver: Driver | None
    bad_samples: int | None
    noun: str = "samples"
    errors_in: tuple[str, str] | None = None

    @property
    def running(self) -> bool:
        """Whether a driver is at work."""
        return self.driver is not None

    @property
    def complete(self) -> bool:
        """Whether every unit is committed."""
        return self.committed == self.units

    @property
    def left(self) -> int:
        """Units that are neither committed nor given up on."""
        return self.units - self.committed - len(self.failed)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the rate of the latest commits; None where it cannot be told."""
        return (self.samples - self.samples_done) / self.rate if self.rate else None


def status(out: str | os.PathLike[str]) -> Status:
    """How far the scan of a directory is, also while it runs. Costs a few listings.

    Raises:
        UsageError: there is no scan.
    """
    store = Store.open(out)
    document = store.document()
    snapshot, total = store.snapshot(), int(document["items"])
    unit_items = total / max(1, int(document["units"]))  # units may be smaller than unit_size, where classes end
    driver = _driver(store)
    times = [] if driver is None else snapshot.latest_times(driver.since, _LATEST)
    seconds = (times[-1] - times[0]).total_seconds() if len(times) > 1 else 0.0
    try:
        done = _items_done(store, snapshot)
    except FileNotFoundError:  # compacted and cleaned up since it was listed
        snapshot = store.snapshot()
        done = _items_done(store, snapshot)
    return Status(
        kind=document["kind"],
        units=int(document["units"]),
        committed=len(snapshot),
        failed=tuple(store.failures.given_up(snapshot)),
        samples=total,
        samples_done=round(len(snapshot) * unit_items) if done is None else done[0],
        rate=(len(times) - 1) * unit_items / seconds if seconds > 0 else None,
        driver=driver,
        bad_samples=None if done is None else done[1],
        noun=document.get("noun", "samples"),
        errors_in=error_table(store),
    )


def _driver(store: Store) -> Driver | None:
    said = running(store.directory)
    if said is None:
        return None
    name = f"process {said.get('pid', '?')} on {str(said.get('host', '?')).partition('/')[0]}"
    progress = said.get("progress")
    counts = progress.items() if isinstance(progress, dict) else ()
    known = {key: value for key, value in counts if value is None or isinstance(value, int | float)}
    return Driver(name, datetime.fromtimestamp(said["taken"], UTC), known)


def error_table(store: Store) -> tuple[str, str] | None:
    """The table of a scan that has a column ``error``, and its first column, which holds ids."""
    for name, schema in store.schemas().items():
        if "error" in schema.names:
            return name, schema.names[0]
    return None


def _items_done(store: Store, snapshot: Snapshot) -> tuple[int, int] | None:
    """Items in committed units, and those that could not be computed; None where too many files would have to be read."""
    if len(snapshot.loose) > (_MOST_READ_LOCALLY if store.directory.is_local else _MOST_READ):
        return None
    records, manifest = store.records(snapshot.loose), snapshot.manifest
    try:
        items, bad = (
            manifest.total(key) + sum(whole(record.get(key)) for record in records) for key in ("items", "bad_items")
        )
    except ValueError as error:
        raise RaysenseError(f"{store.location}: a commit does not say how many items it has ({error})") from error
    return items, bad
