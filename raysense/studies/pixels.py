"""Setup 4 (Shu & Zhu 2019, section 3.4, Figures 6 and 7): vulnerable pixels, and one-pixel attacks on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.errors import RaysenseError
from raysense.studies.study import StudyOptions, Workspace
from raysense.validation import validated

_CHOSEN = """
SELECT sample_id, coalesce(label_class.name, label::VARCHAR) AS label,
    coalesce(predicted_class.name, predicted::VARCHAR) AS predicted, p_predicted, fi
FROM influence JOIN samples USING (scan, sample_id)
LEFT JOIN classes AS label_class ON label_class.scan = samples.scan AND label_class.class = label
LEFT JOIN classes AS predicted_class ON predicted_class.scan = samples.scan AND predicted_class.class = predicted
WHERE {condition}
ORDER BY fi DESC, sample_id LIMIT {top}
"""
_PEAKS = """
SELECT sample_id, scale, row, "column", peak.fi, fi_bound,
    len(list_filter(map.fi, lambda value: value >= (1 - 1e-6) * fi_bound)) / len(map.fi) AS fraction_at_bound
FROM map_peaks(n := 1) AS peak JOIN influence_maps AS map USING (scan, sample_id, scale, fi_bound)
WHERE peak.channel IS NULL AND map.channel IS NULL ORDER BY sample_id, scale
"""
_ATTACKS = """
SELECT sample_id, row, "column", fi, before, after, class_before, p_before, p_before_after, class_after, p_after
FROM pixel_attacks ORDER BY p_before - p_before_after DESC, sample_id
"""


class PixelOptions(StudyOptions):
    """Options of the study."""

    model: str = Field("digits", description="model reference")
    split: str | None = Field(
        None, description="splits to choose from, separated by commas; none takes the data's default"
    )
    top: int = Field(5, ge=1, description="images to look at: those with the largest FI")
    correct: bool = Field(True, description="choose among correctly classified images only, as the paper does")
    scales: str = Field("1,3,5,7", description="sides of the squares around a pixel, odd, separated by commas")


def run_pixels(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Find the pixels of the most sensitive images that a perturbation is most dangerous at, and attack one of each.

    First FI of every whole image (f = -log p of the predicted class), then maps of FI for single pixels and squares
    around them, for the images with the largest FI. The attack changes the pixel at the maximum of the map to the colour
    that hurts most. A second run finishes what is missing.

    Args:
        out: Directory or URI for the scans ``images`` and ``pixels`` and ``report.html``.
        options: Fields of `PixelOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
        RaysenseError: no image qualifies.
    """
    study = validated(PixelOptions, options)
    workspace = Workspace(out, run, quiet)
    common = {"model": study.model, "data": study.data, "split": study.split or (), "objective": "predicted"}
    images = {**common, "limit": study.limit, "target": "input", **study.how()}
    pixels = {
        **common, **study.how(), "target": "pixels", "method": "exact", "scales": study.scales, "attack": True
    }  # fmt: skip
    workspace.validate(pixels)
    condition = "label = predicted" if study.correct else "true"
    with workspace.cluster():
        first = workspace.scan("images", **images)
        query = _CHOSEN.format(condition=condition, top=study.top)
        chosen = [row["sample_id"] for row in workspace.rows(query, [first])]
        if not chosen:
            raise RaysenseError(f"no image of {study.data!r} is classified right; use --no-correct to take any")
        second = workspace.scan("pixels", **pixels, samples=chosen)
    kind = "correctly classified images" if study.correct else "images"
    workspace.show(f"The {kind} with the largest FI", query, [first])
    workspace.show("Most vulnerable pixel or square of each image", _PEAKS, [second])
    workspace.show("One-pixel attacks: probability of the class before and after", _ATTACKS, [second])
    return workspace.finish([first, second])
