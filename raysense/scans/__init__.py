"""The kinds of scan. A module of this package that defines a concrete `Scan` adds a kind; nothing else names it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from raysense.errors import UsageError
from raysense.scans.base import Computer, Prepared, Scan, ScanSpec, Unit

__all__ = ["Computer", "Prepared", "Scan", "ScanSpec", "Unit", "get_scan", "scan_kinds"]


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


def get_scan(kind: str) -> type[Scan]:
    """The scan class of a kind.

    Raises:
        UsageError: there is no such kind.
    """
    try:
        return _registry()[kind]
    except KeyError:
        raise UsageError(f"kind {kind!r} is not a scan; choose one of {', '.join(scan_kinds())}") from None
