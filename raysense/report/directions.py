"""Report of the directions scan (Fawzi et al. 2018): directions of high curvature that samples share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysense.query.connection import ResultDatabase
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.directions_figures import direction_bars
from raysense.report.line_figures import Line, Panel, line_figure
from raysense.report.macro_rows import column, grouped, macro_rows, percent, with_error
from raysense.report.style import BLUE, LINES, RED, number

_SPACES = {"S": ("noise in S", RED, "-"), "complement": ("noise outside S", BLUE, "--")}
_MEANING = (
    "The shared directions u_1, u_2, ... are the singular vectors of the principal directions of the boundaries near "
    "the samples of another boundary scan, and S is their span. rho_i = |u_i' P H P u_i| over its mean for random "
    "directions says how curved the boundary near an unseen sample is along u_i: more than 1 is more curved than along "
    "random directions."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: curvature along the shared directions, noise in S and outside, projections on S."""
    title = "Shared directions of high curvature"
    blocks = _curvature(database, scan) if "direction_curvatures" in scan.schemas else []
    if not blocks:
        return [Section(title, [Notice("No sample has been measured yet.")])]
    found = [Section(title, [Paragraph(_MEANING), *blocks])]
    return found + _noise_sections(database, [scan]) + _norm_sections(database, [scan])


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: noise in S and outside, and Table 1."""
    return _noise_sections(database, scans) + _norm_sections(database, scans)


def _curvature(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    parts = grouped(macro_rows(database, "shared_curvature()", [scan]), "split")
    blocks: list[Block] = []
    for index, (split, rows) in enumerate(parts.items()):
        rho, error = column(rows, "mean_rho"), column(rows, "stderr")
        figure = direction_bars(column(rows, "direction").astype(np.int64), rho, error, column(rows, "mean_curvature"))
        caption = (
            f"Above, rho_i of {len(rows):,} shared directions averaged over {max(row['n'] for row in rows):,} samples of "
            f"split {split}, with standard errors, as in the slides of Fawzi et al. (2018), where none is among the "
            "samples that the directions come from; below, the signed curvature, positive where the region of the sample's "
            "class is convex."
        )
        ending = f"_{index + 1}" if len(parts) > 1 else ""
        blocks.append(Plot(f"rho{ending}", f"Curvature along the shared directions, split {split}", caption, figure))
        above = float(np.mean(rho - 2 * np.nan_to_num(error) > 1))
        ten = ", the first ten on average " + number(float(rho[:10].mean())) if len(rho) > 10 else ""
        blocks.append(
            Paragraph(
                f"The first shared direction is {with_error(rows[0]['mean_rho'], rows[0]['stderr'])} times as curved as "
                f"random ones{ten}; {percent(above)} of the directions are so by more than two standard errors."
            )
        )
    return blocks


def _noise_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    known = [scan for scan in scans if "direction_noise" in scan.schemas]
    rows = macro_rows(database, "noise_robustness()", known) if known else []
    several = len(scans) > 1
    if not rows or len(known) < min(len(scans), 2):
        return []
    cases = list(dict.fromkeys((row["scan"], row["split"]) for row in rows))
    parts = grouped(rows, "scan", "split", "space")
    lines = []
    for place, (name, split) in enumerate(cases[: len(LINES)]):
        for space, (words, own, style) in _SPACES.items():
            part = parts.get((name, split, space), [])
            label = " · ".join([*([name] if several else []), *([split] if len(cases) > 1 else []), words])
            colour = own if len(cases) == 1 else LINES[place]
            if part:
                rates = (column(part, "magnitude"), column(part, "rate"), column(part, "stderr"))
                lines.append(Line(label, *rates, colour, style))
    figure = line_figure(
        [Panel(lines, "images that change their class", shares=True)],
        "norm of the noise over the mean norm of the images [1]",
    )
    caption = (
        "Misclassification rate of noisy images, whose predicted class changes, for noise in S, the span of the shared "
        "directions, and in its complement, with standard errors over samples, as in Figure 7 of Fawzi et al. (2018)."
    )
    if len(cases) > len(LINES):
        caption += f" Not drawn: {', '.join(f'{name} · {split}' for name, split in cases[len(LINES) :])}."
    title = "Robustness to noise in S and outside"
    plot = Plot("noise", "Misclassification rates for noise in S and in its complement", caption, figure)
    return [Section(f"{title}, all scans" if several else title, [plot])]


def _norm_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    known = [scan for scan in scans if "direction_norms" in scan.schemas]
    rows = macro_rows(database, "projected_norms()", known) if known else []
    several = len(scans) > 1
    if not rows or len(known) < min(len(scans), 2):
        return []
    cases = grouped(rows, "scan", "split")
    by_key = {(row["scan"], row["split"], row["perturbation"]): row for row in rows}
    cells = []
    for kind in dict.fromkeys(row["perturbation"] for row in rows):
        shares = [by_key.get((*case, kind)) for case in cases]
        cells.append(
            [
                _WORDS.get(kind, kind),
                *("–" if row is None else with_error(row["mean_share"], row["stderr"]) for row in shares),
            ]
        )
    heads = ["perturbation v", *(" · ".join(case if several else case[1:]) for case in cases)]
    caption = (
        "Norm of the projection of perturbations on S over their own norm, mean over samples with standard errors, as in "
        "Table 1 of Fawzi et al. (2018): the closer to 1, the more of the perturbation lies in S."
    )
    for m, size in dict.fromkeys(filter(None, map(_dimensions, known))):
        caption += (
            f" S has {m:,} of {size:,} dimensions, so that random vectors have about {number((m / size) ** 0.5)}."
        )
    table = Table(caption, heads, cells, frozenset(range(1, len(heads))))
    title = "Perturbations projected on S"
    return [Section(f"{title}, all scans" if several else title, [table])]


def _dimensions(scan: ScanTables) -> tuple[int, int] | None:
    """Those of S and of the images."""
    facts = scan.facts.get("directions")
    return None if facts is None else (facts["shared"], facts["values"])


_WORDS = {
    "random": "random",
    "adversarial": "adversarial, r(x)",
    "difference": "x2 - x of another sample",
    "image gradient": "spatial gradient of the image",
    "logit gradient": "gradient of the margin",
}
