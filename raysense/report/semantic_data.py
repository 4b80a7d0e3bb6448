"""What the report of a semantic scan draws: maps, profiles, boxes and traps, read from the tables."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables

LOW, HIGH = 0.1, 0.5
"""Scores that bound a trap in the report: the defaults of semantic_traps()."""


@dataclass(frozen=True)
class MapAxis:
    """An axis of the semantic space: name, unit, range, and whether the ends of the range meet."""

    name: str
    unit: str
    low: float
    high: float
    periodic: bool

    @property
    def label(self) -> str:
        """Name and unit, for an axis of a figure."""
        return f"{self.name.replace('_', ' ')} [{self.unit}]"


@dataclass(frozen=True)
class SemanticMap:
    """Values on a grid over one or two axes.

    Attributes:
        axes: Its axes, k of them.
        lines: Grid points of each axis, shapes ``[n_1]`` .. ``[n_k]``.
        values: Shape ``[n_1, .., n_k]``; NaN where a cell is not computed yet.
    """

    axes: tuple[MapAxis, ...]
    lines: tuple[NDArray[np.float64], ...]
    values: NDArray[np.float64]

    def component(self, start: Sequence[float], high: float) -> NDArray[np.bool_]:
        """Cells connected to the one at ``start`` through values below ``high``: periodic axes closed, 4 neighbours."""
        first = tuple(int(np.abs(line - at).argmin()) for line, at in zip(self.lines, start, strict=True))
        found = np.zeros(self.values.shape, bool)
        found[first] = True
        waiting = deque([first])
        while waiting:
            cell = waiting.popleft()
            for dimension, axis in enumerate(self.axes):
                size = self.values.shape[dimension]
                for place in (cell[dimension] - 1, cell[dimension] + 1):
                    if not axis.periodic and not 0 <= place < size:
                        continue
                    near = (*cell[:dimension], place % size, *cell[dimension + 1 :])
                    if not found[near] and self.values[near] < high:
                        found[near] = True
                        waiting.append(near)
        return found


@dataclass(frozen=True)
class Box:
    """A grown region: kind and method, initial point ``[n]``, bounds ``[n]``."""

    kind: str
    method: str
    start: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class Trap:
    """A trap of a map of k axes: its number, where its score is least, and its bounds, ``[k]`` each."""

    number: int
    least: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """A shape or image and its class."""

    shape_id: str
    class_name: str

    @property
    def title(self) -> str:
        """Id, and the class where the id does not say it."""
        known = self.shape_id.startswith(f"{self.class_name}/")
        return self.shape_id if known else f"{self.class_name} {self.shape_id}"


def map_axes(scan: ScanTables, names: str) -> tuple[MapAxis, ...]:
    """The axes that a text such as ``azimuth,elevation`` names."""
    known = {axis["name"]: axis for axis in scan.axes}
    return tuple(
        MapAxis(**{key: known[name][key] for key in ("name", "unit", "low", "high", "periodic")})
        for name in names.split(",")
    )


def axes_of_maps(database: ResultDatabase, scan: ScanTables, dimensions: int) -> list[str]:
    """Axes of the maps of a scan that have so many dimensions, in the space's order; none without maps."""
    if "semantic_maps" not in scan.schemas:
        return []
    order = [axis["name"] for axis in scan.axes]
    rows = database.query(
        f"SELECT DISTINCT axes FROM semantic_maps WHERE scan = {quoted_text(scan.name)} AND len(cell) = {dimensions}"
    ).rows()
    return sorted((row["axes"] for row in rows), key=lambda names: [order.index(name) for name in names.split(",")])


def chosen_subjects(
    database: ResultDatabase, scans: Sequence[ScanTables], axes: str, most: int
) -> tuple[list[Subject], int]:
    """Subjects whose maps are drawn, at most ``most``, and how many have such maps in every one of the scans.

    Every class has its turn; those with the largest traps come first, then those with the highest scores.
    """
    names = ", ".join(quoted_text(scan.name) for scan in scans)
    rows = database.query(
        f"""
        WITH traps AS (
            SELECT shape_id, sum(area) AS area FROM {traps_of(scans[0] if len(scans) == 1 else None)}
            WHERE scan IN ({names}) AND axes = {quoted_text(axes)}
            GROUP BY ALL
        ),
        mapped AS (
            SELECT shape_id, min(class_name) AS class_name, min(m.label) AS label, avg(score) AS score
            FROM semantic_maps AS m LEFT JOIN (
                SELECT scan, label, string_agg(DISTINCT class_name, ', ' ORDER BY class_name) AS class_name
                FROM subjects GROUP BY ALL
            ) USING (scan, label)
            WHERE scan IN ({names}) AND m.axes = {quoted_text(axes)}
            GROUP BY shape_id
            HAVING count(DISTINCT scan) = {len(scans)}
        ),
        placed AS (
            SELECT shape_id, coalesce(class_name, 'class ' || label) AS class_name, area, score, count(*) OVER () AS total
            FROM mapped LEFT JOIN traps USING (shape_id)
        )
        SELECT shape_id, class_name, total FROM placed
        ORDER BY row_number() OVER (PARTITION BY class_name ORDER BY area DESC NULLS LAST, score DESC, shape_id),
            area DESC NULLS LAST, score DESC, shape_id
        LIMIT {most}
        """
    ).rows()
    return [Subject(row["shape_id"], row["class_name"]) for row in rows], rows[0]["total"] if rows else 0


