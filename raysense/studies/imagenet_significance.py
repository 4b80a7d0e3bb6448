"""Which paths do the classes of a large data set use, and which classes share theirs? (Khaitan & Banerjee 2026)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from raysense.errors import UsageError
from raysense.scans.significance import SignificanceSpec
from raysense.studies.imagenet import ImagenetOptions, show_cost
from raysense.studies.study import Workspace, model_names, named_references, quoted
from raysense.validation import validated

_SPEC = SignificanceSpec.model_fields
_SUMMARY = """
SELECT scan, split, layer, n_classes, n_samples, mean_inter_class_kl AS "mean KL", mean_class_entropy AS "mean entropy",
    overall_entropy, mean_density AS density
FROM path_summary()
"""
_SEPARATION = """
SELECT scan, split, layer, class, class_name AS name, n_samples, nearest, nearest_name, nearest_kl AS "KL to it",
    mean_kl_to AS "mean KL to others", entropy
FROM class_separation() WHERE class IS NOT NULL AND nearest_kl IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY scan, split, layer ORDER BY nearest_kl {order}, class) <= {top}
ORDER BY scan, split, layer, nearest_kl {order}, class
"""
_SPARSITY = """
SELECT scan, split, layer, sum(n_paths)::BIGINT AS paths,
    sum(n_paths) FILTER (bin = 1) / sum(n_paths) AS "significant in < 5 %",
    sum(n_paths) FILTER (low >= 0.5) / sum(n_paths) AS "in >= 50 %",
    sum(n_paths) FILTER (bin = 20) / sum(n_paths) AS "in >= 95 %"
FROM sparsity() WHERE class IS NULL GROUP BY ALL ORDER BY scan, split, layer
"""
_BETWEEN = """
SELECT {scan} AS scan, {data} AS data, split_a AS split, split_b AS "its split", layer, count(*) AS classes,
    avg(kl) AS "mean KL of a class to itself", max(kl) AS largest, max_by(class_a, kl) AS "class of it"
FROM kl_between({scan}, {other}) WHERE class_a = class_b GROUP BY ALL
"""


class ImagenetSignificanceOptions(ImagenetOptions):
    """Options of the study."""

    ood: tuple[str, ...] = Field((), description="other data with the same classes to compare with, with a name")
    layers: str | None = Field(None, description=str(_SPEC["layers"].description))
    threshold: Literal["sum", "mean", "mean_abs"] = Field("sum", description=str(_SPEC["threshold"].description))
    positions: Literal["each", "any", "first"] = Field("each", description=str(_SPEC["positions"].description))
    per_class: int | None = Field(None, ge=1, description=str(_SPEC["per_class"].description))


def run_imagenet_significance(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Find the significant paths of every class of a large data set, and the classes that share them.

    For every network and layer: how far the classes' paths are apart, which classes are nearest to each other, how sparse
    the paths are; and how far classes move on other data. A second run finishes what is missing.

    Args:
        out: Directory or URI for one scan a network and data set, and ``report.html``.
        options: Fields of `ImagenetSignificanceOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(ImagenetSignificanceOptions, options)
    workspace = Workspace(out, run, quiet, kind="significance")
    models = model_names(study.model)
    others = named_references(study.ood)
    how = {name: getattr(study, name) for name in ("threshold", "positions", "per_class")}
    fixed = {**study.sampled(), **how, "layers": study.layers or ()}
    scans: dict[str, dict[str, Any]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for name, model in models.items():
        scans[name] = {"model": model, **fixed}
        for other, data in others.items():
            if f"{name}-{other}" in {**models, **scans}:
                raise UsageError(f"ood {other!r}: with model {name} it makes a name that is taken; choose another one")
            scans[f"{name}-{other}"] = {"model": model, **fixed, "data": data, "split": ()}
            pairs[f"{name}-{other}"] = (name, other)
    directories = workspace.scan_all(scans)
    workspace.show("Class paths: separation and entropy, nats", _SUMMARY, directories)
    for title, order in (("nearest to another", "ASC"), ("farthest from all others", "DESC")):
        query = _SEPARATION.format(order=order, top=study.top)
        workspace.show(f"Classes whose paths are {title}", query, directories)
    workspace.show("Share of the paths by how often they are significant", _SPARSITY, directories)
    if pairs:
        queries = [
            _BETWEEN.format(scan=quoted(name), other=quoted(scan), data=quoted(other))
            for scan, (name, other) in pairs.items()
        ]
        query = f"{' UNION ALL '.join(queries)} ORDER BY scan, data, split, layer"
        workspace.show("KL of classes to themselves in other data", query, directories)
    show_cost(workspace, directories)
    return workspace.finish(directories)
