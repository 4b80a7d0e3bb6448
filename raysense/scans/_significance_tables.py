"""Arrow schemas of the significance scan."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from raysense.scans.tables import SAMPLES, UNITS, column

_LAYER = column("layer", pa.string(), "the layer: linear, a convolution, or the projections into an attention", "name")
_CLASS = column("class", pa.int32(), "true class of the samples", "class index")
_SPLIT = column("split", pa.string(), "split of the data set", "name")
_SAMPLES = column("n_samples", pa.int32(), "samples counted in this row's unit; add up over units", "samples")
_OBSERVATIONS = column(
    "n_observations",
    pa.int64(),
    "observations counted in this row's unit: samples, or their positions (tokens, patches) where these count each",
    "observations",
)

SIGNIFICANCE = pa.schema(
    [
        _LAYER,
        _CLASS,
        _SPLIT,
        _SAMPLES,
        _OBSERVATIONS,
        column(
            "n_inputs", pa.int32(), "n, inputs of a row: paths (row, column) have columns 0 to n_inputs - 1", "count"
        ),
        column("row", pa.int32(), "output of the layer, from 0", "index"),
        column(
            "row_count", pa.int64(), "observations in which the whole row is significant: its sum is negative", "count"
        ),
        column(
            "exception_columns",
            pa.list_(pa.int32()),
            "columns that are significant in other observations too; null where exception_counts has all columns",
            "index",
            nullable=True,
        ),
        column(
            "exception_counts",
            pa.list_(pa.int32()),
            "in how many other observations each of them is: path (row, column) is significant in row_count + this",
            "count",
        ),
    ],
    metadata={
        "doc": "one row a unit, layer, class and output of the layer: counts of significant paths (Khaitan & Banerjee "
        "2026, section 3.1), exact; the counts of a class are the sums over its units"
    },
)

CLASS_ACTIVATIONS = pa.schema(
    [
        _LAYER,
        _CLASS,
        _SPLIT,
        _SAMPLES,
        column("n_observations", pa.int64(), "samples, times their positions, that were added up", "observations"),
        column("activation_sum", pa.list_(pa.float64()), "sum of the layer's inputs over the observations", "1"),
    ],
    metadata={"doc": "one row a unit, layer and class: sums of activations, for the ablations (section 4.2)"},
)

CLASS_OUTPUTS = pa.schema(
    [
        _CLASS,
        _SPLIT,
        _SAMPLES,
        column("p_sum", pa.list_(pa.float64()), "sum of the softmax probabilities p of every class", "probability"),
        column("log_p_sum", pa.list_(pa.float64()), "sum of log p of every class", "nats"),
        column("p_log_p_sum", pa.float64(), "sum over samples and classes of p log p: minus the entropies", "nats"),
    ],
    metadata={"doc": "one row a unit and class: sums of softmax outputs, for the ablations (section 4.2)"},
)

ACTIVATIONS = pa.schema(
    [
        column("sample_id", pa.string(), "stable id of the sample; the key that joins scans", "id"),
        _LAYER,
        _CLASS,
        _SPLIT,
        column("activation", pa.list_(pa.float32()), "the layer's inputs, averaged over positions", "1"),
    ],
    metadata={"doc": "one row a sample kept and layer: activations, for the ablations (section 4.2)"},
)


def significance_schemas() -> Mapping[str, pa.Schema]:
    """All tables of the significance scan by name."""
    return {
        "samples": SAMPLES,
        "significance": SIGNIFICANCE,
        "class_activations": CLASS_ACTIVATIONS,
        "class_outputs": CLASS_OUTPUTS,
        "activations": ACTIVATIONS,
        "units": UNITS,
    }