def read_map(database: ResultDatabase, scan: ScanTables, shape_id: str, axes: str) -> SemanticMap | None:
    """A shape's map of the score over the axes; None where it has none."""
    table = database.query(
        f"SELECT steps, cell, u, score FROM semantic_maps WHERE scan = {quoted_text(scan.name)} "
        f"AND shape_id = {quoted_text(shape_id)} AND axes = {quoted_text(axes)}"
    ).table()
    return gridded(table, map_axes(scan, axes)) if table.num_rows else None


def gridded(table: pa.Table, axes: tuple[MapAxis, ...], column: str = "score") -> SemanticMap:
    """Rows with the columns steps, cell, u and ``column`` of one map as an array."""
    shape = tuple(table["steps"][0].as_py())
    cells = _matrix(table["cell"], len(axes)).astype(np.int64)
    points = _matrix(table["u"], len(axes))
    values = np.full(shape, np.nan)
    values[tuple(cells.T)] = table[column].cast(pa.float64()).to_numpy()
    lines = []
    for dimension, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        first, last = cells[:, dimension].argmin(), cells[:, dimension].argmax()
        spread = cells[last, dimension] - cells[first, dimension]
        # A map of which only one line is there yet has no step of its own.
        step = (points[last] - points[first])[dimension] / spread if spread else (axis.high - axis.low) / size
        lines.append(points[first, dimension] + step * (np.arange(size) - cells[first, dimension]))
    return SemanticMap(axes, tuple(lines), values)


def read_boxes(database: ResultDatabase, scan: ScanTables, shape_id: str, axes: str) -> list[Box]:
    """Boxes of a shape over just these axes; diverged ones are left out."""
    if "regions" not in scan.schemas:
        return []
    rows = database.query(
        f"SELECT kind, method, u0, lower, upper FROM regions WHERE scan = {quoted_text(scan.name)} "
        f"AND shape_id = {quoted_text(shape_id)} AND axes = {quoted_text(axes)} AND lower IS NOT NULL "
        "ORDER BY kind DESC, family DESC, method, init"
    ).rows()
    return [Box(row["kind"], row["method"], *(np.array(row[x]) for x in ("u0", "lower", "upper"))) for row in rows]


def read_traps(database: ResultDatabase, scan: ScanTables, axes: str) -> dict[str, list[Trap]]:
    """Traps of all maps over the axes by shape, the largest first; a shape without traps has no entry."""
    rows = database.query(f"FROM {traps_of(scan)} WHERE axes = {quoted_text(axes)} ORDER BY shape_id, trap").rows()
    found: dict[str, list[Trap]] = {}
    for row in rows:
        trap = Trap(row["trap"], *(tuple(row[name]) for name in ("u_min", "lower", "upper")))
        found.setdefault(row["shape_id"], []).append(trap)
    return found


def traps_of(scan: ScanTables | None = None) -> str:
    """The traps of a scan, or of all, as a table in SQL."""
    only = "" if scan is None else f", of_scan := {quoted_text(scan.name)}"
    return f"semantic_traps(low := {LOW}, high := {HIGH}{only})"


def says_left_out(shown: int, total: int, what: str) -> str:
    """A sentence on subjects that are not drawn, empty where all are."""
    if shown == total:
        return ""
    return (
        f" Of {total:,} {what} {shown} are drawn: every class has its turn, first those with the largest traps, then those "
        "with the highest scores."
    )


def _matrix(lists: pa.ChunkedArray, width: int) -> NDArray[np.float64]:
    """A column of lists of equal length as a matrix."""
    flat: NDArray[np.float64] = lists.combine_chunks().flatten().cast(pa.float64()).to_numpy()
    return flat.reshape(-1, width)
