"""Report of how well FI and its comparators detect simulated outliers (Figure 3 of Shu & Zhu 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Paragraph, Plot, Section, Table
from raysense.report.detection_figures import Curve, detection
from raysense.report.influence_groups import Group, suffix
from raysense.report.style import BLUE, GREY, ORANGE, RED

OUTLIER_SPLIT = "outlier"
_MEASURES = {
    "fi": ("FI", RED, "-"),
    "jacobian_norm": ("Jacobian norm", BLUE, "-"),
    "cook": ("Cook's local influence", ORANGE, "-"),
    "fi_bound": ("softmax alone, (1 − p)/p", GREY, "--"),
}
_TEXT = (
    "Samples of split outlier are told from all others by thresholding a measure. The precision-recall curve is the more "
    "telling one where outliers are rare (Davis & Goadrich 2006). The softmax alone, (1 - p)/p, is the baseline: where "
    "FI is at its bound the two are the same."
)


def detection_sections(database: ResultDatabase, scan: ScanTables, groups: Sequence[Group]) -> list[Section]:
    """One section for every target of a scan whose samples have a split of outliers and others, otherwise none."""
    if not groups:
        return []
    options = f"outlier_split := {quoted_text(OUTLIER_SPLIT)}"
    rows = database.query(f"FROM outlier_areas({options}, of_scan := {quoted_text(scan.name)})").rows()
    found = []
    for index, group in enumerate(groups):
        areas = {row["measure"]: row for row in rows if group == Group.of(row)}
        if areas:
            points = database.query(
                f"SELECT measure, fpr, tpr, precision FROM outlier_roc({options}) AS i "
                f"WHERE {group.condition} AND layer IS NULL ORDER BY measure, fpr, tpr"
            ).table()
            title = f"Detection of outliers, {group.title}"
            plot = _plot(points, areas, suffix(groups, index))
            found.append(Section(title, [Paragraph(_TEXT), plot, _table(areas)]))
    return found


def _plot(points: pa.Table, areas: Mapping[str, dict[str, Any]], ending: str) -> Plot:
    names = points["measure"].to_numpy()
    column = {name: points[name].to_numpy() for name in ("fpr", "tpr", "precision")}
    curves = []
    for measure, (name, colour, style) in _MEASURES.items():
        if measure in areas:
            part = {key: values[names == measure] for key, values in column.items()}
            labels = (f"{name}: {_area(areas[measure], kind)}" for kind in ("roc", "pr"))
            curves.append(Curve(part["fpr"], part["tpr"], part["precision"], colour, style, *labels))
    prevalence = float(np.mean([row["n_outliers"] / row["n"] for row in areas.values()]))
    caption = (
        "Detection of the outliers, as in Figure 3 of Shu & Zhu (2019); the legends give the areas under the curves with "
        "95% bootstrap intervals."
    )
    return Plot(f"detection{ending}", "ROC and precision-recall curves", caption, detection(curves, prevalence))


def _table(areas: Mapping[str, dict[str, Any]]) -> Table:
    rows = [
        [
            name.replace("−", "-"),
            f"{areas[measure]['n']:,}",
            f"{areas[measure]['n_outliers']:,}",
            _area(areas[measure], "roc"),
            _area(areas[measure], "pr"),
        ]
        for measure, (name, *_) in _MEASURES.items()
        if measure in areas
    ]
    heads = ["measure", "samples", "outliers", "area under ROC", "average precision"]
    caption = "Areas under the curves with 95% intervals from 200 bootstrap replicates, from outlier_areas()."
    return Table(caption, heads, rows, frozenset(range(1, 5)))


def _area(row: Mapping[str, Any], kind: str) -> str:
    value, lower, upper = (row[f"{kind}_{name}"] for name in ("area", "lower", "upper"))
    return f"{value:.3f} [{lower:.3f}, {upper:.3f}]"
