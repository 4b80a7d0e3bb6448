"""Validation errors as one clear sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raysense.errors import UsageError

_COMPARISONS = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}

T = TypeVar("T", bound=BaseModel)


def validated(model: type[T], values: Mapping[str, Any]) -> T:
    """The values as a model.

    Raises:
        UsageError: naming the first argument that is wrong, its value, and what it may be.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_sentence(model, error)) from error


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, model.model_fields, n=1)
        mend = f"did you mean {close[0]}?" if close else f"known are {', '.join(model.model_fields)}"
        return f"argument {name!r} is unknown; {mend}"
    if first["type"] == "missing":
        return f"argument {name!r} is missing; give {model.model_fields[name].description or name}"
    if not name:
        return _wanted(first)
    # A union reports one error for each member; together they say what is allowed.
    allowed = dict.fromkeys(_wanted(item) for item in error.errors(include_url=False) if item["loc"][:1] == (name,))
    return f"argument {name!r} is {first['input']!r}; it must be {' or '.join(allowed)}"


def _wanted(error: ErrorDetails) -> str:
    """What a value must be, to follow "it must be"; the message of a validator of our own as it is."""
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "finite_number":
        return "a finite number"
    if error["type"].startswith(("int_", "float_")):
        return "a whole number" if error["type"].startswith("int_") else "a number"
    if error["type"] in _COMPARISONS:
        return f"{_COMPARISONS[error['type']]} {next(iter(context.values()))}"
    if error["type"] in ("literal_error", "enum"):
        return str(context["expected"])
    if error["type"] == "string_type":
        return "text"
    return error["msg"][0].lower() + error["msg"][1:]
