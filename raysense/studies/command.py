"""A study as a command: options made from the models that validate them; parsing only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel

from raysense.commands.errors import SentenceCommand
from raysense.commands.options import (
    RUN_NAMES,
    Decorator,
    debug_option,
    given,
    model_options,
    out_option,
    quiet_option,
    run_options,
    sentence,
)

_FIRST = ("model", "data", "split")
_REPEATED = {"model": "REFERENCE", "ood": "NAME=REFERENCE"}
"""How options that may be given several times are written."""

Study = Callable[[str, Mapping[str, Any], Mapping[str, Any], bool], int]
"""Called with the directory, the options of the study, the options of its run, and whether to be quiet."""


def study_command(study: Study, options: type[BaseModel]) -> click.Command:
    """The command of a study; its help is the study's own documentation."""

    @run_options
    @quiet_option
    @debug_option
    def command(out: str, quiet: bool, debug: bool, **values: Any) -> int:
        run = {name: values.pop(name) for name in RUN_NAMES}
        return study(out, {name: value for name, value in given(values).items() if value != ()}, given(run), quiet)

    for option in study_options(options):
        command = option(command)
    summary = (study.__doc__ or "").partition("\n\n")[0]
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    command = out_option(command)
    return click.command(cls=SentenceCommand, help=summary, context_settings=settings)(command)


def study_options(options: type[BaseModel]) -> list[Decorator]:
    """One option a field, in reverse like those of `model_options`: what is scanned comes first.

    One whose field is a tuple may be given several times.
    """
    decorators = dict(zip(reversed(options.model_fields), model_options(options), strict=True))
    for name, field in options.model_fields.items():
        if field.alias is not None:  # a word that Python keeps for itself
            text = f"{sentence(field.description or name)}."
            decorators[name] = click.option(f"--{field.alias}", field.alias, metavar="NAME,...", help=text)
        if tuple in (get_origin(field.annotation), *map(get_origin, get_args(field.annotation))):
            default = f" [default: {' and '.join(field.default)}]" if field.default else ""
            text = f"{sentence(field.description or name)}; may be given several times{default}."
            decorators[name] = click.option(f"--{name}", multiple=True, metavar=_REPEATED[name], help=text)
    first = [name for name in _FIRST if name in decorators]
    return [decorators[name] for name in (*(name for name in decorators if name not in first), *reversed(first))]
