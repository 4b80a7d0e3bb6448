"""The `raysense` command: parsing and printing only. Heavy imports wait until a command runs."""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel

from raysense import __version__
from raysense.commands.compact import compact
from raysense.commands.errors import FAILED, INTERRUPTED, SentenceCommand
from raysense.commands.kinds import KindsGroup
from raysense.commands.options import (
    RUN_NAMES,
    bad_items_hint,
    debug_option,
    given,
    out_option,
    progress_callback,
    quiet_option,
    run_options,
)
from raysense.commands.plan import plan
from raysense.commands.status import status
from raysense.errors import UsageError
from raysense.query import EXPORT_FORMATS, RESULT_FORMATS

if TYPE_CHECKING:
    from raysense.engine.run import Outcome

_TABLE_ROWS = 1000


class _Commands(SentenceCommand, click.Group):
    """The group of all commands."""


class _ScanKinds(KindsGroup):
    """`raysense scan KIND`."""

    def kind_command(self, name: str, spec_type: type[BaseModel]) -> Callable[..., Any]:
        """Runs the scan."""

        @out_option
        @click.option("--resume", is_flag=True, help="Finish OUT if it holds this very scan already.")
        @run_options
        @quiet_option
        @debug_option
        def command(out: str, resume: bool, quiet: bool, debug: bool, **values: Any) -> int:
            from raysense.api import scan

            run = {key: values.pop(key) for key in RUN_NAMES}
            outcome = scan(name, out, run=given(run), quiet=quiet, resume=resume, **given(values))
            return _finish(outcome, out, quiet)

        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="raysense")
def main() -> None:
    """Scan image classifiers for how sensitive they are, and where; query the results with SQL."""


main.add_command(compact)
main.add_command(plan)
main.add_command(status)


@main.group(cls=_ScanKinds)
def scan() -> None:
    """Run a scan of the given KIND and write it to a directory."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--out", help="Directory or URI to write to, instead of the file's.")
@click.option("--resume", is_flag=True, help="Finish the directory if it holds this very scan already.")
@run_options
@quiet_option
@debug_option
def run(file: str, out: str | None, resume: bool, quiet: bool, debug: bool, **options: Any) -> int:
    """Run the scan that a TOML FILE describes: kind, out, the scan's options, and a table [run]."""
    from raysense.api import scan
    from raysense.scans import get_scan
    from raysense.validation import validated

    document = _read_toml(file)
    kind, saved_out, saved_run = document.pop("kind", None), document.pop("out", None), document.pop("run", {})
    out = out or saved_out
    if not isinstance(kind, str):
        raise UsageError(f'file {file!r} has no kind; add a line such as kind = "influence"')
    if not isinstance(out, str):
        raise UsageError(f'file {file!r} has no out; add a line such as out = "runs/first", or give --out')
    if not isinstance(saved_run, Mapping):
        raise UsageError(f"file {file!r}: run is {saved_run!r}; make it a table [run] with workers, batch_size, ...")
    validated(get_scan(kind).spec_type, document)
    outcome = scan(kind, out, run={**saved_run, **given(options)}, quiet=quiet, resume=resume, **document)
    return _finish(outcome, out, quiet)


@main.command()
@click.argument("directory")
@run_options
@quiet_option
@debug_option
def resume(directory: str, quiet: bool, debug: bool, **options: Any) -> int:
    """Finish the interrupted scan of a DIRECTORY; does nothing when it is complete."""
    from raysense.api import resume

    return _finish(resume(directory, run=given(options), quiet=quiet), directory, quiet)


class _SqlCommand(click.Command):
    """Lists the macros in its help."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Signatures and documentation of the SQL macros."""
        from raysense.query.catalogue import describe_macros

        with formatter.section("Macros"):
            formatter.write_dl([(signature, doc) for _, signature, doc in describe_macros()])


