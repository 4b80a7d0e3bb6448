"""Arrow schemas of the semantic scan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import UNITS, column

_F64, _I32, _TEXT, _FLAG = pa.float64(), pa.int32(), pa.string(), pa.bool_()
_LIST = pa.list_(pa.float64())
_ID = column("shape_id", _TEXT, "id of the shape, or sample_id of the image", "id")
_LABEL = column("label", _I32, "the class z whose score is looked at", "class index")
_AXES = column("axes", _TEXT, "axes of the coordinates, separated by commas", "names")
_BOX = (
    column("init", _I32, "which of the initial points, from 0", "index"),
    column("kind", _TEXT, "robust, or adversarial: robust on 1 - score, Eq. (4)", "name"),
)
_METHOD = column("method", _TEXT, "constrained, naive, oir_b, oir_w or trapezoid", "name")
_UNIT = "unit of each axis"

SUBJECTS = pa.schema(
    [
        _ID,
        _LABEL,
        column("class_name", _TEXT, "what the shape's folder or the data set calls the class", "name"),
        column("source", _TEXT, "shape or image", "name"),
        column("vertices", _I32, "vertices of the mesh; null for images", "count", True),
        column("faces", _I32, "faces that are kept; null for images", "count", True),
        column("duplicates", _I32, "faces dropped because they are stored twice; null for images", "count", True),
        column("degenerate", _I32, "faces dropped because they have no area; null for images", "count", True),
        column("error", _TEXT, "why the shape or image could not be used; null where it could", "text", True),
    ],
    metadata={"doc": "one row a shape or image that was scanned"},
)

SEMANTIC_MAPS = pa.schema(
    [
        _ID,
        _LABEL,
        _AXES,
        column("steps", pa.list_(_I32), "cells of the whole map along each axis", "count"),
        column("cell", pa.list_(_I32), "place of the cell along each axis, from 0", "index"),
        column("u", _LIST, "coordinates of the cell", _UNIT),
        column(
            "score", _F64, "f(u), softmax probability of the class, Eq. (1); null where not finite", "probability", True
        ),
        column("predicted", _I32, "most probable class; null as score", "class index", True),
        column("p_predicted", _F64, "its softmax probability; null as score", "probability", True),
        column("fi", _F64, "FI of all axes of the space jointly, f = -log score; null where not asked for", "1", True),
        column("fi_bound", _F64, "(1 - score) / score, which fi does not exceed; null as fi", "1", True),
        column(
            "jacobian_norm",
            _F64,
            "norm of the derivatives of -log score, each per length of its axis; null as fi",
            "1",
            True,
        ),
    ],
    metadata={"doc": "one row a cell: maps of the score over one or two axes (network semantic maps)"},
)

REGIONS = pa.schema(
    [
        _ID,
        _LABEL,
        *_BOX,
        column("family", _TEXT, "constrained (feasible for Eq. (2) by construction) or published", "name"),
        _METHOD,
        _AXES,
        column("u0", _LIST, "initial point", _UNIT),
        column("lower", _LIST, "lower bounds a, not clipped; null where growth diverged", _UNIT, True),
        column("upper", _LIST, "upper bounds b, not clipped; null where growth diverged", _UNIT, True),
        column("volume", _F64, "volume over that of the space, not clipped; null where diverged", "fraction", True),
        column(
            "volume_clipped",
            _F64,
            "the same of the part inside the space, where a periodic axis has one turn at most; null where diverged",
            "fraction",
            True,
        ),
        column("mean_score", _F64, "estimated mean of the score over the part inside the space", "probability", True),
        column("mean_stderr", _F64, "standard error of mean_score", "probability", True),
        column("mean_lower", _F64, "lower end of a 95% interval of the mean", "probability", True),
        column("mean_upper", _F64, "upper end of a 95% interval of the mean", "probability", True),
        column("var_score", _F64, "estimated variance of the score over it", "1", True),
        column("var_stderr", _F64, "standard error of var_score", "1", True),
        column("contains_u0", _FLAG, "whether the initial point is inside", "", True),
        column("holds", _FLAG, "whether Eq. (2) holds: mean, variance, u0 (adversarial: on 1 - score)", "", True),
        column("evidence_points", _I32, "scores that the estimates are from", "count"),
        column("loss", _F64, "loss of the bounds; constrained: minus the volume; null where diverged", "1", True),
        column("iterations", _I32, "updates (published) or rounds (constrained)", "count"),
        column("converged", _FLAG, "whether growth ended by itself, also where no region can be found"),
        column("diverged", _FLAG, "whether bounds became infinite or undefined"),
        column(
            "evaluations", _I32, "scores asked for while growing, those shared with other regions counted too", "count"
        ),
        column("u0_score", _F64, "score at the initial point; null where not finite", "probability", True),
        column("u0_fi", _F64, "FI of all axes there; null where not asked for", "1", True),
        column("u0_fi_bound", _F64, "(1 - score) / score there; null as u0_fi", "1", True),
    ],
    metadata={"doc": "one row a region: boxes grown around initial points, with the evidence for Eq. (2)"},
)

REGION_TRACES = pa.schema(
    [
        _ID,
        *_BOX,
        _METHOD,
        column("iteration", _I32, "from 0; the state before its update", "count"),
        column("lower", _LIST, "lower bounds", _UNIT),
        column("upper", _LIST, "upper bounds", _UNIT),
        column("loss", _F64, "loss; constrained: minus the volume", "1", True),
    ],
    metadata={"doc": "one row a region and iteration: how it grew"},
)


def semantic_schemas() -> Mapping[str, pa.Schema]:
    """All tables of the semantic scan by name."""
    return {
        "subjects": SUBJECTS,
        "semantic_maps": SEMANTIC_MAPS,
        "regions": REGIONS,
        "region_traces": REGION_TRACES,
        "units": UNITS,
    }
