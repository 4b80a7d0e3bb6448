"""What reports of the significance scan draw and tabulate, read once from the macros for all scans of a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.significance_figures import HeatMap
from raysense.report.significance_sparsity import Histogram
from raysense.store.snapshot import Snapshot

SAMPLED = 50
"""Classes that a heat map shows; of more an evenly spaced sample, as in the paper."""
MAX_LAYERS = 4
"""Layers of a scan that are drawn: the last ones."""
LISTED_PATHS = 3
OVERALL = "overall"

Class = int | None
"""Index of a class; None is all classes together."""
Pairs = Mapping[tuple[Class, Class], float]
"""Values by pair of classes (P, Q)."""
Row = Mapping[str, Any]
_Item = TypeVar("_Item")


class Case(NamedTuple):
    """What belongs together: one scan, split and layer."""

    scan: str
    split: str
    layer: str


@dataclass(frozen=True)
class Significance:
    """Results of all significance scans of a database.

    Attributes:
        summaries: Rows of path_summary() by case: scans in their order, layers in order of execution, split train first.
        classes: Rows of class_separation() of the cases drawn, by class; None is all classes together.
        divergences: KL divergences of the classes drawn.
        histograms: Histograms of `sparsity_classes`.
        paths: Rows of significant_paths() of the classes of `listed_classes`.
        names: Names of the classes by scan, where it has them.
    """

    summaries: dict[Case, Row] = field(default_factory=dict)
    classes: dict[Case, dict[Class, Row]] = field(default_factory=dict)
    divergences: dict[Case, dict[tuple[Class, Class], float]] = field(default_factory=dict)
    histograms: dict[Case, dict[Class, list[Row]]] = field(default_factory=dict)
    paths: dict[Case, list[Row]] = field(default_factory=dict)
    names: dict[str, list[str] | None] = field(default_factory=dict)

    def label(self, case: Case, index: Class) -> str:
        """What a class of the case is called."""
        return class_label(self.names[case.scan], index)

    def known(self, case: Case) -> list[int]:
        """The classes of a case, sorted."""
        return sorted(index for index in self.classes[case] if index is not None)

    def heat_map(self, case: Case, classes: Sequence[int], title: str) -> HeatMap:
        """KL divergence of ``classes`` and of all together, the class's entropy on the diagonal."""
        shown: list[Class] = [*classes, None]
        values = square(self.divergences.get(case, {}), shown, shown)
        np.fill_diagonal(values, [_float(self.classes[case].get(index, {}).get("entropy")) for index in shown])
        labels = [self.label(case, index) for index in shown]
        return HeatMap(title, labels, labels, values, overall=True)

    def histogram(self, case: Case, index: Class, title: str) -> Histogram | None:
        """The histogram of a class, None where it was not read or has no observations."""
        bins = self.histograms.get(case, {}).get(index)
        if not bins:
            return None
        edges = np.array([*(row["low"] for row in bins), bins[-1]["high"]], np.float64)
        return Histogram(title, edges, np.array([row["n_paths"] for row in bins], np.int64))


def read_significance(database: ResultDatabase) -> Significance:
    """What the macros say of all scans, each macro asked once for every layer drawn; kept while the database is open."""
    state = [database.committed(scan) for scan in database.scans]
    known = _KEPT.get(database)
    if known is None or known[0] != state:
        known = (state, _read(database))
        _KEPT[database] = known
    return known[1]


_KEPT: WeakKeyDictionary[ResultDatabase, tuple[list[Snapshot], Significance]] = WeakKeyDictionary()
"""A report has a chapter for every scan and one for all: the divergences of a thousand classes are computed once."""


def drawn_layers(results: Significance, scan: str) -> list[str]:
    """The layers of a scan that are drawn, in order of execution."""
    return list(dict.fromkeys(case.layer for case in results.summaries if case.scan == scan))[-MAX_LAYERS:]


def evenly_spaced(classes: Sequence[int], most: int = SAMPLED) -> list[int]:
    """At most so many of the classes, the first and the last among them."""
    if len(classes) <= most:
        return list(classes)
    return [classes[index] for index in np.linspace(0, len(classes) - 1, most).round().astype(int)]


def says_sampled(shown: int, total: int) -> str:
    """A sentence on classes that are not drawn, empty where all are."""
    if shown == total:
        return ""
    return f" {shown} of {total:,} classes are drawn, evenly spaced; numbers in tables are those of all classes."


def common_classes(results: Significance, cases: Iterable[Case]) -> list[int]:
    """Classes that all cases have under one name, as far as they have names, sorted."""
    cases = list(cases)
    sets = [set(results.known(case)) for case in cases]
    named = [case for case in cases if results.names[case.scan] is not None]
    shared = sorted(set.intersection(*sets)) if sets else []
    return [index for index in shared if len({results.label(case, index) for case in named}) < 2]


def joint_classes(results: Significance, case: Case) -> list[int]:
    """The classes drawn where scans stand side by side: those that all scans of the layer have, or else the case's own."""
    shared = common_classes(results, [other for other in results.classes if other.layer == case.layer])
    return evenly_spaced(shared if len(shared) > 1 else results.known(case))


def says_shared(results: Significance, cases: Sequence[Case]) -> str:
    """A sentence on classes that are not drawn where cases of one layer stand side by side, empty where all are."""
    case = max(cases, key=lambda case: len(results.known(case)) - len(joint_classes(results, case)))
    shown, total = len(joint_classes(results, case)), len(results.known(case))
    shared = len(common_classes(results, [other for other in results.classes if other.layer == case.layer]))
    if shown == total or not 1 < shared < total:
        return says_sampled(shown, total)
    spaced = ", evenly spaced" if shown < shared else ""
    return (
        f" {shown} of {total:,} classes are drawn{spaced}, of the {shared:,} that all scans have; numbers in tables are "
        "those of all classes."
    )


