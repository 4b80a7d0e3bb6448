"""Handing out units to Ray actors: retry, requeue, release."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from raysense.batching import SMALLEST_AUTO
from raysense.engine.ledger import Ledger
from raysense.engine.progress import Progress
from raysense.engine.runtime import Placement
from raysense.engine.store import Store
from raysense.engine.worker import Reply, Worker
from raysense.errors import ScanFailed
from raysense.options import ComputeOptions, RunOptions
from raysense.scans.base import Unit

_POLL_SECONDS = 0.2
_STARTS_WITHOUT_SUCCESS = 3
_UNITS_BEFORE_HUNG = 10
_HUNG_MEDIANS = 50.0
_HUNG_SECONDS = 600.0
_DRAIN_SECONDS = 20.0


@dataclass(eq=False)
class _Actor:
    """A requested worker and the units sent to it, in the order it computes them."""

    handle: Any
    opening: Any
    sent: deque[tuple[Unit, Any]] = field(default_factory=deque)
    reserved: Unit | None = None
    ready: bool = False
    began: float = 0.0


class Dispatcher:
    """Runs units on actors until every one is committed or given up on.

    An actor holds at most one unit it computes, one queued behind it, and one reserved so that its data are read ahead. A
    dead actor's units are requeued; only the one it was computing is charged with the loss. A unit that raises is retried
    after the others.
    """

    def __init__(
        self, store: Store, options: RunOptions, compute: ComputeOptions, placement: Placement, progress: Progress
    ) -> None:
        self._store = store
        self._options = options
        self._compute = compute
        self._placement = placement
        self._progress = progress
        self._ledger = Ledger(store, options.max_attempts, options.max_losses)
        self._remote = ray.remote(
            num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_restarts=0, max_task_retries=0
        )(Worker)
        self._actors: list[_Actor] = []
        self._pending: deque[Unit] = deque()
        self._seconds: deque[float] = deque(maxlen=200)
        self._started = 0
        self._failed_starts = 0
        self._start_error = ""

    def run(self, units: Sequence[Unit], stop: Callable[[], bool]) -> list[str]:
        """Compute the units; returns the ids of those given up on.

        Args:
            units: What is left to do.
            stop: Asked between polls; once true, the units being computed are finished and nothing else is begun.

        Raises:
            ScanFailed: no worker can be started.
        """
        self._pending.extend(units)
        deadline: float | None = None
        try:
            while self._pending or any(actor.sent or actor.reserved for actor in self._actors):
                if stop():
                    deadline = deadline or time.monotonic() + _DRAIN_SECONDS
                    self._drain()
                    if not self._actors or time.monotonic() > deadline:
                        break
                else:
                    self._request_actors()
                    for actor in self._actors:
                        self._fill(actor)
                self._poll()
                self._kill_hung()
                if deadline is None:
                    self._release_idle()
                self._progress.workers(sum(actor.ready for actor in self._actors), len(self._actors))
        finally:
            for actor in list(self._actors):
                self._drop(actor)
        return self._ledger.given_up

    # -- actors --------------------------------------------------------------------------------------------------------

    def _request_actors(self) -> None:
        sent = sum(bool(actor.sent) for actor in self._actors)
        wanted = min(self._placement.workers, len(self._pending) + sent)
        if self._failed_starts >= _STARTS_WITHOUT_SUCCESS:
            if not self._actors:
                raise ScanFailed(f"no worker could be started: {self._start_error}")
            return  # go on with those that started, or still may
        while len(self._actors) < wanted:
            self._started += 1
            handle = self._remote.remote(f"w{self._started}")
            self._actors.append(_Actor(handle, handle.open.remote(self._store.location, self._compute)))

    def _opened(self, actor: _Actor) -> None:
        counts = True
        try:
            problem: str = ray.get(actor.opening)
        except RayError as error:
            problem, counts = _reason(error), not _infrastructure(error)
        if not problem:
            actor.ready = True
            self._failed_starts = 0
            return
        self._failed_starts += counts
        self._start_error = problem
        self._progress.note(f"a worker did not start: {problem}")
        self._drop(actor)

    def _drop(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        ray.kill(actor.handle, no_restart=True)

    def _release_idle(self) -> None:
        """Let go of actors that nothing is left for, so that a cluster can scale down."""
        if self._pending:
            return
        busy = any(actor.sent for actor in self._actors)
        for actor in list(self._actors):
            if busy and not actor.sent and actor.reserved is None:
                self._drop(actor)

    def _drain(self) -> None:
        """Stop: keep only actors that compute a unit; what is queued behind it is taken back, and dies with the actor."""
        for actor in list(self._actors):
            back = [unit for unit, _ in list(actor.sent)[1:]] + ([actor.reserved] if actor.reserved else [])
            self._pending.extendleft(reversed(back))
            actor.reserved = None
            while len(actor.sent) > 1:
                actor.sent.pop()
            if not actor.sent:
                self._drop(actor)

    # -- units ---------------------------------------------------------------------------------------------------------

    def _fill(self, actor: _Actor) -> None:
        if not actor.ready:
            return
        # Near the end nothing queues behind a unit, so that the last ones spread over all the actors.
        ready = sum(other.ready for other in self._actors)
        depth = 2 if len(self._pending) > 2 * ready else 1
        while len(actor.sent) < depth and (unit := self._next(actor)) is not None:
            upcoming = None
            if len(self._pending) > 2 * ready:
                upcoming = actor.reserved = self._pending.popleft()
            reference = actor.handle.compute.remote(unit, self._ledger.attempt(unit), upcoming)
            if not actor.sent:
                actor.began = time.monotonic()
            actor.sent.append((unit, reference))

    def _next(self, actor: _Actor) -> Unit | None:
        if actor.reserved is not None:
            unit, actor.reserved = actor.reserved, None
            return unit
        return self._pending.popleft() if self._pending else None

    def _poll(self) -> None:
        owners = {actor.opening: actor for actor in self._actors if not actor.ready}
        owners |= {reference: actor for actor in self._actors for _, reference in actor.sent}
        if not owners:
            time.sleep(_POLL_SECONDS)
            return
        references = list(owners)
        done, rest = ray.wait(references, num_returns=1, timeout=_POLL_SECONDS)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            done += more
        arrived = set(done)
        for actor in {id(owners[reference]): owners[reference] for reference in done}.values():
            if not actor.ready:
                self._opened(actor)
            else:
                self._collect(actor, arrived)

    def _collect(self, actor: _Actor, arrived: set[Any]) -> None:
        """Replies of an actor, in the order in which it computed."""
        while actor.sent and actor.sent[0][1] in arrived:
            unit, reference = actor.sent[0]
            try:
                reply: Reply = ray.get(reference)
            except RayTaskError as error:  # the call itself failed; the process lives
                reply = Reply(False, 0.0, _reason(error), str(error))
            except RayError as error:
                self._lost(actor, error)
                return
            actor.sent.popleft()
            actor.began = time.monotonic()
            if reply.committed:
                self._seconds.append(reply.seconds)
                self._progress.bad_items(reply.bad_items)
                self._done(unit)
            else:
                self._charge(unit, "error", reply.error, reply.traceback)

    def _lost(self, actor: _Actor, error: RayError) -> None:
        """An actor died: what it committed is done, the unit it computed is charged, the others go back unharmed."""
        self._drop(actor)
        # A reply may have been lost with the actor, so the store decides which of its units it was computing.
        back = []
        for unit, _ in actor.sent:
            if self._store.is_committed(unit.id):
                self._done(unit)
            else:
                back.append(unit)
        computing = back.pop(0) if back and not _infrastructure(error) else None
        if actor.reserved is not None:
            back.append(actor.reserved)
        self._pending.extendleft(reversed(back))
        self._progress.note(f"a worker was lost ({_reason(error)}); its units go to others")
        if computing is not None:
            # The kernel kills what takes too much memory without a word, so a unit lost twice is tried in small batches.
            if isinstance(error, OutOfMemoryError) or self._ledger.losses(computing):
                self._shrink_batches()
            self._charge(computing, "loss", _reason(error), str(error))

    def _kill_hung(self) -> None:
        asked = self._options.unit_timeout
        if isinstance(asked, float):
            limit = asked
        elif len(self._seconds) < _UNITS_BEFORE_HUNG:
            return
        else:
            limit = max(_HUNG_SECONDS, _HUNG_MEDIANS * statistics.median(self._seconds))
        now = time.monotonic()
        for actor in list(self._actors):
            if actor.sent and now - actor.began > limit:
                unit = actor.sent.popleft()[0]
                self._pending.extendleft(reversed([other for other, _ in actor.sent]))
                if actor.reserved is not None:
                    self._pending.appendleft(actor.reserved)
                self._drop(actor)
                if self._store.is_committed(unit.id):
                    self._done(unit)
                    continue
                self._charge(unit, "error", f"hung: not done after {limit:.0f} s, its worker was killed", "")

    def _charge(self, unit: Unit, kind: str, message: str, trace: str) -> None:
        record = {"kind": kind, "error": message, "traceback": trace, "time": datetime.now(UTC).isoformat()}
        if self._ledger.charge(unit, record):
            self._pending.append(unit)
        else:
            self._progress.failed(unit, message)

    def _done(self, unit: Unit) -> None:
        self._ledger.done(unit)
        self._progress.done(unit)

    def _shrink_batches(self) -> None:
        size = self._compute.batch_size
        smaller = SMALLEST_AUTO if size == "auto" else max(1, size // 2)
        self._compute = self._compute.model_copy(update={"batch_size": smaller})


def _infrastructure(error: RayError) -> bool:
    """Whether a machine or connection was lost, rather than the process that computed."""
    if not isinstance(error, ActorDiedError | OutOfMemoryError):
        return True
    if isinstance(error, OutOfMemoryError):
        return False
    text = str(error).lower()
    return bool(error.preempted) or "node has died" in text or "node was terminated" in text or "node died" in text


def _reason(error: BaseException) -> str:
    """First sentence of the last line: Ray adds a paragraph of advice to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(". ")[0] if lines else type(error).__name__
