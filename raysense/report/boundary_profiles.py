"""Report of principal curvatures: how flat the boundary is in most directions, and how unequal its two signs are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysense.query.connection import ResultDatabase
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Paragraph, Plot, Section
from raysense.report.boundary_figures import CurvatureProfile, curvature_profile
from raysense.report.macro_rows import Row, column, grouped, macro_rows, percent, with_error
from raysense.report.style import number


def profile_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """One section, with a figure for each split; none where no principal curvatures were computed."""
    rows = macro_rows(database, "curvature_profile()", [scan]) if "curvatures" in scan.schemas else []
    parts = grouped(rows, "split", "n")
    blocks: list[Block] = []
    for index, ((split, total), part) in enumerate(parts.items()):
        profile = CurvatureProfile(
            total, column(part, "rank").astype(np.int64), column(part, "mean"), column(part, "p5"), column(part, "p95")
        )
        samples = max(row["n_samples"] for row in part)
        caption = (
            f"Principal curvatures of {samples:,} samples of split {split}, as in the slides of Fawzi et al. (2018): on "
            "the left by rank; on the right the magnitudes of the means counted from either end of the spectrum, of the "
            "negative over the positive ones: where they differ the boundary is asymmetric."
        )
        if not profile.whole:
            caption += f" {len(part):,} of {total:,} curvatures were computed, those at both ends."
        ending = f"_{index + 1}" if len(parts) > 1 else ""
        alt = f"Principal curvatures by rank, split {split}"
        blocks += [
            Plot(f"curvature_profile{ending}", alt, caption, curvature_profile(profile)),
            _profile_text(part, total),
        ]
    return [Section("Principal curvatures", blocks)] if blocks else []


def _profile_text(part: Sequence[Row], total: int) -> Paragraph:
    largest, smallest = part[0], part[-1]
    text = (
        f"The largest principal curvature is {with_error(largest['mean'], largest['stderr'])}, the smallest "
        f"{with_error(smallest['mean'], smallest['stderr'])} on average."
    )
    if largest["asymmetry"] is not None:
        text += f" Their sum, the asymmetry at the extremes, is {number(largest['asymmetry'])}."
    means = column(part, "mean")
    positive, negative = float(means[means > 0].sum()), -float(means[means < 0].sum())
    if len(part) == total and positive and negative:
        flat = float(np.mean(np.abs(means) < 0.1 * np.abs(means).max()))
        text += (
            f" Of the {total:,} means {percent(flat)} are less than a tenth of the greatest in magnitude; "
            f"{percent(float(np.mean(means < 0)))} are negative, and their sum is {number(negative / positive)} times that "
            "of the positive ones."
        )
    residuals = [row["mean_residual"] for row in part if row["mean_residual"] is not None]
    if residuals:
        text += f" On average, an eigenvalue lies within {number(max(residuals))} of the curvature of every rank."
    return Paragraph(text)
