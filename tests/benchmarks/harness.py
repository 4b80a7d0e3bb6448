"""Two or more ways to do the same work, timed side by side in one run: interleaved rounds, and how they are printed."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_MEMORY_POLL_SECONDS = 0.005
_BUSY_SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """A figure against its target.

    Attributes:
        what: What was measured.
        figure: The figure with its unit.
        target: The target in words.
        met: Whether it was reached.
    """

    what: str
    figure: str
    target: str
    met: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.figure}, target {self.target}: {'met' if self.met else 'MISSED'}"


def interleaved(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every side in every round: each runs once unmeasured, then A B A B ...

    Neighbours on a shared machine and a changing clock frequency so touch all the sides alike.

    Args:
        sides: Name and work of each side.
        rounds: How often each is measured.
        clock: ``time.process_time`` for work of one thread on a shared machine: it leaves out the time that the process
            waits for a core, and equals wall time on an idle machine.
    """
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            began = clock()
            work()
            seconds[name].append(clock() - began)
    return seconds


def print_title(text: str) -> None:
    """Begin a comparison: what it is, and how busy the machine is without it."""
    share = psutil.cpu_percent(interval=_BUSY_SECONDS) / 100
    cores = psutil.cpu_count() or 1
    print(f"\n{text}\n  before: {share * cores:.1f} of {cores} cores busy with something else", flush=True)


def ratios(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> list[float]:
    """How many times faster ``fast`` was than ``slow``, round by round."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]


def print_sides(seconds: Mapping[str, Sequence[float]], items: int = 1, unit: str = "s") -> None:
    """A line for every side: min, median and max.

    Args:
        seconds: As from :func:`interleaved`.
        items: Divides the seconds, e.g. images per round.
        unit: Of the quotient: ``s`` or ``ms`` with what follows it, e.g. ``ms/image``.
    """
    scale = (1e3 if unit.startswith("ms") else 1.0) / items
    width = max(len(name) for name in seconds)
    for name, values in seconds.items():
        low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
        print(f"  {name:{width}s}  min {low:8.3f}  median {middle:8.3f}  max {high:8.3f}  {unit}")


def print_ratio(
    seconds: Mapping[str, Sequence[float]], slow: str, fast: str, target: float | None = None
) -> list[Verdict]:
    """Ratio of the medians and of the minima, and the extremes pair by pair; returns the verdict if there is a target.

    The verdict is on the medians. The minima are what a busy machine disturbs least.
    """
    pairs = ratios(seconds, slow, fast)
    ratio = statistics.median(seconds[slow]) / statistics.median(seconds[fast])
    best = min(seconds[slow]) / min(seconds[fast])
    line = (
        f"{slow} / {fast}: {ratio:.2f}x of medians, {best:.2f}x of minima, "
        f"{min(pairs):.2f}x to {max(pairs):.2f}x pair by pair"
    )
    if target is None:
        print(f"  {line}")
        return []
    verdict = Verdict(f"{slow} / {fast}", f"{ratio:.2f}x", f">= {target:g}x", ratio >= target)
    print(f"  {line}; target >= {target:g}x: {'met' if verdict.met else 'MISSED'}")
    return [verdict]


def print_verdict(what: str, figure: str, target: str, met: bool) -> Verdict:
    """Print a figure that is not a ratio against its target."""
    verdict = Verdict(what, figure, target, met)
    print(f"  {verdict}")
    return verdict


class Memory:
    """Largest resident memory seen so far, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.peak = 0
        self.sample()

    def sample(self) -> None:
        """Look once more."""
        self.peak = max(self.peak, self._process.memory_info().rss)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While active, sample this process some hundred times a second."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_MEMORY_POLL_SECONDS):
                self.sample()

        thread = threading.Thread(target=watch, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.sample()