@main.command(cls=_SqlCommand)
@click.argument("arguments", nargs=-1, required=True, metavar="DIRECTORY... [QUERY]")
@click.option(
    "--format", "format_", default="table", show_default=True, metavar="|".join(RESULT_FORMATS), help="Output format."
)
@debug_option
def sql(arguments: tuple[str, ...], format_: str, debug: bool) -> None:
    """Query the results of one or several scans with SQL; a prompt without QUERY.

    Each table is a view over committed units with a column `scan`, e.g.
    raysense sql runs/first "SELECT split, avg(fi) FROM influence JOIN samples USING (scan, sample_id) GROUP BY split"
    """
    from raysense.cache import cache_directory
    from raysense.query.connection import open_results
    from raysense.query.prompt import run_line, run_prompt, run_script

    if format_ not in RESULT_FORMATS:
        raise UsageError(f"format {format_!r} is unknown; choose one of {', '.join(RESULT_FORMATS)}")
    *directories, last = arguments
    query = last if directories and not _is_scan(last) else None
    with open_results(directories if query is not None else arguments) as database:
        stream = sys.stdout.buffer
        if query is not None:
            run_line(database, query, stream, format_, _TABLE_ROWS)
        elif sys.stdin.isatty() and sys.stdout.isatty():
            run_prompt(database, stream, cache_directory() / "sql-history")
        else:
            run_script(database, sys.stdin, stream, format_)


@main.command()
@click.argument("directories", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="HTML file to write; figures go to a folder beside it.")
@click.option("--run-code", is_flag=True, help="Show images also where reading them runs a data factory's code.")
@quiet_option
@debug_option
def report(directories: tuple[str, ...], output: str, run_code: bool, quiet: bool, debug: bool) -> None:
    """Write a self-contained HTML report of one or several scans, with its figures as PNG and PDF files."""
    from raysense.report.page import write_report

    with progress_callback("report", quiet) as callback:
        written = write_report(directories, output, progress=callback, run_code=run_code)
    click.echo(f"wrote {written[0]} and {len(written) - 1} figure files beside it")


@main.command()
@click.argument("directory")
@click.option("-o", "--output", required=True, help="New directory or URI to write to.")
@click.option(
    "--format", "format_", default="parquet", show_default=True, metavar="|".join(EXPORT_FORMATS), help="File format."
)
@quiet_option
@debug_option
def export(directory: str, output: str, format_: str, quiet: bool, debug: bool) -> None:
    """Write every table of a scan as one file."""
    from raysense.query.export import export_tables

    with progress_callback("export", quiet) as callback:
        rows = export_tables(directory, output, format_, callback)
    for table, count in rows.items():
        click.echo(f"{output}/{table}.{format_}  {count} rows")


@main.command()
@click.argument("out", default="demo-output")
@run_options
@quiet_option
@debug_option
def demo(out: str, quiet: bool, debug: bool, **options: Any) -> int:
    """Scan the bundled real digits, print what is found, and write a report to OUT (default demo-output)."""
    from raysense.demo import run_demo

    return run_demo(out, given(options), quiet)


def _finish(outcome: Outcome, out: str, quiet: bool) -> int:
    """Print how a scan ended; returns the exit status."""
    from raysense.scan_status import status

    left = outcome.units - outcome.committed - len(outcome.failed)
    named = shlex.quote(out)
    if outcome.bad_items:
        click.echo(f"{outcome.bad_items} of {outcome.items} {outcome.noun} could not be computed", err=True)
        click.echo(bad_items_hint(out, status(out).errors_in), err=True)
    if outcome.failed:
        click.echo(
            f"{len(outcome.failed)} of {outcome.units} units failed; see `raysense status {named}` and {out}/failures",
            err=True,
        )
    if outcome.interrupted and left:
        click.echo(
            f"stopped: {outcome.committed} of {outcome.units} units are committed; finish with: raysense resume {named}",
            err=True,
        )
        return INTERRUPTED
    if outcome.complete and not quiet:
        click.echo(
            f"{outcome.units} units are in {out}; next: raysense sql {named}   raysense report {named} -o report.html"
        )
    return FAILED if not outcome.complete or (outcome.items and outcome.bad_items == outcome.items) else 0


def _is_scan(text: str) -> bool:
    """Whether the last argument of `sql` is a directory rather than a query."""
    if any(character.isspace() for character in text):
        return os.path.isdir(text)
    return "://" in text or os.path.exists(text) or not text.rstrip(";").endswith(")")


def _read_toml(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"file {file!r} cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"file {file!r} is not TOML: {error}") from error
