"""The demo: influence, semantic spaces, class paths and boundaries, on the bundled real digits and on procedural shapes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from raysense.studies import boundary_curvature, boundary_detection, boundary_topology
from raysense.studies.boundaries import BUNDLED_MODELS
from raysense.studies.conditions import Conditions
from raysense.studies.significance import ConditionOptions
from raysense.studies.study import Workspace, model_names

_MODEL = {"model": "digits", "data": "digits"}
_PERCENTILES = """
PIVOT (SELECT percentile, split, fi FROM fi_percentiles() WHERE target = 'input')
ON split USING first(fi) ORDER BY percentile
"""
_STRANGEST = """
SELECT place, sample_id, label_name AS label, predicted_name AS predicted, p_label, fi
FROM fi_outliers(n := 5) WHERE target = 'input' ORDER BY place
"""
_AT_BOUND = """
SELECT what, at_bound FROM (
    SELECT 0 AS scale, row_number() OVER () AS place, concat_ws(' ', target, layer) AS what, fraction_at_bound AS at_bound
    FROM fi_informative()
    UNION ALL
    SELECT scale, 0, concat(scale, ' x ', scale, ' pixels'), avg((value >= (1 - 1e-6) * fi_bound)::INT)
    FROM (SELECT scale, fi_bound, unnest(fi) AS value FROM influence_maps) GROUP BY scale
) ORDER BY scale, place
"""
_ATTACKS = """
SELECT sample_id, row, "column", round(fi, 4) AS fi, round(before[1], 2) AS before, round(after[1], 2) AS after,
    class_before, p_before, class_after, p_after
FROM pixel_attacks ORDER BY p_before_after - p_before, sample_id
"""


_POSES = {"model": "digits", "data": "digits", "split": "test", "limit": 6}
_SHAPES = {
    "shapes": "procedural?variants=1",
    "classes": "chair,cup,teapot",
    "maps": "azimuth:15,elevation:15;azimuth:5",
    "influence": True,
    "methods": "constrained,published",
    "evaluations": 250,
    "evidence": 48,
    "iterations": 30,
    "half_width": 5,
}
_NETWORKS = {"front": "raysense.studies.shape_networks:narrow", "around": "raysense.studies.shape_networks:all_around"}
"""Names of scans, and two networks for renders: the first has been trained on views from the front only."""
_ROBUST = """
SELECT scan AS network, method, 100 * srvr AS "SRVR %", 100 * feasible_srvr AS "feasible %",
    100 * feasible_stderr AS "± %", fraction_holds AS "Eq. (2) holds", mean_evaluations AS evaluations
FROM srvr() WHERE kind = 'robust' ORDER BY family, method, scan DESC
"""
_SIDES = """
SELECT scan AS network, class_name AS class,
    avg(score) FILTER (u[1] <= 70 OR u[1] >= 290) AS "mean score, front",
    avg(score) FILTER (u[1] BETWEEN 110 AND 250) AS "mean score, back"
FROM semantic_maps JOIN subjects USING (scan, shape_id) WHERE axes = 'azimuth,elevation'
GROUP BY ALL ORDER BY scan DESC, class
"""
_TURNED = """
SELECT shape_id AS digit, round(lower[1]) AS "from degrees", round(upper[1]) AS "to degrees",
    round(lower[2], 2) AS "from scale", round(upper[2], 2) AS "to scale", mean_score, holds
FROM regions WHERE kind = 'robust' ORDER BY shape_id
"""


_BOUNDARIES = {"data": "digits", "split": "test", "limit": 150, "curvature": "spectrum", "step_study": "0.01,0.1,1"}
_PATHS = {**_MODEL, "split": "test", "pairs": 30, "spacing": 1e-3, "pictures": 2}
_DETECTION = {**_MODEL, "split": "test", "limit": 100, "directions": 10, "scales": "1.02,2", "noise": False}


def run_demo(out: str | os.PathLike[str], run: Mapping[str, Any], quiet: bool = False) -> int:
    """Scan the bundled digits and procedural shapes, print what was found, write the report.

    First the influence of whole images and of every layer on all digits; then maps of single pixels and squares, and
    one-pixel attacks, for the five strangest. Then the semantic space of a few digits (rotation and scale), and that of
    rendered shapes (azimuth and elevation of the camera) for two networks, of which one was trained on views from the
    front only. Then the class paths of a network before training, trained on shuffled labels, and trained. Last the
    decision boundaries near digits for a network with kinks and a smooth one: distance, curvature, whether classes are
    connected, and whether curvature tells perturbed digits. A second run finds networks and scans complete and only
    prints and writes again.

    Args:
        out: Directory of the scans and the report.
        run: How to run, as for :func:`raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.
    """
    workspace = Workspace(out, run, quiet)
    conditions = Conditions(ConditionOptions(ood=(), layers="output", unit_size=64).plan(), workspace)
    with workspace.cluster():
        whole = workspace.scan("influence", **_MODEL, split="train,test", target="input;layer")
        strangest = [row["sample_id"] for row in workspace.rows(_STRANGEST, [whole])]
        pixels = workspace.scan(
            "pixels",
            **_MODEL,
            split="train,test",
            samples=strangest,
            target="pixels",
            objective="predicted",
            attack=True,
        )
        turned = workspace.scan("turned", kind="semantic", **_POSES, maps="rotation:10,scale:0.1", influence=True)
        networks = [workspace.scan(name, kind="semantic", model=model, **_SHAPES) for name, model in _NETWORKS.items()]
        conditions.train()
        conditions.scan()
        boundaries = [
            workspace.scan(f"{name}-boundary", kind="boundary", model=model, **_BOUNDARIES)
            for name, model in model_names(BUNDLED_MODELS).items()
        ]
        paths = workspace.scan("paths", kind="paths", **_PATHS)
        detection = workspace.scan("detection", kind="detect", **_DETECTION)
    workspace.show("Percentiles of FI of the whole image, by split", _PERCENTILES, [whole])
    workspace.show("The five strangest digits: the largest FI", _STRANGEST, [whole])
    workspace.show("Share for which FI is (1 - p)/p, and says no more than the softmax", _AT_BOUND, [whole, pixels])
    workspace.show("One-pixel attacks on them, at the pixel with the largest FI", _ATTACKS, [pixels])
    workspace.show("Rotations and scales at which digits keep their class", _TURNED, [turned])
    workspace.show("Mean score over the poses of shapes, by side", _SIDES, networks)
    workspace.show("Share of the poses in which shapes keep their class", _ROBUST, networks)
    conditions.show_summary()
    conditions.say_fit()
    workspace.show("Distance to the decision boundary", boundary_curvature.DISTANCES, boundaries)
    workspace.show("Mean curvature of the boundary", boundary_curvature.SUMMARY, boundaries)
    workspace.show(
        "Paths between points of one predicted class, within the class", boundary_topology.CONNECTED, [paths]
    )
    workspace.show("Areas under the ROC curves: perturbed digits against digits", boundary_detection.AREAS, [detection])
    scans = [whole, pixels, turned, *networks, *conditions.directories, *boundaries, paths, detection]
    return workspace.finish(scans)
