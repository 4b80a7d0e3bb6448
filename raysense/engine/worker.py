"""One worker: a process that opened a scan and computes its units straight into the store."""

from __future__ import annotations

import socket
import time
import traceback
from datetime import UTC, datetime

import pyarrow as pa

from raysense.engine.crew import Reply
from raysense.errors import UsageError, first_line
from raysense.options import ComputeOptions
from raysense.scans import Computer, Prepared, Scan, Unit, get_scan
from raysense.scans.tables import UNITS
from raysense.store.store import Store


def bind_scan(store: Store) -> tuple[Scan, Prepared]:
    """The scan that a store's scan.json describes, with what its driver prepared."""
    document = store.document()
    kind = get_scan(document["kind"])
    return kind(kind.spec_type.model_validate(document["spec"])), Prepared(
        listing=store.listing(), facts=document["facts"], unit_size=document["unit_size"]
    )


class Worker:
    """Opens the scan of a store in this process and computes units of it. Runs as a Ray actor, or without Ray."""

    def __init__(self, name: str, token: str | None = None) -> None:
        """A worker of a name, whose commits carry the token; None takes a new token for each."""
        self.name = name
        self.store: Store
        self._token = token
        self._computer: Computer

    def open(self, location: str, options: ComputeOptions) -> str:
        """Load the model and the listing; returns "" or why that cannot be done."""
        try:
            self.store = Store.open(location)
            scan, prepared = bind_scan(self.store)
            self._computer = scan.open(prepared, options)
        except UsageError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Release what the scan holds."""
        self._computer.close()

    def compute(self, unit: Unit, attempt: int, upcoming: Unit | None = None) -> Reply:
        """Compute and commit one unit; whatever it raises comes back as a reply, so that the process lives on."""
        started, clock, before = datetime.now(UTC), time.perf_counter(), self._computer.passes
        try:
            tables = self._computer.compute(unit, upcoming)
            seconds = time.perf_counter() - clock
            passes = self._computer.passes - before
            record = {
                "unit": unit.id,
                "worker": self.name,
                "node": socket.gethostname(),
                "device": self._computer.device,
                "started": started,
                "seconds": seconds,
                "rows": unit.size,
                "attempt": attempt,
                "batch_size": self._computer.batch_size,
                "passes": passes,
            }
            units = pa.Table.from_pylist([record], schema=UNITS)
            bad = sum(count_bad_items(table) for table in tables.values())
            facts = {"items": unit.size, "bad_items": bad, "attempt": attempt, "worker": self.name}
            size = self.store.commit(unit.id, {**tables, "units": units}, facts, self._token)
        except Exception as error:
            passes = self._computer.passes - before
            return Reply(False, time.perf_counter() - clock, _summary(error), traceback.format_exc(), passes=passes)
        publishing = time.perf_counter() - clock - seconds
        return Reply(True, seconds, bad_items=bad, passes=passes, size=size, publishing=publishing)


def count_bad_items(table: pa.Table) -> int:
    """Rows of a table whose column ``error`` says why the item could not be computed; 0 where there is no such column."""
    if "error" not in table.column_names:
        return 0
    return int(table.num_rows - table["error"].null_count)


def _summary(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {first_line(error)}"
    except Exception:  # somebody's exception that cannot even be printed
        return f"{type(error).__name__} (its message cannot be shown)"
