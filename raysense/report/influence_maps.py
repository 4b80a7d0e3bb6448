"""Report of pixel maps and one-pixel attacks (Setup 4 of Shu & Zhu 2019, its Figures 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.map_figures import Attack, attacks_figure, channel_maps, pixel_maps
from raysense.report.pictures import read_pixels
from raysense.report.style import abbreviated, number

_SHOWN = 6
_LISTED = 50
_AT_BOUND = 1e-6
"""Relative tolerance, that of fi_informative()."""
_TEXT = (
    "FI of every pixel: what is perturbed is the square patch (of scale x scale pixels) around it, which has low rank, so "
    "that FI says where the image is vulnerable and not only how sure the network is. Whatever the patch, FI is at most "
    "(1 - p)/p, one number for the whole image."
)


def map_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """One section on the pixel maps of a scan, a figure or two for each of a few samples; none without maps."""
    if "influence_maps" not in scan.schemas:
        return []
    chosen, total = _most_vulnerable(database, scan)
    if not chosen:
        return []
    pixels, reasons = read_pixels(scan, [row["sample_id"] for row in chosen])
    blocks: list[Block] = [Paragraph(_TEXT), *(Notice(reason) for reason in reasons)]
    if total > len(chosen):
        blocks.append(
            Paragraph(f"Of {total:,} samples with maps the {len(chosen)} with the largest FI of a pixel are shown.")
        )
    for index, row in enumerate(chosen):
        blocks += _sample_plots(scan, row, _maps(database, scan, row), pixels.get(row["sample_id"]), index + 1)
    return [Section("Pixel maps of FI", blocks)]


def attack_sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """One section on the one-pixel attacks of a scan; none without attacks."""
    if "pixel_attacks" not in scan.schemas:
        return []
    rows = database.query(
        f"""
        SELECT *, class_after != class_before AS changed, count(*) OVER () AS total,
            count(*) FILTER (class_after != class_before) OVER () AS total_changed
        FROM pixel_attacks WHERE scan = {quoted_text(scan.name)}
        ORDER BY changed DESC, p_before - p_before_after DESC, sample_id LIMIT {_LISTED}
        """
    ).rows()
    if not rows:
        return []
    total, changed = rows[0]["total"], rows[0]["total_changed"]
    text = (
        "In every image the pixel with the largest FI is set to the value that lowers the probability of the predicted "
        f"class most. The predicted class changes in {changed:,} of {total:,} images."
    )
    blocks: list[Block] = [Paragraph(text)]
    shown = rows[:_SHOWN]
    pixels, reasons = read_pixels(scan, [row["sample_id"] for row in shown])
    blocks += [Notice(reason) for reason in reasons]
    attacks = [_attack(database, scan, row, pixels[row["sample_id"]]) for row in shown if row["sample_id"] in pixels]
    if attacks:
        caption = (
            "One-pixel attacks, as in Figure 7 of Shu & Zhu (2019), with the probabilities of the classes before and "
            "after; the attacked pixel is framed in red. The maps show FI of single pixels."
        )
        if total > len(attacks):
            caption += f" The {len(attacks)} that change the prediction most of {total:,}."
        blocks.append(Plot("attacks", "One-pixel attacks", caption, attacks_figure(attacks)))
    blocks.append(_attack_table(scan, rows, total))
    return [Section("One-pixel attacks", blocks)]


def _most_vulnerable(database: ResultDatabase, scan: ScanTables) -> tuple[list[dict[str, Any]], int]:
    """The samples whose joint maps of the smallest scale reach highest, and the number of samples with maps."""
    rows = database.query(
        f"""
        SELECT sample_id, objective, max(list_max(fi)) AS peak, any_value(fi_bound) AS fi_bound,
            any_value(label) AS label, any_value(predicted) AS predicted, count(*) OVER () AS total
        FROM influence_maps JOIN samples USING (scan, sample_id)
        WHERE scan = {quoted_text(scan.name)} AND channel IS NULL
            AND scale = (SELECT min(scale) FROM influence_maps WHERE scan = {quoted_text(scan.name)})
        GROUP BY sample_id, objective
        ORDER BY peak DESC, sample_id LIMIT {_SHOWN}
        """
    ).rows()
    return rows, rows[0]["total"] if rows else 0


def _maps(
    database: ResultDatabase, scan: ScanTables, row: dict[str, Any]
) -> dict[int | None, dict[int, NDArray[np.float64]]]:
    """Maps ``[H, W]`` of a sample by channel (None is all jointly, first) and scale, both ascending."""
    found = database.query(
        f"""
        SELECT channel, scale, height, width, fi FROM influence_maps
        WHERE scan = {quoted_text(scan.name)} AND sample_id = {quoted_text(row["sample_id"])}
            AND objective = {quoted_text(row["objective"])}
        ORDER BY channel NULLS FIRST, scale
        """
    ).table()
    maps: dict[int | None, dict[int, NDArray[np.float64]]] = {}
    for index, fi in enumerate(found["fi"]):
        channel, scale, height, width = (found[name][index].as_py() for name in ("channel", "scale", "height", "width"))
        maps.setdefault(channel, {})[scale] = fi.values.to_numpy().reshape(height, width)
    return maps


def _sample_plots(
    scan: ScanTables,
    row: dict[str, Any],
    maps: dict[int | None, dict[int, NDArray[np.float64]]],
    pixels: NDArray[np.float64] | None,
    index: int,
) -> list[Block]:
    sample, joint = row["sample_id"], maps[None]
    label, predicted = (_class_name(scan, row[side]) for side in ("label", "predicted"))
    overlaid = "" if pixels is None else ", and below them the same maps laid over the image"
    figure, scale_says = pixel_maps(pixels, joint, f"{abbreviated(label, 14)} → {abbreviated(predicted, 14)}")
    peaks = ", ".join(
        f"{number(float(values.max()))} at scale {scale} ({_share_at_bound(values, row['fi_bound'])})"
        for scale, values in joint.items()
    )
    caption = (
        f"{sample}, true class {label} → predicted class {predicted}. Maps of FI for every scale{overlaid}, as in Figure 6 "
        f"of Shu & Zhu (2019). {scale_says} The bound (1 - p)/p is {number(row['fi_bound'])}. Largest FI, and share of "
        f"the pixels that reach the bound: {peaks}."
    )
    blocks: list[Block] = [Plot(f"maps_{index}", f"Pixel maps of FI of {sample}", caption, figure)]
    channels = {channel: found for channel, found in maps.items() if channel is not None}
    if len(channels) > 1:
        figure, scale_says = channel_maps(
            {_channel_name(channel, len(channels)): found for channel, found in channels.items()}
        )
        caption = f"{sample}: FI of every pixel and scale when one channel alone is perturbed. {scale_says}"
        blocks.append(Plot(f"maps_{index}_channels", f"Pixel maps of FI of {sample} by channel", caption, figure))
    return blocks


def _share_at_bound(values: NDArray[np.float64], bound: float) -> str:
    return f"{100 * float(np.mean(values >= (1 - _AT_BOUND) * bound)):.1f}%"


def _attack(database: ResultDatabase, scan: ScanTables, row: dict[str, Any], pixels: NDArray[np.float64]) -> Attack:
    attacked = pixels.copy()
    after = np.clip(np.asarray(row["after"], np.float64), 0.0, 1.0)
    attacked[row["row"], row["column"]] = after if pixels.ndim == 3 else after.mean()
    before = _probability(scan, row["class_before"], row["p_before"])
    then = _probability(scan, row["class_before"], row["p_before_after"])
    if row["changed"]:
        then = f"{_probability(scan, row['class_after'], row['p_after'])}\n{then}"
    maps = _maps(database, scan, row).get(None, {}) if "influence_maps" in scan.schemas else {}
    return Attack(
        title=abbreviated(row["sample_id"], 24),
        original=pixels,
        attacked=attacked,
        at=(row["row"], row["column"]),
        before=before,
        after=then,
        pixel=f"row {row['row']}, column {row['column']}\nFI {number(row['fi'])}",
        fi=maps.get(1),
    )


def _attack_table(scan: ScanTables, rows: Sequence[dict[str, Any]], total: int) -> Table:
    heads = [
        "sample", "row", "column", "FI of the pixel", "value before → after", "predicted before", "predicted after",
        "p of the first after",
    ]  # fmt: skip
    cells = [
        [
            row["sample_id"],
            str(row["row"]),
            str(row["column"]),
            number(row["fi"]),
            " → ".join(", ".join(f"{value:.2f}" for value in row[side]) for side in ("before", "after")),
            _probability(scan, row["class_before"], row["p_before"]),
            _probability(scan, row["class_after"], row["p_after"]),
            f"{100 * row['p_before_after']:.2f}%",
        ]
        for row in rows
    ]
    caption = "One-pixel attacks; pixel values are in [0, 1], a value for every channel."
    if total > len(rows):
        caption += f" The {len(rows)} that change the prediction most of {total:,}."
    return Table(caption, heads, cells, frozenset({1, 2, 3, 7}))


def _probability(scan: ScanTables, index: int, probability: float) -> str:
    return f"{abbreviated(_class_name(scan, index), 16)} ({100 * probability:.2f}%)"


def _class_name(scan: ScanTables, index: int) -> str:
    names = scan.class_names or []
    return names[index] if index < len(names) else str(index)


def _channel_name(channel: int, count: int) -> str:
    return ("red", "green", "blue")[channel] if count == 3 else f"channel {channel}"
