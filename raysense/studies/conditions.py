"""A network under the three conditions of Khaitan & Banerjee (2026): trained, scanned, and shown in the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raysense.query.display import print_result
from raysense.references import absolute_reference
from raysense.studies.recipes import Recipe, Trained, TrainingTask
from raysense.studies.study import Workspace, quoted
from raysense.studies.trainings import train_all

UNTRAINED, SHUFFLED, TRAINED = CONDITIONS = ("untrained", "shuffled", "trained")
"""The network as it is before training, trained on labels permuted over the whole training set, and trained."""

IN_DISTRIBUTION = "in-distribution"
_KIND = "significance"
_CURVE_ROWS = 8
_FITTED = 0.9

_ACCURACY = """
{runs}
SELECT * EXCLUDE (place) FROM (PIVOT (
    SELECT place, data, condition, split, count(*) AS n, avg((label = predicted)::INTEGER) AS accuracy
    FROM samples JOIN runs USING (scan) WHERE error IS NULL GROUP BY ALL
) ON condition IN ({conditions}) USING first(accuracy) GROUP BY place, data, split, n)
ORDER BY place, split
"""
_SUMMARY = """
{runs}
SELECT data, split, layer, condition, mean_inter_class_kl AS "mean inter-class KL",
    mean_class_entropy AS "mean class entropy", mean_density AS density
FROM path_summary() JOIN runs USING (scan) JOIN layers USING (scan, layer)
ORDER BY place, split, layers.position DESC, list_position([{conditions}], condition)
"""
_BETWEEN = """
SELECT {place} AS place, {data} AS data, {condition} AS condition, {scan} AS scan, split_a AS split, split_b, layer,
    avg(kl) FILTER (class_a = class_b) AS same, avg(kl) FILTER (class_a <> class_b) AS other,
    max(kl) FILTER (class_a IS NULL AND class_b IS NULL) AS overall
FROM kl_between({scan}, {shifted}) GROUP BY ALL
"""
_SHIFT = """
WITH shifts AS ({shifts})
SELECT data, shifts.split, split_b AS "its split", shifts.layer, condition, same AS "KL to the same class",
    other AS "KL to other classes", overall AS "KL of all classes together",
    mean_inter_class_kl AS "mean inter-class KL, in-distribution"
FROM shifts JOIN path_summary() USING (scan, split, layer) JOIN layers USING (scan, layer)
ORDER BY place, split, split_b, layers.position DESC, list_position([{conditions}], condition)
"""
_ABLATIONS = """
{runs}
SELECT data, split, layer, metric, condition, separation, spread FROM ablation_table() JOIN runs USING (scan)
ORDER BY place, split, list_position(['paths', 'interactions', 'outputs', 'activations', 'energy'], metric), layer,
    list_position([{conditions}], condition)
"""


@dataclass(frozen=True)
class Plan:
    """What is trained and scanned.

    Attributes:
        model: Reference of the network, in the weights it has.
        data: Reference of the data in distribution.
        split: Splits of them to scan.
        train_splits: Splits of them to train on.
        validation: Split of them for the accuracy after every epoch; None for none.
        recipe: How to train. On the true labels the epoch of best validation accuracy is used, where there is validation;
            on shuffled labels the last one, since no epoch does better than chance there and the last fits best.
        ood: Data out of distribution, by name.
        spec: The other fields of every scan.
        activations: Samples of every class whose activations are kept to compare other distances; 0 for no such comparison.
    """

    model: str
    data: str
    split: tuple[str, ...]
    train_splits: tuple[str, ...]
    validation: str | None
    recipe: Recipe
    ood: Mapping[str, str]
    spec: Mapping[str, Any] = field(default_factory=dict)
    activations: int = 0


@dataclass(frozen=True)
class _Run:
    """One scan of the study: its directory's name, the network's condition, the data's name and place in tables."""

    name: str
    condition: str
    data: str
    place: int


