"""Arrow schemas of the influence scan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import SAMPLES, UNITS, column

_ID = column("sample_id", pa.string(), "stable id of the sample; the key that joins scans", "id")
_OBJECTIVE = column("objective", pa.string(), "f = -log p of this class: label (true) or predicted", "name")
_BOUND = column("fi_bound", pa.float64(), "(1 - p) / p, the value at full rank, which the softmax alone gives", "1")

INFLUENCE = pa.schema(
    [
        _ID,
        column("target", pa.string(), "what is perturbed", "name"),
        column("layer", pa.string(), "the layer whose parameters are perturbed; null for other targets", "name", True),
        _OBJECTIVE,
        column("method", pa.string(), "exact, certified (an interval) or bound (only fi_upper is known)", "name"),
        column("fi", pa.float64(), "influence measure, Eq. (3); certified: middle of the interval", "1", True),
        column("fi_lower", pa.float64(), "certified lower bound of the influence measure", "1"),
        column("fi_upper", pa.float64(), "upper bound of the influence measure, at most (1 - p) / p", "1"),
        _BOUND,
        column("rank", pa.int32(), "rank of the Fisher metric; null where not computed", "count", True),
        column("n_backward", pa.int32(), "backward passes spent on the sample, for all targets together", "count"),
        column(
            "jacobian_norm",
            pa.float64(),
            "norm of df/dw, Eq. (4); null for method bound",
            "1/pixel value, 1/weight",
            True,
        ),
        column("cook", pa.float64(), "Cook's local influence, Eq. (5), maximised; null where not asked for", "1", True),
        column(
            "cook_error",
            pa.float64(),
            "Lanczos residual: an eigenvalue lies within this of cook; null as cook",
            "1",
            True,
        ),
    ],
    metadata={"doc": "one row a sample and target (and layer): the influence measure FI of Shu & Zhu 2019"},
)

INFLUENCE_MAPS = pa.schema(
    [
        _ID,
        _OBJECTIVE,
        column("scale", pa.int32(), "side of the square centred at each pixel, clipped at the borders", "pixels"),
        column("channel", pa.int32(), "the perturbed channel; null where all are perturbed jointly", "index", True),
        column("height", pa.int32(), "rows of the map", "pixels"),
        column("width", pa.int32(), "columns of the map", "pixels"),
        column("fi", pa.list_(pa.float64()), "influence measure of each pixel's square, row by row", "1"),
        _BOUND,
    ],
    metadata={"doc": "one row a sample, scale and channel: pixel-level influence maps (section 3.4)"},
)

PIXEL_ATTACKS = pa.schema(
    [
        _ID,
        _OBJECTIVE,
        column("row", pa.int32(), "row of the attacked pixel", "pixels"),
        column("column", pa.int32(), "column of the attacked pixel", "pixels"),
        column("fi", pa.float64(), "influence measure of that pixel, the largest of the image", "1"),
        column("before", pa.list_(pa.float64()), "the pixel's value in each channel", "pixel value"),
        column("after", pa.list_(pa.float64()), "the value that lowers p of the predicted class most", "pixel value"),
        column("class_before", pa.int32(), "predicted class before", "class index"),
        column("p_before", pa.float64(), "its softmax probability before", "probability"),
        column("class_after", pa.int32(), "predicted class after", "class index"),
        column("p_before_after", pa.float64(), "softmax probability of class_before after", "probability"),
        column("p_after", pa.float64(), "softmax probability of class_after after", "probability"),
    ],
    metadata={"doc": "one row a sample: the one-pixel attack at the largest FI of scale 1 (section 3.4)"},
)


def influence_schemas() -> Mapping[str, pa.Schema]:
    """All tables of the influence scan by name."""
    return {
        "samples": SAMPLES,
        "influence": INFLUENCE,
        "influence_maps": INFLUENCE_MAPS,
        "pixel_attacks": PIXEL_ATTACKS,
        "units": UNITS,
    }
