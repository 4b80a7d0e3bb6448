"""Setup 1 with simulated outliers (Shu & Zhu 2019, section 3.1, Figure 3): which measure finds them?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from raysense.datasets import open_data
from raysense.models import load_model
from raysense.studies.overlaps import CLEAN, OUTLIER, overlaps_reference
from raysense.studies.recipes import Recipe, TrainingTask
from raysense.studies.study import StudyOptions, Workspace
from raysense.studies.training import train
from raysense.training import Adam
from raysense.validation import validated

_SPLITS = (CLEAN, OUTLIER)
_ACCURACY = """
SELECT split, count(*) AS n, avg((label = predicted)::INTEGER) AS accuracy, median(p_label) AS median_p_label
FROM samples WHERE error IS NULL GROUP BY split ORDER BY split DESC
"""
_MEDIANS = """
SELECT split, median(fi) AS fi, median(fi_bound) AS fi_bound, median(jacobian_norm) AS jacobian_norm,
    median(cook) AS cook
FROM influence JOIN samples USING (scan, sample_id) GROUP BY split ORDER BY split DESC
"""
_AREAS = """
SELECT measure, roc_area, roc_lower, roc_upper, pr_area, pr_lower, pr_upper
FROM outlier_areas(seed := {seed}) ORDER BY pr_area DESC, measure
"""


class OutlierOptions(StudyOptions):
    """Options of the study."""

    model: str = Field(
        "raysense.studies.networks:plain", description="network to train; training goes on from the weights it has"
    )
    split: str | None = Field(
        None,
        description="split of the data whose images are used; none takes train of the digits, else the data's default",
    )
    validation: str | None = Field(
        None, description="split on which accuracy is measured in the end; none takes test of the digits, else no split"
    )
    limit: int | None = Field(None, ge=1, description="only N images of the split, evenly spaced, before overlapping")
    fraction: float = Field(0.05, gt=0, le=1, description="simulated outliers per image")
    shift: int | Literal["auto"] = Field(
        "auto", description="largest shift in pixels; auto: 4 for 28 pixels, and in proportion"
    )
    epochs: int = Field(10, ge=0, description="epochs of training on images and outliers; 0 scans the network as it is")
    learning_rate: float = Field(3e-3, gt=0, description="learning rate of the first step (Adam, cosine schedule)")
    train_batch: int = Field(128, ge=2, description="images per step of the training")
    cook: bool | None = Field(
        None,
        description="Cook's local influence too, dear for large networks; if neither is given, for the digits only",
    )


def run_outliers(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Overlap images of two classes, train a network with these outliers among its data, and see which measure finds them.

    FI, the Jacobian norm, Cook's local influence and the softmax alone are compared by the areas under their ROC and
    precision-recall curves, with bootstrap intervals. A second run finishes what is missing.

    Args:
        out: Directory or URI for ``network.pt``, the scan ``influence`` and ``report.html``.
        options: Fields of `OutlierOptions`.
        run: How to run, as for `raysense.scan`. Training runs in this process, on the same kind of device.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(OutlierOptions, options)
    workspace = Workspace(out, run, quiet)
    bundled = study.data == "digits"
    split, validation = study.split, study.validation
    if bundled:
        split, validation = split or "train", validation or "test"
    data = overlaps_reference(
        at_the_size_of(study.model, study.data, split),
        base=split or "",
        fraction=study.fraction,
        shift=study.shift,
        seed=study.seed,
        limit=study.limit,
    )
    cook = bundled if study.cook is None else study.cook
    spec = {
        "data": data, "split": ",".join(_SPLITS), "target": "input", "objective": "label", "cook": cook, **study.how()
    }  # fmt: skip
    workspace.check("influence", model=study.model, **spec)
    model = study.model
    if study.epochs:
        recipe = Recipe(study.epochs, study.train_batch, Adam(study.learning_rate), study.seed)
        held_out = (study.data, validation) if validation else None
        task = TrainingTask(model, data, _SPLITS, held_out, recipe, workspace.path(""))
        trained = train(task, workspace.options.device, quiet)
        model = trained.model
        right = "" if trained.accuracy is None else f", {trained.accuracy:.2%} of split {validation} right"
        lost = f", {trained.unreadable} images could not be read" if trained.unreadable else ""
        workspace.say(f"trained {study.epochs} epochs: loss {trained.loss:.4g}{right}{lost}")
    with workspace.cluster():
        directory = workspace.scan("influence", model=model, **spec)
    for title, query in (
        ("The network on clean images (train) and on simulated outliers", _ACCURACY),
        ("Medians of the measures", _MEDIANS),
        ("Areas under ROC and precision-recall curves, outliers against clean images, with 95% intervals", _AREAS),
    ):
        workspace.show(title, query.format(seed=study.seed), [directory])
    return workspace.finish([directory])


def at_the_size_of(model: str, data: str, split: str | None) -> str:
    """Return a data reference with the resize and crop that a model was made for, where it says none of its own.

    Images are overlapped at the size at which the network sees them.
    """
    source = open_data(data, (split,) if split else ())
    geometry = load_model(model).preprocessing
    if source.preprocessing is not None or geometry is None:
        return data
    size = "none" if geometry.crop is None else "x".join(map(str, geometry.crop))
    return (
        f"{data}{'&' if '?' in data else '?'}resize={geometry.resize or 'none'}&crop={size}"
        f"&interpolation={geometry.interpolation}&antialias={str(geometry.antialias).lower()}"
    )
