"""The dispatcher's rules one by one, driven by a crew that does as it is told, on a virtual clock."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from raysense.engine.crew import Event, Lost, Opened, Replied, Reply
from raysense.engine.dispatch import Dispatcher
from raysense.engine.observers import Observer
from raysense.engine.pace import Pace
from raysense.engine.starts import Starts
from raysense.errors import ScanFailed
from raysense.options import ComputeOptions, RunOptions
from raysense.scans.base import Unit

Fate = Callable[[int, int], float | None]
"""What becomes of a unit on a worker, both by number: seconds it takes, negative where it raises then; None: it hangs."""


class Crew:
    """Workers that open after ten seconds, or fail to, and do with units what ``fate`` says."""

    poll = 1e9

    def __init__(self, fate: Fate, opens: Callable[[int], Event | None] | None = None, most: int = 10**6) -> None:
        self._fate, self._opens, self._most = fate, opens, most
        self.clock = 0.0
        self.hired = self.waits = 0
        self.sent: Counter[tuple[str, str]] = Counter()
        self._waiting: deque[str] = deque()
        self._placed: set[str] = set()
        self._queues: dict[str, deque[int]] = {}
        self._agenda: list[tuple[float, int, str, Event]] = []
        self._count = 0

    def now(self) -> float:
        return self.clock

    def hire(self, worker: str, compute: ComputeOptions) -> None:
        self.hired += 1
        self._queues[worker] = deque()
        self._waiting.append(worker)
        self._place()

    def send(self, worker: str, unit: Unit, attempt: int, upcoming: Unit | None) -> None:
        self.sent[worker, unit.id] += 1
        queue = self._queues[worker]
        queue.append(int(unit.id))
        if len(queue) == 1:
            self._begin(worker)

    def dismiss(self, worker: str) -> None:
        del self._queues[worker]
        self._placed.discard(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)
        self._place()

    def committed(self, worker: str, unit: Unit) -> bool:
        return False

    def wait(self, timeout: float) -> Sequence[Event]:
        self.waits += 1
        assert self.waits < 100_000, "the dispatcher spins"
        until = self.clock + timeout
        if self._agenda and self._agenda[0][0] <= until:
            until = max(self.clock, self._agenda[0][0])
        self.clock = until
        events = []
        while self._agenda and self._agenda[0][0] <= self.clock:
            _, _, worker, event = heapq.heappop(self._agenda)
            if worker in self._queues:
                events.append(event)
                if isinstance(event, Replied):
                    self._queues[worker].popleft()
                    if self._queues[worker]:
                        self._begin(worker)
        return events

    def _place(self) -> None:
        while self._waiting and len(self._placed) < self._most:
            worker = self._waiting.popleft()
            self._placed.add(worker)
            number = int(worker[1:])
            event = self._opens(number) if self._opens else Opened(worker, "node")
            if event is not None:
                self._after(10.0, worker, event)

    def _begin(self, worker: str) -> None:
        seconds = self._fate(int(worker[1:]), self._queues[worker][0])
        if seconds is not None:
            reply = Reply(seconds > 0, abs(seconds), "" if seconds > 0 else "ValueError: told to")
            self._after(abs(seconds), worker, Replied(worker, reply))

    def _after(self, seconds: float, worker: str, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self.clock + seconds, self._count, worker, event))


class Journal:
    """Attempts in memory; ``delay`` is called whenever one is written."""

    def __init__(self) -> None:
        self.delay: Callable[[], None] = lambda: None
        self.written: dict[str, list[dict[str, Any]]] = {}

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        self.delay()
        self.written[unit] = list(attempts)

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        pass

    def clear_failure(self, unit: str) -> None:
        pass


class Watching(Observer):
    """What was lost, committed, and the latest state."""

    def __init__(self) -> None:
        self.lost_workers: list[tuple[str, str]] = []
        self.done: list[str] = []
        self.latest: tuple[int, ...] = ()

    def lost(self, worker: str, reason: str) -> None:
        self.lost_workers.append((worker, reason))

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        self.done.append(unit.id)

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        self.latest = (pending, running, ready, requested)


def dispatched(
    crew: Crew,
    units: int,
    workers: int,
    stop: Callable[[], bool] = lambda: False,
    journal: Journal | None = None,
    **options: Any,
) -> tuple[list[str], Watching]:
    watching = Watching()
    made = Dispatcher(crew, journal or Journal(), RunOptions(**options), ComputeOptions(), workers, watching)
    return made.run([Unit(str(n), n, n + 1) for n in range(units)], stop), watching


def test_after_a_stop_units_are_finished_without_spinning() -> None:
    crew = Crew(lambda worker, unit: 15.0)
    failed, watching = dispatched(crew, 100, 4, lambda: crew.clock >= 30)
    assert not failed
    assert len(watching.done) == 8  # one of each worker before the stop, the other one after
    assert crew.waits < 100
    assert watching.latest == (92, 0, 0, 0)


def test_a_stop_does_not_wait_for_ever() -> None:
    crew = Crew(lambda worker, unit: None)
    dispatched(crew, 10, 2, lambda: crew.clock >= 30)
    assert 50 <= crew.clock < 60
    assert crew.waits < 100


def test_a_worker_that_fails_again_and_again_is_replaced() -> None:
    """After an error of its GPU a process fails at once with whatever it is given, quicker than others compute."""
    crew = Crew(lambda worker, unit: -0.01 if worker == 2 else 10.0)
    failed, watching = dispatched(crew, 300, 4)
    assert not failed
    assert len(watching.done) == 300
    assert [worker for worker, _ in watching.lost_workers] == ["w2"]
    assert sum(count for (worker, _), count in crew.sent.items() if worker == "w2") < 20


def test_where_every_unit_fails_no_worker_is_blamed() -> None:
    crew = Crew(lambda worker, unit: -1.0)
    failed, watching = dispatched(crew, 20, 4)
    assert len(failed) == 20
    assert watching.lost_workers == []
    assert crew.hired == 4


def test_a_unit_is_not_given_up_on_while_another_worker_computes_it() -> None:
    """An idle worker that cannot compute the last, slow unit must not use up its attempts."""
    crew = Crew(lambda worker, unit: 300.0 if worker == 1 and unit >= 20 else 1.0 if unit < 20 else -0.1)
    failed, watching = dispatched(crew, 21, 2)
    assert not failed
    assert "20" in watching.done


def test_a_driver_that_was_held_up_takes_no_worker_for_hung() -> None:
    journal = Journal()
    crew = Crew(lambda worker, unit: -1.0 if unit == 30 and not journal.written else 5.0)

    def held_up() -> None:
        crew.clock += 2000.0

    journal.delay = held_up
    failed, watching = dispatched(crew, 100, 2, journal=journal, unit_timeout=60)
    assert not failed
    assert watching.lost_workers == []


def test_a_first_unit_that_hangs_is_found_once_others_are_done() -> None:
    hung: list[int] = []

    def fate(worker: int, unit: int) -> float | None:
        if unit == 0 and not hung:
            hung.append(worker)
            return None
        return 100.0

    failed, watching = dispatched(Crew(fate), 4, 4)
    assert not failed
    assert len(watching.done) == 4
    assert [worker for worker, _ in watching.lost_workers] == ["w1"]
    pace = Pace()
    assert pace.hung(Unit("0", 0, 1)) is None
    pace.add(Unit("0", 0, 1), 1.0)
    assert pace.hung(Unit("0", 0, 1)) == 3600


def test_workers_come_back_after_a_time_in_which_none_could_open() -> None:
    """As when an object store does not answer for some minutes, in which machines were lost."""

    def opens(number: int) -> Event:
        worker = f"w{number}"
        return Opened(worker, "n", "no answer" if 4 < number <= 10 else "")

    crew = Crew(lambda worker, unit: 60.0 if worker != 2 else -1.0, opens)
    failed, watching = dispatched(crew, 2000, 4)
    assert not failed
    assert len(watching.done) == 2000
    assert crew.hired == 11
    assert crew.clock == pytest.approx(60 * 2000 / 4, rel=0.05)


@pytest.mark.parametrize("broken", ["refused", "lost"])
def test_starts_that_all_fail_end(broken: str) -> None:
    """With a thousand workers requested, two at a time, it is not tried a thousand times."""

    def opens(number: int) -> Event:
        worker = f"w{number}"
        return Opened(worker, "n", "no such file") if broken == "refused" else Lost(worker, "died")

    crew = Crew(lambda worker, unit: 1.0, opens, most=2)
    with pytest.raises(ScanFailed, match=r"no worker could be started: (no such file|died)"):
        dispatched(crew, 5000, 1000)
    assert 300 <= crew.clock < 400


def test_one_bad_machine_does_not_end_a_run_whose_others_have_yet_to_come() -> None:
    crew = Crew(lambda worker, unit: 10.0, lambda n: Opened(f"w{n}", "n", "bad" if n <= 25 else ""), most=1)
    failed, watching = dispatched(crew, 100, 50)
    assert not failed
    assert len(watching.done) == 100


def test_machines_that_are_lost_while_they_start_are_asked_for_slowly() -> None:
    lost = Lost("", "no room", machine=True)

    def opens(number: int) -> Event:
        worker = f"w{number}"
        return Opened(worker, "n") if number > 30 else Lost(worker, lost.reason, machine=True)

    crew = Crew(lambda worker, unit: 10.0, opens)
    failed, watching = dispatched(crew, 10, 2)
    assert not failed
    assert len(watching.done) == 10
    assert crew.clock > 1000


def test_starts_are_tried_again_and_again_while_machines_are_lost() -> None:
    """Once a minute in the end, for as long as it takes."""
    starts, now, tried = Starts(), 0.0, 0
    for _ in range(3000):
        starts.failed(now, "its machine was taken away", blamed=False)
        starts.check(now, 0, 0)
        tried += starts.permitted(now, 5)
        now += 61.0
    assert tried == 5 + 5 + 2998, "two failures are no reason to wait"
