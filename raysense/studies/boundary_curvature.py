"""How curved are decision boundaries near images, and in directions that images share? (Fawzi et al. 2018)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.scans.boundary import BoundarySpec
from raysense.scans.directions import DirectionsSpec
from raysense.studies.boundaries import CurvedStudyOptions
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

_BOUNDARY, _DIRECTIONS = BoundarySpec.model_fields, DirectionsSpec.model_fields
DISTANCES = """
SELECT scan, split, correct, n_found, mean, p5, p50, p95 FROM boundary_distances() WHERE quantity = 'distance' ORDER BY ALL
"""
SUMMARY = """
SELECT scan, split, method, step, n, mean_curvature, stderr AS "±", share_negative, mean_largest, mean_smallest
FROM curvature_summary() ORDER BY ALL
"""
PROFILE = """
SELECT scan, split, n_samples, rank AS place, mean AS largest, n + 1 - rank AS "opposite place",
    asymmetry - mean AS smallest, asymmetry AS sum
FROM curvature_profile() WHERE asymmetry IS NOT NULL AND rank <= 5 ORDER BY ALL
"""
_STEPS = """
SELECT scan, split, step, n, mean_curvature, stderr AS "±", share_negative, mean_magnitude
FROM curvature_by_step() ORDER BY ALL
"""
_SHARED = """
SELECT scan, direction, n, mean_rho AS rho, stderr AS "±", median_rho AS median FROM shared_curvature()
WHERE direction <= 5 OR direction = (SELECT max(direction) FROM shared_curvature()) ORDER BY ALL
"""
_NOISE = """
PIVOT (SELECT scan, split, magnitude, space, rate FROM noise_robustness()) ON space USING first(rate)
GROUP BY scan, split, magnitude ORDER BY ALL
"""
_NORMS = """
SELECT scan, split, perturbation, n, mean_share AS "norm in S", stderr AS "±" FROM projected_norms()
"""


class CurvatureOptions(CurvedStudyOptions):
    """Options of the study."""

    split: str | None = Field(
        None, description="splits whose boundaries are measured, separated by commas; none takes the data's default"
    )
    curvature: str = Field("mean,extremes", description=str(_BOUNDARY["curvature"].description))
    extremes: int = Field(5, ge=1, description=str(_BOUNDARY["extremes"].description))
    step_study: str | None = Field(None, description=str(_BOUNDARY["step_study"].description))
    directions_data: str | None = Field(
        None, description="data whose principal directions are taken; none takes the same data"
    )
    directions_split: str = Field("train", description="split whose principal directions are taken; empty for none")
    directions_limit: int = Field(100, ge=1, description="samples whose principal directions are taken")
    keep_directions: int = Field(10, ge=1, description=str(_BOUNDARY["keep_directions"].description))
    shared: int | None = Field(None, ge=1, description=str(_DIRECTIONS["shared"].description))
    noise: str = Field("0.05,0.1,0.15,0.2,0.25,0.3", description=str(_DIRECTIONS["noise"].description))
    draws: int = Field(10, ge=1, description=str(_DIRECTIONS["draws"].description))


def run_curvature(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Measure decision boundaries near images: distance, curvature, and directions of curvature that images share.

    For every network: the nearest boundary of every image and its curvature; the principal directions of some training
    images, and what unseen images make of those that are shared: curvature along them, noise in their span and outside
    it, and how much of adversarial and other perturbations lies in it. A second run finishes what is missing.

    Args:
        out: Directory or URI for three scans a network and ``report.html``.
        options: Fields of `CurvatureOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(CurvatureOptions, options)
    workspace = Workspace(out, run, quiet, kind="boundary")
    own = {"curvature": study.curvature, "extremes": study.extremes, "step_study": study.step_study or ()}
    measured = {**study.sampled(), **own}
    source = {
        **study.sampled(),
        "data": study.directions_data or study.data,
        "split": study.directions_split,
        "limit": study.directions_limit,
        "curvature": "extremes",
        "extremes": -(-study.keep_directions // 2),
        "keep_directions": study.keep_directions,
    }
    unseen = {**study.sampled(), "shared": study.shared, "noise": study.noise, "draws": study.draws}
    models = model_names(study.model)
    for name, model in models.items():
        workspace.check(f"{name}-boundary", model=model, **measured)
        workspace.check(f"{name}-principal", model=model, **source)
        workspace.validate({"model": model, "of": workspace.path(f"{name}-principal"), **unseen}, "directions")
    boundaries, principal, shared = [], [], []
    with workspace.cluster():
        for name, model in models.items():
            boundaries.append(workspace.scan(f"{name}-boundary", model=model, **measured))
            principal.append(workspace.scan(f"{name}-principal", model=model, **source))
            shared.append(workspace.scan(f"{name}-shared", kind="directions", model=model, of=principal[-1], **unseen))
    workspace.show("Distance to the decision boundary, in the Euclidean norm of the image", DISTANCES, boundaries)
    workspace.show("Mean curvature of the boundary", SUMMARY, boundaries)
    if "extremes" in study.curvature or "spectrum" in study.curvature:
        workspace.show("Largest and smallest principal curvatures, mean over the images", PROFILE, boundaries)
    if study.step_study:
        workspace.show("Mean curvature by differences, as a function of their step", _STEPS, boundaries)
    workspace.show("Curvature along shared directions, relative to random ones", _SHARED, shared)
    if study.noise != "none":
        workspace.show("Share of noisy images whose class changes, noise in S and in its complement", _NOISE, shared)
    workspace.show("Norm of perturbations projected on S (Table 1)", _NORMS, shared)
    return workspace.finish([*boundaries, *shared])
