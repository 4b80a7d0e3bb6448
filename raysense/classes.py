"""Classes by index, name or WordNet id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache

from raysense.errors import UsageError

_WORDNET = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def class_index(text: str, count: int, names: Sequence[str] | None, argument: str = "classes") -> int:
    """The index of a class that a user names.

    Args:
        text: An index such as ``968``; a name such as ``cup``, in any case, or one of the names that a class lists with
            commas between them; or a WordNet id such as ``n03147509``, for networks of the 1,000 ImageNet classes.
        count: Number K of the model's classes.
        names: Their names, where the model says them.
        argument: What to call the text in an error.

    Raises:
        UsageError: the model has no such class, or several of that name.
    """
    if text.isascii() and text.isdecimal():
        if int(text) >= count:
            raise UsageError(f"{argument}: class {text} is not in the model; its classes are 0 to {count - 1}")
        return int(text)
    known = _by_name(tuple(names or ()))
    found = known.get(_plain(text))
    if found is not None:
        if len(found) > 1:
            indices = " and ".join(map(str, found))
            raise UsageError(f"{argument}: the model has several classes {text!r}; give the index, {indices}")
        return found[0]
    if _WORDNET.fullmatch(text):
        return _wordnet_index(text, count, argument)
    if names is None:
        raise UsageError(
            f"{argument}: the model does not say its classes' names, so {text!r} is unknown; give its index"
        )
    close = difflib.get_close_matches(_plain(text), known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"its classes are like {names[0]!r}."
    raise UsageError(f"{argument}: class {text!r} is not in the model; {hint} An index or a WordNet id will do as well")


@cache
def _by_name(names: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """Indices by name; a part of a list of names counts where no class has it as its whole name."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        whole.setdefault(_plain(name), []).append(index)
        for part in name.split(",") if "," in name else ():
            parts.setdefault(_plain(part), []).append(index)
    return {key: tuple(value) for key, value in (parts | whole).items()}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _wordnet_index(text: str, count: int, argument: str) -> int:
    if count != _IMAGENET_CLASSES:
        raise UsageError(
            f"{argument}: the WordNet id {text} needs a model of the 1,000 ImageNet classes; give an index"
        )
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise UsageError(
            f"{argument}: WordNet ids such as {text} are looked up in timm, which is not installed; pip install timm, or "
            "give the index"
        ) from error
    ids = ImageNetInfo("imagenet-1k").label_names()
    if text not in ids:
        raise UsageError(f"{argument}: {text} is none of the 1,000 ImageNet classes; give another id, or the index")
    return int(ids.index(text))
