"""How long units take: what to expect of one, when it is slow, when it hangs."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal

from raysense.scans.base import Unit

_REMEMBERED = 200
_ENOUGH = 5
_SLOW_MEDIANS = 2.0
_SLOW_SECONDS = 5.0
_UNITS_BEFORE_HUNG = 10
_HUNG_MEDIANS = 50.0
_HUNG_SECONDS = 600.0
_UNSURE_FACTOR, _UNSURE_SECONDS = 200.0, 3600.0


class Pace:
    """Learns the seconds an item takes from the latest units that were committed.

    Args:
        unit_timeout: Seconds after which a unit counts as hung; auto: 50 times what is expected, at least 10 minutes.
            Before ten are known, 200 times what the slowest took, at least an hour.
    """

    def __init__(self, unit_timeout: float | Literal["auto"] = "auto") -> None:
        self._timeout = unit_timeout
        self._latest: deque[float] = deque(maxlen=_REMEMBERED)
        self._median: float | None = None
        self._usual = 0.0

    def add(self, unit: Unit, seconds: float) -> None:
        """A unit took so long."""
        self._latest.append(seconds / max(1, unit.size))
        self._median = None
        self._usual = seconds

    @property
    def known(self) -> bool:
        """Whether any unit was committed."""
        return bool(self._latest)

    def expected(self, unit: Unit) -> float | None:
        """Seconds that a unit should take; None before five are known."""
        if len(self._latest) < _ENOUGH:
            return None
        if self._median is None:
            self._median = statistics.median(self._latest)
        return self._median * unit.size

    def slow(self, unit: Unit) -> float | None:
        """Seconds after which it pays to have an idle worker compute the unit too; None before five are known."""
        expected = self.expected(unit)
        return None if expected is None else max(_SLOW_SECONDS, _SLOW_MEDIANS * expected)

    def hung(self, unit: Unit) -> float | None:
        """Seconds after which the unit counts as hung; None where that cannot be told, since none is committed."""
        if not isinstance(self._timeout, str):
            return self._timeout
        if not self._latest:
            return None
        expected = self.expected(unit)
        if expected is None or len(self._latest) < _UNITS_BEFORE_HUNG:
            return max(_UNSURE_SECONDS, _UNSURE_FACTOR * max(self._latest) * unit.size)
        return max(_HUNG_SECONDS, _HUNG_MEDIANS * expected)

    def check_seconds(self) -> float:
        """How often it is worth looking for slow and hung units, s."""
        often = min(10.0, max(0.5, self._usual))
        return often if isinstance(self._timeout, str) else min(often, self._timeout / 4)
