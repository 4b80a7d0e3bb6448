"""Arrow schemas of the scans of paths and of convex combinations."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import UNITS, column

_PAIR = column("pair", pa.string(), "the pair: scenario and number", "id")
_SCENARIO = column(
    "scenario",
    pa.string(),
    "data: two images; adversarial: the second is an image of another class, perturbed into this one; noise: the second is "
    "noise, perturbed into this class",
    "name",
)

PATHS = pa.schema(
    [
        _PAIR,
        _SCENARIO,
        column("sample_a", pa.string(), "the first image", "id", nullable=True),
        column(
            "sample_b", pa.string(), "the second image before it was perturbed; null for noise", "id", nullable=True
        ),
        column("class", pa.int32(), "the class that both ends are predicted as", "class index", nullable=True),
        column("connected", pa.bool_(), "whether a path within the class was found", "boolean", nullable=True),
        column("straight", pa.bool_(), "whether the straight segment is one", "boolean", nullable=True),
        column("anchors", pa.int32(), "n, anchor points between the two ends", "count", nullable=True),
        column(
            "length_ratio",
            pa.float64(),
            "D(p), length of the path over the distance of its ends; of the path as far as it goes where not connected",
            "1",
            nullable=True,
        ),
        column("depth", pa.int32(), "deepest recursion", "count", nullable=True),
        column("distance", pa.float64(), "Euclidean distance of the ends", "pixel values", nullable=True),
        column("perturbation", pa.float64(), "norm of what perturbed the second", "pixel values", nullable=True),
        column("spacing", pa.float64(), "distance of the images checked on the path", "pixel values", nullable=True),
        column("checked", pa.int64(), "images classified to check segments", "count", nullable=True),
        column(
            "bad_segments",
            pa.int32(),
            "segments that leave the class where the recursion ended",
            "count",
            nullable=True,
        ),
        column("error", pa.string(), "why there is no pair to connect; null where there is", "text", nullable=True),
    ],
    metadata={
        "doc": "one row a pair: whether its ends are connected within their class (Fawzi et al. 2018, Algorithm 1)"
    },
)

CROSS_SECTIONS = pa.schema(
    [
        _PAIR,
        column("segment", pa.int32(), "0: the straight segment; 1, 2, ...: the segments of the path found", "count"),
        column("from_x", pa.float64(), "where the segment begins on the horizontal axis; 0", "pixel values"),
        column("to_x", pa.float64(), "where it ends on the horizontal axis: its length", "pixel values"),
        column("low_x", pa.float64(), "left edge of the section", "pixel values"),
        column("high_x", pa.float64(), "right edge", "pixel values"),
        column(
            "low_y",
            pa.float64(),
            "lower edge; the vertical axis is r(x1), made orthogonal to the segment",
            "pixel values",
        ),
        column("high_y", pa.float64(), "upper edge", "pixel values"),
        column("width", pa.int32(), "columns", "count"),
        column("height", pa.int32(), "rows", "count"),
        column(
            "predicted",
            pa.list_(pa.int32()),
            "predicted class, row by row from low_y up; -1 where the logits are not finite",
            "class index",
        ),
    ],
    metadata={"doc": "one row a segment of the first pairs: a plane section through the classification regions"},
)

CONVEXITY = pa.schema(
    [
        column("group", pa.string(), "the group of images: k and number", "id"),
        column("k", pa.int32(), "images that are combined", "count"),
        column("class", pa.int32(), "the class that all of them are predicted as", "class index", nullable=True),
        column("samples", pa.list_(pa.string()), "the images", "id"),
        column("combinations", pa.int32(), "random convex combinations tried", "count"),
        column("inside", pa.int32(), "how many are predicted as the class", "count"),
        column("error", pa.string(), "why there is no such group; null where there is", "text", nullable=True),
    ],
    metadata={
        "doc": "one row a group of images of one predicted class: how many of its convex combinations stay in it"
    },
)


def paths_schemas() -> Mapping[str, pa.Schema]:
    """Every table of the paths scan."""
    return {"paths": PATHS, "cross_sections": CROSS_SECTIONS, "units": UNITS}


def convexity_schemas() -> Mapping[str, pa.Schema]:
    """Every table of the convexity scan."""
    return {"convexity": CONVEXITY, "units": UNITS}
