"""References: the strings that name a model or a data set, the same in the CLI, in TOML and in Python.

A reference is ``WHAT?key=value&key=value``. Values may be percent-encoded (``%26`` for ``&``). ``WHAT`` is one of

- model: ``torchvision:NAME``, ``timm:NAME``, ``digits``, ``path/to/file.py:factory``, ``package.module:factory``,
  ``model.pt2``
- data: ``digits``, ``torchvision:CLASS``, ``folder:PATH``, ``npz:PATH``, ``parquet:PATH``, ``path/to/file.py:factory``,
  ``package.module:factory``

This module imports neither torch nor pyarrow, so that ``--help`` is instant.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import quote, unquote

from raysense.errors import UsageError
from raysense.working_directory import kept_path, local_path

__all__ = [
    "Reference",
    "absolute_reference",
    "call_factory",
    "factory_source",
    "import_factory",
    "local_path",
    "option_value",
    "parse_reference",
]

Argument = Literal["model", "data", "kind"]

_SCHEMES: dict[str, tuple[str, ...]] = {
    "model": ("digits", "torchvision", "timm"),
    "data": ("digits", "torchvision", "folder", "npz", "parquet"),
}
_FORMS = {
    "model": "torchvision:NAME, timm:NAME, digits, file.py:factory, package.module:factory or model.pt2",
    "data": "digits, torchvision:CLASS, folder:PATH, npz:FILE, parquet:PATH, file.py:factory or package.module:factory",
}
_PATH_SCHEMES = ("folder", "npz", "parquet", "pt2")
_PATH_OPTIONS = ("checkpoint", "root")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Reference:
    """A parsed reference.

    ``scheme`` is one of digits, torchvision, timm, folder, npz, parquet, pt2, file (``file.py:factory``) and module
    (``package.module:factory``); ``target`` is what follows it (for file and module: ``where:factory``; for digits
    empty); ``options`` are the decoded ``key=value`` pairs; ``text`` is the reference as the user wrote it;
    ``argument`` says what it refers to.
    """

    scheme: str
    target: str
    options: Mapping[str, str] = field(hash=False)
    text: str
    argument: Argument

    def error(self, message: str) -> UsageError:
        """Return (not raise) an error about this reference; ``message`` says what is wrong and the mend."""
        return UsageError(f"{self.argument} {self.text!r}: {message}")


def parse_reference(text: str, argument: Argument) -> Reference:
    """Parse a reference; ``argument`` says which of the two it is and is named in messages.

    Raises UsageError where the reference has none of the known forms.
    """
    head, _, query = text.strip().partition("?")
    scheme, target = _classify(head, text, argument)
    reference = Reference(scheme, target, {}, text, argument)
    return replace(reference, options=_parse_options(query, reference))


def absolute_reference(text: str, argument: Argument) -> str:
    """Return the same reference with local paths made absolute, so that it means the same in another working directory.

    Made absolute are the path of the reference itself, the options ``checkpoint`` and ``root`` (and ``classes`` of
    ``folder:``), and any option that begins with ``./``, ``../`` or ``~/``. URIs stay as they are. Within the working
    directory of a Ray job, of which every node has a copy, paths become relative to it instead.
    """
    reference = parse_reference(text, argument)
    target = reference.target
    if reference.scheme in _PATH_SCHEMES:
        target = kept_path(target)
    elif reference.scheme == "file":
        path, _, factory = target.rpartition(":")
        target = f"{kept_path(path)}:{factory}"
    head = target if reference.scheme in ("file", "module", "pt2") else f"{reference.scheme}:{target}".rstrip(":")
    paths = (*_PATH_OPTIONS, "classes") if reference.scheme == "folder" else _PATH_OPTIONS
    pairs = [
        (key, kept_path(value) if key in paths or value.startswith(("./", "../", "~/")) else value)
        for key, value in reference.options.items()
    ]
    query = "&".join(f"{key}={quote(value, safe='/:,.+=~{}[]()@ ')}" for key, value in pairs)
    return f"{head}?{query}" if query else head


def option_value(text: str) -> bool | int | float | str:
    """Convert an option: ``true``/``false`` to bool, integers to int, decimal numbers to float; the rest stays text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def import_factory(reference: Reference) -> Callable[..., Any]:
    """Import the factory that a ``file`` or ``module`` reference names.

    The folder of a ``file.py`` is appended to ``sys.path``, so that it may import its neighbours.

    Raises UsageError where the file or module is missing or cannot be imported, or has no such callable.
    """
    where, _, name = reference.target.rpartition(":")
    module = (_import_file if reference.scheme == "file" else _import_module)(where, reference)
    factory: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise reference.error(f"{where} has no function {name}; it has: {', '.join(sorted(functions)) or 'none'}")
    return factory


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, object], reference: Reference) -> Any:
    """Call a factory with keyword arguments.

    Raises UsageError where it does not take these arguments, or raises itself.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise reference.error(f"{error}; it takes {signature}") from error
    try:
        return factory(**arguments)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise reference.error(
            f"failed with {type(error).__name__}: {error}; mend the factory or its options"
        ) from error


def factory_source(factory: Callable[..., Any]) -> bytes:
    """Return the bytes of the file that defines a factory, empty where there is none (a builtin)."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:
        return b""
    return Path(path).read_bytes() if path and Path(path).is_file() else b""


