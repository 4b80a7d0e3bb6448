"""Report of the ablations scan (Khaitan & Banerjee 2026, section 4.2): other distances between classes, Table 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.significance_data import (
    MAX_LAYERS,
    Class,
    class_label,
    data_of,
    evenly_spaced,
    in_classes,
    read_significance,
    recorded_layers,
    says_sampled,
    side_by_side,
    square,
)
from raysense.report.significance_figures import Band, HeatMap, colour_scale, heat_map, heat_map_bands
from raysense.report.style import number

_METRICS = {
    "paths": "KL divergence between significant path proportions",
    "interactions": "KL divergence between average neuron-weight interactions",
    "outputs": "KL divergence between softmax outputs",
    "activations": "mean distance between activations",
    "energy": "energy distance between activations",
}
_DRAWN = {"interactions": "Figures 11 and 12", "outputs": "section 4.2", "energy": "Figures 9 and 10"}
"""Metrics that are drawn, and where the paper has them; mean distances differ from energy distances by the spreads."""
_LABELS = {
    "interactions": "KL divergence of\nmean interactions [nats]",
    "outputs": "KL divergence of\nsoftmax outputs [nats]",
    "energy": "energy distance of\nactivations [1]",
}
"""Labels of colour bars, with the unit."""
_MAX_PANELS = 6
_COMPACT_ABOVE = 40
_MEANING = (
    "Distances between classes that do without significant paths. Interactions: every class's mean of N = W diag(a), its "
    "rows softmaxed, KL divergence averaged over rows; the spread is the mean entropy of the rows. Outputs: mean KL "
    "divergence between the softmax outputs of samples of two classes, and of different samples of one. Activations: mean "
    "Euclidean distance between the layer's inputs for samples of two classes, and of one. Energy distance: "
    "2 E|X - Y| - E|X - X'| - E|Y - Y'| of the same."
)


class Measured(NamedTuple):
    """What one heat map shows: a metric of a scan, split and layer; outputs have no layer."""

    scan: str
    split: str
    layer: str | None
    metric: str

    @property
    def words(self) -> str:
        """Metric, layer and split."""
        at = "" if self.layer is None else f", layer {self.layer}"
        return f"{_METRICS[self.metric]}{at}, split {self.split}"


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Table 3 and a heat map of every metric, layer and split; one notice where there are no rows yet."""
    title = "Other distances between classes"
    found = _measured(database, [scan])
    if not found:
        return [Section(title, [Notice("No class has been compared yet.")])]
    result = [Section(title, [Paragraph(_MEANING + _says_layers([scan])), _table(database, [scan])])]
    for index, measured in enumerate(found):
        panel, says = _heat_map(database, scan, measured)
        figure, colours = heat_map(panel, _LABELS[measured.metric])
        plot = Plot(f"{measured.metric}_{index + 1}", measured.words, _caption(measured, colours + says), figure)
        result.append(Section(_capital(measured.words), [plot]))
    return result


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Table 3 of all scans, and heat maps of every metric and layer that several scans have, side by side."""
    every = _measured(database, scans)
    if len({measured.scan for measured in every}) < 2:
        return []
    blocks: list[Block] = [Paragraph(_MEANING + _says_layers(scans)), _table(database, scans)]
    found = [Section("Other distances between classes, all scans", blocks)]
    by_name = {scan.name: scan for scan in scans}
    for index, alike in enumerate(part for part in _alike(every).values() if len(part) > 1):
        parts = side_by_side(alike, lambda measured: data_of(by_name[measured.scan]).reference)
        plots: list[Block] = [
            _bands(database, by_name, part, f"_{index + 1}" + (f"_{number + 1}" if len(parts) > 1 else ""))
            for number, part in enumerate(parts)
        ]
        found.append(Section(f"{_capital(alike[0].words)}, all scans", plots))
    return found


def _alike(every: Sequence[Measured]) -> dict[tuple[Any, ...], list[Measured]]:
    """What differs in the scan alone, together."""
    found: dict[tuple[Any, ...], list[Measured]] = {}
    for measured in every:
        found.setdefault(measured[1:], []).append(measured)
    return found


def _bands(database: ResultDatabase, scans: Mapping[str, ScanTables], part: Sequence[Measured], ending: str) -> Plot:
    """Heat maps of several scans: on one colour scale, and below each on its own."""
    panels, sampled = [], ""
    for measured in part[:_MAX_PANELS]:
        panel, sampled = _heat_map(database, scans[measured.scan], measured)
        panels.append(panel)
    bands = [
        Band("normalised: one colour scale", panels, colour_scale(panels)),
        Band("unnormalised: each with its own colour scale", panels, None),
    ]
    figure, colours = heat_map_bands(bands, _LABELS[part[0].metric])
    left_out = ", ".join(measured.scan for measured in part[_MAX_PANELS:])
    says = f"{colours}{sampled}{f' Not drawn: {left_out}.' if left_out else ''}"
    return Plot(f"{part[0].metric}{ending}", part[0].words, _caption(part[0], says), figure)


def _says_layers(scans: Sequence[ScanTables]) -> str:
    """A sentence on layers that are not drawn, empty where all are."""
    if max(len(recorded_layers(scan)) for scan in scans) <= MAX_LAYERS:
        return ""
    return f" Heat maps show the last {MAX_LAYERS} layers, the table all."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _measured(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Measured]:
    """What is drawn of the scans: metrics in the paper's order, the last layers, split train first."""
    found = []
    for scan in scans:
        if "class_distances" not in scan.schemas:
            continue
        rows = database.query(
            f"SELECT DISTINCT scan, split, layer, metric FROM class_distances WHERE scan = {quoted_text(scan.name)}"
        ).rows()
        place = _place_of_layers([scan])
        layers = sorted({row["layer"] for row in rows}, key=place)[-MAX_LAYERS:]
        drawn = [Measured(**row) for row in rows if row["metric"] in _DRAWN and row["layer"] in (None, *layers)]
        order = list(_DRAWN)
        drawn.sort(key=lambda one: (order.index(one.metric), place(one.layer), one.split != "train", one.split))
        found += drawn
    return found


