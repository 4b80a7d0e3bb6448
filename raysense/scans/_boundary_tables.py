"""Arrow schemas of the boundary scan and of the scan of its shared directions."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import SAMPLES, UNITS, column

SAMPLE = column("sample_id", pa.string(), "the sample", "id")
"""The key column of tables about samples."""

METHOD = column(
    "method",
    pa.string(),
    "derivatives behind curvatures: exact second derivatives, or differences of gradients; null where none were computed",
    "name",
    nullable=True,
)
STEP = column(
    "step",
    pa.float64(),
    "differences: h, the scale at which the boundary is looked at, in the Euclidean norm of the image; else null",
    "pixel values",
    nullable=True,
)

BOUNDARY = pa.schema(
    [
        SAMPLE,
        column("from_class", pa.int32(), "class i whose region the boundary encloses, f_i", "class index"),
        column(
            "to_class", pa.int32(), "class j on the other side at the point found; null where none", "class index", True
        ),
        column(
            "status",
            pa.string(),
            "found; outside: the image is not in the region (distance 0); blocked: none within the box or iterations",
            "name",
        ),
        column("norm", pa.string(), "norm of the distance: l2 or linf", "name"),
        column("distance", pa.float64(), "norm of r = z - x; null where blocked", "pixel values", nullable=True),
        column("image_norm", pa.float64(), "the same norm of the image itself", "pixel values"),
        column("iterations", pa.int32(), "steps to cross the boundary", "count"),
        column(
            "residual",
            pa.float64(),
            "how far z is from the boundary to first order: |F(z)| over the dual norm of its gradient",
            "pixel values",
            nullable=True,
        ),
        column(
            "alignment",
            pa.float64(),
            "how nearly r is the shortest way: cosine between r and the normal at z (linf: its counterpart); 1 where it is",
            "1",
            nullable=True,
        ),
        column(
            "slack",
            pa.float64(),
            "a class that was not looked at could be nearer only where its gradient exceeds this many times the largest "
            "seen; null where all were looked at, or none was found",
            "1",
            nullable=True,
        ),
        column("gradient_norm", pa.float64(), "Euclidean norm of the gradient of F at z", "logits", nullable=True),
        column(
            "mean_curvature",
            pa.float64(),
            "mean of the normal curvature over tangent directions; positive where the region of from_class is convex",
            "1 / pixel values",
            nullable=True,
        ),
        column(
            "curvature_stderr",
            pa.float64(),
            "standard error of mean_curvature over random directions; 0 for the whole spectrum by exact derivatives",
            "1 / pixel values",
            nullable=True,
        ),
        column("largest_curvature", pa.float64(), "largest principal curvature", "1 / pixel values", nullable=True),
        column("smallest_curvature", pa.float64(), "smallest principal curvature", "1 / pixel values", nullable=True),
        METHOD,
        STEP,
        column(
            "hessian_asymmetry",
            pa.float64(),
            "of the Hessian as computed: norm of its antisymmetric part over its own, about its relative error; null "
            "without the spectrum",
            "1",
            nullable=True,
        ),
    ],
    metadata={"doc": "one row a sample: the nearest decision boundary (Fawzi et al. 2018), and its curvature there"},
)

CURVATURES = pa.schema(
    [
        SAMPLE,
        column("rank", pa.int32(), "place among all P - 1 principal curvatures, 1 is the largest", "count"),
        column("n", pa.int32(), "P - 1, how many principal curvatures there are", "count"),
        column("curvature", pa.float64(), "principal curvature", "1 / pixel values"),
        column(
            "residual",
            pa.float64(),
            "an eigenvalue lies within this distance; by differences, where there are kinks, up to the sampling error",
            "1 / pixel values",
        ),
    ],
    metadata={
        "doc": "one row a sample and principal curvature that was computed: all, or some at both ends; by differences, "
        "where there are kinks, the ends of whole spectra are some percent too far out, and ends alone 10 to 40 % too small"
    },
)

PRINCIPAL_DIRECTIONS = pa.schema(
    [
        SAMPLE,
        column("place", pa.int32(), "1 is the largest magnitude of curvature", "count"),
        column("curvature", pa.float64(), "principal curvature", "1 / pixel values"),
        column("direction", pa.list_(pa.float32()), "unit vector in the image's values, channel by channel", "1"),
    ],
    metadata={"doc": "one row a sample and principal direction kept for `raysense scan directions`"},
)

CURVATURE_STEPS = pa.schema(
    [
        SAMPLE,
        column("step", pa.float64(), "h", "pixel values"),
        column(
            "mean_curvature", pa.float64(), "mean normal curvature by differences with this step", "1 / pixel values"
        ),
        column("curvature_stderr", pa.float64(), "its standard error", "1 / pixel values"),
        column("mean_magnitude", pa.float64(), "mean of the magnitude of the normal curvature", "1 / pixel values"),
    ],
    metadata={"doc": "one row a sample and step of --step-study: the curvature as a function of the scale"},
)

BOUNDARY_POINTS = pa.schema(
    [
        SAMPLE,
        column("point", pa.list_(pa.float32()), "z, the image's values channel by channel", "pixel values"),
    ],
    metadata={"doc": "one row a sample whose boundary was found: the point z on it"},
)

DIRECTION_CURVATURES = pa.schema(
    [
        SAMPLE,
        column("direction", pa.int32(), "i, place of the shared direction u_i, 1 is the most shared", "count"),
        column("rho", pa.float64(), "rho_i: |u_i' P H P u_i| over its mean for random directions", "1"),
        column("curvature", pa.float64(), "u_i' P H P u_i / |grad F|", "1 / pixel values"),
        column("random_magnitude", pa.float64(), "the mean for random directions", "1 / pixel values"),
        METHOD,
        STEP,
    ],
    metadata={"doc": "one row a sample and shared direction: how curved the boundary near the sample is along it"},
)

DIRECTION_NOISE = pa.schema(
    [
        SAMPLE,
        column("space", pa.string(), "S, the span of the shared directions, or its complement", "name"),
        column("magnitude", pa.float64(), "norm of the noise over the mean norm of the images", "1"),
        column("draws", pa.int32(), "random perturbations tried", "count"),
        column("changed", pa.int32(), "how many changed the predicted class", "count"),
    ],
    metadata={"doc": "one row a sample, space and magnitude of noise"},
)

DIRECTION_NORMS = pa.schema(
    [
        SAMPLE,
        column(
            "perturbation",
            pa.string(),
            "random; adversarial: r(x); difference: x2 - x of another sample; image gradient: the spatial gradient of the "
            "image; logit gradient: that of the margin",
            "name",
        ),
        column("share", pa.float64(), "norm of its projection on S over its own norm", "1"),
    ],
    metadata={"doc": "one row a sample and kind of perturbation: how much of it lies in S"},
)


def boundary_schemas() -> Mapping[str, pa.Schema]:
    """Every table of the boundary scan."""
    return {
        "samples": SAMPLES,
        "boundary": BOUNDARY,
        "curvatures": CURVATURES,
        "principal_directions": PRINCIPAL_DIRECTIONS,
        "curvature_steps": CURVATURE_STEPS,
        "boundary_points": BOUNDARY_POINTS,
        "units": UNITS,
    }


def directions_schemas() -> Mapping[str, pa.Schema]:
    """Every table of the scan of shared directions."""
    return {
        "samples": SAMPLES,
        "direction_curvatures": DIRECTION_CURVATURES,
        "direction_noise": DIRECTION_NOISE,
        "direction_norms": DIRECTION_NORMS,
        "units": UNITS,
    }
