"""Significance scans side by side: heat maps, histograms and means of several networks and data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raysense.query.connection import ResultDatabase
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section
from raysense.report.significance_data import (
    MAX_LAYERS,
    Case,
    Class,
    Data,
    Significance,
    common_classes,
    data_of,
    drawn_layers,
    joint_classes,
    read_significance,
    says_shared,
    side_by_side,
    sparsity_classes,
)
from raysense.report.significance_figures import KL_LABEL, Band, colour_scale, heat_map_bands
from raysense.report.significance_shift import shift_blocks
from raysense.report.significance_sparsity import sparsity_histograms
from raysense.report.significance_tables import summary_table

_MAX_PANELS = 6
"""Heat maps of a figure, on one scale; and as many on their own."""
_MAX_GROUPS = 6
"""Data sets of a layer."""


@dataclass(frozen=True)
class Group:
    """Cases that one figure shows: networks on the same data and split, or what is left over."""

    title: str
    cases: list[Case]


def joint_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Sections on all scans together; none where fewer than two have results."""
    results = read_significance(database)
    cases = [case for case in results.summaries if case.scan in {scan.name for scan in scans}]
    if len({case.scan for case in cases}) < 2:
        return []
    caption = "Separation and entropy of classes in all scans, laid out as in Tables 1, 2 and 5 to 7."
    by_layer = list(dict.fromkeys(case.layer for case in cases))
    ordered = sorted(cases, key=lambda case: by_layer.index(case.layer))
    blocks: list[Block] = [*_differences(scans), summary_table(results, ordered, caption, with_scans=True)]
    layers = _shared_layers(results, cases)
    if len(layers) > MAX_LAYERS:
        blocks.append(Paragraph(f"Layers that scans share but that are not drawn: {', '.join(layers[:-MAX_LAYERS])}."))
    found = [Section("Significant paths, all scans", blocks)]
    for index, layer in enumerate(layers[-MAX_LAYERS:]):
        of_layer = [case for case in cases if case.layer == layer]
        drawn = _layer_blocks(results, scans, of_layer, index + 1)
        found.append(Section(f"Layer {layer}, all scans", drawn))
        moved = shift_blocks(database, results, scans, layer, index + 1)
        if moved:
            found.append(Section(f"Layer {layer}, between data sets", moved))
    return found


def _differences(scans: Sequence[ScanTables]) -> list[Block]:
    """A notice where scans do not mean the same by a significant path or by an observation."""
    blocks: list[Block] = []
    for what in ("threshold", "positions"):
        found = {scan.name: (scan.facts.get("significance") or {}).get(what) for scan in scans}
        if len({value for value in found.values() if value is not None}) > 1:
            named = ", ".join(f"{value} in {name}" for name, value in found.items() if value is not None)
            blocks.append(Notice(f"Scans differ in {what}, so that their numbers cannot be compared: {named}."))
    return blocks


def _shared_layers(results: Significance, cases: Sequence[Case]) -> list[str]:
    """Layers that several scans draw, in the order of the first that has them."""
    scans = dict.fromkeys(case.scan for case in cases)
    drawn = [layer for scan in scans for layer in drawn_layers(results, scan)]
    return [layer for layer in dict.fromkeys(drawn) if drawn.count(layer) > 1]


def _groups(scans: Sequence[ScanTables], cases: Sequence[Case]) -> list[Group]:
    """Cases by data and split; what stands alone goes together into the last group."""
    data = {scan.name: data_of(scan) for scan in scans}
    parts = side_by_side(cases, lambda case: (data[case.scan].fingerprint or case.scan, case.split))
    return [
        Group(f"{data[part[0].scan].reference}, split {part[0].split}" if _is_one(part, data) else "", part)
        for part in parts
    ]


def _is_one(cases: Sequence[Case], data: Mapping[str, Data]) -> bool:
    """Whether several cases have the same data."""
    return len(cases) > 1 and len({(data[case.scan].fingerprint, case.split) for case in cases}) == 1


def _layer_blocks(
    results: Significance, scans: Sequence[ScanTables], cases: Sequence[Case], number: int
) -> list[Block]:
    groups = _groups(scans, cases)
    drawn = [Group(group.title, group.cases[:_MAX_PANELS]) for group in groups[:_MAX_GROUPS]]
    maps = {
        case: results.heat_map(case, joint_classes(results, case), _title(group, case))
        for group in drawn
        for case in group.cases
    }
    scale = colour_scale(list(maps.values()))
    blocks: list[Block] = []
    for index, group in enumerate(drawn):
        ending = f"{number}_{index + 1}" if len(drawn) > 1 else f"{number}"
        bands = [
            Band("normalised: one colour scale", [maps[case] for case in group.cases], scale),
            Band("unnormalised: each with its own colour scale", [maps[case] for case in group.cases], None),
        ]
        blocks.append(_heat_maps(results, group, bands, len(drawn) > 1, ending))
        blocks += _sparsity(results, group, ending)
    left_out = [case for group, part in zip(groups, drawn, strict=False) for case in group.cases[len(part.cases) :]]
    left_out += [case for group in groups[_MAX_GROUPS:] for case in group.cases]
    if left_out:
        blocks.append(Paragraph(f"Not drawn: {', '.join(f'{case.scan} ({case.split})' for case in left_out)}."))
    return blocks


def _title(group: Group, case: Case) -> str:
    return case.scan if len({other.split for other in group.cases}) == 1 else f"{case.scan}, {case.split}"


def _heat_maps(results: Significance, group: Group, bands: list[Band], several: bool, ending: str) -> Plot:
    figure, says = heat_map_bands(bands, KL_LABEL)
    common = " The common scale is that of all data sets of this layer." if several else ""
    caption = (
        f"KL(P || Q) of classes{f' on {group.title}' if group.title else ''}, the entropy of the class on the diagonal, as "
        "in Figures 2 and 4 of Khaitan & Banerjee (2026): above on one colour scale, below each on its own."
        f"{common}{says}{says_shared(results, group.cases)}"
    )
    return Plot(f"kl_{ending}", f"KL divergence between classes, {group.title or 'all scans'}", caption, figure)


def _sparsity(results: Significance, group: Group, ending: str) -> list[Block]:
    """Histograms of two classes in all cases of a group: of its first case the densest and the sparsest."""
    first = group.cases[0]
    layer = [case for case in results.classes if case.layer == first.layer]
    chosen = sparsity_classes(results.classes[first], common_classes(results, layer))
    chosen.pop("median", None)
    shown: list[Class] = [*chosen.values()] or [None]
    rows = []
    for index in shown:
        found = [
            results.histogram(case, index, f"{_title(group, case)}\n{results.label(case, index)}")
            for case in group.cases
        ]
        rows.append([histogram for histogram in found if histogram is not None])
    rows = [row for row in rows if row]
    if not rows:
        return []
    which = "All classes together, since no class is in all scans."
    if chosen:
        which = f"The {' and below it the '.join(chosen)} class of {_title(group, first)} in all of them."
    caption = (
        "Number of paths by the proportion of observations in which they are significant, on a log scale, in several "
        f"scans{f' of {group.title}' if group.title else ''}, as in Figures 3 and 5 of Khaitan & Banerjee (2026). {which}"
    )
    figure = sparsity_histograms(rows)
    return [Plot(f"sparsity_{ending}", f"Sparsity histograms, {group.title or 'all scans'}", caption, figure)]
