"""What a driver says of its run to other machines, in the file that holds its directory for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from raysense.engine.observers import Observer
from raysense.engine.progress import Progress

_SECONDS = 1.0


class Beat(Observer):
    """Hands the latest counts to the heartbeat.

    Args:
        progress: Counts items.
        publish: Takes the counts; they are written with the next heartbeat.
    """

    def __init__(self, progress: Progress, publish: Callable[[Mapping[str, Any]], None]) -> None:
        self._progress = progress
        self._publish = publish
        self._latest = 0.0

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        """How many units and workers there are."""
        now = time.monotonic()
        if now - self._latest < _SECONDS:
            return
        self._latest = now
        self._publish(
            {
                "items_done": self._progress.done_items,
                "rate": self._progress.rate,
                "bad_items": self._progress.bad,
                "units_waiting": pending,
                "units_failed": self._progress.failed,
                "workers_busy": running,
                "workers_ready": ready,
                "workers_requested": requested,
            }
        )
