"""Report of the paths scan (Fawzi et al. 2018): whether classification regions are connected, and by which paths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.histogram_figures import Distribution, histograms
from raysense.report.macro_rows import Row, grouped, macro_rows, percent
from raysense.report.section_figures import COLUMNS, section_figure
from raysense.report.section_figures import Section as Cut
from raysense.report.style import BLUE, number

_LISTED = 20
_DRAWN = 3
"""Pairs of a scenario whose sections are drawn."""
_MOST_CUTS = 2 * COLUMNS
_MEANING = (
    "A path joins two points of one predicted class by segments whose points, checked at a spacing of a share of the "
    "distance of the ends, are all predicted as that class (Algorithm 1 of Fawzi et al. 2018): first the straight "
    "segment; where it leaves the class, its midpoint is moved into the class and both halves are tried. Scenario data: "
    "two images; adversarial: an image and one of another class, perturbed into this one; noise: an image and noise, "
    "perturbed into its class. Anchors are the points between the ends; D(p) is the length of the path over the "
    "distance of its ends."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: statistics by scenario, pairs that are not connected, histograms, cross-sections."""
    title = "Paths within classification regions"
    rows = macro_rows(database, "path_statistics()", [scan]) if "paths" in scan.schemas else []
    if not rows:
        return [Section(title, [Notice("No pair has been connected yet.")])]
    blocks: list[Block] = [
        Paragraph(_MEANING),
        _table(rows, False),
        *_unconnected(database, scan),
        *_histograms(database, scan),
    ]
    return [Section(title, blocks), *_cut_sections(database, scan)]


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: statistics by scenario."""
    rows = macro_rows(database, "path_statistics()", scans) if any("paths" in scan.schemas for scan in scans) else []
    return [Section("Paths within classification regions, all scans", [_table(rows, True)])] if rows else []


def _table(rows: Sequence[Row], several: bool) -> Table:
    heads = [
        "scenario", "pairs", "connected", "straight", "anchors", "anchors where not straight", "most anchors",
        "mean D(p) - 1", "median D(p) - 1", "largest D(p) - 1", "no pair",
    ]  # fmt: skip
    cells = [
        [
            *([row["scan"]] if several else []),
            row["scenario"],
            f"{row['pairs']:,}",
            f"{row['connected']:,} ({percent(row['share_connected'])})",
            f"{row['straight']:,} ({percent(row['share_straight'])})",
            number(row["mean_anchors"]),
            number(row["mean_anchors_bent"]),
            "–" if row["max_anchors"] is None else f"{row['max_anchors']:,}",
            *(number(_beyond(row[f"{kind}_length_ratio"])) for kind in ("mean", "median", "max")),
            f"{row['errors']:,}",
        ]
        for row in rows
    ]
    caption = (
        "Pairs by scenario; anchors and D(p) are means over the pairs that were connected. Fawzi et al. (2018) find a "
        "path for every pair, with 10 anchors and D(p) - 1 = 1e-4 on average. From path_statistics()."
    )
    first = 1 if several else 0
    return Table(
        caption, [*(["scan"] * first), *heads], cells, frozenset(range(first + 1, first + len(heads))), compact=True
    )


def _beyond(ratio: float | None) -> float | None:
    return None if ratio is None else ratio - 1


def _unconnected(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    """Pairs without a path, and pairs that could not be made."""
    rows = database.query(
        f"""
        SELECT pair, sample_a, sample_b, class, bad_segments, depth, error, count(*) OVER () AS total
        FROM paths WHERE scan = {quoted_text(scan.name)} AND coalesce(NOT connected, true)
        ORDER BY error IS NOT NULL, pair LIMIT {_LISTED}
        """
    ).rows()
    if not rows:
        return [Paragraph("All pairs are connected.")]
    names = dict(enumerate(scan.class_names or ()))
    cells = [
        [
            row["pair"],
            row["sample_a"] or "–",
            row["sample_b"] or "–",
            "–" if row["class"] is None else names.get(row["class"], str(row["class"])),
            row["error"] or f"{row['bad_segments']:,} segments leave the class at depth {row['depth']:,}",
        ]
        for row in rows
    ]
    total = rows[0]["total"]
    caption = f"Pairs that are not connected: {total:,}" + (
        f" (the first {_LISTED} are listed)" if total > _LISTED else ""
    )
    return [Table(f"{caption}.", ["pair", "first image", "second image", "class", "why"], cells)]


def _histograms(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    rows = database.query(
        f"SELECT scenario, straight, anchors, length_ratio FROM paths WHERE scan = {quoted_text(scan.name)} AND connected "
        "ORDER BY list_position(['data', 'adversarial', 'noise'], scenario), pair"
    ).rows()
    parts = grouped(rows, "scenario")
    if not parts:
        return []
    anchors = {name: [Distribution("", _array(part, "anchors"), BLUE)] for name, part in parts.items()}
    figure, says = histograms(anchors, "anchor points of the path", "pairs", scale="integers")
    caption = f"Anchor points between the ends of the paths found; straight paths have none.{says}"
    blocks: list[Block] = [Plot("anchors", "Histogram of anchor points", caption, figure)]
    bent = {name: [row for row in part if not row["straight"]] for name, part in parts.items()}
    ratios = {name: [Distribution("", _array(part, "length_ratio") - 1, BLUE)] for name, part in bent.items() if part}
    if ratios:
        figure, says = histograms(ratios, "D(p) - 1, relative extra length [1]", "pairs", scale="log")
        caption = f"How much longer than straight the paths are that are not straight.{says}"
        blocks.append(Plot("length_ratio", "Histogram of relative path lengths", caption, figure))
    return blocks


def _cut_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Cross-sections of some pairs of every scenario: first those whose path is not straight."""
    if "cross_sections" not in scan.schemas:
        return []
    pairs = database.query(
        f"""
        SELECT scenario, pair, class, straight, connected, anchors + 1 AS last
        FROM paths SEMI JOIN cross_sections USING (scan, pair)
        WHERE scan = {quoted_text(scan.name)}
        ORDER BY list_position(['data', 'adversarial', 'noise'], scenario), straight, pair
        """
    ).rows()
    found = []
    for scenario, part in grouped(pairs, "scenario").items():
        plots: list[Block] = [
            _cut_plot(database, scan, pair, f"{scenario}_{place + 1}") for place, pair in enumerate(part[:_DRAWN])
        ]
        if len(part) > _DRAWN:
            plots.append(
                Paragraph(
                    f"{_DRAWN} of {len(part):,} pairs are drawn, straight ones last; all are in table cross_sections."
                )
            )
        found.append(Section(f"Cross-sections, scenario {scenario}", plots))
    return found


