"""Report of the influence scan (Shu & Zhu 2019): what FI says, its size, its outliers, by layer, by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.influence_detection import detection_sections
from raysense.report.influence_figures import Picture, against_bound, gallery
from raysense.report.influence_groups import (
    Group,
    groups_of,
    percentile_table,
    says_left_out,
    share,
    suffix,
    values_by_split,
)
from raysense.report.influence_layers import depth_sections, layer_sections
from raysense.report.influence_maps import attack_sections, map_sections
from raysense.report.manhattan import MAX_PANELS, class_bands, manhattan
from raysense.report.pictures import read_pixels
from raysense.report.style import abbreviated, number

_OUTLIERS = 5
_MEANING = (
    "FI measures how much an infinitesimal change of what is perturbed can move f = -log p, p being the "
    "probability of the true class (objective label) or of the predicted class (objective predicted). When the "
    "perturbation has full rank, as a perturbation of the whole input nearly always has, FI equals (1 - p)/p "
    "exactly, whatever the network: it then ranks the samples as the softmax probability does, and says no more "
    "than that. FI carries information beyond the softmax where the perturbation is of low rank: single pixels "
    "and patches, small layers, semantic parameters, networks with dead units."
)
_PUBLISHED = (
    "The rank rule is that of the authors' published code: absolute thresholds, which change FI, so that it may leave "
    "the identity and even exceed its bound. Compare such values with the paper's tables only."
)


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan: a set for every target, one for all layers; one notice where there are no rows yet."""
    groups = groups_of(database, scan)
    whole = [group for group in groups if not group.by_layer]
    found = [_informative(database, scan, groups)] if groups else []
    for index, group in enumerate(whole):
        found.extend(_group_sections(database, scan, group, suffix(whole, index)))
    by_layer = [group for group in groups if group.by_layer]
    for index, group in enumerate(by_layer):
        found.extend(layer_sections(database, scan, group, suffix(by_layer, index)))
    found += detection_sections(database, scan, whole)
    found += map_sections(database, scan) + attack_sections(database, scan)
    return found or [Section("Influence measure FI", [Notice("No sample has been scored yet.")])]


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: every target that several of them have, as in Table 2 and Figure 5, and layers by depth."""
    groups = [group for scan in scans for group in groups_of(database, scan)]
    found = []
    shared = dict.fromkeys((group.target, group.objective) for group in groups if not group.by_layer)
    for index, (target, objective) in enumerate(shared):
        part = [group for group in groups if (group.target, group.objective) == (target, objective)]
        if len(part) > 1:
            blocks: list[Block] = [_joint_percentiles(database, part), _joint_manhattan(database, scans, part, index)]
            found.append(Section(f"Target {target}, objective {objective}, all scans", blocks))
    return found + depth_sections(database, [group for group in groups if group.by_layer])


def _informative(database: ResultDatabase, scan: ScanTables, groups: Sequence[Group]) -> Section:
    """How many rows of every target reach the closed form (1 - p)/p, where FI adds nothing to the softmax."""
    blocks: list[Block] = [Paragraph(_MEANING)]
    if (scan.document.get("spec") or {}).get("rank_rule") == "published":
        blocks.append(Notice(_PUBLISHED))
    rows = database.query(
        f"SELECT * FROM fi_informative() WHERE scan = {quoted_text(scan.name)} AND layer IS NULL"
    ).rows()
    if rows:
        blocks.append(
            Table(
                "Rows whose FI equals its bound (1 - p)/p to one part in a million, as at full rank, and rows where FI is "
                "smaller and says more than the softmax. Where FI is certified, rows at the bound are those whose "
                "interval reaches it. – is unknown: method bound computes no FI.",
                [
                    "target",
                    "objective",
                    "method",
                    "rows",
                    "at the bound",
                    "below it",
                    "median FI / bound",
                    "largest rank",
                ],
                [
                    [
                        row["target"],
                        row["objective"],
                        row["method"],
                        f"{row['n']:,}",
                        share(row["n_at_bound"], row["n"]),
                        share(row["n_below"], row["n"]),
                        number(row["median_ratio"]),
                        "–" if row["max_rank"] is None else f"{row['max_rank']:,}",
                    ]
                    for row in rows
                ],
                frozenset(range(3, 8)),
            )
        )
    if any(group.by_layer for group in groups):
        blocks.append(Paragraph("For the layers the same shares stand in the table of layers."))
    return Section("What FI says beyond the softmax", blocks)


def _group_sections(database: ResultDatabase, scan: ScanTables, group: Group, ending: str) -> list[Section]:
    blocks: list[Block] = [Paragraph(f"{group.title[0].upper()}{group.title[1:]}.")]
    if group.is_bound:
        blocks.append(
            Notice(
                "Every value here is an upper bound of FI, (1 - p)/p, from a forward pass alone; FI itself is unknown."
            )
        )
    caption = f"Percentiles of {group.of_quantity}, laid out as in Table 2 of Shu & Zhu (2019)."
    blocks.append(percentile_table(database, [group], caption))
    title = "Upper bound of FI" if group.is_bound else "Influence measure FI"
    found = [
        Section(title, blocks),
        Section(f"Samples with the largest {group.quantity}", _outliers(database, scan, group, ending)),
        Section(f"Manhattan plot of {group.of_quantity}", [_manhattan(database, scan, group, ending)]),
    ]
    if not group.is_bound:
        found.append(Section("FI against its bound", [_against_bound(database, group, ending)]))
    return found


def _manhattan(database: ResultDatabase, scan: ScanTables, group: Group, ending: str) -> Plot:
    splits = values_by_split(database, group, largest=_OUTLIERS)
    names = list(splits)
    shown = {name: splits[name] for name in names[:MAX_PANELS]}
    labels = np.unique(np.concatenate([samples.band for samples in shown.values()])).tolist()
    figure, remarks = manhattan({scan.name: shown}, {scan.name: class_bands(labels, scan.class_names)}, group.quantity)
    caption = (
        f"{group.quantity[0].upper()}{group.quantity[1:]} of every sample on a log scale, grouped by true class; "
        f"neighbouring classes differ in colour, circles number the {_OUTLIERS} largest."
        f"{remarks}{says_left_out('Splits', names)}"
    )
    return Plot(f"manhattan{ending}", f"Manhattan plot of {group.of_quantity} by class", caption, figure)


def _joint_percentiles(database: ResultDatabase, groups: Sequence[Group]) -> Table:
    caption = (
        "Percentiles of FI of all scans (of its upper bound where marked), laid out as in Table 2 of Shu & Zhu (2019)."
    )
    return percentile_table(database, groups, caption)


def _joint_manhattan(
    database: ResultDatabase, scans: Sequence[ScanTables], groups: Sequence[Group], index: int
) -> Plot:
    known = {scan.name: scan.class_names for scan in scans}
    columns, bands, left_out = {}, {}, ""
    for group in groups[:MAX_PANELS]:
        splits = values_by_split(database, group)
        left_out = left_out or says_left_out("Splits", list(splits))
        columns[group.scan] = dict(list(splits.items())[:MAX_PANELS])
        labels = np.unique(np.concatenate([samples.band for samples in columns[group.scan].values()])).tolist()
        bands[group.scan] = class_bands(labels, known[group.scan])
    quantity = "FI or its upper bound" if len({group.is_bound for group in groups}) > 1 else groups[0].quantity
    figure, remarks = manhattan(columns, bands, quantity)
    caption = (
        f"{quantity[0].upper()}{quantity[1:]} of every sample of every scan by true class, with one axis for all, as in "
        f"Figures 1, 4 and 5 of Shu & Zhu (2019).{remarks}{left_out}"
        f"{says_left_out('Scans', [group.scan for group in groups])}"
    )
    return Plot(f"manhattan_{index + 1}", f"Manhattan plots of {quantity} of several scans", caption, figure)


def _outliers(database: ResultDatabase, scan: ScanTables, group: Group, ending: str) -> list[Block]:
    rows = database.query(
        f"SELECT * FROM fi_outliers(n := {_OUTLIERS}) AS i WHERE {group.condition} ORDER BY place"
    ).rows()
    pixels, reasons = read_pixels(scan, [row["sample_id"] for row in rows])
    pictures = []
    for row in rows:
        shown = pixels.get(row["sample_id"])
        if shown is not None:
            value = f"{'FI ≤' if group.is_bound else 'FI'} {number(row[group.value])}"
            label, predicted = (abbreviated(_class_name(row, side), 14) for side in ("label", "predicted"))
            title = f"{label} → {predicted}" if len(label) + len(predicted) <= 16 else f"{label}\n→ {predicted}"
            pictures.append(Picture(shown, f"{title}\n{value}", abbreviated(row["sample_id"], 24)))
    blocks: list[Block] = [Notice(reason) for reason in reasons]
    if pictures:
        caption = f"The images with the largest {group.quantity}: true class → predicted class. As the model sees them."
        blocks.append(Plot(f"largest{ending}", f"Images with the largest {group.quantity}", caption, gallery(pictures)))
    values = {"p_label": "p of true class", "fi": "FI", "fi_bound": "bound (1 - p)/p"}
    if group.is_bound:
        values = {"p_label": "p of true class", "fi_upper": "upper bound of FI"}
    cells = [
        [
            str(row["place"]),
            row["sample_id"],
            row["split"],
            f"{_class_name(row, 'label')} → {_class_name(row, 'predicted')}",
            *(number(row[name]) for name in values),
        ]
        for row in rows
    ]
    heads = ["", "sample", "split", "true → predicted", *values.values()]
    numeric = frozenset({0, *range(4, len(heads))})
    blocks.append(Table(f"Samples with the largest {group.quantity}, over all splits.", heads, cells, numeric))
    return blocks


def _class_name(row: dict[str, Any], side: str) -> str:
    return str(row[side] if row[f"{side}_name"] is None else row[f"{side}_name"])


def _against_bound(database: ResultDatabase, group: Group, ending: str) -> Plot:
    table = database.query(
        f"SELECT fi, fi_bound FROM influence AS i WHERE {group.condition} ORDER BY sample_id"
    ).table()
    figure, remarks = against_bound(table["fi"].to_numpy(), table["fi_bound"].to_numpy())
    caption = f"FI of every sample against its bound (1 - p)/p, the softmax alone; the line is equality.{remarks}"
    return Plot(f"bound{ending}", "FI against its bound", caption, figure)
