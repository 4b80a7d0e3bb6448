"""Commands that have the kinds of scan as subcommands, with the options of the kinds' specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from pydantic import BaseModel

from raysense.commands.options import model_options


class KindsGroup(click.Group):
    """A group such as `raysense scan KIND`. A subclass says what a kind's command does, and its other options."""

    def kind_command(self, name: str, spec_type: type[BaseModel]) -> Callable[..., Any]:
        """A function that takes the options of the kind's spec by name, with its other options as decorators."""
        raise NotImplementedError

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of the kinds of scan."""
        from raysense.scans import scan_kinds

        return scan_kinds()

    def get_command(self, context: click.Context, name: str) -> click.Command:
        """The command of a kind of scan.

        Raises:
            UsageError: there is no such kind.
        """
        from raysense.scans import get_scan

        kind = get_scan(name)
        command = self.kind_command(name, kind.spec_type)
        for option in model_options(kind.spec_type):
            command = option(command)
        return click.command(name, help=kind.summary, short_help=kind.summary)(command)
