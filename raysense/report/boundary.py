"""Report of the boundary scan (Fawzi et al. 2018): how far the decision boundary is, and how curved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.boundary_profiles import profile_sections
from raysense.report.histogram_figures import Distribution, histograms
from raysense.report.line_figures import Line, Panel, line_figure
from raysense.report.macro_rows import Row, column, grouped, macro_rows, percent, values_by_split, with_error
from raysense.report.style import BLUE, LINES, ORANGE, number

_MOST = 6
_CURVE_POINTS = 300
_UNIT = "[1 / pixel values]"
_DISTANCE = (
    "r(x) is the shortest perturbation that takes an image x to the boundary of its class's region, found by DeepFool and "
    "then refined; z = x + r(x) lies on the boundary, and the distance is the norm of r(x). Pixel values are 0 to 1."
)
_CURVATURE = (
    "The normal curvature of the boundary at z along a tangent direction v is v'Hv / (|v|² |∇F|) with H the Hessian of "
    "F = f_to - f_from, the margin of the class on the other side over that of the image; the mean curvature is its mean "
    "over all tangent directions, the principal curvatures are its eigenvalues. Positive: the region of the image's class "
    "is convex there; negative: it is concave. Fawzi et al. (2018) find a boundary that is flat in most directions, and a "
    "negative mean near images."
)
_DIFFERENCES = (
    " Derivatives are differences of gradients over ±h with h = {step:g} in the Euclidean norm of the image: a network "
    "with kinks such as ReLU has no other curvature than that at a scale."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: distances, mean curvature, its dependence on the step, principal curvatures."""
    title = "Distance to the decision boundary"
    rows = macro_rows(database, "boundary_distances()", [scan]) if "boundary" in scan.schemas else []
    if not rows:
        return [Section(title, [Notice("No boundary has been searched yet.")])]
    blocks: list[Block] = [Paragraph(_DISTANCE), *_distance_histogram(database, scan), distance_table(rows, [scan])]
    found = [Section(title, [*blocks, *_quality(database, scan)])]
    found += _mean_sections(database, scan)
    return found + _step_sections(database, [scan]) + profile_sections(database, scan)


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: distances, mean curvatures, and their dependence on the step."""
    known = [scan for scan in scans if "boundary" in scan.schemas]
    rows = macro_rows(database, "boundary_distances()", known) if len(known) > 1 else []
    if not rows:
        return []
    found = [
        Section(
            "Distance to the decision boundary, all scans",
            [*_distance_curves(database, known), distance_table(rows, known)],
        )
    ]
    curvatures = macro_rows(database, "curvature_summary()", known)
    if curvatures:
        found.append(Section("Mean curvature of the boundary, all scans", [curvature_table(curvatures, known)]))
    return found + _step_sections(database, known)


def distance_table(rows: Sequence[Row], scans: Sequence[ScanTables]) -> Table:
    """Rows of boundary_distances(), a line a scan, split and whether the prediction is correct."""
    heads = [
        "split", "predicted", "norm", "samples", "found", "outside", "blocked", "mean", "5th", "median", "95th",
        "median of |r| / |x|",
    ]  # fmt: skip
    cells = []
    for (name, split, norm, correct), parts in grouped(rows, "scan", "split", "norm", "correct").items():
        distance, relative = (
            next(row for row in parts if row["quantity"] == what) for what in ("distance", "relative")
        )
        cells.append(
            [
                *([name] if len(scans) > 1 else []),
                split,
                {True: "correctly", False: "wrongly"}.get(correct, "–"),
                norm,
                *(f"{distance[count]:,}" for count in ("n", "n_found", "n_outside", "n_blocked")),
                *(number(distance[value]) for value in ("mean", "p5", "p50", "p95")),
                number(relative["p50"]),
            ]
        )
    caption = (
        "Distance to the boundary, pixel values: mean and percentiles over the samples whose boundary was found. "
        "Outside: not in the region to begin with; blocked: no boundary within the box or the iterations. From "
        "boundary_distances()."
    )
    first = 1 if len(scans) > 1 else 0
    return Table(
        caption, [*(["scan"] * first), *heads], cells, frozenset(range(first + 3, first + len(heads))), compact=True
    )


def curvature_table(rows: Sequence[Row], scans: Sequence[ScanTables]) -> Table:
    """Rows of curvature_summary()."""
    first = 1 if len(scans) > 1 else 0
    heads = [
        "split",
        "derivatives",
        "samples",
        "mean curvature",
        "median",
        "negative",
        "uncertain",
        "largest",
        "smallest",
    ]
    cells = [
        [
            *([row["scan"]] * first),
            row["split"],
            row["method"] if row["step"] is None else f"{row['method']}, h = {row['step']:g}",
            f"{row['n']:,}",
            with_error(row["mean_curvature"], row["stderr"]),
            number(row["median_curvature"]),
            percent(row["share_negative"]),
            percent(row["share_uncertain"]),
            number(row["mean_largest"]),
            number(row["mean_smallest"]),
        ]
        for row in rows
    ]
    caption = (
        "Mean curvature with its standard error over samples, 1 / pixel values; share of negative ones, and of those "
        "within two of their own standard errors of 0; means of the largest and smallest principal curvature. From "
        "curvature_summary()."
    )
    return Table(caption, [*(["scan"] * first), *heads], cells, frozenset(range(first + 2, first + len(heads))))


def _distance_histogram(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    found = values_by_split(
        database,
        scan,
        "boundary",
        "norm, distance, label = predicted AS correct",
        "status = 'found' AND isfinite(distance)",
    )
    panels = {}
    for split, values in list(found.items())[:_MOST]:
        correct = values["correct"].astype(bool)
        parts = [
            Distribution("predicted correctly", values["distance"][correct], BLUE),
            Distribution("predicted wrongly", values["distance"][~correct], ORANGE),
        ]
        panels[f"split {split}"] = [part for part in parts if len(part.values)]
    if not panels:
        return [Notice("No sample has a boundary within the search.")]
    norm = next(iter(found.values()))["norm"][0]
    figure, says = histograms(panels, f"distance to the boundary, {_norm(norm)} [pixel values]", "samples", scale="log")
    caption = f"Distances of samples to the decision boundary on a log scale.{says}{_left_out(list(found))}"
    return [Plot("distance", "Histogram of distances to the boundary", caption, figure)]


def _distance_curves(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Block]:
    """Share of the samples whose boundary is nearer than a distance, by scan; a panel for each norm."""
    lines: dict[str, list[Line]] = {}
    for scan in scans[: len(LINES)]:
        condition = "status = 'found' AND isfinite(distance) AND distance > 0"
        for split, values in values_by_split(database, scan, "boundary", "norm, distance", condition).items():
            drawn = lines.setdefault(values["norm"][0], [])
            if len(drawn) < len(LINES):
                at = np.linspace(0, 1, min(_CURVE_POINTS, len(values["distance"])))
                x = np.quantile(values["distance"], at)
                drawn.append(Line(f"{scan.name} · {split}", x, at, None, LINES[len(drawn)], marked=False))
    blocks: list[Block] = []
    for norm, drawn in lines.items():
        figure = line_figure(
            [Panel(drawn, "samples with a nearer boundary", shares=True)],
            f"distance to the boundary, {_norm(norm)} [pixel values]",
            True,
        )
        caption = (
            "Share of the samples whose decision boundary is nearer than a distance, of those whose boundary was found."
        )
        blocks.append(Plot(f"distances_{norm}", "Distribution of distances by scan", caption, figure))
    return blocks


def _quality(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    """How exactly the points lie on the boundary, and how nearly they are the nearest ones."""
    (row,) = database.query(
        f"""
        SELECT
            count(*) AS n, max(residual / nullif(distance, 0)) AS residual,
            quantile_cont(alignment, [0.05, 0.5]) FILTER (isfinite(alignment)) AS alignment,
            avg(iterations) AS iterations, count(slack) AS n_slack, min(slack) AS slack
        FROM boundary WHERE scan = {quoted_text(scan.name)} AND status = 'found'
        """
    ).rows()
    if not row["n"]:
        return []
    text = (
        f"The points are on the boundary to {number(row['residual'])} of their distance at the worst, after "
        f"{number(row['iterations'])} steps on average. "
    )
    if row["alignment"] is not None:
        text += (
            "At the nearest point r(x) is orthogonal to the boundary, which makes the alignment 1: its median here is "
            f"{row['alignment'][1]:.4f}, the 5th percentile {row['alignment'][0]:.4f}. "
        )
    if row["n_slack"]:
        text += (
            f"For {row['n_slack']:,} of {row['n']:,} samples not all classes were looked at; one that was not could be "
            f"nearer only with a gradient at least {number(row['slack'])} times the largest seen."
        )
    return [Paragraph(text.strip())]


def _mean_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    rows = macro_rows(database, "curvature_summary()", [scan])
    if not rows:
        return []
    steps = [row["step"] for row in rows if row["step"] is not None]
    blocks: list[Block] = [Paragraph(_CURVATURE + (_DIFFERENCES.format(step=steps[0]) if steps else ""))]
    found = values_by_split(database, scan, "boundary", "mean_curvature", "isfinite(mean_curvature)")
    if found:
        panels = {
            f"split {split}": [Distribution("", values["mean_curvature"], BLUE)] for split, values in _first(found)
        }
        figure, says = histograms(panels, f"mean curvature {_UNIT}", "samples", level=0.0)
        caption = (
            f"Mean curvature of the boundary at z of every sample; the dotted line is 0.{says}{_left_out(list(found))}"
        )
        blocks.append(Plot("mean_curvature", "Histogram of mean curvatures", caption, figure))
    return [Section("Mean curvature of the boundary", [*blocks, curvature_table(rows, [scan])])]


def _step_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    known = [scan for scan in scans if "curvature_steps" in scan.schemas]
    rows = macro_rows(database, "curvature_by_step()", known) if known else []
    several = len(scans) > 1
    if not rows or len(known) < min(len(scans), 2):
        return []
    means: list[Line] = []
    magnitudes: list[Line] = []
    for (name, split), part in list(grouped(rows, "scan", "split").items())[: len(LINES)]:
        label, colour, x = f"{name} · {split}" if several else f"split {split}", LINES[len(means)], column(part, "step")
        means.append(Line(label, x, column(part, "mean_curvature"), column(part, "stderr"), colour))
        magnitudes.append(Line(label, x, column(part, "mean_magnitude"), None, colour))
    panels = [
        Panel(means, f"mean curvature\n{_UNIT}", levels={0.0: "flat"}),
        Panel(magnitudes, f"mean magnitude of\nnormal curvature {_UNIT}", logarithmic=True),
    ]
    figure = line_figure(panels, "step h of the differences, Euclidean norm [pixel values]", True)
    caption = (
        "Curvature measured by differences as a function of h, with standard errors over samples: above the mean normal "
        "curvature, below the mean of its magnitude. Where a network is smooth both level off as h falls; where it has "
        "kinks there is no such limit."
    )
    plot = Plot("curvature_steps", "Curvature against the step of the differences", caption, figure)
    title = "Curvature as a function of the scale"
    return [Section(f"{title}, all scans" if several else title, [plot])]


def _first(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(found.items())[:_MOST]


def _left_out(splits: Sequence[str]) -> str:
    return f" Splits not drawn: {', '.join(splits[_MOST:])}." if len(splits) > _MOST else ""


def _norm(norm: str) -> str:
    return {"l2": "Euclidean norm", "linf": "largest change of a value"}.get(norm, norm)
