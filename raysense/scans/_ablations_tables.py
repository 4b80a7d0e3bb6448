"""Arrow schemas of the ablations scan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import UNITS, column

CLASS_DISTANCES = pa.schema(
    [
        column("layer", pa.string(), "the layer; null for outputs", "name", nullable=True),
        column(
            "metric",
            pa.string(),
            "interactions: KL between the softmaxed rows of the classes' mean interactions, bias left out, mean over rows "
            "(of a class with itself: mean entropy of the rows); outputs: mean KL between softmax outputs; activations: "
            "mean Euclidean distance between activations; energy: 2 E|X - Y| - E|X - X'| - E|Y - Y'| of activations",
            "name",
        ),
        column("split", pa.string(), "split of the data set", "name"),
        column("class_a", pa.int32(), "class of the first sample, P of KL(P || Q)", "class index"),
        column(
            "class_b", pa.int32(), "class of the second sample; class_a: different samples of the class", "class index"
        ),
        column("value", pa.float64(), "the distance; null where a class has too few samples", "nats, 1", nullable=True),
        column(
            "stderr",
            pa.float64(),
            "its standard error where activations of only some samples were kept, 0 where of all; null where too few "
            "were to tell",
            "nats, 1",
            nullable=True,
        ),
        column("n_a", pa.int32(), "samples of class_a that the value is computed from", "samples"),
        column("n_b", pa.int32(), "samples of class_b that the value is computed from", "samples"),
    ],
    metadata={
        "doc": "one row a metric, layer and ordered pair of classes of a split (Khaitan & Banerjee 2026, section 4.2)"
    },
)


def ablations_schemas() -> Mapping[str, pa.Schema]:
    """All tables of the ablations scan by name."""
    return {"class_distances": CLASS_DISTANCES, "units": UNITS}
