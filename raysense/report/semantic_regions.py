"""Report of grown regions: SRVR in the layout of Table 2 of Hamdi & Ghanem (2020), by class, and how boxes agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Paragraph, Section, Table

_CLASSES = 50
_MEANING = (
    "SRVR, the semantic robust volume ratio, is the mean volume of the regions as a share of the space. The published "
    "formula counts boxes as grown, which may leave the space, at 100% at most, and asks nothing of the scores in them. "
    "Clipped counts the part inside the space. Feasible counts only regions that meet Eq. (2) of the paper: mean score at "
    "least {mean:g}, variance at most {variance:g}, the initial point inside; others count as 0. The method published is "
    "the mean of naive, oir_b and oir_w, as in the paper's Table 2; constrained is raysense's own growth, feasible by "
    "construction. Errors are standard errors of a bootstrap over shapes or images."
)


def region_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """SRVR of a scan by method and by class, and the agreement of methods; none without regions."""
    if "regions" not in scan.schemas:
        return []
    rows = _rows(database, "srvr()", [scan])
    if not rows:
        return []
    spec = scan.document.get("spec") or {}
    text = _MEANING.format(mean=1 - spec.get("eps_mean", 0.5), variance=spec.get("eps_variance", 0.05))
    blocks: list[Block] = [Paragraph(text), _method_table(rows)]
    blocks += _class_tables(database, scan)
    blocks += _agreement(database, [scan], "method")
    return [Section("Robust regions and SRVR", blocks)]


def joint_region_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """SRVR of several networks side by side, and how far the same regions of theirs agree."""
    with_regions = [scan for scan in scans if "regions" in scan.schemas]
    if len(with_regions) < 2:
        return []
    rows = _rows(database, "srvr()", with_regions)
    if not rows:
        return []
    blocks: list[Block] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row for row in rows if row["kind"] == kind]
        networks = list(dict.fromkeys(row["scan"] for row in part))
        methods = list(dict.fromkeys((row["family"], row["method"]) for row in part))
        lookup = {(row["scan"], row["family"], row["method"]): row for row in part}
        measures = [("SRVR", "srvr", "stderr"), ("clipped", "clipped", "clipped_stderr")]
        measures.append(("feasible", "feasible_srvr", "feasible_stderr"))
        cells = [
            [method, head, *(_percent(lookup.get((network, family, method)), value, error) for network in networks)]
            for family, method in methods
            for head, value, error in measures
            # A constrained box is inside the space and feasible: its three numbers are one.
            if family == "published" or head == "feasible"
        ]
        caption = (
            f"SRVR of {kind} regions in percent of the space, with bootstrap standard errors over shapes: the published "
            "formula of Table 2 of Hamdi & Ghanem (2020), boxes clipped to the space, and feasible ones only. Rows "
            "published are the mean of naive, oir_b and oir_w, which the paper prints."
        )
        blocks.append(Table(caption, ["method", "measure", *networks], cells, frozenset(range(2, 2 + len(networks)))))
    blocks += _agreement(database, with_regions, "scan")
    return [Section("SRVR of all networks", blocks)]


def _rows(database: ResultDatabase, macro: str, scans: Sequence[ScanTables]) -> list[dict[str, Any]]:
    """Rows of a macro on these scans, in their order, published methods first and their mean first among them."""
    names = [scan.name for scan in scans]
    rows = database.query(f"FROM {macro} WHERE scan IN ({', '.join(map(quoted_text, names))})").rows()
    return sorted(
        rows,
        key=lambda row: (
            names.index(row["scan"]), row["kind"] == "adversarial", row["family"] != "published",
            row["method"] != "published", row["method"],
        ),
    )  # fmt: skip


def _method_table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = [
        "regions", "method", "boxes", "SRVR [%]", "clipped [%]", "feasible [%]", "holds", "converged", "diverged", "scores",
    ]  # fmt: skip
    cells = [
        [
            row["kind"],
            row["method"],
            f"{row['n_boxes']:,}",
            _percent(row, "srvr", "stderr"),
            _percent(row, "clipped", "clipped_stderr"),
            _percent(row, "feasible_srvr", "feasible_stderr"),
            *(f"{100 * row[f'fraction_{name}']:.1f}%" for name in ("holds", "converged", "diverged")),
            f"{row['mean_evaluations']:,.0f}",
        ]
        for row in rows
    ]
    shapes = max(row["n_shapes"] for row in rows)
    caption = (
        f"SRVR over {shapes:,} shapes or images in percent of the space, ± the standard error: published formula, clipped, "
        "feasible. Then the shares of the boxes for which Eq. (2) holds, whose growth ended by itself, and which diverged; "
        "last, the scores that a box took on average."
    )
    return Table(caption, heads, cells, frozenset(range(2, len(heads))), compact=True)


def _class_tables(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    """Feasible SRVR and that of the published formula by class, one table a kind; none where there is one class."""
    rows = [row for row in _rows(database, "srvr_by_class()", [scan]) if row["label"] is not None]
    blocks: list[Block] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        part = [row for row in rows if row["kind"] == kind]
        if any(row["method"] == "published" for row in part):
            part = [row for row in part if row["method"] in ("published", "constrained")]
        labels = sorted({row["label"] for row in part})
        if len(labels) < 2:
            continue
        columns = [
            (row["method"], head, value, error)
            for row in {row["method"]: row for row in part}.values()
            for head, value, error in (("SRVR", "srvr", "stderr"), ("feasible", "feasible_srvr", "feasible_stderr"))
            if row["family"] == "published" or head == "feasible"
        ]
        lookup = {(row["label"], row["method"]): row for row in part}
        named = {row["label"]: row for row in part}
        cells = [
            [
                named[label]["class_name"] or str(label),
                f"{named[label]['n_shapes']:,}",
                *(_percent(lookup.get((label, method)), value, error) for method, _, value, error in columns),
            ]
            for label in labels[:_CLASSES]
        ]
        caption = f"SRVR of {kind} regions by class, in percent of the space." + (
            f" The first {_CLASSES} of {len(labels):,} classes." if len(labels) > _CLASSES else ""
        )
        heads = [
            "class",
            "images" if _is_of_images(scan) else "shapes",
            *(f"{method}, {head} [%]" for method, head, _, _ in columns),
        ]
        blocks.append(Table(caption, heads, cells, frozenset(range(1, len(heads))), compact=len(cells) > 20))
    return blocks


def _agreement(database: ResultDatabase, scans: Sequence[ScanTables], between: str) -> list[Block]:
    """Quartiles of the intersection over union: of methods within a scan, or of scans within a method."""
    names = ", ".join(quoted_text(scan.name) for scan in scans)
    columns, same = ("kind, method_a AS a, method_b AS b", "=")
    if between == "scan":
        columns, same = ("kind, method_a AS method, scan_a AS a, scan_b AS b", "!=")
    rows = database.query(
        f"SELECT {columns}, count(*) AS n, quantile_cont(iou, [0.25, 0.5, 0.75]) AS quartiles FROM region_iou() "
        f"WHERE scan_a {same} scan_b AND scan_a IN ({names}) AND scan_b IN ({names}) AND iou IS NOT NULL "
        "GROUP BY ALL ORDER BY kind DESC, 2, 3, a, b"
    ).rows()
    if not rows:
        return []
    cells = [
        [
            row["kind"],
            *([row["method"]] if between == "scan" else []),
            f"{row['a']} and {row['b']}",
            f"{row['n']:,}",
            *(f"{value:.2f}" for value in row["quartiles"]),
        ]
        for row in rows[:_CLASSES]
    ]
    heads = ["regions", *(["method"] if between == "scan" else []), f"{between}s", "pairs", "25%", "median", "75%"]
    caption = (
        f"Agreement of {between}s: quartiles of the intersection over union of the boxes from the same initial point, "
        "cut to the space."
    ) + (f" The first {_CLASSES} of {len(rows):,} rows." if len(rows) > _CLASSES else "")
    first = 3 if between == "scan" else 2
    return [Table(caption, heads, cells, frozenset(range(first, first + 4)), compact=len(cells) > 20)]


def _is_of_images(scan: ScanTables) -> bool:
    return (scan.document.get("spec") or {}).get("data") is not None


def _percent(row: dict[str, Any] | None, value: str, error: str) -> str:
    if row is None or row[value] is None:
        return "–"
    spread = "" if row[error] is None else f" ± {100 * row[error]:.2f}"
    return f"{100 * row[value]:.2f}{spread}"
