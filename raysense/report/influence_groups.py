"""Rows of table influence that belong together, how reports name them, and their percentiles side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Table
from raysense.report.manhattan import MAX_PANELS, ScoredSamples
from raysense.report.style import number


@dataclass(frozen=True)
class Group:
    """Rows of a scan that belong together: one target, objective and method; all layers where the target is layer."""

    scan: str
    target: str
    objective: str
    method: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Group:
        """The group of a row that has the columns scan, target, objective and method."""
        return cls(*(row[field.name] for field in fields(cls)))

    @property
    def is_bound(self) -> bool:
        """Whether only an upper bound of FI is known."""
        return self.method == "bound"

    @property
    def by_layer(self) -> bool:
        """Whether there is a row for every layer of every sample."""
        return self.target == "layer"

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
        return f"target {self.target}, objective {self.objective}, method {self.method}"

    @property
    def condition(self) -> str:
        """SQL condition that selects the group's rows from what has the columns scan, target, objective, method."""
        return " AND ".join(f"i.{field.name} = {quoted_text(getattr(self, field.name))}" for field in fields(self))


def groups_of(database: ResultDatabase, scan: ScanTables) -> list[Group]:
    """The groups of a scan, sorted; none where it has no rows yet or has no table influence."""
    if "influence" not in scan.schemas:
        return []
    rows = database.query(
        f"SELECT DISTINCT scan, target, objective, method FROM influence WHERE scan = {quoted_text(scan.name)} "
        "ORDER BY target, objective, method"
    ).rows()
    return [Group.of(row) for row in rows]


def suffix(groups: Sequence[Group], index: int) -> str:
    """What the names of the figures of the ``index``-th of ``groups`` end in, so that no two are equal."""
    return f"_{index + 1}" if len(groups) > 1 else ""


def percentile_table(database: ResultDatabase, groups: Sequence[Group], caption: str) -> Table:
    """Percentiles of every split of groups that have one row a sample, split train first, as in the paper's Table 2."""
    cells: dict[tuple[Group, str], dict[int, float]] = {}
    condition = " OR ".join(f"({group.condition})" for group in groups)
    for row in database.query(f"SELECT * FROM fi_percentiles() AS i WHERE layer IS NULL AND ({condition})").rows():
        cells.setdefault((Group.of(row), row["split"]), {})[row["percentile"]] = row[Group.of(row).value]
    keys = sorted(cells, key=lambda key: (groups.index(key[0]), key[1] != "train", key[1]))
    heads = [
        " · ".join([*_distinctive(group, groups), split]) + (" (upper bound)" if group.is_bound else "")
        for group, split in keys
    ]
    percentiles = sorted({percentile for column in cells.values() for percentile in column})
    rows = [[f"{percentile}th", *(number(cells[key].get(percentile)) for key in keys)] for percentile in percentiles]
    return Table(caption, ["Percentile", *heads], rows, frozenset(range(1, len(heads) + 1)))


def values_by_split(
    database: ResultDatabase, group: Group, band: str = "label", largest: int = 0
) -> dict[str, ScoredSamples]:
    """Values of a group's samples by split, train first, sorted by band.

    Args:
        database: What is queried.
        group: Which rows.
        band: Integer column that orders the samples: label (of samples) or position (of layers).
        largest: How many of the largest get their place; not for groups by layer.
    """
    layers = "LEFT JOIN layers USING (scan, layer)" if band == "position" else ""
    placed = f"SELECT sample_id, place FROM fi_outliers(n := {largest}) AS i WHERE {group.condition}"
    places = f"LEFT JOIN ({placed}) AS largest USING (sample_id)" if largest else ""
    table = database.query(
        f"""
        WITH numbered AS (
            SELECT scan, sample_id, split, label, row_number() OVER (ORDER BY sample_id) AS number
            FROM samples WHERE scan = {quoted_text(group.scan)}
        )
        SELECT split, {band}::BIGINT AS band, i.{group.value} AS value, {"place" if largest else "NULL"}::BIGINT AS place
        FROM influence AS i JOIN numbered USING (scan, sample_id) {layers} {places}
        WHERE {group.condition}
        ORDER BY split, {band}, number
        """
    ).table()
    place = table["place"].fill_null(0).to_numpy()
    split = table["split"].combine_chunks().dictionary_encode()
    codes, names = split.indices.to_numpy(), split.dictionary.to_pylist()
    bands, values = table["band"].to_numpy(), table["value"].to_numpy()
    order = sorted(range(len(names)), key=lambda code: (names[code] != "train", names[code]))
    return {names[code]: ScoredSamples(*(x[codes == code] for x in (bands, values, place))) for code in order}


def says_left_out(what: str, names: Sequence[str]) -> str:
    """A sentence on the panels that a figure leaves out, empty where it has them all."""
    return f" {what} not drawn: {', '.join(names[MAX_PANELS:])}." if len(names) > MAX_PANELS else ""


def share(count: int | None, total: int) -> str:
    """A count and its percentage, a dash where it is unknown."""
    if count is None or not total:
        return "–"
    return f"{count:,} ({100 * count / total:.1f}%)"


def _distinctive(group: Group, groups: Sequence[Group]) -> list[str]:
    """What tells a group from the others: its fields that are not the same in all of them."""
    names = [field.name for field in fields(Group)]
    return [str(getattr(group, name)) for name in names if len({getattr(other, name) for other in groups}) > 1]
