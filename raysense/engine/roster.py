"""The workers of a run, by what they are doing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from raysense.scans.base import Unit


@dataclass(eq=False)
class Member:
    """A requested worker and the units sent to it, in the order it computes them.

    Attributes:
        name: Of the worker.
        sent: The unit it computes, and one queued behind it.
        reserved: The unit to be sent next, whose data it reads ahead.
        ready: Whether it has opened the scan.
        closing: Whether it is to be let go once it is done with the unit it computes.
        began: When it began the first of ``sent``, on the crew's clock.
        idle_since: When it ran out of units.
        failures: Units that raised on it, since it committed one.
        resting: Until when it gets no units, since it failed; None where it does.
    """

    name: str
    sent: deque[Unit] = field(default_factory=deque)
    reserved: Unit | None = None
    ready: bool = False
    closing: bool = False
    began: float = 0.0
    idle_since: float = 0.0
    failures: int = 0
    resting: float | None = None


class Roster:
    """Keeps members in groups, so that nothing need go through all of them for every event.

    Call `sort` after changing a member.
    """

    def __init__(self) -> None:
        self._all: dict[str, Member] = {}
        self._groups: dict[str, dict[str, Member]] = {
            name: {} for name in ("active", "ready", "busy", "idle", "reserving", "resting")
        }

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Member]:
        """All members as they are now; they may be removed meanwhile."""
        return iter(list(self._all.values()))

    def get(self, name: str) -> Member | None:
        """The member of a name; None where it is gone."""
        return self._all.get(name)

    def add(self, member: Member) -> None:
        """A worker is requested."""
        self._all[member.name] = member
        self.sort(member)

    def remove(self, member: Member) -> None:
        """A worker is gone."""
        del self._all[member.name]
        for group in self._groups.values():
            group.pop(member.name, None)

    def sort(self, member: Member) -> None:
        """Put a member into the groups that it belongs to now."""
        if member.name not in self._all:
            return
        working = member.ready and not member.closing
        belongs = {
            "active": not member.closing,
            "ready": member.ready,
            "busy": working and bool(member.sent),
            "idle": working and not member.sent and member.reserved is None and member.resting is None,
            "reserving": working and member.reserved is not None,
            "resting": working and member.resting is not None,
        }
        for name, group in self._groups.items():
            if belongs[name]:
                group[member.name] = member
            else:
                group.pop(member.name, None)

    @property
    def active(self) -> int:
        """How many are requested, and not about to be let go."""
        return len(self._groups["active"])

    @property
    def ready(self) -> int:
        """How many have opened the scan."""
        return len(self._groups["ready"])

    @property
    def busy(self) -> list[Member]:
        """Those that compute, and may be sent more."""
        return list(self._groups["busy"].values())

    @property
    def n_busy(self) -> int:
        """How many compute, and may be sent more."""
        return len(self._groups["busy"])

    @property
    def idle(self) -> list[Member]:
        """Those that have nothing to do, the longest idle first."""
        return list(self._groups["idle"].values())

    @property
    def n_idle(self) -> int:
        """How many have nothing to do."""
        return len(self._groups["idle"])

    @property
    def reserving(self) -> list[Member]:
        """Those that have reserved a unit."""
        return list(self._groups["reserving"].values())

    @property
    def resting(self) -> list[Member]:
        """Those that get nothing for a while."""
        return list(self._groups["resting"].values())

    @property
    def any_unfailed(self) -> bool:
        """Whether any computes that has not failed with its latest unit."""
        return any(not member.failures for member in self._groups["busy"].values())

    def first_busy(self) -> Member | None:
        """Any that computes."""
        return next(iter(self._groups["busy"].values()), None)

    def first_idle(self) -> Member | None:
        """The longest idle; None where none is."""
        return next(iter(self._groups["idle"].values()), None)
