"""The kinds of scan. A module of this package that defines a concrete `Scan` adds a kind; nothing else names it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from raysense.errors import UsageError
from raysense.references import Reference, import_factory
from raysense.scans.base import Computer, Prepared, Scan, ScanSpec, Unit
from raysense.working_directory import kept_path

__all__ = ["Computer", "Prepared", "Scan", "ScanSpec", "Unit", "absolute_kind", "get_scan", "scan_kinds"]


@cache
def _registry() -> dict[str, type[Scan]]:
    found: dict[str, type[Scan]] = {}
    for module in pkgutil.iter_modules(__path__):
        # Names with an underscore hold the heavy half of a scan (torch); importing them here would slow down --help.
        if module.name.startswith("_") or module.name in ("base", "tables"):
            continue
        for _, member in inspect.getmembers(importlib.import_module(f"{__name__}.{module.name}"), inspect.isclass):
            if issubclass(member, Scan) and not inspect.isabstract(member):
                found[member.kind] = member
    return dict(sorted(found.items()))


def scan_kinds() -> list[str]:
    """Names of all kinds of scan, sorted."""
    return list(_registry())


def absolute_kind(kind: str) -> str:
    """The same kind, meaning the same in another working directory."""
    where, _, name = kind.rpartition(":")
    return f"{kept_path(where)}:{name}" if where.endswith(".py") else kind


def get_scan(kind: str) -> type[Scan]:
    """The scan class of a kind: one of :func:`scan_kinds`, or ``file.py:Class`` / ``package.module:Class`` of your own.

    Raises:
        UsageError: there is no such kind.
    """
    if kind in _registry():
        return _registry()[kind]
    where, _, name = kind.rpartition(":")
    if not where or not name.isidentifier():
        raise UsageError(
            f"kind {kind!r} is not a scan; choose one of {', '.join(scan_kinds())}, or file.py:Class of your own"
        )
    found = import_factory(Reference("file" if where.endswith(".py") else "module", kind, {}, kind, "kind"))
    if not (inspect.isclass(found) and issubclass(found, Scan)):
        raise UsageError(
            f"kind {kind!r} is not a scan: {name} is not a subclass of raysense.scans.Scan; name one that is"
        )
    return found