def sparsity_classes(rows: Mapping[Class, Row], among: Collection[int]) -> dict[str, int]:
    """Of some classes the densest, the one of median density and the sparsest, none of them twice."""
    order = sorted(among, key=lambda index: (rows[index]["density"], -index))
    if not order:
        return {}
    found = {"densest": order[-1], "median": order[(len(order) - 1) // 2], "sparsest": order[0]}
    if len(order) < 3:
        del found["median"]
    if len(order) < 2:
        del found["sparsest"]
    return found


def listed_classes(classes: Sequence[int]) -> list[int]:
    """The classes whose most significant paths are listed."""
    return evenly_spaced(classes, 10)


def square(pairs: Pairs, rows: Sequence[Class], columns: Sequence[Class]) -> NDArray[np.float64]:
    """Values by pair of classes as an array ``[rows, columns]``, NaN where there is none."""
    return np.array([[_float(pairs.get((row, column))) for column in columns] for row in rows], np.float64)


def class_label(names: Sequence[str] | None, index: Class) -> str:
    """A class's name, or else its index."""
    if index is None:
        return OVERALL
    return names[index] if names is not None and index < len(names) else str(index)


def recorded_layers(scan: ScanTables) -> list[dict[str, Any]]:
    """What the scan recorded of its layers (name, operator, rows, inputs, groups, positions), in order of execution."""
    return list((scan.facts.get("significance") or {}).get("layers") or ())


class Data(NamedTuple):
    """The data of a scan: the reference, and the fingerprint where one was recorded."""

    reference: str
    fingerprint: str | None


def data_of(scan: ScanTables) -> Data:
    """The data that a scan was run on."""
    reference = (scan.document.get("spec") or {}).get("data") or (scan.facts.get("data") or {}).get("reference")
    return Data(str(reference or "unknown data"), (scan.facts.get("fingerprints") or {}).get("data"))


def side_by_side(items: Sequence[_Item], key: Callable[[_Item], Hashable]) -> list[list[_Item]]:
    """Items of equal keys together, in the order of the first of each; what stands alone goes into one last list.

    A single one goes with the list before.
    """
    found: dict[Hashable, list[_Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    several = [part for part in found.values() if len(part) > 1]
    alone = [part[0] for part in found.values() if len(part) == 1]
    if several and len(alone) == 1:
        return [*several[:-1], [*several[-1], *alone]]
    return [*several, *([alone] if alone else [])]


def in_classes(column: str, classes: Iterable[int], overall: bool = True) -> str:
    """SQL condition that a column holds one of the classes, or NULL for all together."""
    listed = ", ".join(map(str, sorted(set(classes)))) or "-1"
    return f"({column} IN ({listed}){f' OR {column} IS NULL' if overall else ''})"


def _read(database: ResultDatabase) -> Significance:
    results = Significance(names={scan.name: scan.class_names for scan in database.scans})
    order = {scan.name: index for index, scan in enumerate(database.scans)}
    layers = {
        (scan.name, layer["name"]): place
        for scan in database.scans
        for place, layer in enumerate(recorded_layers(scan))
    }

    def place(case: Case) -> tuple[Any, ...]:
        executed = layers.get((case.scan, case.layer), len(layers))
        return order[case.scan], executed, case.layer, case.split != "train", case.split

    rows = database.query("FROM path_summary()").rows()
    results.summaries.update(sorted(((_case(row), row) for row in rows), key=lambda item: place(item[0])))
    names = {scan: drawn_layers(results, scan) for scan in order}
    for layer in dict.fromkeys(layer for drawn in names.values() for layer in drawn):
        _read_layer(database, results, layer)
    return results


def _read_layer(database: ResultDatabase, results: Significance, layer: str) -> None:
    """Read what is drawn of one layer of all scans."""
    of_layer = f"layer := {quoted_text(layer)}"
    separation: dict[Case, dict[Class, Row]] = {}
    for row in database.query(f"FROM class_separation({of_layer})").rows():
        separation.setdefault(_case(row), {})[row["class"]] = row
    results.classes.update((case, separation[case]) for case in results.summaries if case in separation)
    cases = [case for case in results.classes if case.layer == layer]
    shared = common_classes(results, cases)
    sampled, dense, listed = set(evenly_spaced(shared)), set[int](), set[int]()
    for case in cases:
        known = results.known(case)
        sampled |= set(evenly_spaced(known))
        listed |= set(listed_classes(known))
        for among in (known, shared):
            dense |= set(sparsity_classes(results.classes[case], among).values())
    for row in database.query(
        f"FROM kl_matrix({of_layer}) WHERE {in_classes('class_a', sampled)} AND {in_classes('class_b', sampled)}"
    ).rows():
        results.divergences.setdefault(_case(row), {})[row["class_a"], row["class_b"]] = row["kl"]
    for row in database.query(f"FROM sparsity({of_layer}) WHERE {in_classes('class', dense)} ORDER BY bin").rows():
        results.histograms.setdefault(_case(row), {}).setdefault(row["class"], []).append(row)
    for row in database.query(
        f"FROM significant_paths({of_layer}, n := {LISTED_PATHS}) WHERE {in_classes('class', listed)} "
        "ORDER BY class NULLS LAST, place"
    ).rows():
        results.paths.setdefault(_case(row), []).append(row)


def _case(row: Row) -> Case:
    return Case(row["scan"], row["split"], row["layer"])


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)
