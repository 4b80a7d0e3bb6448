"""Setup 3 (Shu & Zhu 2019, section 3.3, Table 2 and Figure 5): sensitivity on the training set and on the test set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from raysense.studies.study import BUNDLED_MODELS, StudyOptions, Workspace, model_names, quoted
from raysense.validation import validated

_ACCURACY = """
SELECT scan AS network, split, count(*) AS n, avg((label = predicted)::INTEGER) AS accuracy
FROM samples WHERE error IS NULL GROUP BY ALL ORDER BY network, split DESC
"""
_PERCENTILES = """
PIVOT (SELECT percentile, scan || '/' || split AS network, fi FROM fi_percentiles())
ON network IN ({columns}) USING first(fi) ORDER BY percentile
"""


class TrainTestOptions(StudyOptions):
    """Options of the study."""

    model: tuple[str, ...] = Field(BUNDLED_MODELS, min_length=1, description="model reference")
    split: str = Field("train,test", description="splits to compare, separated by commas")


def run_train_test(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Compare how sensitive networks are to perturbations of training and of test images (Table 2 of the paper).

    FI of the whole image, f = -log p of the predicted class. A second run finishes what is missing.

    Args:
        out: Directory or URI for one scan a network and ``report.html``.
        options: Fields of `TrainTestOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
    """
    study = validated(TrainTestOptions, options)
    workspace = Workspace(out, run, quiet)
    models = model_names(study.model)
    spec = {
        "data": study.data,
        "split": study.split,
        "limit": study.limit,
        "objective": "predicted",
        "target": "input",
        **study.how(),
    }
    directories = workspace.scan_each(models, spec)
    workspace.show("Accuracy", _ACCURACY, directories)
    splits = [split.strip() for split in study.split.split(",")]
    columns = ", ".join(quoted(f"{name}/{split}") for name in models for split in splits)
    workspace.show("Percentiles of FI (Table 2)", _PERCENTILES.format(columns=columns), directories)
    return workspace.finish(directories)
