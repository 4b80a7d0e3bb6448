"""The charged attempts of units, persisted so that a later driver knows them."""

from __future__ import annotations

from typing import Any

from raysense.engine.store import Store
from raysense.scans.base import Unit


class Ledger:
    """Counts what each unit is charged with and says when to give up.

    Exceptions that a unit raises count against ``max_attempts``; worker processes that died while computing it against
    the separate ``max_losses``, since most often the machine, not the unit, is to blame. Both budgets are per run: a
    resumed scan tries its failed units again, but their attempts go on being numbered.
    """

    def __init__(self, store: Store, max_attempts: int, max_losses: int) -> None:
        self._store = store
        self._budget = {"error": max_attempts, "loss": max_losses}
        self._history = store.attempts()
        self._charged: dict[str, dict[str, int]] = {}
        self.given_up: list[str] = []

    def attempt(self, unit: Unit) -> int:
        """Number of the unit's next attempt; the first is 1."""
        return len(self._history.get(unit.id, ())) + 1

    def charge(self, unit: Unit, record: dict[str, Any]) -> bool:
        """Record a failed attempt (its ``kind`` is "error" or "loss"); returns whether the unit may be tried again."""
        history = self._history.setdefault(unit.id, [])
        history.append({"attempt": len(history) + 1, **record})
        self._store.write_attempts(unit.id, history)
        counts = self._charged.setdefault(unit.id, {"error": 0, "loss": 0})
        counts[record["kind"]] += 1
        if counts[record["kind"]] < self._budget[record["kind"]]:
            return True
        self._store.write_failure(unit.id, history)
        self.given_up.append(unit.id)
        return False

    def losses(self, unit: Unit) -> int:
        """How many workers the unit has taken down in this run."""
        return self._charged.get(unit.id, {}).get("loss", 0)

    def done(self, unit: Unit) -> None:
        """The unit is committed: forget a failure of an earlier run."""
        if unit.id in self._history:
            self._store.clear_failure(unit.id)
