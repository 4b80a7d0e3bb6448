"""Report of traps, low scores inside robust regions of semantic maps, and whether FI foretells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Paragraph, Section, Table
from raysense.report.semantic_data import HIGH, LOW, map_axes, traps_of
from raysense.report.style import number

_LISTED = 30
_STEPS = 3
_MEASURES = {
    "score": "1 − score (baseline)",
    "fi": "FI",
    "fi_bound": "(1 − p)/p",
    "jacobian_norm": "Jacobian norm",
}


def trap_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """The traps of a scan, the largest first; none without maps."""
    if "semantic_maps" not in scan.schemas:
        return []
    rows = database.query(
        f"SELECT *, count(*) OVER () AS total FROM {traps_of(scan)} "
        f"ORDER BY area DESC, shape_id, axes, trap LIMIT {_LISTED}"
    ).rows()
    meaning = (
        f"A trap is a connected set of grid points with scores below {HIGH:g} that falls below {LOW:g} and is enclosed by "
        f"scores of at least {HIGH:g}: it neither reaches the border of the space nor goes all around a periodic axis; "
        "where that is the only axis of the map, it is at most half of it."
    )
    if not rows:
        counted = database.query(
            f"SELECT count(*) AS n FROM semantic_maps WHERE scan = {quoted_text(scan.name)}"
        ).rows()
        return [Section("Traps", [Paragraph(f"{meaning} There are none.")])] if counted[0]["n"] else []
    total = rows[0]["total"]
    heads = [
        "shape or image", "class", "axes", "trap", "points", "share of the map", "least score", "at", "from – to", "depth",
    ]  # fmt: skip
    cells = [
        [
            row["shape_id"],
            row["class_name"] or "–",
            row["axes"].replace(",", ", "),
            str(row["trap"]),
            f"{row['cells']:,}",
            f"{100 * row['area']:.2f}%",
            number(row["min_score"]),
            _point(row["u_min"]),
            " × ".join(f"{low:.4g} – {high:.4g}" for low, high in zip(row["lower"], row["upper"], strict=True)),
            f"{row['depth']:.2f}",
        ]
        for row in rows
    ]
    units = ", ".join(f"{axis.name} in {axis.unit}" for axis in map_axes(scan, ",".join(a["name"] for a in scan.axes)))
    caption = f"Traps: {total:,}" + (f", the {_LISTED} largest are listed" if total > _LISTED else "")
    caption += (
        f"; coordinates are {units}, an upper end beyond the range has crossed the seam. Depth is the mean score of the "
        "surrounding points minus the least score."
    )
    return [
        Section("Traps", [Paragraph(meaning), Table(caption, heads, cells, frozenset({3, 4, 5, 6, 9}), compact=True)])
    ]


def joint_trap_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """How many traps every network has."""
    with_maps = [scan for scan in scans if "semantic_maps" in scan.schemas]
    if len(with_maps) < 2:
        return []
    names = ", ".join(quoted_text(scan.name) for scan in with_maps)
    rows = database.query(
        f"""
        WITH mapped AS (
            SELECT scan, axes, count(DISTINCT shape_id) AS n_maps, avg(score) AS mean_score,
                avg((score >= {HIGH})::INTEGER) AS robust
            FROM semantic_maps WHERE scan IN ({names}) GROUP BY ALL
        ),
        counted AS (
            SELECT scan, axes, count(*) AS n_traps, count(DISTINCT shape_id) AS n_shapes, sum(area) AS area
            FROM {traps_of()} GROUP BY ALL
        )
        SELECT mapped.*, coalesce(n_traps, 0) AS n_traps, coalesce(n_shapes, 0) AS n_shapes,
            coalesce(area, 0) / n_maps AS area
        FROM mapped LEFT JOIN counted USING (scan, axes)
        """
    ).rows()
    if not rows:
        return []
    order = [scan.name for scan in scans]
    rows.sort(key=lambda row: (row["axes"], order.index(row["scan"])))
    cells = [
        [
            row["scan"],
            row["axes"].replace(",", ", "),
            f"{row['n_maps']:,}",
            f"{row['mean_score']:.3f}",
            f"{100 * row['robust']:.1f}%",
            f"{row['n_traps']:,}",
            f"{row['n_shapes']:,}",
            f"{100 * row['area']:.2f}%",
        ]
        for row in rows
    ]
    heads = [
        "network",
        "axes",
        "maps",
        "mean score",
        f"score ≥ {HIGH:g}",
        "traps",
        "maps with traps",
        "share of the maps",
    ]
    caption = f"Maps and their traps (scores below {LOW:g} enclosed by {HIGH:g} and more) of every network."
    return [Section("Traps of all networks", [Table(caption, heads, cells, frozenset(range(2, len(heads))))])]


def foretelling_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Whether FI foretells that the score falls; none without maps of FI."""
    if "semantic_maps" not in scan.schemas:
        return []
    rows = database.query(
        f"FROM fi_foretells_traps(low := {LOW}, high := {HIGH}, steps := {_STEPS}) WHERE scan = {quoted_text(scan.name)}"
    ).rows()
    if not rows:
        return []
    order = list(_MEASURES)
    keys = list(dict.fromkeys((row["axes"], row["axis"]) for row in rows))
    rows.sort(key=lambda row: (keys.index((row["axes"], row["axis"])), order.index(row["measure"])))
    text = (
        f"Looked at are the grid points with a score of at least {HIGH:g}; the event is that the score falls below {LOW:g} "
        f"within {_STEPS} steps along the axis, either way. The area under the ROC curve says how well a measure at the "
        "point itself tells such points from the others: 0.5 is chance. What matters is whether FI does better than the "
        "score alone. The rank correlation is that between the measure and the slope of the score, over these points of a "
        "map."
    )
    return [Section("Does FI foretell the traps?", [Paragraph(text), _foretelling_table(rows)])]


def _foretelling_table(rows: Sequence[dict[str, Any]]) -> Table:
    cells = [
        [
            row["axis"],
            row["axes"].replace(",", ", "),
            _MEASURES[row["measure"]],
            f"{row['n_maps']:,}",
            f"{row['n_points']:,}",
            f"{row['n_events']:,}",
            _estimate(row["roc_area"], row["roc_stderr"]),
            _estimate(row["rank_correlation"], row["rank_correlation_stderr"]),
        ]
        for row in rows
    ]
    heads = [
        "along",
        "axes of the maps",
        "measure",
        "maps",
        f"points ≥ {HIGH:g}",
        "events",
        "area under ROC",
        "rank correlation",
    ]
    caption = (
        "How well measures at a point foretell that the score falls nearby; ± standard errors over shapes or images."
    )
    return Table(caption, heads, cells, frozenset(range(3, len(heads))), compact=True)


def _estimate(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _point(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
