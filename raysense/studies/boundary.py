"""How far are decision boundaries from images, how curved, and what are the regions like? (Fawzi et al. 2018)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.errors import UsageError
from raysense.scans import get_scan
from raysense.scans.boundary import BoundarySpec
from raysense.scans.convexity import ConvexitySpec
from raysense.scans.detect import DetectSpec
from raysense.scans.paths import PathsSpec
from raysense.scans.sampled import split_text
from raysense.studies.boundaries import CurvedStudyOptions
from raysense.studies.boundary_curvature import DISTANCES, PROFILE, SUMMARY
from raysense.studies.boundary_detection import AREAS
from raysense.studies.boundary_topology import CONNECTED, CONVEX
from raysense.studies.imagenet import DEFAULT_MODEL, show_cost
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

_SPEC = BoundarySpec.model_fields
_OWN: dict[str, tuple[str, ...]] = {
    "boundary": ("norm", "curvature", "extremes"),
    "paths": ("scenarios", "pairs", "spacing"),
    "convexity": ("k", "groups"),
    "detect": ("scales",),
}
"""Options of the study that go to each kind of scan, beside what says what is scanned."""
_TABLES = {
    "paths": ("Paths between points of one predicted class, within the class", CONNECTED),
    "convexity": ("Share of the convex combinations of k images of a class that stay in it", CONVEX),
    "detect": ("Areas under the ROC curves: perturbed images against images as they are", AREAS),
}


class BoundaryOptions(CurvedStudyOptions):
    """Options of the study."""

    model: tuple[str, ...] = Field((DEFAULT_MODEL,), min_length=1, description="model reference")
    data: str = Field(description=str(_SPEC["data"].description))
    with_: str = Field(
        "", alias="with", description="further kinds of scan, separated by commas: paths, convexity, detect"
    )
    norm: str = Field("l2", description=str(_SPEC["norm"].description))
    curvature: str = Field("mean", description=str(_SPEC["curvature"].description))
    extremes: int = Field(5, ge=1, description=str(_SPEC["extremes"].description))
    scenarios: str = Field(
        "data,adversarial,noise", description=f"paths: {PathsSpec.model_fields['scenarios'].description}"
    )
    pairs: int = Field(100, ge=1, description=f"paths: {PathsSpec.model_fields['pairs'].description}")
    spacing: float = Field(1e-4, description=f"paths: {PathsSpec.model_fields['spacing'].description}")
    k: str = Field("2,3,5,10,20", description=f"convexity: {ConvexitySpec.model_fields['k'].description}")
    groups: int = Field(100, ge=1, description=f"convexity: {ConvexitySpec.model_fields['groups'].description}")
    scales: str = Field("1.02,1.5,2,3", description=f"detect: {DetectSpec.model_fields['scales'].description}")

    def kinds(self) -> tuple[str, ...]:
        """Kinds of scan, boundary first; UsageError where one is not of these."""
        asked: tuple[str, ...] = split_text(self.with_, ",")
        for kind in asked:
            if kind not in _TABLES:
                raise UsageError(f"argument 'with' is {self.with_!r}; it must name some of {', '.join(_TABLES)}")
        return ("boundary", *dict.fromkeys(asked))

    def spec(self, kind: str) -> dict[str, Any]:
        """The spec of the scan of a kind, but for the model."""
        known = get_scan(kind).spec_type.model_fields
        sampled = {name: value for name, value in self.sampled().items() if name in known}
        return {**sampled, **{name: getattr(self, name) for name in _OWN[kind]}}


def run_boundary(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Measure how far decision boundaries are from images, and how curved they are.

    With paths, convexity or detect also: whether the regions are connected, whether they are convex, and whether curvature
    tells perturbed images. A second run finishes what is missing.

    Args:
        out: Directory or URI for one scan a network and kind, and ``report.html``.
        options: Fields of `BoundaryOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(BoundaryOptions, options)
    workspace = Workspace(out, run, quiet, kind="boundary")
    scans = {
        f"{name}-{kind}": {"kind": kind, "model": model, **study.spec(kind)}
        for kind in study.kinds()
        for name, model in model_names(study.model).items()
    }
    directories = workspace.scan_all(scans)
    of_kind = {
        kind: [directory for directory, spec in zip(directories, scans.values(), strict=True) if spec["kind"] == kind]
        for kind in study.kinds()
    }
    boundaries = of_kind["boundary"]
    workspace.show(f"Distance to the decision boundary, norm {study.norm}, pixel values", DISTANCES, boundaries)
    if study.curvature != "none":
        workspace.show("Mean curvature of the boundary", SUMMARY, boundaries)
    if "extremes" in study.curvature or "spectrum" in study.curvature:
        workspace.show("Largest and smallest principal curvatures, mean over the images", PROFILE, boundaries)
    for kind, (title, query) in _TABLES.items():
        if kind in of_kind:
            workspace.show(title, query, of_kind[kind])
    show_cost(workspace, directories)
    return workspace.finish(directories)
