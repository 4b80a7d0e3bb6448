"""One network on several data sets: KL divergence between the classes of two, against that within one (Figure 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Paragraph, Plot
from raysense.report.significance_data import (
    Case,
    Class,
    Pairs,
    Significance,
    common_classes,
    data_of,
    in_classes,
    joint_classes,
    says_shared,
    square,
)
from raysense.report.significance_figures import Band, HeatMap, colour_scale, heat_map_bands
from raysense.report.style import number

_MAX_OTHERS = 5
"""Data sets that are compared with the first one."""
_MAX_NETWORKS = 4
_LABEL = "KL divergence [nats]"


@dataclass(frozen=True)
class Between:
    """KL divergences between the classes of two data sets.

    Attributes:
        pairs: Divergences of the classes drawn.
        same: Mean over classes of the divergence between the class in one and in the other.
        different: Mean over pairs of different classes.
        every: Mean over all pairs of classes.
    """

    pairs: dict[tuple[Class, Class], float]
    same: float | None
    different: float | None
    every: float | None


def shift_blocks(
    database: ResultDatabase, results: Significance, scans: Sequence[ScanTables], layer: str, index: int
) -> list[Block]:
    """A figure and sentences for every network that was scanned on several data sets; empty where there is none."""
    by_name = {scan.name: scan for scan in scans}
    cases = [case for case in results.classes if case.layer == layer and case.scan in by_name]
    networks = _networks([by_name[name] for name in dict.fromkeys(case.scan for case in cases)])
    blocks: list[Block] = []
    for place, (first, *others) in enumerate(networks[:_MAX_NETWORKS]):
        ending = f"{index}_{place + 1}" if len(networks) > 1 else f"{index}"
        pairs = [pair for other in others for pair in _pairs(cases, other, first)]
        blocks += _network_blocks(database, results, pairs[:_MAX_OTHERS], ending)
        if len(pairs) > _MAX_OTHERS:
            names = ", ".join(f"{other.scan} ({other.split})" for other, _ in pairs[_MAX_OTHERS:])
            blocks.append(Paragraph(f"Not compared with {first.name}: {names}."))
    if len(networks) > _MAX_NETWORKS:
        names = ", ".join(part[0].name for part in networks[_MAX_NETWORKS:])
        blocks.append(Paragraph(f"Networks whose data sets are not compared: {names}."))
    return blocks


def _networks(scans: Sequence[ScanTables]) -> list[list[ScanTables]]:
    """Scans of one network and one definition of significance, those with the data of the first left out."""
    found: dict[tuple[str, str, str], list[ScanTables]] = {}
    for scan in scans:
        model = (scan.facts.get("fingerprints") or {}).get("model")
        facts = scan.facts.get("significance") or {}
        if model is not None:
            key = (str(model), str(facts.get("threshold")), str(facts.get("positions")))
            found.setdefault(key, []).append(scan)
    networks = []
    for first, *others in found.values():
        elsewhere = [scan for scan in others if data_of(scan).fingerprint != data_of(first).fingerprint]
        if elsewhere:
            networks.append([first, *elsewhere])
    return networks


def _pairs(cases: Sequence[Case], other: ScanTables, first: ScanTables) -> list[tuple[Case, Case]]:
    """Every split of the other scan with the split of the same name of the first one, or else its last."""
    of_first = {case.split: case for case in cases if case.scan == first.name}
    last = list(of_first.values())[-1]
    return [(case, of_first.get(case.split, last)) for case in cases if case.scan == other.name]


def _network_blocks(
    database: ResultDatabase,
    results: Significance,
    pairs: Sequence[tuple[Case, Case]],
    ending: str,
) -> list[Block]:
    maps, sentences = [], []
    for within in dict.fromkeys(first for _, first in pairs):
        title = f"P and Q: {within.scan}, {within.split}"
        maps.append(_heat_map(results, within, within, results.divergences[within], title))
    for other, first in pairs:
        found = _between(database, results, other, first)
        maps.append(_heat_map(results, other, first, found.pairs, f"P: {other.scan}, {other.split}"))
        sentences.append(_sentence(results, other, first, found))
    figure, says = heat_map_bands([Band("", maps, colour_scale(maps))], _LABEL)
    first = pairs[0][1]
    caption = (
        "KL(P || Q) between classes of several data sets under one network, on one colour scale, as in Figures 6 and 20 of "
        f"Khaitan & Banerjee (2026): Q are classes of {first.scan}, the first scan given of this network, P classes of the "
        f"data set named above. Where both are of {first.scan}, the diagonal is 0.{says}{says_shared(results, [first])}"
    )
    plot = Plot(
        f"between_{ending}", f"KL divergence from classes of other data to those of {first.scan}", caption, figure
    )
    return [plot, Paragraph(" ".join(sentences))]


def _between(database: ResultDatabase, results: Significance, other: Case, first: Case) -> Between:
    """Ask kl_between() once: the pairs drawn, and means over all pairs."""
    rows = database.query(
        f"""
        WITH compared AS (
            SELECT
                class_a, class_b, kl,
                avg(kl) FILTER (class_a = class_b) OVER () AS same,
                avg(kl) FILTER (class_a <> class_b) OVER () AS different,
                avg(kl) FILTER (class_a IS NOT NULL AND class_b IS NOT NULL) OVER () AS every
            FROM kl_between({quoted_text(other.scan)}, {quoted_text(first.scan)}, layer := {quoted_text(other.layer)})
            WHERE split_a = {quoted_text(other.split)} AND split_b = {quoted_text(first.split)}
        )
        FROM compared
        WHERE {in_classes("class_a", joint_classes(results, other))}
            AND {in_classes("class_b", joint_classes(results, first))}
        """
    ).rows()
    means = [rows[0][name] if rows else None for name in ("same", "different", "every")]
    return Between({(row["class_a"], row["class_b"]): row["kl"] for row in rows}, *means)


def _heat_map(results: Significance, other: Case, first: Case, pairs: Pairs, title: str) -> HeatMap:
    overall = (None, None) in pairs
    rows: list[Class] = [*joint_classes(results, other), *([None] if overall else [])]
    columns: list[Class] = [*joint_classes(results, first), *([None] if overall else [])]
    return HeatMap(
        title,
        [results.label(other, row) for row in rows],
        [results.label(first, column) for column in columns],
        square(pairs, rows, columns),
        overall,
    )


def _sentence(results: Significance, other: Case, first: Case, found: Between) -> str:
    """What the divergence between the data sets is, against that between the classes of each."""
    within = [number(results.summaries[case]["mean_inter_class_kl"]) for case in (first, other)]
    one, two = f"{other.scan} ({other.split})", f"{first.scan} ({first.split})"
    apart = f"mean inter-class KL is {within[0]} within {two} and {within[1]} within {one}"
    if not common_classes(results, (other, first)):
        return (
            f"From {one} to {two}: their classes are named differently, so that none is the same; the mean KL between "
            f"classes of one and of the other is {number(found.every)}; {apart}."
        )
    return (
        f"From {one} to {two}: the mean KL between the same class in both is {number(found.same)}, between different "
        f"classes {number(found.different)}; {apart}."
    )
