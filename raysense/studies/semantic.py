"""The benchmark of Hamdi & Ghanem (2020), Table 2: SRVR of several networks over shapes of several classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raysense.scans.semantic import SemanticSpec
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

BUNDLED_NETWORKS = ("raysense.studies.shape_networks:narrow", "raysense.studies.shape_networks:all_around")
"""Two networks for the procedural shapes that are trained on first use: the first has seen them from the front only."""

_SPEC = SemanticSpec.model_fields
_TABLE_2 = """
SELECT scan AS network, kind, method, n_boxes AS boxes, 100 * srvr AS "SRVR %", 100 * stderr AS "± %",
    100 * clipped AS "clipped %", 100 * feasible_srvr AS "feasible %", 100 * feasible_stderr AS "feasible ± %",
    fraction_holds AS holds, mean_evaluations AS evaluations
FROM srvr() ORDER BY kind DESC, family, method, scan
"""
_BY_CLASS = """
SELECT * FROM (
    PIVOT (
        SELECT scan, kind, class_name, 100 * feasible_srvr AS feasible
        FROM srvr_by_class() WHERE method = '{method}' AND label IS NOT NULL
    ) ON scan USING first(feasible)
) ORDER BY kind DESC, class_name
"""
_TRAPS = """
SELECT scan AS network, shape_id AS shape, axes, round(area, 4) AS area, round(min_score, 3) AS min_score,
    round(depth, 3) AS depth, u_min AS at
FROM semantic_traps() ORDER BY depth * area DESC LIMIT 10
"""
_FORETELLS = """
SELECT scan AS network, axes, axis, measure, n_points AS poses, n_events AS falls, round(roc_area, 3) AS "ROC area",
    round(roc_stderr, 3) AS "±", round(rank_correlation, 3) AS "rank correlation with the slope"
FROM fi_foretells_traps() ORDER BY ALL
"""


class SemanticStudyOptions(BaseModel):
    """Options of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: tuple[str, ...] = Field(BUNDLED_NETWORKS, min_length=1, description="model reference")
    shapes: str = Field("procedural?variants=1", description=str(_SPEC["shapes"].description))
    classes: str | None = Field(None, description=str(_SPEC["classes"].description))
    axes: str = Field("azimuth,elevation", description=str(_SPEC["axes"].description))
    fixed: str | None = Field(None, description=str(_SPEC["fixed"].description))
    maps: str | None = Field("azimuth:6,elevation:10", description=str(_SPEC["maps"].description))
    methods: str = Field("constrained,published", description=str(_SPEC["methods"].description))
    kinds: str = Field("robust", description=str(_SPEC["kinds"].description))
    initial: str = Field("auto", description=str(_SPEC["initial"].description))
    influence: bool = Field(False, description=str(_SPEC["influence"].description))
    eps_mean: float = Field(0.5, description=str(_SPEC["eps_mean"].description))
    eps_variance: float = Field(0.05, description=str(_SPEC["eps_variance"].description))
    evaluations: int | None = Field(None, description=str(_SPEC["evaluations"].description))
    iterations: int = Field(60, description=f"{_SPEC['iterations'].description}; the paper's are 800")
    half_width: float = Field(3.0, description=f"{_SPEC['half_width'].description}; the paper's is 1e-5")
    renderer: str = Field("auto", description=str(_SPEC["renderer"].description))
    size: int | None = Field(None, description=str(_SPEC["size"].description))
    limit: int | None = Field(None, description="only N shapes of every class")
    unit_size: int | None = Field(None, description=str(_SPEC["unit_size"].description))
    seed: int = Field(0, description=str(_SPEC["seed"].description))


def run_semantic(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Compare in how much of a semantic space networks keep seeing shapes of several classes.

    Maps of the score, regions grown around initial points by our constrained method and by the paper's three, and their
    volume ratios (SRVR, Table 2), by network, class and method, with bootstrap errors; traps in the maps. A second run
    finishes what is missing.

    Args:
        out: Directory or URI for one scan a network and ``report.html``.
        options: Fields of `SemanticStudyOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(SemanticStudyOptions, options)
    workspace = Workspace(out, run, quiet, kind="semantic")
    spec = study.model_dump(exclude={"model", "classes", "fixed", "maps"}) | {
        "classes": study.classes or (),
        "fixed": study.fixed or (),
        "maps": study.maps or (),
    }
    directories = workspace.scan_each(model_names(study.model), spec)
    workspace.show("Semantic robust volume ratio of every network and method", _TABLE_2, directories)
    checked = validated(SemanticSpec, {"model": study.model[0], **spec})
    method = checked.growing[0] if checked.growing else ""
    if method:
        workspace.show(
            f"Volume that meets Eq. (2) by class, method {method}, in %", _BY_CLASS.format(method=method), directories
        )
    if checked.maps:
        workspace.show("The largest and deepest traps", _TRAPS, directories)
    if checked.maps and checked.influence:
        workspace.show("Does FI foretell where the score falls?", _FORETELLS, directories)
    return workspace.finish(directories)
