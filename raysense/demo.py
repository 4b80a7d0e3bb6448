"""The demo: the influence scan on the bundled real digits, whole images, layers and pixels; what it finds, and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from raysense.studies.study import Workspace

_MODEL = {"model": "digits", "data": "digits"}
_PERCENTILES = """
PIVOT (SELECT percentile, split, fi FROM fi_percentiles() WHERE target = 'input')
ON split USING first(fi) ORDER BY percentile
"""
_STRANGEST = """
SELECT place, sample_id, label_name AS label, predicted_name AS predicted, p_label, fi
FROM fi_outliers(n := 5) WHERE target = 'input' ORDER BY place
"""
_AT_BOUND = """
SELECT what, at_bound FROM (
    SELECT 0 AS scale, row_number() OVER () AS place, concat_ws(' ', target, layer) AS what, fraction_at_bound AS at_bound
    FROM fi_informative()
    UNION ALL
    SELECT scale, 0, concat(scale, ' x ', scale, ' pixels'), avg((value >= (1 - 1e-6) * fi_bound)::INT)
    FROM (SELECT scale, fi_bound, unnest(fi) AS value FROM influence_maps) GROUP BY scale
) ORDER BY scale, place
"""
_ATTACKS = """
SELECT sample_id, row, "column", round(fi, 4) AS fi, round(before[1], 2) AS before, round(after[1], 2) AS after,
    class_before, p_before, class_after, p_after
FROM pixel_attacks ORDER BY p_before_after - p_before, sample_id
"""


def run_demo(out: str | os.PathLike[str], run: Mapping[str, Any], quiet: bool = False) -> int:
    """Scan train and test split of the digits, print what was found, write the report.

    First the influence of whole images and of every layer on all digits; then maps of single pixels and squares, and
    one-pixel attacks, for the five strangest. A second run finds the scans complete and only prints and writes again.

    Args:
        out: Directory of the scans and the report.
        run: How to run, as for :func:`raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.
    """
    workspace = Workspace(out, run, quiet)
    with workspace.cluster():
        whole = workspace.scan("influence", **_MODEL, split="train,test", target="input;layer")
        strangest = [row["sample_id"] for row in workspace.rows(_STRANGEST, [whole])]
        pixels = workspace.scan(
            "pixels",
            **_MODEL,
            split="train,test",
            samples=strangest,
            target="pixels",
            objective="predicted",
            attack=True,
        )
    workspace.show("Percentiles of FI of the whole image, by split", _PERCENTILES, [whole])
    workspace.show("The five strangest digits: the largest FI", _STRANGEST, [whole])
    workspace.show("Share for which FI is (1 - p)/p, and says no more than the softmax", _AT_BOUND, [whole, pixels])
    workspace.show("One-pixel attacks on them, at the pixel with the largest FI", _ATTACKS, [pixels])
    return workspace.finish([whole, pixels])
