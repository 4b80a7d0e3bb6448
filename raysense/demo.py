"""The demo: every scan on the bundled real digits, what it finds, and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from raysense.api import scan
from raysense.engine.runtime import cluster
from raysense.options import RunOptions
from raysense.query.connection import open_results
from raysense.query.display import print_result
from raysense.report.page import write_report
from raysense.validation import validated

_PERCENTILES = """
PIVOT (SELECT percentile, split, fi FROM fi_percentiles()) ON split USING first(fi) ORDER BY percentile
"""
_STRANGEST = """
SELECT place, sample_id, label_name AS label, predicted_name AS predicted, p_label, fi FROM fi_outliers(n := 5)
ORDER BY place
"""


def run_demo(out: str | os.PathLike[str], run: Mapping[str, Any], quiet: bool = False) -> int:
    """Scan train and test split of the digits, print percentiles and the five strangest digits, write the report.

    A second run finds the scan complete and only prints and writes again.

    Args:
        out: Directory of the scans and the report.
        run: How to run, as for :func:`raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.
    """
    options = validated(RunOptions, run)
    console = Console(highlight=False)
    directory = os.path.join(os.fspath(out), "influence")
    with cluster(options):
        outcome = scan(
            "influence",
            directory,
            run=options,
            quiet=quiet,
            resume=True,
            model="digits",
            data="digits",
            split="train,test",
        )
    if not outcome.complete:
        console.print(f"the scan is not complete; see `raysense status {directory}`", soft_wrap=True, markup=False)
        return 1
    with open_results(directory) as database:
        for title, query in (
            ("Percentiles of FI, by split", _PERCENTILES),
            (
                "The five strangest digits: the largest FI",
                _STRANGEST,
            ),
        ):
            console.print(f"\n[bold]{title}[/bold]")
            result = database.query(query)
            print_result(result.schema, result, console)
    page = os.path.join(os.fspath(out), "report.html")
    write_report([directory], page)
    console.print(f"\nreport  {page}\nSQL     raysense sql {directory}", soft_wrap=True, markup=False)
    return 0
