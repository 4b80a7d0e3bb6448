"""Looking into a torch.export file before torch reads it, since reading one may run what is written in it.

`torch.export.load` unpickles some payloads without restrictions, hands the sizes of tensors to `sympy.sympify` and guards
to `exec`, and loads compiled libraries. What `torch.export.save` writes for a network needs none of this, or no more than
tensors, names of sizes and comparisons of them: everything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_FORMAT = "archive_format"
_PROGRAMS, _DATA = "models/", ("data/weights/", "data/constants/", "data/sample_inputs/")
_HARMLESS = re.compile(r"(archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment)")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_NAME = re.compile(r"\w{1,100}")
_SYMBOLS = {"Symbol", "Dummy"}
_GUARD_ATTRIBUTES = {"size", "shape", "stride", "ndim", "dim", "storage_offset", "dtype", "device"}
_PLAIN = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop,
    ast.cmpop, ast.Load, ast.Name,
)  # fmt: skip


class UnsafeFileError(Exception):
    """A file holds something that could run when it is read; the message says what."""


def check_exported_file(path: Path) -> None:
    """Raise unless a torch.export file holds nothing but a graph, tensors and plain sizes.

    Args:
        path: A zip archive.

    Raises:
        UnsafeFileError: it holds pickled objects, compiled code, or expressions other than arithmetic.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if _FORMAT not in members:
            raise UnsafeFileError("it is not in the format that torch.export.save writes since torch 2.9")
        for inner, name in members.items():
            if inner.startswith(_PROGRAMS) and inner.endswith(".json"):
                _check_program(json.loads(archive.read(name)))
            elif inner.startswith(_DATA) and inner.endswith(".json"):
                for pickled in _pickled(json.loads(archive.read(name)), inner.rpartition("/")[0], members):
                    _check_pickle(pickled, archive.read(members[pickled]))
            elif inner.startswith(_DATA) and inner.endswith(".pt"):
                _check_pickle(inner, archive.read(name))
            elif not inner.startswith(_DATA) and not _HARMLESS.fullmatch(inner):
                raise UnsafeFileError(f"it holds {inner!r}, which is neither a graph nor a tensor")


def _pickled(document: Any, folder: str, members: Mapping[str, str]) -> Iterator[str]:
    """The members that a configuration of payloads has torch unpickle."""
    for payload in document["config"].values():
        inner = f"{folder}/{payload['path_name']}"
        if inner not in members or not _PAYLOAD.fullmatch(payload["path_name"]):
            raise UnsafeFileError(f"it holds an object ({payload['path_name']!r}), not a tensor")
        if payload["use_pickle"]:
            yield inner


def _check_pickle(inner: str, data: bytes) -> None:
    """A pickle may hold nothing but tensors and plain containers."""
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what a foreign file makes torch raise is open
        raise UnsafeFileError(f"{inner!r} holds more than tensors") from error


def _check_program(document: Any) -> None:
    for key, text in _texts(document):
        if key == "expr_str":
            _check_expression(text)
        elif key == "guards_code":
            _check_guard(text)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document with the name of the field that it, or its list, stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)


def _parsed(text: str, what: str) -> Sequence[ast.AST]:
    try:
        return list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnsafeFileError(f"its {what} {text[:60]!r} is not an expression") from error


def _check_expression(text: str) -> None:
    """Arithmetic of sizes as sympy writes it: ``Max(1, Symbol('s0', positive=True))``."""
    names: set[int] = set()
    for node in _parsed(text, "size"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[:1].isupper():
            if node.func.id in _SYMBOLS:
                names |= {id(argument) for argument in node.args}
            continue
        string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if string and id(node) in names and _NAME.fullmatch(node.value):  # type: ignore[attr-defined]
            continue
        if string or "__" in getattr(node, "id", "") or not isinstance(node, (*_PLAIN, ast.keyword)):
            raise UnsafeFileError(f"its size {text[:60]!r} is more than arithmetic")


def _check_guard(text: str) -> None:
    """Comparisons of sizes as torch writes them: ``L['x'].size()[0] <= 16``."""
    for node in _parsed(text, "guard"):
        if isinstance(node, ast.Attribute) and node.attr in _GUARD_ATTRIBUTES:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
            continue
        if "__" in getattr(node, "id", "") or not isinstance(node, (*_PLAIN, ast.Subscript, ast.Tuple)):
            raise UnsafeFileError(f"its guard {text[:60]!r} is more than a comparison")