def _cut_plot(database: ResultDatabase, scan: ScanTables, pair: Row, ending: str) -> Plot:
    rows = database.query(
        f"SELECT * FROM cross_sections WHERE scan = {quoted_text(scan.name)} AND pair = {quoted_text(pair['pair'])} "
        f"ORDER BY segment LIMIT {_MOST_CUTS}"
    ).rows()
    shown = rows[:1] if pair["straight"] else rows
    cuts = [_cut(row, pair["last"]) for row in shown]
    names = dict(enumerate(scan.class_names or ()))
    own = names.get(pair["class"], str(pair["class"]))
    what = (
        "is a path within the class"
        if pair["straight"]
        else "leaves the class; the segments of the path found stay in it"
    )
    if not pair["connected"]:
        what = "leaves the class, and so do segments of the path where the recursion ended"
    caption = (
        f"Pair {pair['pair']}, class {own}: regions by predicted class in the planes of a segment (horizontal, pixel "
        f"values along it) and r(x1), made orthogonal to it (vertical). The straight segment {what}. As in the slides of "
        "Fawzi et al. (2018); the axes have scales of their own."
    )
    drawn = sum(row["segment"] > 0 for row in shown)
    if not pair["straight"] and drawn < pair["last"]:
        caption += f" {drawn:,} of the {pair['last']:,} segments of the path are drawn."
    return Plot(
        f"sections_{ending}",
        f"Cross-sections of classification regions, pair {pair['pair']}",
        caption,
        section_figure(cuts, pair["class"], names),
    )


def _cut(row: Row, last: int) -> Cut:
    segment = row["segment"]
    first, end = ("x" if segment in (0, 1) else "p"), ("x" if segment in (0, last) else "p")
    return Cut(
        "straight" if segment == 0 else f"segment {segment} of {last}",
        (first, end),
        (row["from_x"], row["to_x"]),
        (row["low_x"], row["high_x"], row["low_y"], row["high_y"]),
        np.array(row["predicted"], np.int64).reshape(row["height"], row["width"]),
    )


def _array(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], np.float64)
