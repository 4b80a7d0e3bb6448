"""Are classification regions connected, and are they convex? (Fawzi et al. 2018)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.scans.convexity import ConvexitySpec
from raysense.scans.paths import PathsSpec
from raysense.studies.boundaries import BoundaryStudyOptions
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

_PATHS, _CONVEXITY = PathsSpec.model_fields, ConvexitySpec.model_fields
CONNECTED = """
SELECT scan, scenario, pairs, connected, straight, mean_anchors AS anchors, mean_length_ratio - 1 AS "mean D - 1",
    max_length_ratio - 1 AS "largest D - 1", errors
FROM path_statistics()
"""
CONVEX = """
SELECT scan, k, groups, share_inside, stderr AS "±", share_whole AS "all of a group" FROM convexity_curve()
"""


class TopologyOptions(BoundaryStudyOptions):
    """Options of the study."""

    scenarios: str = Field("data,adversarial,noise", description=str(_PATHS["scenarios"].description))
    pairs: int = Field(100, ge=1, description=str(_PATHS["pairs"].description))
    spacing: float = Field(1e-4, ge=1e-6, le=0.5, description=str(_PATHS["spacing"].description))
    max_depth: int = Field(12, ge=0, description=str(_PATHS["max_depth"].description))
    pictures: int = Field(3, ge=0, description=str(_PATHS["pictures"].description))
    resolution: int = Field(64, ge=8, description=str(_PATHS["resolution"].description))
    k: str = Field("2,3,5,10,20", description=str(_CONVEXITY["k"].description))
    groups: int = Field(100, ge=1, description=str(_CONVEXITY["groups"].description))
    combinations: int = Field(10, ge=1, description=str(_CONVEXITY["combinations"].description))


def run_topology(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Connect points of one predicted class by paths within it, and see whether convex combinations stay in it.

    Three kinds of pairs: two images, an image and an adversarial one, an image and perturbed noise (Algorithm 1). A
    second run finishes what is missing.

    Args:
        out: Directory or URI for two scans a network and ``report.html``.
        options: Fields of `TopologyOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(TopologyOptions, options)
    workspace = Workspace(out, run, quiet, kind="paths")
    names = ("scenarios", "pairs", "spacing", "max_depth", "pictures", "resolution")
    connected = {**study.sampled(), **{name: getattr(study, name) for name in names}}
    sampled = {name: value for name, value in study.sampled().items() if name in ConvexitySpec.model_fields}
    convex = {**sampled, **{name: getattr(study, name) for name in ("k", "groups", "combinations")}}
    models = model_names(study.model)
    for name, model in models.items():
        workspace.check(f"{name}-paths", model=model, **connected)
        workspace.check(f"{name}-convexity", kind="convexity", model=model, **convex)
    paths, convexity = [], []
    with workspace.cluster():
        for name, model in models.items():
            paths.append(workspace.scan(f"{name}-paths", model=model, **connected))
            convexity.append(workspace.scan(f"{name}-convexity", kind="convexity", model=model, **convex))
    workspace.show("Paths between points of one predicted class, within the class", CONNECTED, paths)
    workspace.show("Share of the convex combinations of k images of a class that stay in it", CONVEX, convexity)
    return workspace.finish([*paths, *convexity])
