"""Workers as Ray actors, one process each."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.util.client
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError

from raysense.engine.actor import WorkerActor
from raysense.engine.crew import Draining, Event, Lost, Opened, Replied, Reply
from raysense.engine.runtime import Placement
from raysense.options import ComputeOptions
from raysense.scans.base import Unit
from raysense.store.store import Store

_LOG = logging.getLogger("raysense")
_POLL_SECONDS = 0.2
_DRAIN_POLL_SECONDS = 2.0
_DRAIN_TIMEOUT_SECONDS = 5.0


@dataclass
class _Actor:
    handle: Any
    awaited: Any
    node: str = ""
    warned: bool = False
    sent: deque[Any] = field(default_factory=deque)


class RayCrew:
    """Hires Ray actors, and turns what Ray says of them into events.

    Args:
        store: The scan directory, into which the workers commit.
        placement: What Ray is to give each worker.
    """

    poll = _POLL_SECONDS

    def __init__(self, store: Store, placement: Placement) -> None:
        self._store = store
        self._remote = ray.remote(
            num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_restarts=0, max_task_retries=0
        )(WorkerActor)
        self._run = secrets.token_hex(3)
        self._actors: dict[str, _Actor] = {}
        self._tokens: dict[str, str] = {}
        self._awaited: dict[Any, str] = {}
        """What each actor is to answer next: its opening, or its oldest unit."""
        self._opening: set[str] = set()
        self._drains_checked = 0.0

    def now(self) -> float:
        """Monotonic time, s."""
        return time.monotonic()

    def hire(self, worker: str, compute: ComputeOptions) -> None:
        """Request an actor; it stays pending until Ray has a place for it, which an autoscaler sees."""
        token = self._tokens[worker] = f"{self._run}{len(self._tokens):06x}"
        handle = self._remote.remote(worker, token)
        opening = handle.begin.remote(self._store.location, compute)
        self._actors[worker] = _Actor(handle, opening)
        self._opening.add(worker)
        self._awaited[opening] = worker

    def send(self, worker: str, unit: Unit, attempt: int, upcoming: Unit | None) -> None:
        """Have an opened worker compute a unit."""
        actor = self._actors[worker]
        reference = actor.handle.attempt.remote(unit, attempt, upcoming)
        actor.sent.append(reference)
        if len(actor.sent) == 1:
            self._await(worker)

    def dismiss(self, worker: str) -> None:
        """End an actor at once."""
        actor = self._actors.get(worker)
        if actor is not None:
            self._forget(worker)
            ray.kill(actor.handle, no_restart=True)

    def committed(self, worker: str, unit: Unit) -> bool:
        """Whether a worker had committed a unit: one request."""
        return self._store.is_committed(unit.id, self._tokens[worker])

    def wait(self, timeout: float) -> Sequence[Event]:
        """Sleep until an actor answers or dies, or its machine is to go."""
        if not self._awaited:
            time.sleep(timeout)
            return self._drains()
        references = list(self._awaited)
        done, rest = ray.wait(references, num_returns=1, timeout=timeout)
        if done and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            done += more
        return [*(self._answer(reference) for reference in done), *self._drains()]

    def _answer(self, reference: Any) -> Event:
        worker = self._awaited.pop(reference)
        actor = self._actors[worker]
        if worker in self._opening:
            try:
                actor.node, problem = ray.get(reference)
            except RayTaskError as error:  # it raised something else than a UsageError; the process lives
                problem = last_line(error)
            except RayError as error:
                return self._gone(worker, error)
            self._opening.discard(worker)
            return Opened(worker, actor.node, problem)
        try:
            reply: Reply = ray.get(reference)
        except RayTaskError as error:  # the call itself failed; the process lives
            reply = Reply(False, 0.0, last_line(error), str(error))
        except RayError as error:
            return self._gone(worker, error)
        actor.sent.popleft()
        if actor.sent:
            self._await(worker)
        return Replied(worker, reply)

    def _await(self, worker: str) -> None:
        actor = self._actors[worker]
        actor.awaited = actor.sent[0]
        self._awaited[actor.awaited] = worker

    def _gone(self, worker: str, error: RayError) -> Lost:
        self.dismiss(worker)
        out_of_memory = isinstance(error, OutOfMemoryError)
        return Lost(worker, last_line(error), str(error), lost_machine(error), out_of_memory)

    def _forget(self, worker: str) -> None:
        actor = self._actors.pop(worker)
        self._opening.discard(worker)
        self._awaited.pop(actor.awaited, None)

    def _drains(self) -> list[Draining]:
        """Workers on machines that Ray is told to drain, each once."""
        if time.monotonic() - self._drains_checked < _DRAIN_POLL_SECONDS:
            return []
        self._drains_checked = time.monotonic()
        if ray.util.client.ray.is_connected():
            return []  # a driver behind ray:// hears of machines only when they are gone
        try:
            # No public interface has this; Ray Serve reads it the same way.
            nodes = ray._private.worker.global_worker.gcs_client.get_draining_nodes(timeout=_DRAIN_TIMEOUT_SECONDS)
        except RayError as error:
            _LOG.warning("Ray does not say which machines it drains (%s); asking again", last_line(error))
            return []
        deadlines = {node: milliseconds / 1e3 - time.time() for node, milliseconds in nodes.items()}
        found = []
        for worker, actor in self._actors.items():
            if actor.node in deadlines and not actor.warned:
                actor.warned = True
                left = deadlines[actor.node]
                # Ray writes 0 where nobody gave a deadline.
                known = left > -time.time() / 2
                found.append(Draining(worker, actor.node, time.monotonic() + left if known else None))
        return found


def lost_machine(error: RayError) -> bool:
    """Whether a machine or connection was lost, rather than the process that computed."""
    if not isinstance(error, ActorDiedError | OutOfMemoryError):
        return True
    if isinstance(error, OutOfMemoryError):
        return False
    text = str(error).lower()
    return bool(error.preempted) or "node has died" in text or "node was terminated" in text or "node died" in text


def last_line(error: BaseException) -> str:
    """First sentence of the last line of a message: Ray adds a paragraph of advice to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(". ")[0] if lines else type(error).__name__
