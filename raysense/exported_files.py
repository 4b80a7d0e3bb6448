"""Looking into a torch.export file before torch reads it, since reading one may run what is written in it.

`torch.export.load` unpickles some payloads without restrictions, hands the sizes of tensors to `sympy.sympify` and guards
to `exec`, writes names into source code, imports modules that the structure of the output names, and loads compiled
libraries. What `torch.export.save` writes for a network needs no more than tensors, operators, plain names, and comparisons
of sizes: everything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_FORMAT = "archive_format"
_PROGRAM = "models/model.json"
_CONFIG = re.compile(r"data/(weights|constants)/model_\1_config\.json")
_PICKLE = re.compile(r"data/(weights|constants|sample_inputs)/model\.pt")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_HARMLESS = re.compile(
    rf"archive_format|archive_version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|extra/.+"
    rf"|data/(weights|constants)/{_PAYLOAD.pattern}"
)
_NAME = re.compile(r"\w{1,100}")
_SYMBOLS = {"Symbol", "Dummy"}
_GUARD_ATTRIBUTES = {"size", "shape", "stride", "ndim", "dim", "storage_offset", "dtype", "device"}
_PLAIN = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Load, ast.Name,
)  # fmt: skip
_LINE = re.compile(r"[ -\"$-\[\]-~]*")
"""One line of ASCII without comments and escapes."""

_OPERATORS = (
    "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|lshift|rshift|getitem"
)
_TARGET = re.compile(
    rf"torch\.ops\.(higher_order\.\w+|(?!aten\.from_file\.)\w+\.\w+\.\w+)|torch\._?sym_\w+|math\.\w+|_operator\.({_OPERATORS})"
)
_PLAIN_TEXT = re.compile(r"[\w.+]*")
_PATH = re.compile(r"[^\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]*")
_FIELDS = {
    "name": re.compile(r"([^\W\d]\w*)?"),
    "as_name": re.compile(r"[^\W\d]\w*"),
    "forward_arg_names": re.compile(r"[^\W\d]\w*"),
    "user_input_name": re.compile(r"[^\W\d]\w*"),
    "target": _TARGET,
    "as_operator": _TARGET,
    "fqn": _PATH,
    "parameter_name": _PATH,
    "buffer_name": _PATH,
    "tensor_constant_name": _PATH,
    "as_string": re.compile(r".*", re.DOTALL),
    "as_strings": re.compile(r".*", re.DOTALL),
}
"""What may stand in the fields of a program; `_PLAIN_TEXT` in all others. Torch writes the names into source code."""
_STRUCTURES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


class UnsafeFileError(Exception):
    """A file holds something that could run when it is read; the message says what."""


def check_exported_file(path: Path) -> None:
    """Raise unless a torch.export file holds nothing but a graph, tensors and plain sizes.

    Args:
        path: A zip archive.

    Raises:
        UnsafeFileError: it holds pickled objects, compiled code, names that are code, or expressions other than arithmetic,
            or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
        if not any(name.endswith(f"/{_FORMAT}") for name in listed):
            raise UnsafeFileError("it is not in the format that torch.export.save writes since torch 2.9")
        # By torch's own reader: another could be shown other contents of the same file.
        reader = torch._C.PyTorchFileReader(str(path))
        members = reader.get_all_records()
        roots = {name.partition("/")[0] for name in listed}
        if len(roots) != 1 or sorted(listed) != sorted(f"{root}/{name}" for root in roots for name in members):
            raise UnsafeFileError("its table of contents is not the same for everybody who reads it")
        if len({name.lower() for name in members}) != len(members):  # torch does not tell small from capital letters
            raise UnsafeFileError("it holds two members of the same name")
        for inner in members:
            _check_member(reader, inner, set(members))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, RecursionError, zipfile.BadZipFile) as error:
        raise UnsafeFileError("it is damaged") from error


def _check_member(reader: Any, inner: str, members: set[str]) -> None:
    if inner == _PROGRAM:
        _check_program(json.loads(reader.get_record(inner)))
    elif _CONFIG.fullmatch(inner):
        document = json.loads(reader.get_record(inner))
        _check_program(document)
        for pickled in _pickled(document, inner.rpartition("/")[0], members):
            _check_pickle(pickled, reader.get_record(pickled))
    elif _PICKLE.fullmatch(inner):
        _check_pickle(inner, reader.get_record(inner))
    elif not _HARMLESS.fullmatch(inner):
        raise UnsafeFileError(f"it holds {inner!r}, which is neither a graph nor a tensor")


def _pickled(document: Any, folder: str, members: set[str]) -> Iterator[str]:
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
        elif key in ("in_spec", "out_spec"):
            _check_structure(text)
        elif not _FIELDS.get(key, _PLAIN_TEXT).fullmatch(text) or (key in ("target", "as_operator") and "__" in text):
            raise UnsafeFileError(f"its {key} {text[:60]!r} is not one that torch.export gives")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document with the name of the field that it, or its list, stands under; other names as paths."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name in value:
            yield "fqn", name
        if key != "metadata" or not all(isinstance(item, str) for item in value.values()):  # else nobody evaluates it
            for name, item in value.items():
                yield from _texts(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)


def _check_structure(text: str) -> None:
    """How tensors are arranged in tuples, lists and dictionaries; other types would have torch import modules."""
    _, node = json.loads(text)
    nodes = [node]
    while nodes:
        node = nodes.pop()
        keys = None if node["context"] is None else json.loads(node["context"])
        plain = keys is None or (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys))
        if node["type"] not in _STRUCTURES or not plain:
            raise UnsafeFileError(f"its structure {text[:60]!r} is more than tuples, lists and dictionaries")
        nodes += node["children_spec"]


def _parsed(text: str, what: str) -> list[ast.AST]:
    try:
        if not _LINE.fullmatch(text):
            raise ValueError("not one line")
        return list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeFileError(f"its {what} {text[:60]!r} is not an expression") from error


def _is_name(node: ast.AST) -> bool:
    """Whether a node is a text that is a plain name."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(_NAME.fullmatch(node.value))


def _is_plain(node: ast.AST, *others: type[ast.AST]) -> bool:
    """Whether a node belongs to arithmetic and comparisons of numbers and variables, or is of another type given."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | None)
    return isinstance(node, (*_PLAIN, *others)) and "__" not in getattr(node, "id", "")


def _check_expression(text: str) -> None:
    """Arithmetic of sizes as sympy writes it: ``Max(1, Symbol('s0', positive=True))``."""
    names: set[int] = set()
    for node in _parsed(text, "size"):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[:1].isupper():
            if node.func.id in _SYMBOLS:
                names |= {id(argument) for argument in node.args}
            continue
        if not (_is_name(node) and id(node) in names) and not _is_plain(node, ast.keyword):
            raise UnsafeFileError(f"its size {text[:60]!r} is more than arithmetic")


def _check_guard(text: str) -> None:
    """Comparisons of sizes as torch writes them: ``L['x'].size()[0] <= 16``."""
    for node in _parsed(text, "guard"):
        if isinstance(node, ast.Attribute) and node.attr in _GUARD_ATTRIBUTES:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
            continue
        if not _is_name(node) and not _is_plain(node, ast.Subscript, ast.Tuple):
            raise UnsafeFileError(f"its guard {text[:60]!r} is more than a comparison")
