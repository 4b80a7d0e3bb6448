"""The Python API: start, finish and look at scans. The command line does nothing that is not here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rich.console import Console

from raysense.engine.files import Directory
from raysense.engine.lock import running_since
from raysense.engine.run import Outcome, run_scan
from raysense.engine.runtime import check_reachable
from raysense.engine.store import SCAN_FILE, Store, decode_schemas, encode_schemas
from raysense.engine.worker import bind_scan
from raysense.errors import UsageError
from raysense.options import ComputeOptions, RunOptions
from raysense.scans import Prepared, Scan, ScanSpec, absolute_kind, get_scan
from raysense.validation import validated

_LOG = logging.getLogger("raysense")
_MOST_READ = 1000
_VERSIONED = ("raysense", "torch", "torchvision", "ray", "pyarrow", "numpy")


def scan(
    kind: str,
    out: str | os.PathLike[str],
    *,
    run: RunOptions | Mapping[str, Any] | None = None,
    quiet: bool = True,
    resume: bool = False,
    **spec: Any,
) -> Outcome:
    """Run a scan and write it to a directory.

    Args:
        kind: Kind of scan, e.g. ``"influence"``.
        out: Directory or URI to write to; new or empty.
        run: How to run: workers, batch size, device, address.
        quiet: Whether to show no progress.
        resume: Whether a directory that holds this very scan is finished instead of refused.
        **spec: What to scan: the fields of the kind's spec, e.g. ``model="digits", data="digits"``.

    Returns:
        How the scan ended. Units that failed are in ``failed``; nothing is raised for them.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
        ScanFailed: no worker could be started.
    """
    options = _run_options(run)
    scan_type = get_scan(kind)
    checked = validated(scan_type.spec_type, spec)
    directory = Directory(out)
    check_reachable(options)
    if resume and directory.exists(SCAN_FILE):
        store = Store.open(out)
        _check_same_spec(store, absolute_kind(kind), checked)
        return _finish(store, options, quiet)
    Store.check_free(directory)
    bound = scan_type(checked)
    with _busy("listing the data and loading the model", quiet):
        prepared = bound.prepare(ComputeOptions())
    for note in prepared.notes:
        _LOG.warning(note)
    return run_scan(
        directory, bound, prepared, options, quiet, lambda: _create(absolute_kind(kind), bound, prepared, out)
    )


def resume(
    out: str | os.PathLike[str], *, run: RunOptions | Mapping[str, Any] | None = None, quiet: bool = True
) -> Outcome:
    """Finish an interrupted scan: compute exactly the units that are not committed. A no-op when complete.

    Raises:
        UsageError: there is no scan, the model or the data changed, or another driver is at work.
    """
    options = _run_options(run)
    check_reachable(options)
    return _finish(Store.open(out), options, quiet)


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
        running: Whether a driver is at work.
        noun: What is counted as samples: samples, or tasks.
        errors_in: The table that says why samples could not be computed, and its column of ids; None where there is none.
        bad_samples: Samples in committed units that could not be computed; None where counting them would be dear (an
            object store with many units: ask `SELECT count(*) FROM samples WHERE error IS NOT NULL`).
    """

    kind: str
    units: int
    committed: int
    failed: tuple[dict[str, Any], ...]
    samples: int
    samples_done: int
    rate: float | None
    running: bool
    bad_samples: int | None
    noun: str = "samples"
    errors_in: tuple[str, str] | None = None

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
    committed, total = store.committed(), int(document["items"])
    unit_items = total / max(1, int(document["units"]))  # units may be smaller than unit_size, where classes end
    since = running_since(store.directory)
    times = sorted(time for time in committed.values() if time is not None and since and time.timestamp() > since)[
        -200:
    ]
    seconds = (times[-1] - times[0]).total_seconds() if len(times) > 1 else 0.0
    records = None
    if store.directory.is_local or len(committed) <= _MOST_READ:
        records = [store.commit_record(unit) for unit in committed]
    return Status(
        kind=document["kind"],
        units=int(document["units"]),
        committed=len(committed),
        failed=tuple(store.failures()),
        samples=total,
        samples_done=round(len(committed) * unit_items) if records is None else _sum(records, "items"),
        rate=(len(times) - 1) * unit_items / seconds if seconds > 0 else None,
        running=since is not None,
        bad_samples=None if records is None else _sum(records, "bad_items"),
        noun=document.get("noun", "samples"),
        errors_in=error_table(store),
    )


def error_table(store: Store) -> tuple[str, str] | None:
    """The table of a scan that has a column ``error``, and its first column, which holds ids."""
    for name, schema in decode_schemas(store.document()["schemas"]).items():
        if "error" in schema.names:
            return name, schema.names[0]
    return None


def _sum(records: list[dict[str, Any]], key: str) -> int:
    return sum(record[key] for record in records)


def _create(kind: str, bound: Scan, prepared: Prepared, out: str | os.PathLike[str]) -> Store:
    units = bound.units(prepared)
    document = {
        "kind": kind,
        "spec": bound.spec.model_dump(mode="json"),
        "spec_hash": _spec_hash(bound.spec),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONED}},
        "facts": prepared.facts,
        "unit_size": prepared.unit_size,
        "units": len(units),
        "items": sum(unit.size for unit in units),
        "noun": bound.noun,
        "schemas": encode_schemas(bound.tables()),
    }
    return Store.create(out, document, prepared.listing)


def _finish(store: Store, options: RunOptions, quiet: bool) -> Outcome:
    bound, prepared = bind_scan(store)
    units = len(bound.units(prepared))
    if len(store.committed()) >= units:
        return Outcome(units, units)
    if store.document()["spec_hash"] != _spec_hash(bound.spec):
        raise UsageError(
            f"the spec in {store.location}/{SCAN_FILE} was changed since the scan was started; restore it, or start a "
            "new scan in another directory"
        )
    saved = prepared.facts["fingerprints"]
    with _busy("checking that model and data are unchanged", quiet):
        current = bound.fingerprints(ComputeOptions())
    for name, now in current.items():
        if saved[name] != now:
            raise UsageError(
                f"{name} changed since the scan {store.location!r} was started: its fingerprint was "
                f"{saved[name][:12]}, is {now[:12]} now; restore the {name}, or start a new scan in another directory"
            )
    return run_scan(store.directory, bound, prepared, options, quiet, lambda: store)


@contextmanager
def _busy(what: str, quiet: bool) -> Iterator[None]:
    """Say on a terminal what is being waited for."""
    console = Console(stderr=True, quiet=quiet)
    with console.status(what) if console.is_terminal and not quiet else nullcontext():
        yield


def _check_same_spec(store: Store, kind: str, spec: ScanSpec) -> None:
    document = store.document()
    if document["kind"] != kind:
        raise UsageError(
            f"out {store.location!r} holds a scan of kind {document['kind']!r}, not {kind!r}; name another directory"
        )
    saved, now = document["spec"], spec.model_dump(mode="json")
    changed = [
        f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in now if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(f"out {store.location!r} holds another scan: {'; '.join(changed)}; name another directory")


def _run_options(run: RunOptions | Mapping[str, Any] | None) -> RunOptions:
    return run if isinstance(run, RunOptions) else validated(RunOptions, dict(run or {}))


def _spec_hash(spec: ScanSpec) -> str:
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
