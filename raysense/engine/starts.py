"""Workers that do not start: when another is tried, and when a run ends since none can be started."""

from __future__ import annotations

from raysense.errors import ScanFailed

_ALLOWED = 3
_MANY, _MANY_SECONDS = 20, 300.0
"""Failed starts end a run whose other workers have yet to come, but not at once: a single machine may be to blame."""
_LONGEST_PAUSE = 60.0
_MOST_DOUBLINGS = 6


class Starts:
    """Counts starts of workers that failed one after the other."""

    def __init__(self) -> None:
        self._failed = self._missed = 0
        self._since = self._next = 0.0
        self._error = ""

    def succeeded(self) -> None:
        """A worker has opened the scan."""
        self._failed = self._missed = 0

    def failed(self, now: float, error: str, blamed: bool) -> None:
        """A worker has not: by its own fault, or because its machine was lost."""
        if not self._missed:
            self._since = now
        self._missed += 1
        self._failed += blamed
        self._error = error

    def check(self, now: float, ready: int, requested: int) -> None:
        """Raise if no worker can be started.

        Args:
            now: The time, s.
            ready: Workers that have opened the scan.
            requested: Workers that have, or still may.

        Raises:
            ScanFailed: several in a row could not, and none is there.
        """
        hopeless = self._failed >= _MANY and now - self._since >= _MANY_SECONDS
        if self._failed >= _ALLOWED and not ready and (hopeless or not requested):
            raise ScanFailed(f"no worker could be started: {self._error}")

    def permitted(self, now: float, missing: int) -> int:
        """How many workers of those that are missing may be requested now: one now and then once several have failed."""
        if self._missed < _ALLOWED or not missing:
            return missing
        if now < self._next:
            return 0
        self._next = now + min(_LONGEST_PAUSE, 2.0 ** min(self._missed, _MOST_DOUBLINGS))
        return 1
