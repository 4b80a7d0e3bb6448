"""Errors of a command as one sentence on standard error, and its exit status."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from raysense.errors import RaysenseError, UsageError, first_line

MISUSE, FAILED, INTERRUPTED = 2, 1, 130


class SentenceCommand(click.Command):
    """A command whose errors are one sentence on standard error: status 2 for misuse, 1 for failure.

    What the command returns is its exit status where it is a number. ``--debug`` lets exceptions through.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command and exit with its status."""
        debug = "--debug" in sys.argv[1:]
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(MISUSE)
        except click.ClickException as error:
            _fail(error.format_message(), MISUSE)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", INTERRUPTED)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(FAILED)
        except RaysenseError as error:
            if debug:
                raise
            _fail(str(error), MISUSE if isinstance(error, UsageError) else FAILED)
        except OSError as error:
            if debug:
                raise
            _fail(f"{first_line(error)} (--debug shows where)", FAILED)
        except Exception as error:
            if debug:
                raise
            _fail(f"{type(error).__name__}: {error} (a bug in raysense, or in the model; --debug shows where)", FAILED)
        sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"raysense: {message}", err=True)
    sys.exit(status)
