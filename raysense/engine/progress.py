"""The live progress line of a scan: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from raysense.engine.crew import Reply
from raysense.engine.observers import Observer
from raysense.scans.base import Unit

_LINE_SECONDS = 30.0
_START_SECONDS = 60.0
_FIRST_UNIT_SECONDS = 600.0


class Progress(Observer):
    """Shows samples done, rate, time left, workers and failures on standard error; nothing when quiet.

    Used as a context manager around a run. Counts start at what earlier runs committed; the rate is of this run only.
    """

    def __init__(self, total: int, done: int, quiet: bool = False, noun: str = "samples") -> None:
        self._total = total
        self._before = self.done_items = done
        self.failed = 0
        self.bad = 0
        self._ready = self._requested = self._most_ready = 0
        self._noun = noun
        self._quiet = quiet
        self._last_line = time.monotonic()
        self._began = time.monotonic()
        self._working_since: float | None = None
        self._warned: set[str] = set()
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            _Counts(self),
            TimeElapsedColumn(),
            console=self._console,
            transient=False,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("scan", total=total, completed=done)

    def __enter__(self) -> Progress:
        """Begin to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing, with a last line where there is no bar."""
        self._ready = self._requested = self._most_ready
        self._bar.update(self._task, completed=self.done_items)
        self._bar.stop()
        if self._bar.disable:
            self._console.print(self.line(), soft_wrap=True)

    def committed(self, unit: Unit, reply: Reply, worker: str, attempt: int) -> None:
        """A unit is committed."""
        self.bad += reply.bad_items
        self.found(unit)

    def found(self, unit: Unit) -> None:
        """A unit turned out to be committed already."""
        self.done_items += unit.size
        self._refresh()

    def given_up(self, unit: Unit, message: str) -> None:
        """A unit has failed for good."""
        self.failed += 1
        self.note(f"unit {unit.id} failed for good: {message}")
        self._refresh()

    def refused(self, worker: str, problem: str) -> None:
        """A worker could not open the scan."""
        self.note(f"a worker did not start: {problem}")

    def lost(self, worker: str, reason: str) -> None:
        """A worker is gone."""
        self.note(f"a worker was lost ({reason}); its units go to others")

    def draining(self, worker: str, node: str, seconds: float | None) -> None:
        """A worker's machine will be taken away."""
        when = "soon" if seconds is None else f"in {seconds:.0f} s"
        self.note(f"the machine of a worker goes {when}; it finishes its unit, or hands it back")

    def state(self, pending: int, running: int, ready: int, requested: int) -> None:
        """How many units and workers there are."""
        if ready and not self._most_ready:
            self._working_since = time.monotonic()  # before, Ray was starting; that says nothing of the rate
        self._ready, self._requested = ready, requested
        self._warn_of_waiting()
        self._most_ready = max(self._most_ready, ready)
        self._refresh()

    def _warn_of_waiting(self) -> None:
        """Say once each that no worker comes, and that no unit is done: only the user knows whether to wait."""
        now = time.monotonic()
        if self._working_since is None:
            if now - self._began > _START_SECONDS and "start" not in self._warned:
                self._warned.add("start")
                self.note(
                    f"none of {self._requested} requested workers has started in {clock(now - self._began)}; waiting for "
                    "machines with enough free CPUs or GPUs: `ray status` says what the cluster has, and is asked for"
                )
            return
        working = now - self._working_since
        if self.done_items == self._before and working > _FIRST_UNIT_SECONDS and "unit" not in self._warned:
            self._warned.add("unit")
            self.note(
                f"no unit is done after {clock(working)}; smaller ones (--unit-size) are done sooner, and --unit-timeout "
                "SECONDS ends what hangs"
            )

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, style="yellow", soft_wrap=True, markup=False)

    @property
    def rate(self) -> float | None:
        """Items per second of this run since the first worker was ready; None before."""
        if self._working_since is None:
            return None
        elapsed = time.monotonic() - self._working_since
        return (self.done_items - self._before) / elapsed if elapsed > 0 else None

    def line(self) -> str:
        """The counts as one line of text."""
        rate = self.rate
        if rate is None:
            waiting = f", 0 of {self._requested} are there" if self._requested else ""
            return f"{self.done_items}/{self._total} {self._noun}  starting workers{waiting}"
        left = f"{clock((self._total - self.done_items) / rate)} left" if rate > 0 else "- left"
        text = f"{self.done_items}/{self._total} {self._noun}  {rate:.3g}/s  {left}"
        text += f"  workers {self._ready}/{self._requested}"
        text += f"  {self.bad} {self._noun} failed" if self.bad else ""
        return text + (f"  {self.failed} units failed" if self.failed else "")

    def _refresh(self) -> None:
        self._bar.update(self._task, completed=self.done_items)
        now = time.monotonic()
        if self._bar.disable and not self._quiet and now - self._last_line > _LINE_SECONDS:
            self._last_line = now
            self._console.print(self.line(), soft_wrap=True)


class _Counts(ProgressColumn):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.line())


def clock(seconds: float) -> str:
    """A duration as minutes:seconds or hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
