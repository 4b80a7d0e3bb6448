"""Validation errors as one clear sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raysense.errors import UsageError

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
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    # A union reports one error for each member; together they say what is allowed.
    allowed = dict.fromkeys(
        item["msg"].removeprefix("Value error, ")
        for item in error.errors(include_url=False)
        if item["loc"][:1] == (name,)
    )
    hint = " or ".join(text[0].lower() + text[1:] for text in allowed)
    return f"argument {name!r} is {first['input']!r}: {hint}"
