"""Does curvature tell perturbed images, and the labels that they had? (Fawzi et al. 2018)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.scans.detect import DetectSpec
from raysense.studies.boundaries import CurvedStudyOptions
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

_SPEC = DetectSpec.model_fields
AREAS = """
SELECT scan, split, attack, scale, measure, n_perturbed, roc_area, roc_stderr AS "±" FROM detection_areas() ORDER BY ALL
"""
_RECOVERY = """
SELECT scan, split, attack, scale, n, mean_rho, rho_stderr AS "±", share_flagged,
    recovered_of_flagged AS "recovered, of flagged", recovered_of_all AS "of all", chance
FROM recovery_accuracy(threshold := {threshold}) ORDER BY ALL
"""


class DetectionOptions(CurvedStudyOptions):
    """Options of the study."""

    scales: str = Field("1.02,1.5,2,3", description=str(_SPEC["scales"].description))
    top: int = Field(9, ge=0, description=str(_SPEC["top"].description))
    noise: bool = Field(True, description=str(_SPEC["noise"].description))
    threshold: float = Field(0.0, description="t, above which a mean curvature counts as that of a perturbed image")


def run_detection(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Tell perturbed images from others by the mean curvature at them, and recover their labels (Algorithm 2).

    Images are perturbed by multiples of the smallest perturbation that changes their class, and by noise of the same
    norms. Detection by the largest softmax probability and by the energy stand beside it. A second run finishes what is
    missing.

    Args:
        out: Directory or URI for one scan a network and ``report.html``.
        options: Fields of `DetectionOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(DetectionOptions, options)
    workspace = Workspace(out, run, quiet, kind="detect")
    spec = {**study.sampled(), **{name: getattr(study, name) for name in ("scales", "top", "noise")}}
    directories = workspace.scan_each(model_names(study.model), spec)
    workspace.show("Areas under the ROC curves: perturbed images against images as they are", AREAS, directories)
    title = f"Flagged with mean curvature of at least {study.threshold:g}, and labels recovered"
    workspace.show(title, _RECOVERY.format(threshold=study.threshold), directories)
    return workspace.finish(directories)
