"""Options of the command line, made from the models that validate them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raysense.options import RunOptions

_LISTS = {
    "target": "TARGET;...",
    "scales": "N,...",
    "step_study": "N,...",
    "noise": "N,...",
    "k": "N,...",
    "maps": "AXIS:STEP,...;...",
    "axes": "AXIS,...",
    "fixed": "AXIS=VALUE,...",
    "classes": "NAME=CLASS,...",
    "samples": "ID,...",
    "gpus": "N,...",
}
"""How the items of options that are lists are written."""

_TEXTS = {"model": "REFERENCE", "data": "REFERENCE", "of": "DIR", "straggler": "SHARE:FACTOR"}
"""What options that are texts stand for."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

RUN_NAMES = tuple(RunOptions.model_fields)

out_option = click.option("--out", required=True, metavar="DIR", help="New or empty directory, or a URI, to write to.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")


def model_options(model: type[BaseModel], names: Mapping[str, str] | None = None) -> list[Decorator]:
    """One option for each field of a model. Values stay text: the model parses and validates them.

    In reverse order, since decorators apply from the bottom up.

    Args:
        model: The model.
        names: What the options of some fields are called; the others are called as their field.
    """
    names = names or {}
    return [_option(name, names.get(name, name), field) for name, field in reversed(model.model_fields.items())]


def _option(field_name: str, name: str, field: FieldInfo) -> Decorator:
    text = f"{sentence(field.description or name)}{_default(field)}."
    flag = name.replace("_", "-")
    if bool in _members(field.annotation):
        return click.option(f"--{flag}/--no-{flag}", name, default=None, help=text)
    return click.option(f"--{flag}", name, metavar=_metavar(field_name, field), help=text)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `RunOptions` on a command."""
    for option in model_options(RunOptions):
        command = option(command)
    return command


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def progress_callback(label: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal, fed with (done, total); None where there is nobody to see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def bad_items_hint(directory: str, where: tuple[str, str] | None) -> str:
    """The command that shows why items could not be computed."""
    table, name = where or ("samples", "sample_id")
    return f'why: raysense sql {shlex.quote(directory)} "SELECT {name}, error FROM {table} WHERE error IS NOT NULL"'


def sentence(text: str) -> str:
    """A text that begins with a capital."""
    return text[0].upper() + text[1:]


def _metavar(name: str, field: FieldInfo) -> str:
    choices: list[str] = []
    for kind in _members(field.annotation):
        if get_origin(kind) is Literal:
            choices += [str(value) for value in get_args(kind)]
        elif kind in (int, float):
            choices.insert(0, "N")
        elif kind is str:
            choices.append(_TEXTS.get(name, "TEXT"))
        elif get_origin(kind) is tuple:
            choices.append(_LISTS.get(name, "NAME,..."))
    return "|".join(choices)


def _members(annotation: Any) -> list[Any]:
    """Members of a union, or the annotation itself."""
    if get_origin(annotation) in (Literal, tuple) or not get_args(annotation):
        return [annotation]
    return [member for member in get_args(annotation) if member is not type(None)]


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, ()):
        return ""
    default = field.default
    if isinstance(default, bool):
        return ""
    return f" [default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"
