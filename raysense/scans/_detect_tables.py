"""Arrow schemas of the detection scan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans._boundary_tables import METHOD, SAMPLE, STEP
from raysense.scans.tables import SAMPLES, UNITS, column

DETECTIONS = pa.schema(
    [
        SAMPLE,
        column("perturbed", pa.bool_(), "whether an attack moved the image into another class's region", "boolean"),
        column(
            "attack",
            pa.string(),
            "none: the image as it is; deepfool: x + scale r(x); noise: random, of the same norm",
            "name",
        ),
        column("scale", pa.float64(), "what r(x), which ends on the boundary, is multiplied by; 0 for none", "1"),
        column("distance", pa.float64(), "norm of the perturbation", "pixel values"),
        column("original", pa.int32(), "class predicted for the image as it is", "class index"),
        column("predicted", pa.int32(), "class predicted for this version of it", "class index"),
        column(
            "rho",
            pa.float64(),
            "Algorithm 2: mean curvature over directions and the boundaries to the other classes; null where not finite",
            "1 / pixel values",
            nullable=True,
        ),
        column("rho_stderr", pa.float64(), "its standard error over the directions", "1 / pixel values", nullable=True),
        column(
            "recovered_label",
            pa.int32(),
            "Algorithm 2: the class whose boundary is curved the most",
            "class index",
            nullable=True,
        ),
        column("n_classes", pa.int32(), "other classes whose boundaries were measured", "count"),
        column("n_directions", pa.int32(), "T, directions", "count"),
        column("max_softmax", pa.float64(), "probability of the predicted class, a baseline", "probability"),
        column("energy", pa.float64(), "-log sum exp of the logits, a baseline: high where unsure", "logits"),
        METHOD,
        STEP,
    ],
    metadata={"doc": "one row a sample and version of it: Algorithm 2 of Fawzi et al. (2018)"},
)


def detect_schemas() -> Mapping[str, pa.Schema]:
    """Every table of the detection scan."""
    return {"samples": SAMPLES, "detections": DETECTIONS, "units": UNITS}
