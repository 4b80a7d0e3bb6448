"""Whole scans in the test's own process: the worker that Ray would run, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysense.api import create_store
from raysense.engine.worker import Worker
from raysense.options import ComputeOptions
from raysense.scans import Prepared, Scan, get_scan
from raysense.store.store import Store
from raysense.validation import validated


def prepared(kind: str, spec: dict[str, Any], options: ComputeOptions) -> tuple[Scan, Prepared]:
    bound = get_scan(kind)(validated(get_scan(kind).spec_type, spec))
    return bound, bound.prepare(options)


def scanned(kind: str, out: Path, options: ComputeOptions, **spec: Any) -> Store:
    """A whole scan, written to a directory."""
    bound, found = prepared(kind, spec, options)
    store = create_store(kind, bound, found, out)
    worker = Worker("worker")
    assert worker.open(str(out), options) == ""
    for unit in bound.units(found):
        reply = worker.compute(unit, 1)
        assert reply.committed, reply.traceback
    worker.close()
    return store
