"""Report of the convexity scan (Fawzi et al. 2018): whether convex combinations of images of one class stay in it."""

from __future__ import annotations

from collections.abc import Sequence

from raysense.query.connection import ResultDatabase
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.line_figures import Line, Panel, line_figure
from raysense.report.macro_rows import Row, column, grouped, macro_rows, percent
from raysense.report.style import LINES

_TITLE = "Convexity of classification regions"
_MEANING = (
    "Groups of k images of one predicted class are combined with random weights, uniform on the simplex; in a convex "
    "region all combinations would be predicted as that class."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """The share of combinations that stay in the class, by k."""
    rows = macro_rows(database, "convexity_curve()", [scan]) if "convexity" in scan.schemas else []
    if not any(row["groups"] for row in rows):
        return [Section(_TITLE, [Notice("No images have been combined yet.")])]
    blocks: list[Block] = [Paragraph(_MEANING), _plot(rows, False), _table(rows, False)]
    return [Section(_TITLE, blocks)]


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """The same of several scans."""
    rows = (
        macro_rows(database, "convexity_curve()", scans) if any("convexity" in scan.schemas for scan in scans) else []
    )
    if not any(row["groups"] for row in rows):
        return []
    return [Section(f"{_TITLE}, all scans", [_plot(rows, True), _table(rows, True)])]


def _plot(rows: Sequence[Row], several: bool) -> Plot:
    parts = grouped(rows, "scan")
    lines = [
        Line(
            name if several else "measured",
            column(part, "k"),
            column(part, "share_inside"),
            column(part, "stderr"),
            colour,
        )
        for colour, (name, part) in zip(LINES, parts.items(), strict=False)
    ]
    figure = line_figure(
        [Panel(lines, "combinations predicted\nas the class", shares=True, levels={1.0: "convex"})],
        "images combined, k",
        True,
    )
    caption = (
        "Share of the random convex combinations of k images of one predicted class that stay in it, with standard "
        "errors over groups: the experiment of Fawzi et al. (2018), who find regions that are not convex, though nearly "
        "so between pairs."
    )
    left_out = list(parts)[len(LINES) :]
    caption += f" Not drawn: {', '.join(left_out)}." if several and left_out else ""
    return Plot("convexity", "Share of convex combinations that stay in the class", caption, figure)


def _table(rows: Sequence[Row], several: bool) -> Table:
    heads = ["k", "groups", "combinations", "in the class", "groups wholly in it", "no group"]
    cells = [
        [
            *([row["scan"]] if several else []),
            str(row["k"]),
            f"{row['groups']:,}",
            "–" if row["combinations"] is None else f"{row['combinations']:,}",
            percent(row["share_inside"], row["stderr"]),
            percent(row["share_whole"]),
            f"{row['errors']:,}",
        ]
        for row in rows
    ]
    caption = (
        "Convex combinations of k images, from convexity_curve(); no group: too few images of one predicted class."
    )
    first = 1 if several else 0
    return Table(caption, [*(["scan"] * first), *heads], cells, frozenset(range(first, first + len(heads))))
