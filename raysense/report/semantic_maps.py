"""Report of semantic maps over two axes: Figures 2 to 5 of Hamdi & Ghanem (2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section
from raysense.report.poses import pose_strip
from raysense.report.semantic_data import (
    HIGH,
    LOW,
    SemanticMap,
    axes_of_maps,
    chosen_subjects,
    gridded,
    map_axes,
    read_boxes,
    read_map,
    read_traps,
    says_left_out,
)
from raysense.report.semantic_figures import map_figure, map_grid

_SHOWN = 6
_SHOWN_AXES = 3
_SHOWN_TOGETHER = 4
_NETWORKS = 5
_INVISIBLE = 1e-4
_MEANING = (
    "A network semantic map (NSM) shows the score f(u), the softmax probability of the shape's class, for every point u of "
    "the semantic space. Boxes are the regions grown around the initial points; those of the published methods are not "
    "cut to the space, and nothing makes the score inside them high."
)


def map_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """One section for each pair of axes with maps."""
    every = axes_of_maps(database, scan, 2)
    found = [_section(database, scan, names, index) for index, names in enumerate(every[:_SHOWN_AXES])]
    if found:
        found[0].blocks.insert(0, Paragraph(_MEANING))
    if len(every) > _SHOWN_AXES:
        found[-1].blocks.append(Paragraph(f"Maps not drawn: {'; '.join(every[_SHOWN_AXES:])}."))
    return found


def joint_map_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """The same shapes under several networks, and the mean maps of classes, for pairs of axes that several scans have."""
    found = []
    by_axes: dict[str, list[ScanTables]] = {}
    for scan in scans:
        for names in axes_of_maps(database, scan, 2):
            by_axes.setdefault(names, []).append(scan)
    shared = [(names, part) for names, part in by_axes.items() if len(part) > 1][:_SHOWN_AXES]
    for index, (names, part) in enumerate(shared):
        ending = f"_{index + 1}" if len(shared) > 1 else ""
        found += _shape_grid(database, part, names, ending) + _class_grid(database, part, names, ending)
    return found


def _section(database: ResultDatabase, scan: ScanTables, names: str, index: int) -> Section:
    subjects, total = chosen_subjects(database, [scan], names, _SHOWN)
    traps_by_shape = read_traps(database, scan, names)
    blocks: list[Block] = []
    for place, subject in enumerate(subjects):
        found = read_map(database, scan, subject.shape_id, names)
        if found is None:
            continue
        boxes = read_boxes(database, scan, subject.shape_id, names)
        traps = traps_by_shape.get(subject.shape_id, [])
        strip, reason = pose_strip(scan, subject.shape_id, found.axes[0].name)
        if reason and not place:
            blocks.append(Notice(reason))
        figure = map_figure(found, boxes, traps, strip, subject.title)
        caption = (
            f"{subject.title}: score by {' and '.join(axis.name for axis in found.axes)}, as in Figures 2 and 3 of Hamdi & "
            f"Ghanem (2020). Mean score {np.nanmean(found.values):.3f}; {np.nanmean(found.values >= HIGH):.1%} of the map "
            f"scores at least {HIGH:g}."
        )
        small = sum(bool(np.prod(box.upper - box.lower) < _INVISIBLE * _area(found)) for box in boxes)
        if small:
            caption += (
                f" {small} of {len(boxes)} regions cover less than a ten-thousandth of the map and hide behind their "
                "initial points."
            )
        if traps:
            caption += (
                f" Framed in red: traps, where the score falls below {LOW:g} inside a region of at least {HIGH:g}."
            )
        if np.isnan(found.values).any():
            caption += " Grey cells are not computed yet."
        if place == len(subjects) - 1:
            caption += says_left_out(len(subjects), total, "shapes or images with maps")
        blocks.append(Plot(f"map_{index + 1}_{place + 1}", f"Semantic map of {subject.title}", caption, figure))
    return Section(f"Semantic maps: {names.replace(',', ' and ').replace('_', ' ')}", blocks)


def _shape_grid(database: ResultDatabase, scans: Sequence[ScanTables], names: str, ending: str) -> list[Section]:
    """Figure 3: shapes in rows, networks in columns, their mean last."""
    shown = scans[:_NETWORKS]
    subjects, total = chosen_subjects(database, shown, names, _SHOWN_TOGETHER)
    if not subjects:
        return []
    rows: dict[str, dict[str, SemanticMap]] = {}
    for subject in subjects:
        maps = {scan.name: read_map(database, scan, subject.shape_id, names) for scan in shown}
        rows[subject.title] = {name: found for name, found in maps.items() if found is not None}
        table = database.query(
            f"FROM data_semantic_map() WHERE shape_id = {quoted_text(subject.shape_id)} AND axes = {quoted_text(names)}"
        ).table()
        rows[subject.title][_mean_of(scans)] = gridded(table, map_axes(scans[0], names))
    caption = (
        "The same shapes or images under several networks, as in Figure 3 of Hamdi & Ghanem (2020); last, the data "
        f"semantic map (DSM): the mean over all {len(scans)} networks. Where all of them fail, the cause is in the "
        f"training data rather than in one network.{_says_networks(scans)}"
        f"{says_left_out(len(subjects), total, 'shapes or images')}"
    )
    figure = map_grid(rows, [*(scan.name for scan in shown), _mean_of(scans)])
    plot = Plot(f"nsm{ending}", "Semantic maps of several networks", caption, figure)
    return [Section(f"Semantic maps of all networks: {names.replace(',', ' and ')}", [plot])]


def _class_grid(database: ResultDatabase, scans: Sequence[ScanTables], names: str, ending: str) -> list[Section]:
    """Figures 4 and 5: classes in rows, networks in columns, their mean last."""
    shown = scans[:_NETWORKS]
    axes = map_axes(scans[0], names)
    every = [
        row["class_name"]
        for row in database.query(
            f"SELECT DISTINCT class_name FROM subjects JOIN semantic_maps AS m USING (scan, shape_id) "
            f"WHERE m.axes = {quoted_text(names)} ORDER BY class_name"
        ).rows()
    ]
    drawn = every[: 2 * _SHOWN_TOGETHER]
    if not drawn:
        return []
    table = database.query(
        f"SELECT * FROM class_semantic_map() WHERE axes = {quoted_text(names)} "
        f"AND class_name IN ({', '.join(map(quoted_text, drawn))})"
    ).table()
    rows: dict[str, dict[str, SemanticMap]] = {}
    for name in drawn:
        of_class = table.filter(pc.equal(table["class_name"], name))
        rows[name] = {}
        for scan, head in [*((scan.name, scan.name) for scan in shown), (None, _mean_of(scans))]:
            where = pc.is_null(of_class["scan"]) if scan is None else pc.equal(of_class["scan"], scan)
            part = of_class.filter(where)
            if part.num_rows:
                rows[name][head] = gridded(part, axes)
    caption = (
        "Class-global maps: the mean score over the shapes or images of a class, as in Figure 4 of Hamdi & Ghanem (2020), "
        f"and last over all {len(scans)} networks as well, as in Figure 5.{_says_networks(scans)}"
    )
    if len(every) > len(rows):
        caption += f" Of {len(every)} classes {len(rows)} are drawn."
    figure = map_grid(rows, [*(scan.name for scan in shown), _mean_of(scans)])
    plot = Plot(f"class_maps{ending}", "Class-global maps of several networks", caption, figure)
    return [Section(f"Class-global maps: {names.replace(',', ' and ')}", [plot])]


def _mean_of(scans: Sequence[ScanTables]) -> str:
    return f"mean of {len(scans)}"


def _says_networks(scans: Sequence[ScanTables]) -> str:
    left_out = [scan.name for scan in scans[_NETWORKS:]]
    return f" Not drawn: {', '.join(left_out)}." if left_out else ""


def _area(found: SemanticMap) -> float:
    return float(np.prod([axis.high - axis.low for axis in found.axes]))
