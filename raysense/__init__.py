"""raysense: scans of the sensitivity geometry of image classifiers, on Ray, into Arrow, queried with DuckDB."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raysense.errors import RaysenseError, SampleError, ScanFailed, UsageError

if TYPE_CHECKING:
    from raysense.api import resume, scan
    from raysense.engine.run import Outcome
    from raysense.options import RunOptions
    from raysense.planning.plan import Plan, plan
    from raysense.query.connection import open_results
    from raysense.query.export import export_tables
    from raysense.report.page import write_report
    from raysense.scan_status import Status, status

__version__ = "0.1.0"

_LAZY = {
    "scan": "raysense.api",
    "resume": "raysense.api",
    "status": "raysense.scan_status",
    "Status": "raysense.scan_status",
    "Outcome": "raysense.engine.run",
    "RunOptions": "raysense.options",
    "plan": "raysense.planning.plan",
    "Plan": "raysense.planning.plan",
    "open_results": "raysense.query.connection",
    "export_tables": "raysense.query.export",
    "write_report": "raysense.report.page",
}

__all__ = [
    "Outcome",
    "Plan",
    "RaysenseError",
    "RunOptions",
    "SampleError",
    "ScanFailed",
    "Status",
    "UsageError",
    "export_tables",
    "open_results",
    "plan",
    "resume",
    "scan",
    "status",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `raysense --help` does not wait for torch and ray."""
    if name not in _LAZY:
        raise AttributeError(f"module 'raysense' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
