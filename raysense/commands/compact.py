"""`raysense compact`: gather the small files of a scan into large ones."""

from __future__ import annotations

import re

import click

from raysense.commands.options import debug_option, progress_callback, quiet_option
from raysense.errors import UsageError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")


@click.command()
@click.argument("directory")
@click.option(
    "--grace",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long superseded files stay for readers that opened before, e.g. 90s, 30m, 1h, 2d. With 0, and no driver at "
    "work, those that this very command supersedes go at once.",
)
@quiet_option
@debug_option
def compact(directory: str, grace: str, quiet: bool, debug: bool) -> None:
    """Gather the small files of a scan DIRECTORY into large ones, so that opening it stays fast.

    Safe while the scan runs and while its results are read. Run it again later: it takes in the units committed since, and
    removes the files that an earlier one superseded.
    """
    from raysense.store.compaction import compact

    seconds = parse_duration(grace, "grace")
    with progress_callback("compact", quiet) as callback:
        done = compact(directory, seconds, callback)
    click.echo(f"{directory}: {done.units} units are compacted, {done.added} of them now")
    click.echo(f"files    {done.files_before} -> {done.files_after}")
    click.echo(f"bytes    {_size(done.bytes_before)} -> {_size(done.bytes_after)}")
    click.echo(f"removed  {done.removed} files that nobody reads any more")
    if done.superseded:
        click.echo(
            f"{done.superseded} superseded files stay for readers; remove them after {grace} with the same command"
        )


def parse_duration(text: str, argument: str) -> float:
    """Seconds of a text such as ``90s``, ``30m``, ``1h`` or ``2d``; a number alone is seconds.

    Raises:
        UsageError: it is no such text.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{argument} {text!r} is no time; write a number with s, m, h or d, such as 1h")
    return float(match[1]) * _UNITS[match[2]]


def _size(size: int) -> str:
    power = min(3, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB')[power]}"