def _place_of_layers(scans: Sequence[ScanTables]) -> Callable[[str | None], tuple[int, str]]:
    """A sort key: layers in order of execution, as the first scan that has them recorded it; outputs have no layer."""
    recorded = [layer["name"] for scan in scans for layer in recorded_layers(scan)]
    places = {name: place for place, name in enumerate(dict.fromkeys(recorded))}
    return lambda layer: (-1, "") if layer is None else (places.get(layer, len(places)), layer)


def _heat_map(database: ResultDatabase, scan: ScanTables, measured: Measured) -> tuple[HeatMap, str]:
    """The heat map of a metric, and a sentence on classes left out."""
    layer = "layer IS NULL" if measured.layer is None else f"layer = {quoted_text(measured.layer)}"
    condition = (
        f"FROM class_distances WHERE scan = {quoted_text(scan.name)} AND split = {quoted_text(measured.split)} "
        f"AND metric = {quoted_text(measured.metric)} AND {layer}"
    )
    known = sorted(row["class_b"] for row in database.query(f"SELECT DISTINCT class_b {condition}").rows())
    classes: list[Class] = [*evenly_spaced(known)]
    drawn = f"{in_classes('class_a', evenly_spaced(known), overall=False)}"
    rows = database.query(
        f"SELECT class_a, class_b, value {condition} AND {drawn} "
        f"AND {in_classes('class_b', evenly_spaced(known), overall=False)}"
    ).rows()
    values = square({(row["class_a"], row["class_b"]): row["value"] for row in rows}, classes, classes)
    if measured.metric == "interactions":
        # The entropies there, some nats, would hide divergences of 1e-9.
        np.fill_diagonal(values, np.nan)
    labels = [class_label(scan.class_names, index) for index in classes]
    sides = ("class", "class") if measured.metric == "energy" else ("P", "Q")
    return HeatMap(scan.name, labels, labels, values, False, sides), says_sampled(len(classes), len(known))


def _table(database: ResultDatabase, scans: Sequence[ScanTables]) -> Table:
    """Table 3: separation and spread by distance and layer, scan by scan."""
    rows = [(index, row) for index, scan in enumerate(scans) for row in _rows(database, scan)]
    metrics, place_of = list(_METRICS), _place_of_layers(scans)

    def place(found: tuple[int, Mapping[str, Any]]) -> tuple[Any, ...]:
        index, row = found
        return metrics.index(row["metric"]), place_of(row["layer"]), row["split"] != "train", row["split"], index

    cells = [
        [
            _METRICS[row["metric"]],
            row["layer"] or "–",
            row["split"],
            *([row["scan"]] if len(scans) > 1 else []),
            *(number(row[name]) for name in ("separation", "spread", "largest_stderr")),
        ]
        for _, row in sorted(rows, key=place)
    ]
    heads = ["distance", "layer", "split", *(["scan"] if len(scans) > 1 else [])]
    first = len(heads)
    heads += ["mean inter-class separation", "mean intra-class spread", "largest standard error"]
    caption = (
        "Separation between classes and spread within them, laid out as in Table 3 of Khaitan & Banerjee (2026), over all "
        "classes. The standard error is that of one pair of classes; it is 0 where the activations of all samples were "
        "kept. – is unknown or does not apply."
    )
    return Table(caption, heads, cells, frozenset(range(first, len(heads))), compact=len(cells) > _COMPACT_ABOVE)


def _rows(database: ResultDatabase, scan: ScanTables) -> list[dict[str, Any]]:
    """What ablation_table() says of a scan, its significance scan not summed up again; that one's rows if it is open."""
    made_of = (scan.facts.get("of") or {}).get("location")
    base = next((other for other in database.scans if other.store.location == made_of), None)
    rows = database.query(f"FROM ablation_summary() WHERE scan = {quoted_text(scan.name)}").rows()
    if base is None:
        return rows
    paths = [
        {
            "layer": case.layer,
            "split": case.split,
            "metric": "paths",
            "separation": summary["mean_inter_class_kl"],
            "spread": summary["mean_class_entropy"],
            "largest_stderr": None,
        }
        for case, summary in read_significance(database).summaries.items()
        if case.scan == base.name
    ]
    return [{**row, "scan": base.name} for row in [*paths, *rows]]


def _caption(measured: Measured, says: str) -> str:
    diagonal = {
        "interactions": "The diagonal is left out: the spread of a class is the entropy of its own rows, in the table.",
        "outputs": "The diagonal is the mean divergence between different samples of the class.",
        "energy": "The diagonal is 0; an estimate may be below 0 where two classes are nearly alike.",
    }[measured.metric]
    return f"{_capital(measured.words)}, as in {_DRAWN[measured.metric]} of Khaitan & Banerjee (2026). {diagonal}{says}"
