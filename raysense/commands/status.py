"""`raysense status`: how far a scan is, once or again and again."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

import click

from raysense.commands.errors import FAILED
from raysense.commands.options import bad_items_hint, debug_option
from raysense.errors import UsageError

if TYPE_CHECKING:
    from raysense.scan_status import Status

_PAUSE_PER_LOOK = 9.0


@click.command()
@click.argument("directory")
@click.option("--watch", is_flag=True, help="Show it again and again until no driver is at work.")
@click.option(
    "--interval", type=float, default=5.0, show_default=True, metavar="SECONDS", help="How often, with --watch."
)
@debug_option
def status(directory: str, watch: bool, interval: float, debug: bool) -> int:
    """Show how far the scan of a DIRECTORY is, and where its errors are.

    With --watch, exit status 1 says that the scan has ended, or its driver has, without being complete.
    """
    from raysense.scan_status import status

    if not interval > 0:
        raise UsageError(f"interval {interval:g} must be positive; give seconds, such as --interval 5")
    if not watch:
        click.echo(describe(directory, status(directory)))
        return 0
    return _watch(directory, interval)


def describe(directory: str, now: Status) -> str:
    """A scan's status as lines of text."""
    from raysense.engine.progress import clock

    state = "complete" if now.complete else "running" if now.running else "stopped"
    lines = [
        f"{directory}: {now.kind} scan, {state}",
        f"units    {now.committed} of {now.units} done, {len(now.failed)} failed, {now.left} left",
    ]
    bad = f", {now.bad_samples} of them could not be computed" if now.bad_samples else ""
    lines.append(f"{now.noun:8} {now.samples_done} of {now.samples} done{bad}")
    if now.rate and now.running:
        left = "" if now.seconds_left is None else f", about {clock(now.seconds_left)} left"
        lines.append(f"rate     {now.rate:.3g} {now.noun}/s{left}")
    if now.driver is not None and now.driver.progress:
        names = ("workers_busy", "workers_ready", "workers_requested", "units_waiting")
        busy, ready, requested, waiting = (now.driver.progress.get(name, "?") for name in names)
        lines.append(
            f"workers  {busy} busy, {ready} ready, {requested} requested; {waiting} units wait; driver {now.driver.name}"
        )
    for record in now.failed:
        error = record["attempts"][-1]["error"]
        lines.append(f"failed   {record['unit']}: {error}  ({directory}/failures/{record['unit']}.json)")
    if now.bad_samples:
        lines.append(bad_items_hint(directory, now.errors_in))
    if state == "stopped":
        lines.append(f"finish it with: {shlex.join(['raysense', 'resume', directory])}")
    return "\n".join(lines)


def _watch(directory: str, interval: float) -> int:
    """On a terminal in place; elsewhere a line whenever something changed."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from raysense.scan_status import status

    console = Console(highlight=False)
    shown = ""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            began = time.monotonic()
            now = status(directory)
            if not now.running:
                break
            if console.is_terminal:
                live.update(Text(describe(directory, now)), refresh=True)
            elif (line := _line(now)) != shown:
                click.echo(line)
                shown = line
            # Of a scan of very many small files, each look lists them all: most of the time is left to others.
            time.sleep(max(interval, _PAUSE_PER_LOOK * (time.monotonic() - began)))
    click.echo(describe(directory, now))
    return 0 if now.complete else FAILED


def _line(now: Status) -> str:
    from raysense.engine.progress import clock

    left = "" if now.seconds_left is None else f", about {clock(now.seconds_left)} left"
    rate = "" if not now.rate else f", {now.rate:.3g} {now.noun}/s{left}"
    failed = f", {len(now.failed)} failed" if now.failed else ""
    return f"units {now.committed}/{now.units}{failed}, {now.noun} {now.samples_done}/{now.samples}{rate}"
