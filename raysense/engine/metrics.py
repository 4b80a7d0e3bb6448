"""Ray metrics of a scan, for Prometheus.

Ray exports them on the metrics port of the driver's node, named ``ray_raysense_...`` and with the tags ``scan`` and
``kind``.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from raysense.engine.crew import Reply
from raysense.engine.observers import Observer
from raysense.scans.base import Unit

_TAGS = ("scan", "kind")
_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class _Made:
    """Makes metrics of one scan. Their tags are in ASCII, which is all that Ray's recorder takes."""

    def __init__(self, scan: str, kind: str) -> None:
        values = (value.encode("ascii", "backslashreplace").decode() for value in (scan, kind))
        self._tags = dict(zip(_TAGS, values, strict=True))

    def counter(self, name: str, text: str) -> Counter:
        """A counter."""
        return self._tagged(Counter(f"raysense_{name}", description=text, tag_keys=_TAGS))

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge."""
        return self._tagged(Gauge(f"raysense_{name}", description=text, tag_keys=_TAGS))

    def histogram(self, name: str, text: str, boundaries: list[float]) -> Histogram:
        """A histogram."""
        return self._tagged(Histogram(f"raysense_{name}", description=text, boundaries=boundaries, tag_keys=_TAGS))

    def _tagged(self, metric: Any) -> Any:
        metric.set_default_tags(self._tags)
        return metric


class ScanMetrics(Observer):
    """Counts what a run does, as its driver hears of it: no worker takes counts with it when it dies.

    Samples, units and bytes are those that count: a unit that two workers commit is counted once. Passes and failures are
    of all attempts that ended.

    Args:
        scan: Short name of the scan.
        kind: Kind of the scan.
    """

    def __init__(self, scan: str, kind: str) -> None:
        made = _Made(scan, kind)
        self._samples = made.counter("samples", "items (samples, tasks, ...) in committed units")
        self._passes = made.counter("passes", "images that went forward or backward through the network")
        self._units = made.counter("units", "units committed")
        self._failures = made.counter("failures", "attempts at units that raised")
        self._bytes = made.counter("bytes", "bytes of Arrow files written")
        self._seconds = made.histogram("unit_seconds", "seconds to compute a unit", _SECONDS)
        self._queue = made.gauge("queue", "units that wait for a worker")
        self._running = made.gauge("workers_busy", "workers that compute a unit")
        self._ready = made.gauge("workers_ready", "workers that have opened the scan")
        self._requested = made.gauge("workers_requested", "workers requested of Ray")
        self._lost = made.counter("workers_lost", "workers that died, were taken away, or were ended because they hung")
        self._duplicated = made.counter("units_duplicated", "slow units that a second worker computes too")
        self._given_up = made.counter("units_failed", "units given up on")
        self._last: tuple[int, int, int, int] | None = None

    def replied(self, unit: Unit, reply: Reply) -> None:
        """An attempt has ended."""
        _add(self._passes, reply.passes)
        _add(self._failures, not reply.committed)

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        """A unit is committed."""
        _add(self._bytes, reply.size)
        self._seconds.observe(reply.seconds)
        self.found(unit)

    def found(self, unit: Unit) -> None:
        """A unit turned out to be committed already; what it took is not known."""
        _add(self._units, 1)
        _add(self._samples, unit.size)

    def lost(self, worker: str, reason: str) -> None:
        """A worker is gone."""
        _add(self._lost, 1)

    def duplicated(self, unit: Unit, worker: str) -> None:
        """A slow unit was given to a second worker."""
        _add(self._duplicated, 1)

    def given_up(self, unit: Unit, message: str) -> None:
        """A unit has failed for good."""
        _add(self._given_up, 1)

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        """How many units and workers there are."""
        now = (pending, running, ready, requested)
        if now == self._last:
            return
        self._last = now
        for gauge, value in zip((self._queue, self._running, self._ready, self._requested), now, strict=True):
            gauge.set(value)


def _add(counter: Counter, value: float) -> None:
    """Counters take positive values only."""
    if value:
        counter.inc(value)
