"""Report of the influence scan (Shu & Zhu 2019): percentiles, Manhattan plot, largest FI, FI against its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.influence_figures import (
    MAX_PANELS,
    Picture,
    ScoredSamples,
    against_bound,
    gallery,
    manhattan,
)
from raysense.report.pictures import read_pixels
from raysense.report.style import abbreviated, number

_OUTLIERS = 5
_FULL_RANK = 1e-6
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


@dataclass(frozen=True)
class Group:
    """Rows of a scan that belong together: one target, layer, objective and method."""

    scan: str
    target: str
    layer: str | None
    objective: str
    method: str

    @property
    def is_bound(self) -> bool:
        """Whether only an upper bound of FI is known."""
        return self.method == "bound"

    @property
    def quantity(self) -> str:
        """What the values are, for axes and column heads."""
        return "upper bound of FI" if self.is_bound else "FI"

    @property
    def of_quantity(self) -> str:
        """What the values are, after "of"."""
        return "the upper bound of FI" if self.is_bound else "FI"

    @property
    def value(self) -> str:
        """The column that holds the values."""
        return "fi_upper" if self.is_bound else "fi"

    @property
    def title(self) -> str:
        """The group in words."""
        what = f"layer {self.layer}" if self.layer is not None else self.target
        return f"target {what}, objective {self.objective}, method {self.method}"

    @property
    def condition(self) -> str:
        """SQL condition that selects the group from table influence."""
        layer = "NULL" if self.layer is None else quoted_text(self.layer)
        names = ("scan", "target", "objective", "method")
        equal = " AND ".join(f"i.{name} = {quoted_text(getattr(self, name))}" for name in names)
        return f"{equal} AND i.layer IS NOT DISTINCT FROM {layer}"


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan, a set of them for every group of rows; one notice where there are no rows yet."""
    groups = _groups(database, scan.name)
    if not groups:
        return [Section("Influence measure FI", [Notice("No sample has been scored yet.")])]
    found = []
    for index, group in enumerate(groups):
        suffix = f"_{index + 1}" if len(groups) > 1 else ""
        found.extend(_group_sections(database, scan, group, suffix))
    return found


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """The percentiles of several scans side by side."""
    groups = [group for scan in scans for group in _groups(database, scan.name)]
    if not groups:
        return []
    caption = (
        "Percentiles of FI of all scans (of its upper bound where marked), laid out as in Table 2 of Shu & Zhu (2019)."
    )
    return [Section("Influence measure FI, all scans", [_percentile_table(database, groups, caption)])]


def _groups(database: ResultDatabase, scan: str) -> list[Group]:
    rows = database.query(
        f"SELECT DISTINCT scan, target, layer, objective, method FROM influence WHERE scan = {quoted_text(scan)} "
        "ORDER BY target, layer NULLS FIRST, objective, method"
    ).rows()
    return [Group(**row) for row in rows]


def _group_sections(database: ResultDatabase, scan: ScanTables, group: Group, suffix: str) -> list[Section]:
    blocks: list[Block] = [Paragraph(f"{group.title[0].upper()}{group.title[1:]}.")]
    if group.is_bound:
        blocks.append(
            Notice(
                "Every value here is an upper bound of FI, (1 - p)/p, from a forward pass alone; FI itself is unknown."
            )
        )
    caption = f"Percentiles of {group.of_quantity}, laid out as in Table 2 of Shu & Zhu (2019)."
    blocks += [Paragraph(_MEANING), _percentile_table(database, [group], caption)]
    title = "Upper bound of FI" if group.is_bound else "Influence measure FI"
    found = [
        Section(title, blocks),
        Section(f"Samples with the largest {group.quantity}", _outliers(database, scan, group, suffix)),
        Section(f"Manhattan plot of {group.of_quantity}", _manhattan(database, scan, group, suffix)),
    ]
    if not group.is_bound:
        found.append(Section("FI against its bound", _against_bound(database, scan, group, suffix)))
    return found


def _percentile_table(database: ResultDatabase, groups: Sequence[Group], caption: str) -> Table:
    cells: dict[tuple[Group, str], dict[int, float]] = {}
    for row in database.query("FROM fi_percentiles()").rows():
        group = Group(row["scan"], row["target"], row["layer"], row["objective"], row["method"])
        if group in groups:
            cells.setdefault((group, row["split"]), {})[row["percentile"]] = row[group.value]
    keys = sorted(cells, key=lambda key: (groups.index(key[0]), key[1] != "train", key[1]))
    heads = [
        " · ".join([*_distinctive(group, groups), split]) + (" (upper bound)" if group.is_bound else "")
        for group, split in keys
    ]
    percentiles = sorted({percentile for column in cells.values() for percentile in column})
    rows = [[f"{percentile}th", *(number(cells[key].get(percentile)) for key in keys)] for percentile in percentiles]
    return Table(caption, ["Percentile", *heads], rows, frozenset(range(1, len(heads) + 1)))


