"""A worker in a process of Ray's. Imports as little as it can: every actor process imports it before anything else."""

from __future__ import annotations

import sys

import ray

from raysense.engine.crew import Reply
from raysense.engine.events import attempt_fields, event_line, write_line
from raysense.engine.worker import Worker
from raysense.options import ComputeOptions
from raysense.scans.base import Unit


class WorkerActor(Worker):
    """Writes a line of JSON a unit to its log."""

    def begin(self, location: str, options: ComputeOptions) -> tuple[str, str]:
        """Open the scan; returns the id of this machine, and "" or why that cannot be done."""
        return ray.get_runtime_context().get_node_id(), self.open(location, options)

    def attempt(self, unit: Unit, attempt: int, upcoming: Unit | None) -> Reply:
        """Compute and commit one unit."""
        reply = self.compute(unit, attempt, upcoming)
        line = event_line(
            "unit_committed" if reply.committed else "attempt_failed",
            scan=self.store.location,
            **attempt_fields(unit, reply, self.name, attempt),
            error=reply.error or None,
        )
        write_line(sys.stderr, line)
        return reply
