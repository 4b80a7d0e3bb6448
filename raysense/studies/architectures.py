"""Setup 2 (Shu & Zhu 2019, section 3.2, Figure 4): sensitivity of networks, and of their layers, to their weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.studies.study import BUNDLED_MODELS, StudyOptions, Workspace, model_names, quoted
from raysense.validation import validated

_PERCENTILES = """
PIVOT (SELECT percentile, scan, split, fi FROM fi_percentiles() WHERE target = 'parameters')
ON scan IN ({columns}) USING first(fi) GROUP BY split, percentile ORDER BY split, percentile
"""
_LAYERS = """
SELECT scan AS network, layer, p50, p95, p100, fraction_at_bound, median_jacobian_norm
FROM layer_fi() WHERE scan NOT IN ({left_out})
QUALIFY row_number() OVER (PARTITION BY scan ORDER BY mean_log10_fi {order}, position) <= {layers}
ORDER BY scan, mean_log10_fi {order}, position
"""
_AT_BOUND = "SELECT scan FROM layer_fi() GROUP BY scan HAVING min(fraction_at_bound) = 1 ORDER BY scan"


class ArchitectureOptions(StudyOptions):
    """Options of the study."""

    model: tuple[str, ...] = Field(BUNDLED_MODELS, min_length=1, description="model reference")
    split: str | None = Field(
        None, description="split to scan; none takes train of the digits (as the paper does), else the data's default"
    )
    layers: int = Field(3, ge=1, description="layers to print of each network, at either end")


def run_architectures(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Compare how sensitive networks are to perturbations of all their weights, and of each layer's.

    FI of all trainable parameters (Setup 2.1) and of every trainable layer (Setup 2.2), f = -log p of the true class.
    A second run finishes what is missing.

    Args:
        out: Directory or URI for one scan a network and ``report.html``.
        options: Fields of `ArchitectureOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(ArchitectureOptions, options)
    workspace = Workspace(out, run, quiet)
    models = model_names(study.model)
    spec = {
        "data": study.data,
        "split": study.split or ("train" if study.data == "digits" else ()),
        "limit": study.limit,
        "objective": "label",
        "target": ("parameters", "layer"),
        **study.how(),
    }
    directories = workspace.scan_each(models, spec)
    columns = ", ".join(map(quoted, models))
    workspace.show("Percentiles of FI of all parameters", _PERCENTILES.format(columns=columns), directories)
    at_bound = [row["scan"] for row in workspace.rows(_AT_BOUND, directories)]
    for name in at_bound:
        workspace.say(
            f"\n{name}: FI of every layer and image is its bound (1 - p)/p, as that of all parameters: "
            "it says no more than the softmax, and no layer is more sensitive than another"
        )
    if len(at_bound) < len(models):
        left_out = ", ".join(map(quoted, ["", *at_bound]))
        for title, order in (("Most sensitive layers", "DESC"), ("Least sensitive layers", "ASC")):
            query = _LAYERS.format(order=order, layers=study.layers, left_out=left_out)
            workspace.show(title, query, directories)
    return workspace.finish(directories)
