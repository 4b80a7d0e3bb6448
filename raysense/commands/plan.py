"""`raysense plan KIND`: what a scan will cost, before it is paid for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from pydantic import BaseModel

from raysense.commands.kinds import KindsGroup
from raysense.commands.options import debug_option, given, model_options, quiet_option
from raysense.errors import UsageError
from raysense.planning.options import PlanOptions

FORMATS = ("table", "json")

_PREFIX = "plan_"
"""What an option of the plan begins with where the kind of scan has one of the same name, as ``--seed``."""


class _PlanKinds(KindsGroup):
    """`raysense plan KIND`."""

    def kind_command(self, name: str, spec_type: type[BaseModel]) -> Callable[..., Any]:
        """Calibrates and prints."""
        own = {field: _PREFIX * (field in spec_type.model_fields) + field for field in PlanOptions.model_fields}

        @click.option("--figure", metavar="FILE", help="Draw wall time and money too: a .png, .pdf or .svg file.")
        @click.option(
            "--format", "format_", default="table", show_default=True, metavar="|".join(FORMATS), help="Output."
        )
        @quiet_option
        @debug_option
        def command(figure: str | None, format_: str, quiet: bool, debug: bool, **values: Any) -> None:
            options = given({field: values.pop(option) for field, option in own.items()})
            _run(name, options, given(values), figure, format_, quiet)

        for option in model_options(PlanOptions, own):
            command = option(command)
        return command


@click.group(cls=_PlanKinds)
def plan() -> None:
    """Say what a scan of the given KIND would cost: computes a few units, simulates the cluster, writes nothing."""


def _run(
    kind: str, options: dict[str, Any], spec: dict[str, Any], figure: str | None, format_: str, quiet: bool
) -> None:
    if format_ not in FORMATS:
        raise UsageError(f"format {format_!r} is unknown; choose one of {', '.join(FORMATS)}")
    if "gpus" not in options:
        raise UsageError("argument 'gpus' is missing; give the numbers of GPUs to plan for, such as --gpus 8 or 8,64")
    from rich.console import Console

    from raysense.planning.display import print_plan
    from raysense.planning.figures import figure_format, write_figure
    from raysense.planning.plan import plan
    from raysense.query.display import UNBOUNDED_WIDTH

    if figure is not None:
        figure_format(figure)
    with _status(quiet) as progress:
        made = plan(
            kind, gpus=options.pop("gpus"), price=options.pop("price", None), options=options, progress=progress, **spec
        )
    if figure is not None:
        write_figure(made, figure)
    if format_ == "json":
        click.echo(json.dumps(made.as_dict(), indent=1))
    else:
        print_plan(made, Console(width=None if sys.stdout.isatty() else UNBOUNDED_WIDTH))


@contextmanager
def _status(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """What is being done, on a terminal; None where there is nobody to see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