class Conditions:
    """A plan at work in the directory of a study.

    Attributes:
        directories: Of the scans made so far.
    """

    def __init__(self, plan: Plan, workspace: Workspace) -> None:
        self._plan = plan
        self._workspace = workspace
        self._model = absolute_reference(plan.model, "model")
        self._data = {IN_DISTRIBUTION: absolute_reference(plan.data, "data")}
        self._data |= {name: absolute_reference(reference, "data") for name, reference in plan.ood.items()}
        self._runs = [
            _Run(condition if data == IN_DISTRIBUTION else f"{condition}-{data}", condition, data, place)
            for place, data in enumerate(self._data)
            for condition in CONDITIONS
        ]
        self._trained: dict[str, Trained] = {}
        self.directories: list[str] = []
        self._ablations: list[str] = []

    def check(self) -> None:
        """Raise UsageError where the untrained network cannot be scanned on all the data: nothing is computed."""
        for run in self._runs:
            if run.condition == UNTRAINED:
                self._workspace.check(run.name, kind=_KIND, **self._spec(run, self._model))

    def train(self) -> None:
        """Train on shuffled and on true labels, or finish that."""
        plan = self._plan
        validation = None if plan.validation is None else (self._data[IN_DISTRIBUTION], plan.validation)
        recipes = {
            SHUFFLED: Recipe(**{**vars(plan.recipe), "shuffled_labels": True, "keep": "last"}),
            TRAINED: Recipe(**{**vars(plan.recipe), "keep": "best" if validation else "last"}),
        }
        tasks = {
            name: TrainingTask(
                model=self._model,
                data=self._data[IN_DISTRIBUTION],
                splits=plan.train_splits,
                validation=validation,
                recipe=recipe,
                out=self._workspace.path(f"networks/{name}"),
            )
            for name, recipe in recipes.items()
        }
        self._trained = train_all(tasks, self._workspace.options, self._workspace.quiet)

    def scan(self) -> list[str]:
        """Scan the three networks on all data, or finish that; returns the directories."""
        models = {UNTRAINED: self._model} | {name: made.model for name, made in self._trained.items()}
        for run in self._runs:
            directory = self._workspace.scan(run.name, kind=_KIND, **self._spec(run, models[run.condition]))
            self.directories.append(directory)
            if not self._plan.activations:
                continue
            if directory in self._workspace.incomplete:
                self._workspace.say(f"ablations of {directory} are left out until it is complete")
                continue
            self._ablations.append(self._workspace.scan(f"{run.name}-ablations", kind="ablations", of=directory))
            self.directories.append(self._ablations[-1])
        return self.directories

    def show_training(self) -> None:
        """Print what came of training, and the learning curves."""
        rows = []
        for name, made in self._trained.items():
            last = len(made.curve) - 1
            chosen = {round(place * last / (_CURVE_ROWS - 1)) for place in range(_CURVE_ROWS)}
            rows += [{"condition": name, **made.curve[place]} for place in sorted(chosen)]
        shown = ("condition", "epoch", "learning_rate", "loss", "train_accuracy", "validation_accuracy", "seconds")
        self._print("Learning curves: losses and accuracies on the training data while it trained", rows, shown)
        rows = [
            {
                "condition": name,
                "epoch used": made.epoch,
                "train accuracy": made.train_accuracy,
                "validation accuracy": made.accuracy,
            }
            for name, made in self._trained.items()
        ]
        self._print("The networks that are scanned", rows, tuple(rows[0]))
        self.say_fit()

    def say_fit(self) -> None:
        """Say how well each network fits the labels it was trained on, and where that is too badly to compare paths."""
        for name, made in self._trained.items():
            assert made.train_accuracy is not None, "measured by every training of a study of conditions"
            poorly = (
                ""
                if made.train_accuracy >= _FITTED
                else " only: train longer, or with a larger --decay, to compare paths"
            )
            self._workspace.say(
                f"The {name} network fits {made.train_accuracy:.1%} of the labels it was trained on{poorly}"
            )
            if made.unreadable:
                self._workspace.say(f"{made.unreadable} of its training images could not be read")

    def show_accuracy(self) -> None:
        """Print the accuracy of every network on every data set."""
        title = "Accuracy on the true labels (says nothing on data whose classes are not those of the training data)"
        self._show(title, _ACCURACY)

    def show_summary(self) -> None:
        """Print Tables 1, 2 and 5-7."""
        self._show("Class paths: separation and entropy, nats (Tables 1, 2, 5-7)", _SUMMARY)

    def show_shift(self) -> None:
        """Print how far the classes are from themselves in distribution."""
        shifts = [
            _BETWEEN.format(
                place=run.place,
                data=quoted(run.data),
                condition=quoted(run.condition),
                scan=quoted(run.condition),
                shifted=quoted(run.name),
            )
            for run in self._runs
            if run.data != IN_DISTRIBUTION
        ]
        if shifts:
            title = "KL of classes in distribution to classes of other data, mean (Figures 6 and 20)"
            self._show(title, _SHIFT, shifts=" UNION ALL ".join(shifts))

    def show_ablations(self) -> None:
        """Print Table 3, where activations were kept."""
        if self._ablations:
            self._show("Other distances between classes: separation and spread (Table 3)", _ABLATIONS)

    def _spec(self, run: _Run, model: str) -> dict[str, Any]:
        split = self._plan.split if run.data == IN_DISTRIBUTION else ()
        fixed = {**self._plan.spec, "activations": self._plan.activations}
        return {"model": model, "data": self._data[run.data], "split": split, **fixed}

    def _show(self, title: str, query: str, **parts: str) -> None:
        values = ", ".join(
            f"({quoted(run.name)}, {quoted(run.condition)}, {quoted(run.data)}, {run.place})" for run in self._runs
        )
        runs = f"WITH runs(scan, condition, data, place) AS (VALUES {values})"
        conditions = ", ".join(map(quoted, CONDITIONS))
        self._workspace.show(title, query.format(runs=runs, conditions=conditions, **parts), self.directories)

    def _print(self, title: str, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
        table = pa.Table.from_pylist(rows).select(names)
        self._workspace.console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
        print_result(table.schema, table.to_batches(), self._workspace.console)
