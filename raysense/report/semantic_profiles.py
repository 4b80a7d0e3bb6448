"""Report of semantic maps over one axis: scores, FI, regions and traps along it (Figures 1 and 2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section
from raysense.report.poses import pose_strip
from raysense.report.profile_figures import Profile, profile_figure, profiles_by_class
from raysense.report.semantic_data import (
    HIGH,
    LOW,
    MapAxis,
    Subject,
    Trap,
    axes_of_maps,
    chosen_subjects,
    map_axes,
    read_boxes,
    read_traps,
    says_left_out,
)
from raysense.report.semantic_figures import Strip
from raysense.report.style import LINES

_SHOWN = 6
_SHOWN_AXES = 4
_SHOWN_CLASSES = 6


def profile_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """One section for each axis with profiles."""
    every = axes_of_maps(database, scan, 1)
    found = [_section(database, scan, name, index) for index, name in enumerate(every[:_SHOWN_AXES])]
    if len(every) > _SHOWN_AXES:
        found[-1].blocks.append(Paragraph(f"Profiles not drawn: {', '.join(every[_SHOWN_AXES:])}."))
    return found


def joint_profile_sections(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Mean scores of classes along every axis that several scans have profiles of."""
    by_axis: dict[str, list[ScanTables]] = {}
    for scan in scans:
        for name in axes_of_maps(database, scan, 1):
            by_axis.setdefault(name, []).append(scan)
    shared = [(name, part) for name, part in by_axis.items() if len(part) > 1][:_SHOWN_AXES]
    found = []
    for index, (name, part) in enumerate(shared):
        rows = database.query(
            f"FROM semantic_profile() WHERE axis = {quoted_text(name)} AND shape_id IS NULL AND class_name IS NOT NULL"
        ).table()
        classes: dict[str, dict[str, Profile]] = {}
        for class_name in sorted(set(rows["class_name"].to_pylist())):
            for scan in part[: len(LINES)]:
                chosen = [
                    row for row in rows.to_pylist() if row["scan"] == scan.name and row["class_name"] == class_name
                ]
                if chosen:
                    axis = map_axes(scan, name)[0]
                    classes.setdefault(class_name, {})[scan.name] = _profile(pa.Table.from_pylist(chosen), axis)
        shown = dict(list(classes.items())[:_SHOWN_CLASSES])
        caption = f"Mean score over the shapes or images of a class along {name.replace('_', ' ')}."
        if len(shown) < len(classes):
            caption += f" Of {len(classes)} classes {len(shown)} are drawn."
        if len(part) > len(LINES):
            caption += f" Not drawn: {', '.join(scan.name for scan in part[len(LINES) :])}."
        ending = f"_{index + 1}" if len(shared) > 1 else ""
        plot = Plot(f"profiles{ending}", f"Mean scores along {name}", caption, profiles_by_class(shown))
        found.append(Section(f"Scores along {name.replace('_', ' ')}, all networks", [plot]))
    return found


def _section(database: ResultDatabase, scan: ScanTables, name: str, index: int) -> Section:
    subjects, total = chosen_subjects(database, [scan], name, _SHOWN)
    traps_by_shape = read_traps(database, scan, name)
    blocks: list[Block] = []
    for place, subject in enumerate(subjects):
        strip, reason = pose_strip(scan, subject.shape_id, name)
        if reason and not place:
            blocks.append(Notice(reason))
        traps = traps_by_shape.get(subject.shape_id, [])
        blocks.append(_plot(database, scan, name, subject, traps, strip, f"profile_{index + 1}_{place + 1}"))
    if total > len(subjects):
        blocks.append(Paragraph(says_left_out(len(subjects), total, "shapes or images with profiles").strip()))
    return Section(f"Scores along {name.replace('_', ' ')}", blocks)


def _plot(
    database: ResultDatabase,
    scan: ScanTables,
    name: str,
    subject: Subject,
    traps: Sequence[Trap],
    strip: Strip | None,
    file: str,
) -> Plot:
    where = f"scan = {quoted_text(scan.name)} AND shape_id = {quoted_text(subject.shape_id)}"
    axis = map_axes(scan, name)[0]
    rows = database.query(f"FROM semantic_profile() WHERE {where} AND axis = {quoted_text(name)} ORDER BY u").table()
    profile = _profile(rows, axis)
    boxes = read_boxes(database, scan, subject.shape_id, name)
    half = float(profile.at[1] - profile.at[0]) / 2 if len(profile.at) > 1 else 0.0
    spans = [(trap.lower[0] - half, trap.upper[0] + half) for trap in traps]
    figure, remarks = profile_figure(profile, boxes, spans, strip, subject.title)
    caption = (
        f"{subject.title}: score along {axis.name.replace('_', ' ')}, as in Figure 1 of Hamdi & Ghanem (2020); "
        f"{(profile.score >= HIGH).mean():.1%} of the grid points score at least {HIGH:g}."
    )
    if profile.fi is not None:
        caption += " Below, FI of all axes of the space jointly, and (1 − p)/p, which it cannot exceed." + remarks
    if boxes:
        caption += " Bars under the curve are the regions grown from the initial points, as in Figure 2 (right)."
    if spans:
        what = "1 trap" if len(spans) == 1 else f"{len(spans)} traps"
        caption += f" Shaded: {what}, where the score falls below {LOW:g} between stretches of {HIGH:g} and more."
    return Plot(file, f"Score of {subject.title} along {name}", caption, figure)


def _profile(rows: pa.Table, axis: MapAxis) -> Profile:
    """A profile from rows of semantic_profile(); FI only where every grid point has it."""
    order = np.argsort(rows["u"].to_numpy())
    known = rows["fi"].null_count == rows["fi_bound"].null_count == 0
    fi, bound = ((rows[name].cast(pa.float64()).to_numpy()[order] if known else None) for name in ("fi", "fi_bound"))
    return Profile(axis, rows["u"].to_numpy()[order], rows["score"].to_numpy()[order], fi, bound)
