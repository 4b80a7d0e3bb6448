"""How sensitive are networks on a large data set, where, and what does that say beyond the softmax? (Shu & Zhu 2019)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from raysense.scans.influence import InfluenceSpec
from raysense.studies.imagenet import ImagenetOptions, show_cost
from raysense.studies.study import Workspace, model_names
from raysense.validation import validated

_SPEC = InfluenceSpec.model_fields
_ACCURACY = """
SELECT scan, split, count(*) AS n, avg((label = predicted)::INTEGER) AS accuracy, count(error) AS errors
FROM samples GROUP BY ALL ORDER BY scan, split
"""
_PERCENTILES = """
PIVOT (SELECT scan, target, split, percentile, coalesce(fi, fi_upper) AS fi FROM fi_percentiles() WHERE layer IS NULL)
ON percentile IN (75, 80, 85, 90, 95, 98, 99, 100) USING first(fi) GROUP BY scan, target, split ORDER BY scan, target, split
"""
_LAYERS = """
SELECT scan, layer, p50, p95, p99, p100, fraction_at_bound, median_jacobian_norm
FROM layer_fi() QUALIFY row_number() OVER (PARTITION BY scan ORDER BY p95 DESC, position) <= {top}
ORDER BY scan, p95 DESC, position
"""
_STRANGEST = """
SELECT scan, target, place, sample_id, split, label_name AS label, predicted_name AS predicted, p_label,
    coalesce(fi, fi_upper) AS fi, coalesce(fi, fi_upper) / fi_bound AS "of the bound"
FROM fi_outliers(n := {top}) WHERE layer IS NULL ORDER BY scan, target, place
"""
_CLASSES = """
WITH classwise AS (
    SELECT scan, target, label, count(*) AS n, median(coalesce(fi, fi_upper)) AS median_fi,
        quantile_cont(coalesce(fi, fi_upper), 0.95) AS p95
    FROM influence JOIN samples USING (scan, sample_id) WHERE layer IS NULL GROUP BY ALL
)
SELECT c.scan, target, label AS class, name, n, median_fi AS "median FI", p95
FROM classwise AS c LEFT JOIN classes AS k ON k.scan = c.scan AND class = label
QUALIFY row_number() OVER (PARTITION BY c.scan, target ORDER BY median_fi DESC, label) <= {top}
ORDER BY c.scan, target, median_fi DESC, label
"""
_INFORMATIVE = """
SELECT scan, target, n, n_at_bound, n_below, fraction_at_bound, fraction_informative, median_ratio
FROM fi_informative() WHERE layer IS NULL ORDER BY scan, target
"""


class ImagenetInfluenceOptions(ImagenetOptions):
    """Options of the study."""

    target: str = Field("input", description=str(_SPEC["target"].description))
    objective: Literal["label", "predicted", "both"] = Field(
        "label", description=f"{_SPEC['objective'].description}; both: a scan for each, at twice the cost"
    )
    method: Literal["certified", "exact", "bound"] = Field("certified", description=str(_SPEC["method"].description))
    tolerance: float = Field(1e-3, gt=0, lt=1, description=str(_SPEC["tolerance"].description))


def run_imagenet_influence(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Measure how sensitive networks are to perturbations, image by image, on a large data set.

    FI of every image: its percentiles by split, the strangest images, the classes of largest median, the share of images
    for which FI says no more than the softmax, and what the scan has cost. A second run finishes what is missing.

    Args:
        out: Directory or URI for one scan a network (and objective) and ``report.html``.
        options: Fields of `ImagenetInfluenceOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(ImagenetInfluenceOptions, options)
    workspace = Workspace(out, run, quiet)
    objectives = ("label", "predicted") if study.objective == "both" else (study.objective,)
    how = {name: getattr(study, name) for name in ("target", "method", "tolerance")}
    scans = {
        name if len(objectives) == 1 else f"{name}-{objective}": {
            "model": model,
            **study.sampled(),
            **how,
            "objective": objective,
        }
        for name, model in model_names(study.model).items()
        for objective in objectives
    }
    directories = workspace.scan_all(scans)
    layers = any(target.startswith("layer") for target in study.target.split(";"))
    workspace.show("Accuracy", _ACCURACY, directories)
    if study.target != "pixels":
        workspace.show("Percentiles of FI", _PERCENTILES, directories)
        workspace.show("The strangest images", _STRANGEST.format(top=study.top), directories)
        workspace.show("Classes with the largest median FI", _CLASSES.format(top=study.top), directories)
        workspace.show("Images for which FI is its bound (1 - p)/p, and below it", _INFORMATIVE, directories)
    if layers:
        workspace.show("Most sensitive layers", _LAYERS.format(top=study.top), directories)
    show_cost(workspace, directories)
    return workspace.finish(directories)