def _classify(head: str, text: str, argument: Argument) -> tuple[str, str]:
    """Return the scheme and the target of a reference without its options."""
    scheme, colon, target = head.partition(":")
    if scheme in _SCHEMES[argument]:
        if (scheme == "digits") == bool(target):
            mend = "write just digits" if target else f"name it after the colon, as in {scheme}:NAME"
            raise UsageError(f"{argument} {text!r}: {mend}")
        return scheme, target
    other: Argument = "data" if argument == "model" else "model"
    if colon and scheme in _SCHEMES[other]:
        raise UsageError(f"{argument} {text!r}: {scheme}: is a reference to {other}; write {_FORMS[argument]}")
    if argument == "model" and head.endswith(".pt2"):
        return "pt2", head
    if head.endswith(".py"):
        raise UsageError(f"{argument} {text!r}: name the function to call after a colon, as in {head}:factory")
    where, _, factory = head.rpartition(":")
    if where.endswith(".py") and factory.isidentifier():
        return "file", head
    if factory.isidentifier() and all(part.isidentifier() for part in where.split(".")):
        return "module", head
    raise UsageError(
        f"{argument} {text!r} is no {argument} reference; write {_FORMS[argument]}{_hint(scheme, argument)}"
    )


def _parse_options(query: str, reference: Reference) -> dict[str, str]:
    """Return the decoded ``key=value`` pairs of a reference."""
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise reference.error(f"option {pair!r} is malformed; write key=value")
        if key in options:
            raise reference.error(f"option {key} is given twice; give it once")
        options[key] = unquote(value)
    return options


def _hint(scheme: str, argument: Argument) -> str:
    """Return a suggestion where a word is almost one of the schemes."""
    close = difflib.get_close_matches(scheme, _SCHEMES[argument], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _import_file(where: str, reference: Reference) -> ModuleType:
    """Import a Python file; a file that has not changed since is imported once per process."""
    path = local_path(where)
    if not path.is_file():
        raise reference.error(f"there is no file {path}; correct the path")
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"raysense_factory_{path.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None, "a source file always has an import spec"
    module = module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise reference.error(f"{path} cannot be imported ({type(error).__name__}: {error}); mend the file") from error
    return module


def _import_module(where: str, reference: Reference) -> ModuleType:
    """Import a module by its dotted name."""
    try:
        return importlib.import_module(where)
    except (Exception, SystemExit) as error:
        message = f"module {where} cannot be imported ({type(error).__name__}: {error})"
        mend = "install it, put its folder on PYTHONPATH, or name the file as path/to/file.py:factory"
        raise reference.error(f"{message}; {mend}{_hint(where, reference.argument)}") from error
