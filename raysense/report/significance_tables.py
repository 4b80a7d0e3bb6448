"""Tables of the significance scan: layers and scans side by side, classes, paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Table
from raysense.report.significance_data import (
    LISTED_PATHS,
    Case,
    Row,
    Significance,
    listed_classes,
    recorded_layers,
)
from raysense.report.style import number

_ALL_CLASSES = 20
"""Classes up to which one table lists them all."""
_MOST = 10
_COMPACT_ABOVE = 40


def summary_table(results: Significance, cases: Sequence[Case], caption: str, with_scans: bool = False) -> Table:
    """Mean KL divergence between classes and mean entropy of classes, one line a case."""
    heads = [
        "layer", "split", "classes", "samples", "mean inter-class KL", "mean class entropy", "overall entropy",
        "density",
    ]  # fmt: skip
    values = ("mean_inter_class_kl", "mean_class_entropy", "overall_entropy", "mean_density")
    cells = []
    for case in cases:
        row = results.summaries[case]
        counts = [f"{row[name]:,}" for name in ("n_classes", "n_samples")]
        line = [case.layer, case.split, *counts, *(number(row[name]) for name in values)]
        cells.append([case.scan, *line] if with_scans else line)
    first = 3 if with_scans else 2
    explained = (
        " In nats; over all classes, KL divergences over all ordered pairs of different classes. Density is the mean "
        "proportion of significant paths."
    )
    heads = ["scan", *heads] if with_scans else heads
    return Table(caption + explained, heads, cells, frozenset(range(first, len(heads))), len(cells) > _COMPACT_ABOVE)


def class_tables(results: Significance, case: Case, known: Sequence[int]) -> list[Block]:
    """All classes, or of many the densest, and those furthest from the others and nearest to them."""
    rows = results.classes[case]
    by_density = sorted(known, key=lambda index: (-rows[index]["density"], index))
    by_separation = sorted(known, key=lambda index: (-(rows[index]["mean_kl_to"] or 0.0), index))
    if len(known) <= _ALL_CLASSES:
        caption = "Classes, those furthest from the others first, and all together."
        return [_class_table(caption, results, case, [*(rows[index] for index in by_separation), *_overall(rows)])]
    return [
        _class_table(f"The {_MOST} densest of {len(known):,} classes, and all together.", results, case,
                     [*(rows[index] for index in by_density[:_MOST]), *_overall(rows)]),
        _class_table(f"The {_MOST} classes furthest from the others.", results, case,
                     [rows[index] for index in by_separation[:_MOST]]),
        _class_table(f"The {_MOST} classes nearest to the others, the nearest first.", results, case,
                     [rows[index] for index in by_separation[:-_MOST - 1:-1]]),
    ]  # fmt: skip


def _overall(rows: Mapping[int | None, Row]) -> list[Row]:
    return [rows[None]] if None in rows else []


def _class_table(caption: str, results: Significance, case: Case, rows: Sequence[Row]) -> Table:
    heads = [
        "class", "samples", "observations", "density", "entropy", "mean KL to others", "mean KL from others",
        "nearest class", "KL to it",
    ]  # fmt: skip
    cells = [
        [
            results.label(case, row["class"]),
            f"{row['n_samples']:,}",
            f"{row['n_observations']:,}",
            *(number(row[name]) for name in ("density", "entropy", "mean_kl_to", "mean_kl_from")),
            "–" if row["nearest"] is None else results.label(case, row["nearest"]),
            number(row["nearest_kl"]),
        ]
        for row in rows
    ]
    explained = (
        " In nats. Density is the mean proportion of significant paths; KL to others has the class as P, KL from others "
        "has it as Q."
    )
    return Table(caption + explained, heads, cells, frozenset({1, 2, 3, 4, 5, 6, 8}))


def path_tables(results: Significance, scan: ScanTables, case: Case, known: Sequence[int]) -> list[Block]:
    """The most significant paths of some classes; nothing where none are significant."""
    rows = results.paths.get(case, [])
    shown = set(listed_classes(known))
    names = _output_names(scan, case.layer)
    inputs = {layer["name"]: layer["inputs"] for layer in recorded_layers(scan)}.get(case.layer)
    cells = [
        [
            results.label(case, row["class"]),
            str(row["place"]),
            f"{row['row']} ({names[row['row']]})" if names else str(row["row"]),
            _columns(row, inputs),
            *(number(row[name]) for name in ("p", "p_overall", "contrast")),
        ]
        for row in rows
        if row["class"] in shown
    ]
    if not cells:
        return []
    sampled = f" {len(shown)} of {len(known):,} classes, evenly spaced." if len(shown) < len(known) else ""
    caption = (
        f"The {LISTED_PATHS} most significant paths of classes: p is the proportion of the class's observations, p overall "
        "that of all observations, contrast the difference. Paths of one output that were always significant together, as "
        f"they are where their sum is negative, stand in one line.{sampled}"
    )
    heads = ["class", "", "output", "inputs", "p", "p overall", "contrast"]
    return [Table(caption, heads, cells, frozenset({1, 4, 5, 6}), compact=len(cells) > _ALL_CLASSES)]


def _columns(row: Row, inputs: int | None) -> str:
    if row["column"] is not None:
        return str(row["column"])
    count = row["n_paths"]
    return f"all {count:,}" if count == inputs else f"{count:,} others, all alike"


def _output_names(scan: ScanTables, layer: str) -> list[str] | None:
    """Names of a layer's outputs where they are the model's classes: of its last layer, one output a class."""
    layers = recorded_layers(scan)
    model: Mapping[str, Any] = scan.facts.get("model") or {}
    names = model.get("classes") or scan.class_names
    order = scan.layer_names or [found["name"] for found in layers]
    if names is None or not order or order[-1] != layer:
        return None
    rows = next((found["rows"] for found in layers if found["name"] == layer), None)
    return [str(name) for name in names] if rows == len(names) == model.get("n_classes", rows) else None
