"""Report of the significance scan (Khaitan & Banerjee 2026): which paths classes use, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysense.query.connection import ResultDatabase
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section
from raysense.report.significance_data import (
    OVERALL,
    Case,
    Significance,
    drawn_layers,
    evenly_spaced,
    read_significance,
    recorded_layers,
    says_sampled,
    sparsity_classes,
)
from raysense.report.significance_figures import KL_LABEL, heat_map
from raysense.report.significance_joint import joint_sections
from raysense.report.significance_sparsity import sparsity_histograms
from raysense.report.significance_tables import class_tables, path_tables, summary_table

_NAMED_LAYERS = 6
_THRESHOLDS = {
    "sum": "|N_ij| > n Σ_k N_ik, n being the number of inputs of the row (threshold sum, as published)",
    "mean": "|N_ij| > Σ_k N_ik / n, n being the number of inputs of the row (threshold mean)",
    "mean_abs": "|N_ij| > Σ_k |N_ik| / n, n being the number of inputs of the row (threshold mean_abs)",
}
_POSITIONS = {
    "each": "Every position (token, patch) is an observation of its own.",
    "any": "A sample is one observation; a path counts where it is significant at any position (token, patch).",
    "first": "A sample is one observation: its first position, the class token of a transformer.",
}


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: all layers in a table, every layer and split drawn; one notice where there are no rows yet."""
    title = "Significant paths"
    if "significance" not in scan.schemas:
        return [Section(title, [Notice("No path has been counted yet.")])]
    results = read_significance(database)
    cases = [case for case in results.summaries if case.scan == scan.name]
    if not cases:
        return [Section(title, [*_meaning(scan), Notice("No path has been counted yet.")])]
    layers = drawn_layers(results, scan.name)
    blocks = _meaning(scan)
    blocks.append(summary_table(results, cases, "Separation and entropy of classes, laid out as in Tables 1 and 5."))
    left_out = [layer for layer in dict.fromkeys(case.layer for case in cases) if layer not in layers]
    if left_out:
        blocks.append(Paragraph(f"The last {len(layers)} layers are drawn; only in the table: {', '.join(left_out)}."))
    found = [Section(title, blocks)]
    drawn = [case for case in cases if case.layer in layers]
    for index, case in enumerate(drawn):
        found.append(_case_section(results, scan, case, f"_{index + 1}" if len(drawn) > 1 else ""))
    return found


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side, as in Figures 2 to 6 and Tables 1, 2 and 5 to 7."""
    return joint_sections(database, [scan for scan in scans if "significance" in scan.schemas])


def _meaning(scan: ScanTables) -> list[Block]:
    """What a path is, when it is significant, and which layers were scanned."""
    facts: Mapping[str, Any] = scan.facts.get("significance") or {}
    layers = recorded_layers(scan)
    threshold = _THRESHOLDS.get(str(facts.get("threshold")), f"threshold {facts.get('threshold')}")
    several = any(layer["positions"] > 1 for layer in layers)
    positions = _POSITIONS.get(str(facts.get("positions")), "") if several else "Every sample is one observation."
    named = "; ".join(_layer(layer) for layer in layers[:_NAMED_LAYERS])
    more = f"; and {len(layers) - _NAMED_LAYERS} more" if len(layers) > _NAMED_LAYERS else ""
    return [
        Paragraph(
            "The path (i, j) leads from input j to output i of a layer and carries N_ij = w_ij a_j. It is significant for "
            f"an observation where {threshold}. {positions} A class is described by p_ij, the proportion of its "
            "observations in which (i, j) is significant. KL divergences and entropies are means over all paths, in nats, "
            "of those of Bernoulli variables with p = (count + 0.5) / (observations + 1); the smoothing keeps them finite."
        ),
        *([Paragraph(f"Layers scanned: {named}{more}.")] if layers else []),
    ]


def _layer(layer: Mapping[str, Any]) -> str:
    groups = f" in {layer['groups']} groups" if layer.get("groups", 1) > 1 else ""
    count = layer["positions"]
    at = f"{count:,} positions" if count > 1 else "1 position"
    rows, inputs = layer["rows"], layer["inputs"]
    return (
        f"{layer['name']} ({layer['operator']}, {rows:,} outputs × {inputs:,} inputs{groups} = {rows * inputs:,} paths, "
        f"{at} a sample)"
    )


def _case_section(results: Significance, scan: ScanTables, case: Case, ending: str) -> Section:
    known = results.known(case)
    blocks: list[Block] = [_heat_map(results, case, known, ending)]
    if known:
        blocks += [
            *_sparsity(results, case, known, ending),
            *class_tables(results, case, known),
            *path_tables(results, scan, case, known),
        ]
    return Section(f"Layer {case.layer}, split {case.split}", blocks)


def _heat_map(results: Significance, case: Case, known: Sequence[int], ending: str) -> Plot:
    shown = evenly_spaced(known)
    figure, says = heat_map(results.heat_map(case, shown, ""), KL_LABEL)
    caption = (
        "KL(P || Q) of classes: rows are P, columns Q; the last row and column are the distribution of all classes "
        f"together. The diagonal has the entropy of the class instead, as in Figure 2 of Khaitan & Banerjee (2026).{says}"
        f"{says_sampled(len(shown), len(known))}"
    )
    return Plot(f"kl{ending}", f"KL divergence between classes, layer {case.layer}, {case.split}", caption, figure)


def _sparsity(results: Significance, case: Case, known: Sequence[int], ending: str) -> list[Block]:
    chosen = sparsity_classes(results.classes[case], known)
    titles = {index: f"{results.label(case, index)}\n({what})" for what, index in chosen.items()}
    if len(known) == 1:
        titles = {index: results.label(case, index) for index in known}
    found = [results.histogram(case, index, title) for index, title in titles.items()]
    if len(known) > 1:
        found.append(results.histogram(case, None, f"{OVERALL}\n(all classes together)"))
    drawn = [histogram for histogram in found if histogram is not None]
    if not drawn:
        return []
    caption = (
        "Number of paths by the proportion of observations in which they are significant, on a log scale, as in Figure 3 "
        "of Khaitan & Banerjee (2026)."
    )
    if len(chosen) > 1:
        caption += f" Shown are the {', the '.join(chosen)} class, and all classes together."
    figure = sparsity_histograms([drawn])
    return [Plot(f"sparsity{ending}", f"Sparsity histograms, layer {case.layer}, {case.split}", caption, figure)]
