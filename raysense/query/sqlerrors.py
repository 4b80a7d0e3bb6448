"""DuckDB's errors as one clear sentence with the offending part of the statement."""

from __future__ import annotations

import re

from raysense.errors import RaysenseError, UsageError

_POINTER = re.compile(r"\n\s*LINE (?P<line>\d+): (?P<text>[^\n]*)\n(?P<gap> *)(?P<carets>\^+)\s*$")
_KIND = re.compile(r"^[A-Z][\w ]*? Error: ")
_STREAM = re.compile(r"reading the stream registered as '[^']*' failed: (?P<reason>.*)", re.DOTALL)
_GONE = re.compile(r"\berrno 2\b", re.IGNORECASE)
_WORD = re.compile(r"\w+|\S")


def explain(error: Exception) -> RaysenseError:
    """The error to raise for what DuckDB raised while it ran a statement.

    A fault of the statement becomes a UsageError: its first line is a whole sentence that quotes the offending part,
    DuckDB's ``LINE n: ...`` and carets follow on two more lines where it knows the place. Files that cannot be read
    become a plain RaysenseError.
    """
    text = str(error).strip()
    stream = _STREAM.search(text)
    if stream is not None:
        reason = _sentence(stream["reason"]).partition(" Detail: Python exception:")[0].rstrip(".")
        if _GONE.search(reason):
            reason += "; files are removed some time after a compaction, so ask again, or see whether it is lost"
        return RaysenseError(f"the results cannot be read: {reason}")
    pointer = _POINTER.search(text)
    if pointer is None:
        return UsageError(f"SQL error: {_sentence(text)}")
    sentence = _sentence(text[: pointer.start()])
    prefix = f"LINE {pointer['line']}: "
    start = max(0, len(pointer["gap"]) - len(prefix))
    marked = pointer["text"][start : start + len(pointer["carets"])]
    word = _WORD.match(pointer["text"], start) if len(marked) <= 1 else None
    part = word[0] if word else marked
    place = f" at {part!r} in line {pointer['line']}" if part.strip() else f" in line {pointer['line']}"
    return UsageError(
        f"SQL error: {sentence.rstrip('.!')},{place}\n{prefix}{pointer['text']}\n{pointer['gap']}{pointer['carets']}"
    )


def _sentence(message: str) -> str:
    return _KIND.sub("", " ".join(message.split()))
