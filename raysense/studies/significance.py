"""The study of Khaitan & Banerjee (2026): class paths of a network untrained, trained on shuffled labels, and trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from raysense.scans.sampled import split_text
from raysense.scans.significance import SignificanceSpec
from raysense.studies.conditions import IN_DISTRIBUTION, Conditions, Plan
from raysense.studies.recipes import Recipe
from raysense.studies.shifts import shifted_reference
from raysense.studies.study import Workspace, named_references
from raysense.training import Sgd
from raysense.validation import validated

DIGITS_MODEL, DIGITS_EPOCHS = "raysense.studies.networks:plain?width=24", 40
"""A network that fits even shuffled labels of the digits in seconds; the paper's is made for larger images."""

PAPER_MODEL, PAPER_EPOCHS = "raysense.studies.alexnet:modified_alexnet", 250

_SPEC = SignificanceSpec.model_fields
_DIGITS_OOD = {
    "noise": shifted_reference("digits", split="test", noise=0.3),
    "turned": shifted_reference("digits", split="test", rotation=45),
}


class ConditionOptions(BaseModel):
    """Options of the study."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None,
        description="network to train, from the weights it has; none takes a small one for the digits, and the paper's "
        "modified AlexNet for other data",
    )
    data: str = Field("digits", description=str(_SPEC["data"].description))
    split: str | None = Field(None, description="splits to scan, separated by commas; none takes the data's default")
    train_split: str = Field(
        "train", description="splits to train on, separated by commas; empty for data without splits"
    )
    validation: str | None = Field(
        None,
        description="split for the accuracy after every epoch; of the network trained on the true labels the epoch with "
        "the best one is used, as in the paper; none takes test of the digits, else no split, and the last epoch is used",
    )
    ood: tuple[str, ...] | None = Field(
        None,
        description="data out of distribution, with a name; none takes the digits with noise, and turned, for the digits",
    )
    layers: str | None = Field(None, description=str(_SPEC["layers"].description))
    threshold: Literal["sum", "mean", "mean_abs"] = Field("sum", description=str(_SPEC["threshold"].description))
    positions: Literal["each", "any", "first"] = Field("each", description=str(_SPEC["positions"].description))
    per_class: int | None = Field(None, ge=1, description=str(_SPEC["per_class"].description))
    limit: int | None = Field(None, ge=1, description=str(_SPEC["limit"].description))
    activations: int = Field(
        0,
        ge=0,
        description="compare other distances too (Table 3), from activations of N samples of every class; 0: no",
    )
    epochs: int | None = Field(
        None, ge=1, description=f"epochs of training; none takes {DIGITS_EPOCHS} for the digits, else {PAPER_EPOCHS}"
    )
    learning_rate: float = Field(0.01, gt=0, description="learning rate of the first epoch (SGD)")
    decay: float = Field(0.95, gt=0, le=1, description="what the learning rate is multiplied by after every epoch")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, that of Zhang et al. (2017); 0 for none")
    train_batch: int = Field(32, ge=2, description="images per step of the training")
    unit_size: int | None = Field(None, ge=1, description=str(_SPEC["unit_size"].description))
    seed: int = Field(0, ge=0, description="seed of shuffled labels and of the order of the images")

    def plan(self) -> Plan:
        """What is trained and scanned; UsageError where data out of distribution have no name."""
        bundled = self.data == "digits"
        ood = _DIGITS_OOD if bundled else {}
        return Plan(
            model=self.model or (DIGITS_MODEL if bundled else PAPER_MODEL),
            data=self.data,
            split=split_text(self.split or "", ","),
            train_splits=split_text(self.train_split, ","),
            validation=self.validation or ("test" if bundled else None),
            recipe=Recipe(
                epochs=self.epochs or (DIGITS_EPOCHS if bundled else PAPER_EPOCHS),
                batch_size=self.train_batch,
                method=Sgd(self.learning_rate, self.decay, self.momentum),
                seed=self.seed,
            ),
            ood=ood if self.ood is None else named_references(self.ood, _taken),
            spec={
                "layers": self.layers or (),
                **{name: getattr(self, name) for name in ("threshold", "positions", "per_class", "limit", "unit_size")},
            },
            activations=self.activations,
        )


def run_conditions(
    out: str | os.PathLike[str], options: Mapping[str, Any], run: Mapping[str, Any], quiet: bool = False
) -> int:
    """Compare the class paths of a network untrained, trained on shuffled labels, and trained on the true ones.

    The network is trained twice, in Ray tasks that go on from the last epoch where they were killed. Then significant
    paths of the three are counted on test data and on data out of distribution. Printed are the paper's tables: mean
    inter-class KL and mean class entropy of every condition (Tables 1, 2, 5-7), and KL between the classes in and out of
    distribution (Figures 6 and 20). A second run finishes what is missing.

    Args:
        out: Directory or URI for ``networks``, one scan a condition and data set, and ``report.html``.
        options: Fields of `ConditionOptions`.
        run: How to run, as for `raysense.scan`.
        quiet: Whether to show no progress.

    Returns:
        The exit status: 0, or 1 where units failed.

    Raises:
        UsageError: something about the input is wrong; nothing was computed.
        RaysenseError: training diverged or failed.
    """
    study = validated(ConditionOptions, options)
    workspace = Workspace(out, run, quiet)
    conditions = Conditions(study.plan(), workspace)
    conditions.check()
    with workspace.cluster():
        conditions.train()
        conditions.show_training()
        conditions.scan()
    conditions.show_accuracy()
    conditions.show_summary()
    conditions.show_shift()
    conditions.show_ablations()
    return workspace.finish(conditions.directories)


def _taken(name: str) -> bool:
    """Whether a directory of the study has this name already."""
    return name == IN_DISTRIBUTION or name.endswith("ablations")
