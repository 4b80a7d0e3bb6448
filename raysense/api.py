"""The Python API: start, finish and look at scans. The command line does nothing that is not here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from raysense.engine.files import Directory
from raysense.engine.lock import is_running
from raysense.engine.run import Outcome, run_scan
from raysense.engine.runtime import check_reachable
from raysense.engine.store import Store
from raysense.engine.worker import bind_scan
from raysense.errors import UsageError
from raysense.options import ComputeOptions, RunOptions
from raysense.scans import ScanSpec, get_scan
from raysense.validation import validated

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
    if resume and directory.exists("scan.json"):
        store = Store.open(out)
        _check_same_spec(store, kind, checked)
        return _finish(store, options, quiet)
    check_reachable(options)
    Store.check_free(directory)
    return run_scan(_create(kind, checked, out), options, quiet)


def resume(
    out: str | os.PathLike[str], *, run: RunOptions | Mapping[str, Any] | None = None, quiet: bool = True
) -> Outcome:
    """Finish an interrupted scan: compute exactly the units that are not committed. A no-op when complete.

    Raises:
        UsageError: there is no scan, the model or the data changed, or another driver is at work.
    """
    return _finish(Store.open(out), _run_options(run), quiet)


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
        rate: Samples per second over the latest commits; None where it cannot be told.
        running: Whether a driver is at work.
    """

    kind: str
    units: int
    committed: int
    failed: tuple[dict[str, Any], ...]
    samples: int
    samples_done: int
    rate: float | None
    running: bool

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
    scan_, prepared = bind_scan(store)
    units = {unit.id: unit for unit in scan_.units(prepared)}
    committed = {unit: time for unit, time in store.committed().items() if unit in units}
    latest = sorted((time, unit) for unit, time in committed.items() if time is not None)[-200:]
    seconds = (latest[-1][0] - latest[0][0]).total_seconds() if len(latest) > 1 else 0.0
    recent = sum(units[unit].size for _, unit in latest[1:])
    return Status(
        kind=store.document()["kind"],
        units=len(units),
        committed=len(committed),
        failed=tuple(store.failures()),
        samples=sum(unit.size for unit in units.values()),
        samples_done=sum(units[unit].size for unit in committed),
        rate=recent / seconds if seconds > 0 else None,
        running=is_running(store),
    )


def _create(kind: str, spec: ScanSpec, out: str | os.PathLike[str]) -> Store:
    prepared = get_scan(kind)(spec).prepare(ComputeOptions())
    document = {
        "kind": kind,
        "spec": spec.model_dump(mode="json"),
        "spec_hash": _spec_hash(spec),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONED}},
        "facts": prepared.facts,
        "unit_size": prepared.unit_size,
        "units": len(get_scan(kind)(spec).units(prepared)),
    }
    return Store.create(out, document, prepared.listing)


def _finish(store: Store, options: RunOptions, quiet: bool) -> Outcome:
    check_reachable(options)
    scan_, prepared = bind_scan(store)
    units = scan_.units(prepared)
    if len(store.committed()) < len(units):
        saved = prepared.facts["fingerprints"]
        for name, now in scan_.fingerprints(ComputeOptions()).items():
            if saved[name] != now:
                raise UsageError(
                    f"{name} changed since the scan {store.location!r} was started: its fingerprint was "
                    f"{saved[name][:12]}, is {now[:12]} now; restore the {name}, or start a new scan in another directory"
                )
    return run_scan(store, options, quiet)


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
