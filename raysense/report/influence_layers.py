"""Report of FI by layer (Setup 2.2 of Shu & Zhu 2019): every layer of a network, and networks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.influence_groups import Group, says_left_out, share, values_by_split
from raysense.report.layer_figures import LayerValues, by_depth, by_layer
from raysense.report.manhattan import MAX_PANELS, Bands, manhattan
from raysense.report.style import LINES, number

_COMPACT_ABOVE = 40


def layer_sections(database: ResultDatabase, scan: ScanTables, group: Group, ending: str) -> list[Section]:
    """One section on all layers of a scan."""
    rows = _layer_rows(database, group)
    bands = Bands("layer", {row["position"]: row["layer"] for row in rows})
    blocks: list[Block] = [
        Paragraph(
            f"Objective {group.objective}, method {group.method}. The perturbation changes the parameters of one layer; "
            "FI of a layer is at most FI of all parameters together."
        )
    ]
    if group.is_bound:
        blocks.append(Notice("Method bound knows nothing of layers: its bound (1 - p)/p is the same for all of them."))
        return [Section("FI of every layer", blocks)]
    blocks += [_manhattan(database, group, bands, ending), _lines(rows, bands, ending), _table(rows)]
    return [Section("FI of every layer", blocks)]


def depth_sections(database: ResultDatabase, groups: Sequence[Group]) -> list[Section]:
    """The layers of several networks side by side, one section an objective that several of them have."""
    sections = []
    known = [group for group in groups if not group.is_bound]
    for index, objective in enumerate(dict.fromkeys(group.objective for group in known)):
        part = [group for group in known if group.objective == objective]
        if len(part) < 2:
            continue
        networks = {group.scan: _values(_layer_rows(database, group)) for group in part[: len(LINES)]}
        figure, remarks = by_depth(networks)
        caption = (
            "Median FI of every layer by its relative depth: 0 is the first layer with parameters of a network, 1 its "
            f"last.{remarks}"
        )
        if len(part) > len(LINES):
            caption += f" Not drawn: {', '.join(group.scan for group in part[len(LINES) :])}."
        plot = Plot(f"depth_{index + 1}", "Median FI by relative depth of the layer", caption, figure)
        sections.append(Section(f"FI of every layer, objective {objective}, all scans", [plot]))
    return sections


def _layer_rows(database: ResultDatabase, group: Group) -> list[dict[str, Any]]:
    """Rows of layer_fi() with what fi_informative() adds, in the network's order."""
    return database.query(
        f"""
        SELECT i.*, n_at_bound, n_below, median_ratio, median_rank, layers.total
        FROM layer_fi() AS i
        JOIN fi_informative() USING (scan, objective, method, layer)
        JOIN (SELECT scan, count(*) AS total FROM layers GROUP BY ALL) AS layers USING (scan)
        WHERE i.scan = {quoted_text(group.scan)} AND i.objective = {quoted_text(group.objective)}
            AND i.method = {quoted_text(group.method)}
        ORDER BY position
        """
    ).rows()


def _values(rows: Sequence[dict[str, Any]]) -> LayerValues:
    def column(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)

    depth = (column("position") - 1) / np.maximum(column("total") - 1, 1)
    return LayerValues(depth, column("p50"), column("p95"), column("median_jacobian_norm"))


def _manhattan(database: ResultDatabase, group: Group, bands: Bands, ending: str) -> Plot:
    splits = values_by_split(database, group, band="position")
    names = list(splits)
    shown = {name: splits[name] for name in names[:MAX_PANELS]}
    figure, remarks = manhattan({group.scan: shown}, {group.scan: bands}, group.quantity)
    caption = (
        "FI of every sample for every layer, layers in the network's order, as in Figure 4 (d)-(f) of Shu & Zhu (2019); "
        f"neighbouring layers differ in colour.{remarks}{says_left_out('Splits', names)}"
    )
    return Plot(f"layers{ending}", "Manhattan plot of FI by layer", caption, figure)


def _lines(rows: Sequence[dict[str, Any]], bands: Bands, ending: str) -> Plot:
    figure, remarks = by_layer(_values(rows), bands)
    caption = (
        "Median and 95th percentile of FI of every layer, and below them the median Jacobian norm. Layers can be "
        "compared by FI, which stays the same when a layer's parameters are rescaled; the Jacobian norm follows their "
        f"scale.{remarks}"
    )
    return Plot(f"layer_profile{ending}", "FI and Jacobian norm by layer", caption, figure)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = [
        "", "layer", "median FI", "95th", "99th", "largest", "at the bound", "below it", "median FI / bound",
        "median rank", "median Jacobian norm",
    ]  # fmt: skip
    cells = [
        [
            str(row["position"]),
            row["layer"],
            *(number(row[name]) for name in ("p50", "p95", "p99", "p100")),
            share(row["n_at_bound"], row["n"]),
            share(row["n_below"], row["n"]),
            number(row["median_ratio"]),
            "–" if row["median_rank"] is None else f"{row['median_rank']:g}",
            number(row["median_jacobian_norm"]),
        ]
        for row in rows
    ]
    caption = (
        "FI of every layer over all samples; rows at the bound (1 - p)/p say no more than the softmax does. Each layer has "
        f"{rows[0]['n']:,} rows."
    )
    numeric = frozenset({0, *range(2, len(heads))})
    return Table(caption, heads, cells, numeric, compact=len(rows) > _COMPACT_ABOVE)
