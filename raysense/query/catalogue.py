"""The SQL macros, one file each in ``macros/``; read here as text, without DuckDB.

A file starts with two comment lines, its documentation and the tables it reads::

    -- The n largest FI of every scan.
    -- tables: influence, samples
    CREATE OR REPLACE MACRO fi_outliers(n := 5) AS TABLE ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from importlib import resources

_FILE = re.compile(
    r"-- (?P<doc>[^\n]+)\n-- tables: (?P<tables>[^\n]+)\n"
    r"CREATE OR REPLACE MACRO (?P<name>\w+)\((?P<parameters>[^)]*)\) AS",
)


@dataclass(frozen=True)
class Macro:
    """One macro: name, signature such as ``fi_outliers(n := 5)``, doc line, the tables it reads, and its SQL."""

    name: str
    signature: str
    doc: str
    tables: frozenset[str]
    sql: str


def read_macros() -> list[Macro]:
    """All macros, sorted by name."""
    folder = resources.files("raysense.query") / "macros"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [_parse(file.name, file.read_text(encoding="utf-8")) for file in files]


def callees_first(macros: Iterable[Macro]) -> list[Macro]:
    """The macros in an order in which DuckDB accepts them: one that calls another comes after it."""
    by_name = {macro.name: macro for macro in macros}
    called = {name: re.findall(r"\b(\w+)\(", re.sub(r"--.*", "", macro.sql)) for name, macro in by_name.items()}
    calls = {name: [other for other in others if other in by_name and other != name] for name, others in called.items()}
    return [by_name[name] for name in TopologicalSorter(calls).static_order()]


def describe_macros() -> list[tuple[str, str, str]]:
    """(name, signature, documentation) of every macro, sorted by name, for ``raysense sql --help``."""
    return [(macro.name, macro.signature, macro.doc) for macro in read_macros()]


def _parse(file: str, text: str) -> Macro:
    match = _FILE.match(text)
    if match is None or file != f"{match['name']}.sql":
        raise ValueError(f"macro file {file} must hold a doc line, a line of tables and one macro of the file's name")
    tables = frozenset(name.strip() for name in match["tables"].split(","))
    return Macro(match["name"], f"{match['name']}({match['parameters']})", match["doc"], tables, text)