def _distinctive(group: Group, groups: Sequence[Group]) -> list[str]:
    """What tells a group from the others: its fields that are not the same in all of them."""
    names = [field.name for field in fields(Group)]
    return [str(getattr(group, name)) for name in names if len({getattr(other, name) for other in groups}) > 1]


def _manhattan(database: ResultDatabase, scan: ScanTables, group: Group, suffix: str) -> list[Block]:
    table = database.query(
        f"""
        SELECT split, label::BIGINT AS label, i.{group.value} AS value, coalesce(place, 0)::BIGINT AS place
        FROM influence AS i
        JOIN samples USING (scan, sample_id)
        LEFT JOIN (
            SELECT scan, sample_id, place FROM fi_outliers(n := {_OUTLIERS}) AS i WHERE {group.condition}
        ) AS largest
            USING (scan, sample_id)
        WHERE {group.condition}
        ORDER BY split, label, sample_id
        """
    ).table()
    split = table["split"].combine_chunks().dictionary_encode()
    codes = split.indices.to_numpy()
    columns = {name: table[name].to_numpy() for name in ("label", "value", "place")}
    names = sorted(split.dictionary.to_pylist(), key=lambda name: (name != "train", name))
    index = {name: code for code, name in enumerate(split.dictionary.to_pylist())}
    splits = {
        name: ScoredSamples(**{key: column[codes == index[name]] for key, column in columns.items()})
        for name in names[:MAX_PANELS]
    }
    known = scan.class_names or []
    classes = {int(label): known[label] if label < len(known) else str(label) for label in np.unique(columns["label"])}
    figure, remarks = manhattan(splits, classes, group.quantity)
    left_out = f" Splits not drawn: {', '.join(names[MAX_PANELS:])}." if len(names) > MAX_PANELS else ""
    caption = (
        f"{group.quantity[0].upper()}{group.quantity[1:]} of every sample on a log scale, grouped by true class; "
        f"neighbouring classes differ in colour, circles number the {_OUTLIERS} largest.{remarks}{left_out}"
    )
    return [Plot(f"manhattan{suffix}", f"Manhattan plot of {group.of_quantity} by class", caption, figure)]


def _outliers(database: ResultDatabase, scan: ScanTables, group: Group, suffix: str) -> list[Block]:
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
        blocks.append(Plot(f"largest{suffix}", f"Images with the largest {group.quantity}", caption, gallery(pictures)))
    values = {"p_label": "p of true class", "fi": "FI", "fi_upper": "upper bound of FI"}
    if group.is_bound:
        del values["fi"]
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


def _against_bound(database: ResultDatabase, scan: ScanTables, group: Group, suffix: str) -> list[Block]:
    table = database.query(
        f"SELECT fi, fi_upper FROM influence AS i WHERE {group.condition} ORDER BY sample_id"
    ).table()
    figure, remarks = against_bound(table["fi"].to_numpy(), table["fi_upper"].to_numpy())
    blocks: list[Block] = [Paragraph(_says_full_rank(database, group))]
    if (scan.document.get("spec") or {}).get("rank_rule") == "published":
        blocks.append(Notice(_PUBLISHED))
    caption = f"FI of every sample against its upper bound fi_upper; the line is equality.{remarks}"
    blocks.append(Plot(f"bound{suffix}", "FI against its upper bound", caption, figure))
    return blocks


def _says_full_rank(database: ResultDatabase, group: Group) -> str:
    """How many samples reach the closed form (1 - p)/p, where FI adds nothing to the softmax."""
    if group.method == "certified":
        # From p itself (1 - p)/p keeps 8 digits only while 1 - p is not tiny.
        probability = "p_label" if group.objective == "label" else "p_predicted"
        (row,) = database.query(
            f"""
            SELECT
                count(*) AS n,
                count_if(fi_upper >= {1 - _FULL_RANK} * (1 - {probability}) / {probability}) AS reached
            FROM influence AS i JOIN samples USING (scan, sample_id)
            WHERE {group.condition} AND 1 - {probability} > 1e-8
            """
        ).rows()
        return (
            f"The certified interval reaches the closed form (1 - p)/p, the value at full rank, for {_share(row)} "
            "samples whose 1 - p exceeds 1e-8."
        )
    equal = f"fi BETWEEN {1 - _FULL_RANK} * fi_upper AND {1 + _FULL_RANK} * fi_upper"
    (row,) = database.query(
        f"SELECT count(*) AS n, count_if({equal}) AS reached FROM influence AS i WHERE {group.condition}"
    ).rows()
    return f"FI equals its bound (1 - p)/p to one part in a million, as at full rank, for {_share(row)} samples."


def _share(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "0 of 0"
    return f"{row['reached']:,} of {row['n']:,} ({100 * row['reached'] / row['n']:.1f}%)"
