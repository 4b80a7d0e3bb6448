"""Whole scans in the test's own process: the worker that Ray would run, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysense.api import create_store
from raysense.engine.observers import Observer
from raysense.engine.worker import Worker
from raysense.options import ComputeOptions, RunOptions
from raysense.scans import Prepared, Scan, Unit, get_scan
from raysense.store.failures import FailureRecords
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


class Here:
    """In place of the dispatcher: computes units here; workers would take longer to start than these scans take."""

    def __init__(
        self,
        crew: object,
        journal: FailureRecords,
        options: RunOptions,
        compute: ComputeOptions,
        workers: int,
        observer: Observer,
    ) -> None:
        self._worker = Worker("here")
        assert self._worker.open(journal.directory.location, compute.model_copy(update={"threads": 1})) == ""

    def run(self, units: Sequence[Unit], stop: Callable[[], bool]) -> list[str]:
        assert all(self._worker.compute(unit, 1).committed for unit in units)
        self._worker.close()
        return []
