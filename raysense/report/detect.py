"""Report of the detection scan (Fawzi et al. 2018, Algorithm 2): whether curvature tells perturbed inputs apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.detection_figures import Curve, detection
from raysense.report.histogram_figures import Distribution, histograms
from raysense.report.line_figures import Line, Panel, line_figure
from raysense.report.macro_rows import Row, column, grouped, macro_rows, percent, values_by_split, with_error
from raysense.report.style import BLUE, GREY, LINES, ORANGE, RED

_MEASURES = {
    "rho": ("curvature ρ", RED, "-"),
    "max_softmax": ("1 - largest softmax", GREY, "--"),
    "energy": ("energy", BLUE, "-."),
}
_ATTACKS = {"deepfool": "DeepFool", "noise": "random noise"}
_MEANING = (
    "rho is the mean curvature of the boundaries between the predicted class and the others, at the input itself, over "
    "random directions (Algorithm 2 of Fawzi et al. 2018); an input is flagged as perturbed where rho >= t, and its "
    "label recovered as the class whose boundary is curved the most. Perturbed inputs are x + scale r(x); r(x) ends on "
    "the boundary at scale 1. The largest softmax and the energy, -log Σ exp of the logits, are baselines for context. "
    "Random noise has the norms of the perturbations, and should not be flagged."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: a set for every split."""
    title = "Detection of perturbed inputs"
    rows = macro_rows(database, "recovery_accuracy()", [scan]) if "detections" in scan.schemas else []
    if not rows:
        return [Section(title, [Notice("No sample has been measured yet.")])]
    areas = grouped(macro_rows(database, "detection_areas()", [scan]), "split")
    splits = grouped(rows, "split")
    found = []
    for index, (split, part) in enumerate(splits.items()):
        ending = f"_{index + 1}" if len(splits) > 1 else ""
        blocks: list[Block] = [Paragraph(_MEANING)] if index == 0 else []
        blocks += _rho_histograms(database, scan, split, ending)
        blocks += _roc_plots(database, scan, split, areas.get(split, []), ending)
        found.append(Section(f"{title}, split {split}", blocks))
        found.append(
            Section(f"Recovery of labels, split {split}", [*_recovery_plot(part, ending), _recovery_table(part, False)])
        )
    return found


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: area under the ROC curve of rho and recovery of labels against the scale."""
    known = [scan for scan in scans if "detections" in scan.schemas]
    rows = macro_rows(database, "recovery_accuracy()", known) if len(known) > 1 else []
    if not rows:
        return []
    areas = [
        row
        for row in macro_rows(database, "detection_areas()", known)
        if (row["attack"], row["measure"]) == ("deepfool", "rho")
    ]
    perturbed = [row for row in rows if row["attack"] == "deepfool"]
    upper, lower = [], []
    for colour, (case, part) in zip(LINES, grouped(areas, "scan", "split").items(), strict=False):
        upper.append(
            Line(" · ".join(case), column(part, "scale"), column(part, "roc_area"), column(part, "roc_stderr"), colour)
        )
    for colour, (case, part) in zip(LINES, grouped(perturbed, "scan", "split").items(), strict=False):
        errors = column(part, "of_flagged_stderr")
        lower.append(
            Line(" · ".join(case), column(part, "scale"), column(part, "recovered_of_flagged"), errors, colour)
        )
    blocks: list[Block] = []
    if upper:
        panels = [
            Panel(upper, "area under the ROC\ncurve of ρ [1]", levels={0.5: "chance"}),
            Panel(lower, "labels recovered, of\nthose flagged at t = 0", shares=True),
        ]
        caption = (
            "Detection of DeepFool perturbations by rho, and recovery of their labels, against the scale of the "
            "perturbation, with standard errors."
        )
        figure = line_figure(panels, "scale of the perturbation; 1 ends on the boundary")
        blocks.append(Plot("detection", "Detection and recovery against the scale, by scan", caption, figure))
    return [Section("Detection of perturbed inputs, all scans", [*blocks, _recovery_table(rows, True)])]


def _rho_histograms(database: ResultDatabase, scan: ScanTables, split: str, ending: str) -> list[Block]:
    """rho of images as they are, and of perturbed and noisy ones of the smallest scale."""
    condition = (
        "isfinite(rho) AND (attack = 'none' OR scale = "
        f"(SELECT min(scale) FROM detections WHERE scan = {quoted_text(scan.name)} AND attack <> 'none'))"
    )
    values = values_by_split(database, scan, "detections", "attack, scale, rho", condition).get(split)
    if values is None:
        return []
    names = {"none": ("as they are", BLUE), "deepfool": ("DeepFool", RED), "noise": ("random noise", ORANGE)}
    parts = [
        Distribution(label, values["rho"][values["attack"] == attack], colour)
        for attack, (label, colour) in names.items()
        if np.any(values["attack"] == attack)
    ]
    figure, says = histograms({"": parts}, "ρ, mean curvature at the input [1 / pixel values]", "inputs", level=0.0)
    scale = f"{values['scale'].max():g}"
    caption = (
        f"rho of inputs as they are, and perturbed with scale {scale}; the dotted line is 0, the threshold t of "
        f"Algorithm 2. Fawzi et al. (2018) find it negative at images and positive at perturbed ones.{says}"
    )
    return [Plot(f"rho{ending}", f"Histograms of rho, split {split}", caption, figure)]


def _roc_plots(
    database: ResultDatabase, scan: ScanTables, split: str, areas: Sequence[Row], ending: str
) -> list[Block]:
    if not areas:
        return []
    blocks: list[Block] = []
    at = {(row["attack"], row["scale"], row["measure"]): row for row in areas}
    scales = sorted({row["scale"] for row in areas if row["attack"] == "deepfool"})
    points = _points(database, scan, split)
    by_scale = [key for scale in scales[: len(LINES)] if (key := ("deepfool", scale, "rho")) in at]
    if by_scale:
        curves = [
            _curve(points[key], at[key], f"scale {key[1]:g}", colour, "-")
            for key, colour in zip(by_scale, LINES, strict=False)
            if key in points
        ]
        caption = (
            "Detection of DeepFool perturbations by rho at several scales, against the same images as they are; the "
            "legends give areas under the ROC curves with standard errors, and average precisions. The slides of Fawzi "
            "et al. (2018) draw the mirror image of the ROC curve: detection accuracy on original images against "
            "failure rate on perturbed ones."
        )
        blocks.append(
            Plot(
                f"roc_scales{ending}", f"ROC curves by scale, split {split}", caption, _detection(curves, at, by_scale)
            )
        )
    smallest = [key for measure in _MEASURES if scales and (key := ("deepfool", scales[0], measure)) in at]
    if smallest:
        curves = [_curve(points[key], at[key], *_MEASURES[key[2]]) for key in smallest if key in points]
        caption = f"Detection of DeepFool perturbations of scale {scales[0]:g} by rho and by the baselines."
        alt = f"ROC curves of curvature and baselines, split {split}"
        blocks.append(Plot(f"roc_baselines{ending}", alt, caption, _detection(curves, at, smallest)))
    return [*blocks, _area_plot(areas, split, ending)]


def _points(database: ResultDatabase, scan: ScanTables, split: str) -> dict[tuple[str, float, str], dict[str, Any]]:
    """Points of the curves that are drawn, by attack, scale and measure."""
    table = database.query(
        "SELECT attack, scale, measure, fpr, tpr, precision FROM detection_roc() "
        f"WHERE scan = {quoted_text(scan.name)} AND split = {quoted_text(split)} AND attack = 'deepfool' "
        "ORDER BY attack, scale, measure, tpr, fpr"
    ).table()
    scale, measure = table["scale"].to_numpy(), table["measure"].to_numpy()
    columns = {name: table[name].to_numpy() for name in ("fpr", "tpr", "precision")}
    found = {}
    for value in np.unique(scale):
        for name in _MEASURES:
            kept = (scale == value) & (measure == name)
            found["deepfool", float(value), name] = {key: values[kept] for key, values in columns.items()}
    return found


def _curve(points: dict[str, Any], area: Row, name: str, colour: str, style: str) -> Curve:
    error = "" if area["roc_stderr"] is None else f" ± {area['roc_stderr']:.3f}"
    roc = f"{name}: {area['roc_area']:.3f}{error}"
    return Curve(
        **points, colour=colour, style=style, roc_label=roc, pr_label=f"{name}: {area['average_precision']:.3f}"
    )


def _detection(curves: Sequence[Curve], areas: dict[Any, Row], keys: Sequence[Any]) -> Any:
    prevalence = np.mean(
        [areas[key]["n_perturbed"] / (areas[key]["n_perturbed"] + areas[key]["n_original"]) for key in keys]
    )
    return detection(curves, float(prevalence))


def _area_plot(areas: Sequence[Row], split: str, ending: str) -> Plot:
    lowest = min(0.45, *(row["roc_area"] - 2 * (row["roc_stderr"] or 0) for row in areas))
    panels = []
    for attack, words in _ATTACKS.items():
        parts = {
            measure: [row for row in areas if (row["attack"], row["measure"]) == (attack, measure)]
            for measure in _MEASURES
        }
        lines = [
            Line(name, column(part, "scale"), column(part, "roc_area"), column(part, "roc_stderr"), colour, style)
            for part, (name, colour, style) in zip(parts.values(), _MEASURES.values(), strict=True)
            if part
        ]
        if lines:
            label = f"area under the ROC\ncurve, {words} [1]"
            panels.append(Panel(lines, label, levels={0.5: "chance"}, limits=(lowest, 1.02)))
    figure = line_figure(panels, "scale of the perturbation; 1 ends on the boundary")
    caption = (
        "Area under the ROC curve against the scale, with standard errors; random noise of the same norm should not be "
        "told from the images as they are. The slides of Fawzi et al. (2018) find that curvature detects small "
        "perturbations and misses large ones."
    )
    return Plot(f"roc_areas{ending}", f"Area under the ROC curve against the scale, split {split}", caption, figure)


def _recovery_plot(rows: Sequence[Row], ending: str) -> list[Block]:
    part = [row for row in rows if row["attack"] == "deepfool"]
    if not part:
        return []
    x = column(part, "scale")
    recovered = [
        Line("of those flagged", x, column(part, "recovered_of_flagged"), column(part, "of_flagged_stderr"), RED),
        Line("of all perturbed", x, column(part, "recovered_of_all"), column(part, "of_all_stderr"), BLUE, "--"),
    ]
    flagged = [Line("perturbed inputs", x, column(part, "share_flagged"), column(part, "flagged_stderr"), RED)]
    noise = [row for row in rows if row["attack"] == "noise"]
    if noise:
        rates = (column(noise, "share_flagged"), column(noise, "flagged_stderr"))
        flagged.append(Line("random noise", column(noise, "scale"), *rates, ORANGE, "--"))
    levels = {row["share_flagged"]: "as they are" for row in rows if row["attack"] == "none"}
    chance = {row["chance"]: "chance" for row in part[:1] if row["chance"] is not None}
    panels = [
        Panel(flagged, "inputs flagged, ρ ≥ 0", shares=True, levels=levels),
        Panel(recovered, "labels recovered", shares=True, levels=chance),
    ]
    caption = (
        "Above, inputs that Algorithm 2 flags with t = 0: perturbed ones, and by mistake noisy ones and those as they "
        "are. Below, perturbed inputs whose recovered label is the class predicted before, with standard errors."
    )
    figure = line_figure(panels, "scale of the perturbation; 1 ends on the boundary")
    return [Plot(f"recovery{ending}", "Detection and recovery of labels at t = 0 against the scale", caption, figure)]


def _recovery_table(rows: Sequence[Row], several: bool) -> Table:
    heads = [
        "inputs",
        "scale",
        "number",
        "mean rho",
        "flagged at t = 0",
        "recovered, of the flagged",
        "recovered, of all",
    ]
    cells = [
        [
            *([f"{row['scan']} · {row['split']}"] if several else []),
            _ATTACKS.get(row["attack"], "as they are"),
            "–" if row["attack"] == "none" else f"{row['scale']:g}",
            f"{row['n']:,}",
            with_error(row["mean_rho"], row["rho_stderr"]),
            percent(row["share_flagged"], row["flagged_stderr"]),
            percent(row["recovered_of_flagged"], row["of_flagged_stderr"]),
            percent(row["recovered_of_all"], row["of_all_stderr"]),
        ]
        for row in rows
    ]
    caption = (
        "Algorithm 2 with threshold t = 0, with standard errors; rho in 1 / pixel values. What is flagged of inputs as "
        "they are and of noise are false positives. The slides of Fawzi et al. (2018) recover 92%, 88% and 74% of the "
        "labels (GoogLeNet, CaffeNet, VGG-19). From recovery_accuracy(), which takes other thresholds."
    )
    first = 1 if several else 0
    return Table(caption, [*(["scan"] * first), *heads], cells, frozenset(range(first + 1, first + len(heads))))
