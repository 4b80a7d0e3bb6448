"""Errors that raysense raises on purpose; everything else is a bug."""

from __future__ import annotations


class RaysenseError(Exception):
    """Base of all errors raised on purpose. The message is one clear sentence for the user."""


class UsageError(RaysenseError):
    """Bad input, found before any computing starts (exit status 2).

    The message names the argument, the value and the mend.
    """


class SampleError(RaysenseError):
    """One sample cannot be read or scored; its neighbours can."""


class ScanFailed(RaysenseError):
    """The scan ended with failed units or could not go on (exit status 1)."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
