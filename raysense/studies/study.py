"""What the studies share: their common options, and the directory in which one works."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from raysense.api import scan
from raysense.engine.runtime import check_reachable, cluster
from raysense.errors import RaysenseError, UsageError
from raysense.options import ComputeOptions, RunOptions
from raysense.query.connection import open_results
from raysense.query.display import UNBOUNDED_WIDTH, print_result
from raysense.references import parse_reference
from raysense.report.page import write_report
from raysense.scans import ScanSpec, get_scan
from raysense.scans.influence import InfluenceSpec
from raysense.store.files import Directory
from raysense.store.store import SCAN_FILE
from raysense.validation import validated
from raysense.working_directory import check_lasting

BUNDLED_MODELS = ("digits", "raysense.studies.networks:residual_digits?width=4")
"""Two networks for the digits that are trained on first use; the second has layers of few parameters."""

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_SPEC = InfluenceSpec.model_fields


class StudyOptions(BaseModel):
    """What every study takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("digits", description=str(_SPEC["data"].description))
    limit: int | None = Field(None, ge=1, description=str(_SPEC["limit"].description))
    method: Literal["exact", "certified"] = Field(
        "exact", description="exact: K - 1 backward passes; certified: an interval of the asked width"
    )
    tolerance: float = Field(1e-3, gt=0, lt=1, description=str(_SPEC["tolerance"].description))
    rank_rule: Literal["invariant", "published"] = Field("invariant", description=str(_SPEC["rank_rule"].description))
    unit_size: int | None = Field(None, ge=1, description=str(_SPEC["unit_size"].description))
    seed: int = Field(0, ge=0, description=str(_SPEC["seed"].description))

    def how(self) -> dict[str, Any]:
        """The fields of a scan's spec that say how it measures."""
        return {name: getattr(self, name) for name in ("method", "tolerance", "rank_rule", "unit_size", "seed")}


class Workspace:
    """The directory of a study: its scans, each resumed where it is there already, its tables and its report.

    Attributes:
        folder: The directory.
        options: How the scans run.
        console: Where tables are printed.
        kind: Kind of its scans.
        status: Exit status so far: 1 once units have failed.
        incomplete: Directories of scans of which units failed.
    """

    def __init__(
        self, out: str | os.PathLike[str], run: Mapping[str, Any], quiet: bool, kind: str = "influence"
    ) -> None:
        """Check directory, options and the cluster's address; UsageError says what is wrong."""
        self.kind = kind
        check_lasting(out)
        self.folder = Directory(out)
        if "?" in self.folder.location and not self.folder.is_local:
            raise UsageError(
                f"out {os.fspath(out)!r} has options, and a study writes several folders below it; leave them out, and "
                "give them by environment variables such as AWS_ENDPOINT_URL"
            )
        self.options = validated(RunOptions, run)
        check_reachable(self.options)
        self.quiet = quiet
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=UNBOUNDED_WIDTH)
        self.status = 0
        self.incomplete: set[str] = set()

    def path(self, name: str) -> str:
        """Location of something in the directory."""
        return f"{self.folder.location}/{name}"

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """Ray, started or joined once for all scans of the study."""
        with cluster(self.options):
            yield

    def validate(self, spec: Mapping[str, Any], kind: str | None = None) -> ScanSpec:
        """The spec of a scan; UsageError says what is wrong with it."""
        return validated(get_scan(kind or self.kind).spec_type, spec)

    def check(self, name: str, *, kind: str | None = None, **spec: Any) -> None:
        """Raise UsageError where a scan that is still to be started could not be: nothing is computed or written."""
        checked = self.validate(spec, kind)
        if not Directory(self.path(name)).exists(SCAN_FILE):
            get_scan(kind or self.kind)(checked).prepare(ComputeOptions())

    def scan(self, name: str, *, kind: str | None = None, **spec: Any) -> str:
        """Run a scan, or finish it; returns its directory.

        Args:
            name: Of its directory.
            kind: Kind of scan; None takes the study's.
            **spec: What to scan.

        Raises:
            RaysenseError: no unit could be computed.
            KeyboardInterrupt: it was interrupted.
        """
        directory = self.path(name)
        if not self.quiet:
            self.say(f"scan    {directory}")
        outcome = scan(kind or self.kind, directory, run=self.options, quiet=self.quiet, resume=True, **spec)
        if outcome.interrupted and not outcome.complete:
            self.say(f"stopped with {outcome.committed} of {outcome.units} units; the same command again goes on")
            raise KeyboardInterrupt
        if not outcome.complete:
            failed = f"{outcome.units - outcome.committed} of {outcome.units} units of {directory} failed"
            if not outcome.committed:
                raise RaysenseError(f"{failed}; see `raysense status {shlex.quote(directory)}`")
            self.say(f"{failed} and are missing in what follows; see `raysense status {shlex.quote(directory)}`")
            self.status = 1
            self.incomplete.add(directory)
        return directory

    def scan_each(self, models: Mapping[str, str], spec: Mapping[str, Any]) -> list[str]:
        """Scan several networks alike, each into the directory of its name, once all have been checked."""
        return self.scan_all({name: {"model": model, **spec} for name, model in models.items()})

    def scan_all(self, scans: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Run several scans one after the other, or finish them, once all have been checked.

        Args:
            scans: By the name of its directory, the spec of each, with its ``kind`` where it is not the study's.
        """
        if len(scans) > 1:  # a single scan checks itself before it starts
            for name, spec in scans.items():
                self.check(name, **spec)
        with self.cluster():
            return [self.scan(name, **spec) for name, spec in scans.items()]

    def show(self, title: str, query: str, directories: Sequence[str]) -> None:
        """Print the result of an SQL query over scans as a table."""
        self.console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
        with open_results(directories) as database:
            result = database.query(query)
            print_result(result.schema, result, self.console)

    def rows(self, query: str, directories: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the result of an SQL query over scans."""
        with open_results(directories) as database:
            return database.query(query).rows()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, markup=False)

    def finish(self, directories: Sequence[str]) -> int:
        """Write the report over the scans, and say where everything is; returns the exit status."""
        page = self.path("report.html")
        # The scans have just run whatever code their data references name.
        write_report(directories, page, run_code=True)
        self.say(f"\nreport  {page}\nSQL     raysense sql {shlex.join(directories)}")
        return self.status


def model_names(references: Sequence[str]) -> dict[str, str]:
    """Short names of models, unique and fit for a folder: the checkpoint's, the factory's or the file's.

    Returns:
        The reference of each name, in their order.
    """
    names: dict[str, str] = {}
    for reference in references:
        parsed = parse_reference(reference, "model")
        tail = parsed.options.get("checkpoint") or parsed.target or parsed.scheme
        stem = tail.rpartition("/")[2].rpartition(":")[2]
        stem = stem.rpartition(".")[0] or stem
        names[_unused(stem, names)] = reference
    return names


def named_references(texts: Sequence[str], taken: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Data references by name, from ``NAME=REFERENCE``.

    Args:
        texts: What was given as option ``ood``.
        taken: Tells whether a name cannot be had.

    Raises:
        UsageError: one has no name, or one that is taken.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, reference = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"ood {text!r} has no name; write NAME=REFERENCE, a name of letters, digits, _, . and -")
        if name in named or taken(name):
            raise UsageError(f"ood {text!r}: the name {name} is taken; choose another one")
        named[name] = reference
    return named


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def _unused(name: str, taken: Mapping[str, str]) -> str:
    """The name, with a number where it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
