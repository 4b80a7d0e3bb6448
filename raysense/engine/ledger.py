"""The charged attempts of units, persisted so that a later driver knows them."""

from __future__ import annotations

from typing import Any, Protocol

from raysense.scans.base import Unit


class Journal(Protocol):
    """Where failed attempts of units are recorded: a store, or nowhere."""

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """Charged attempts of every unit that had any, of earlier runs too."""

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record the charged attempts of a unit so far."""

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        """Record that a unit is given up on."""

    def clear_failure(self, unit: str) -> None:
        """Forget a failure."""


class Ledger:
    """Counts what each unit is charged with and says when to give up.

    Exceptions that a unit raises count against ``max_attempts``; worker processes that died while computing it against
    the separate ``max_losses``, since most often the machine, not the unit, is to blame. Both budgets are per run: a
    resumed scan tries its failed units again, but their attempts go on being numbered.
    """

    def __init__(self, journal: Journal, max_attempts: int, max_losses: int) -> None:
        self._journal = journal
        self._budget = {"error": max_attempts, "loss": max_losses}
        self._history = journal.attempts()
        self._charged: dict[str, dict[str, int]] = {}
        self.given_up: list[str] = []

    def attempt(self, unit: Unit) -> int:
        """Number of the unit's next attempt; the first is 1."""
        return len(self._history.get(unit.id, ())) + 1

    def charge(self, unit: Unit, record: dict[str, Any]) -> bool:
        """Record a failed attempt (its ``kind`` is "error" or "loss"); returns whether the unit may be tried again."""
        history = self._history.setdefault(unit.id, [])
        history.append({"attempt": len(history) + 1, **record})
        self._journal.write_attempts(unit.id, history)
        counts = self._charged.setdefault(unit.id, {"error": 0, "loss": 0})
        counts[record["kind"]] += 1
        if counts[record["kind"]] < self._budget[record["kind"]]:
            return True
        self._journal.write_failure(unit.id, history)
        self.given_up.append(unit.id)
        return False

    def losses(self, unit: Unit) -> int:
        """How many workers the unit has taken down in this run."""
        return self._charged.get(unit.id, {}).get("loss", 0)

    def gave_up(self, unit: Unit) -> bool:
        """Whether the unit was given up on in this run, and not committed since by a second worker."""
        return unit.id in self.given_up

    def done(self, unit: Unit) -> None:
        """The unit is committed: forget a failure of this or an earlier run."""
        if unit.id in self._history:
            self._journal.clear_failure(unit.id)
            if unit.id in self.given_up:
                self.given_up.remove(unit.id)
