"""Trainings as Ray tasks: at once where resources allow, and gone on with where a process is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from raysense.engine.runtime import Placement, cluster, place
from raysense.errors import RaysenseError, first_line
from raysense.options import RunOptions
from raysense.references import absolute_reference
from raysense.studies.recipes import Trained, TrainingTask
from raysense.studies.training import curve, finished, train

_POLL_SECONDS = 1.0
_LINE_SECONDS = 30.0


def train_all(tasks: Mapping[str, TrainingTask], options: RunOptions, quiet: bool = True) -> dict[str, Trained]:
    """Train several networks, each in a Ray task: on a GPU each where the cluster has some, else on a share of the CPUs.

    A network whose process is lost is given another one, which goes on from the last epoch. It is given up on after
    ``max_losses`` processes that were lost one after the other without an epoch between them.

    Args:
        tasks: By a name for messages; their directories must be reachable from the nodes.
        options: Address, device and workers; ``workers`` bounds how many train at once.
        quiet: Whether to show no progress.

    Returns:
        What came of each, in their order.

    Raises:
        UsageError: a network cannot be trained, or its directory holds another one; nothing was trained.
        RaysenseError: training diverged, failed, or lost too many processes; what the others did is kept.
    """
    tasks = {name: _absolute(task) for name, task in tasks.items()}
    results = {name: finished(task) for name, task in tasks.items()}
    left = {name: tasks[name] for name, result in results.items() if result is None}
    if left:
        with cluster(options):
            results |= _Trainings(left, options, place(options, len(tasks)), quiet).run()
    return {name: result for name, result in results.items() if result is not None}


class _Trainings:
    """Ray tasks that train, until every one is done."""

    def __init__(
        self, tasks: Mapping[str, TrainingTask], options: RunOptions, placement: Placement, quiet: bool
    ) -> None:
        self._tasks = tasks
        self._most_losses = options.max_losses
        self._device = options.device if placement.num_gpus else "cpu"
        self._threads = placement.threads
        # A process of its own for every task: threads are set and a GPU is held by the process.
        self._remote = ray.remote(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_retries=0, max_calls=1)(
            train_network
        )
        self._epochs = {name: len(curve(task)) for name, task in tasks.items()}
        self._losses = dict.fromkeys(tasks, 0)
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._running: dict[Any, str] = {}

    def run(self) -> dict[str, Trained]:
        """Train; returns what came of each."""
        results: dict[str, Trained] = {}
        for name in self._tasks:
            self._begin(name)
        try:
            with self._shown() as show:
                while self._running:
                    show()
                    done, _ = ray.wait(list(self._running), timeout=_POLL_SECONDS)
                    for reference in done:
                        name = self._running.pop(reference)
                        result = self._result(name, reference)
                        if result is None:
                            self._begin(name)
                        else:
                            results[name] = result
        finally:
            for reference in self._running:
                ray.cancel(reference, force=True)
        return results

    def _begin(self, name: str) -> None:
        self._running[self._remote.remote(self._tasks[name], self._device, self._threads)] = name

    def _result(self, name: str, reference: Any) -> Trained | None:
        """What a task returned; None where its process was lost and another one is to go on."""
        try:
            result: Trained | RaysenseError = ray.get(reference)
        except RayTaskError as error:
            raise RaysenseError(f"training of network {name} failed: {first_line(error.cause)}") from error
        except RayError as error:
            epochs = len(curve(self._tasks[name]))
            self._losses[name] = 1 if epochs > self._epochs[name] else self._losses[name] + 1
            self._epochs[name] = epochs
            lost = f"training of network {name} lost its process after {epochs} epochs ({type(error).__name__})"
            if self._losses[name] > self._most_losses:
                times = f"{self._losses[name]} times without an epoch between them"
                raise RaysenseError(f"{lost}, {times}; it is given up on") from error
            self._console.print(f"{lost}; another one goes on", style="yellow", soft_wrap=True, markup=False)
            return None
        if isinstance(result, RaysenseError):
            raise result
        return result

    @contextmanager
    def _shown(self) -> Iterator[Callable[[], None]]:
        """Something to call now and then: it shows how far the trainings are, where somebody is to see it."""
        if self._console.quiet:
            yield lambda: None
        elif self._console.is_terminal:
            with self._console.status("training") as status:
                yield lambda: status.update(self._line())
        else:
            shown = time.monotonic()

            def show() -> None:
                nonlocal shown
                if time.monotonic() - shown > _LINE_SECONDS:
                    shown = time.monotonic()
                    self._console.print(self._line(), soft_wrap=True, markup=False)

            yield show

    def _line(self) -> str:
        """How far every training is."""
        parts = []
        for name in self._running.values():
            entries = curve(self._tasks[name])
            loss = f", loss {entries[-1]['loss']:.4g}" if entries else ""
            parts.append(f"{name}: epoch {len(entries)} of {self._tasks[name].recipe.epochs}{loss}")
        return f"training  {'  '.join(parts)}"


def train_network(task: TrainingTask, device: str, threads: int | None) -> Trained | RaysenseError:
    """Train in this process, on so many threads; an error raised on purpose comes back as a value, without a traceback."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return train(task, device)
    except RaysenseError as error:
        return error


def _absolute(task: TrainingTask) -> TrainingTask:
    """The same task in another working directory."""
    validation = task.validation and (absolute_reference(task.validation[0], "data"), task.validation[1])
    model, data = absolute_reference(task.model, "model"), absolute_reference(task.data, "data")
    return replace(task, model=model, data=data, validation=validation)
