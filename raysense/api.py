"""The Python API: start, finish and look at scans. The command line does nothing that is not here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from rich.console import Console

from raysense.engine.events import check_log
from raysense.engine.run import Outcome, run_scan
from raysense.engine.runtime import check_reachable
from raysense.engine.worker import bind_scan
from raysense.errors import UsageError
from raysense.options import ComputeOptions, RunOptions
from raysense.scans import Prepared, Scan, ScanSpec, absolute_kind, get_scan
from raysense.store.files import Directory
from raysense.store.store import SCAN_FILE, Store, encode_schemas
from raysense.validation import validated
from raysense.working_directory import check_lasting

_LOG = logging.getLogger("raysense")
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
    check_lasting(out)
    directory = Directory(out)
    check_reachable(options)
    check_log(options.log)
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
        directory, bound, prepared, options, quiet, lambda: create_store(absolute_kind(kind), bound, prepared, out)
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
    check_log(options.log)
    return _finish(Store.open(out), options, quiet)


def create_store(kind: str, bound: Scan, prepared: Prepared, out: str | os.PathLike[str]) -> Store:
    """The directory of a new scan that was prepared; ``kind`` means the same anywhere (`absolute_kind`)."""
    return Store.create(out, scan_document(kind, bound, prepared), prepared.listing)


def scan_document(kind: str, bound: Scan, prepared: Prepared) -> dict[str, Any]:
    """What scan.json says of a scan that was prepared."""
    units = bound.units(prepared)
    return {
        "kind": kind,
        "spec": bound.spec.model_dump(mode="json"),
        "spec_hash": _spec_hash(bound.spec.model_dump(mode="json")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONED}},
        "facts": prepared.facts,
        "unit_size": prepared.unit_size,
        "units": len(units),
        "items": sum(unit.size for unit in units),
        "noun": bound.noun,
        "schemas": encode_schemas(bound.tables()),
    }


def _finish(store: Store, options: RunOptions, quiet: bool) -> Outcome:
    bound, prepared = bind_scan(store)
    units = len(bound.units(prepared))
    if len(store.committed()) >= units:
        return Outcome(units, units)
    document = store.document()
    if document["spec_hash"] != _spec_hash(document["spec"]):
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


def _spec_hash(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
