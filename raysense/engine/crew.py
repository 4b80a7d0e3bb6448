"""What the dispatcher drives: workers that compute units, on Ray or in a simulated cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from raysense.options import ComputeOptions
from raysense.scans.base import Unit


@dataclass(frozen=True)
class Reply:
    """What became of a unit: committed, or the error it raised.

    Attributes:
        committed: Whether the unit is in the store.
        seconds: Time it took to compute, s.
        error: One line, empty if committed.
        traceback: The remote traceback, empty if committed.
        bad_items: Rows that say in a column ``error`` why their item could not be computed.
        passes: Images that went forward or backward through the network.
        size: Bytes written.
        publishing: Time it took to write and commit, s.
    """

    committed: bool
    seconds: float
    error: str = ""
    traceback: str = ""
    bad_items: int = 0
    passes: int = 0
    size: int = 0
    publishing: float = 0.0


@dataclass(frozen=True)
class Opened:
    """A worker has loaded the scan, or says why it cannot.

    Attributes:
        worker: Name of the worker.
        node: Machine it runs on.
        problem: Why it cannot open the scan; empty where it can.
    """

    worker: str
    node: str
    problem: str = ""


@dataclass(frozen=True)
class Replied:
    """A worker is done with the oldest unit sent to it."""

    worker: str
    reply: Reply


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and nothing more will be heard of it.

    Attributes:
        worker: Name of the worker.
        reason: One sentence.
        detail: The whole message.
        machine: Whether a machine or connection was lost or taken away, rather than the process that computed.
        out_of_memory: Whether Ray ended it because memory ran out.
    """

    worker: str
    reason: str
    detail: str = ""
    machine: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Draining:
    """The machine of a worker is about to be taken away (a spot machine, or one the autoscaler ends).

    Attributes:
        worker: Name of the worker.
        node: The machine.
        deadline: When, on the clock of `Crew.now`; None where nobody knows.
    """

    worker: str
    node: str
    deadline: float | None


Event = Opened | Replied | Lost | Draining


class Crew(Protocol):
    """Workers by name: each computes the units sent to it in their order.

    Attributes:
        poll: Longest sleep of the dispatcher, s, so that it notices when it is asked to stop; infinite where nobody asks.
    """

    poll: float

    def now(self) -> float:
        """Monotonic time, s."""

    def hire(self, worker: str, compute: ComputeOptions) -> None:
        """Request a worker of a new name; `Opened` or `Lost` follows, once there is a place for it."""

    def send(self, worker: str, unit: Unit, attempt: int, upcoming: Unit | None) -> None:
        """Have an opened worker compute a unit; `Replied` or `Lost` follows.

        Args:
            worker: Name of the worker.
            unit: What to compute.
            attempt: Number of the attempt; the first is 1.
            upcoming: What will be sent next, so that its data can be read meanwhile.
        """

    def dismiss(self, worker: str) -> None:
        """End a worker at once, whatever it does; no event of it follows."""

    def committed(self, worker: str, unit: Unit) -> bool:
        """Whether a worker that was lost or dismissed had committed a unit; asked once after each loss."""

    def wait(self, timeout: float) -> Sequence[Event]:
        """Sleep until something happens, or for ``timeout`` seconds; what happened, in order by worker."""
