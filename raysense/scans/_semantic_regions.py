"""Regions of one unit: all initial points, subjects, kinds and methods grown together, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from raysense.measures.boxes import Evaluator, RegionFunction, clipped_volume
from raysense.measures.constrained_growth import ConstrainedSettings
from raysense.measures.constrained_growth import grow as grow_constrained
from raysense.measures.growth import Growth
from raysense.measures.published_growth import PublishedSettings
from raysense.measures.published_growth import grow as grow_published
from raysense.measures.region_evidence import Evidence, evidence
from raysense.scans._semantic_prepare import Layout
from raysense.scans._semantic_tables import REGION_TRACES, REGIONS
from raysense.scans.semantic import SemanticSpec
from raysense.semantics.score import SemanticScore

_EVALUATIONS = 400


def affordable(dimensions: int) -> int:
    """Scores of a constrained region where the spec does not say: what finds most of a known box in n dimensions."""
    return _EVALUATIONS * (dimensions if dimensions > 2 else 1)


class _Box(NamedTuple):
    """Which box: row of the unit's subjects, place of the subject, initial point, kind, method."""

    row: dict[str, object]
    subject: int
    init: int
    kind: str
    method: str


class RegionRows:
    """Rows of the tables ``regions`` and ``region_traces``."""

    def __init__(self, spec: SemanticSpec, layout: Layout) -> None:
        self._spec = spec
        self._layout = layout
        self._rows: list[dict[str, object]] = []
        self._traces: list[dict[str, object]] = []
        self._subjects: list[object] = []

    def grow(self, rows: Sequence[dict[str, object]], subjects: Sequence[int], score: SemanticScore) -> None:
        """Grow every region of some subjects.

        Args:
            rows: Their rows of the listing.
            subjects: Their places in ``score``.
            score: f(u).
        """
        initial = self._layout.initial
        self._subjects += [row["sample_id"] for row in rows]
        at = initial.repeat(len(subjects), 1)
        whose = torch.tensor(subjects).repeat_interleave(len(initial))
        starts = self._at_start(score, at, whose)
        with _one_thread() as every:
            self._grow(rows, subjects, Evaluator(_Threaded(score, every)), starts)

    def _grow(
        self,
        rows: Sequence[dict[str, object]],
        subjects: Sequence[int],
        function: Evaluator,
        starts: dict[tuple[int, int], dict[str, float | None]],
    ) -> None:
        spec, initial = self._spec, self._layout.initial
        for family in ("constrained", "published"):
            methods = [method for method in spec.growing if (method == "constrained") == (family == "constrained")]
            boxes = [
                _Box(row, subject, init, kind, method)
                for (row, subject), init, kind, method in product(
                    zip(rows, subjects, strict=True), range(len(initial)), spec.kinds, methods
                )
            ]
            if boxes:
                self._grow_family(family, boxes, function, starts)

    def tables(self) -> dict[str, pa.Table]:
        """The tables that the spec asks for."""
        found = {"regions": self._table(self._rows, REGIONS)}
        if self._spec.traces:
            found["region_traces"] = self._table(self._traces, REGION_TRACES)
        return found

    def _table(self, rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
        """Rows by subject, initial point, kind and method, whatever was grown together."""

        def place(row: dict[str, object]) -> tuple[int, object, int, int]:
            kind, method = str(row["kind"]), str(row["method"])
            subject = self._subjects.index(row["shape_id"])
            return subject, row["init"], self._spec.kinds.index(kind), self._spec.growing.index(method)

        return pa.Table.from_pylist(sorted(rows, key=place), schema=schema)

    def _grow_family(
        self,
        family: str,
        boxes: list[_Box],
        function: Evaluator,
        starts: dict[tuple[int, int], dict[str, float | None]],
    ) -> None:
        spec, domain = self._spec, self._layout.space.domain
        start = self._layout.initial[torch.tensor([box.init for box in boxes])]
        subjects = torch.tensor([box.subject for box in boxes])
        adversarial = torch.tensor([box.kind == "adversarial" for box in boxes])
        if family == "constrained":
            settings = ConstrainedSettings(
                eps_m=spec.eps_mean,
                eps_v=spec.eps_variance,
                evaluations=spec.evaluations or affordable(self._layout.space.dimensions),
                seed=spec.seed,
            )
            growth, shown = grow_constrained(
                function, domain, start, subjects, adversarial, settings=settings, record=spec.traces
            )
        else:
            growth = grow_published(
                function,
                domain,
                start,
                subjects,
                [box.method for box in boxes],
                adversarial,
                settings=PublishedSettings(
                    eta=spec.eta,
                    alpha=spec.alpha,
                    beta=spec.beta,
                    penalty=spec.penalty,
                    iterations=spec.iterations,
                    half_width=spec.half_width,
                    settled=spec.settled,
                ),
                record=spec.traces,
            )
            shown = evidence(
                function,
                domain,
                growth.lower,
                growth.upper,
                start,
                subjects,
                adversarial,
                eps_m=spec.eps_mean,
                eps_v=spec.eps_variance,
                points=spec.evidence + spec.evidence % 2,  # two in every stratum
                seed=spec.seed,
            )
        self._add(family, boxes, growth, shown, starts)

    def _at_start(
        self, score: SemanticScore, points: Tensor, subjects: Tensor
    ) -> dict[tuple[int, int], dict[str, float | None]]:
        """What is known of the initial points, by subject and number."""
        count = len(self._layout.initial)
        found: dict[tuple[int, int], dict[str, float | None]] = {}
        scored, influence = score.measured(points, subjects, self._spec.influence)
        for index, subject in enumerate(subjects.tolist()):
            found[subject, index % count] = {
                "u0_score": _finite(scored.score[index]),
                "u0_fi": None if influence is None else _finite(influence.fi[index]),
                "u0_fi_bound": None if influence is None else _finite(influence.bound[index]),
            }
        return found

    def _add(
        self,
        family: str,
        boxes: list[_Box],
        growth: Growth,
        shown: Evidence,
        starts: dict[tuple[int, int], dict[str, float | None]],
    ) -> None:
        space = self._layout.space
        inside = clipped_volume(growth.lower, growth.upper, space.domain)
        for index, box in enumerate(boxes):
            diverged = bool(growth.diverged[index])
            extent = (growth.upper[index] - growth.lower[index]).prod()
            self._rows.append(
                {
                    **_names(box),
                    "label": box.row["label"],
                    "family": family,
                    "axes": ",".join(space.names),
                    "u0": self._layout.initial[box.init].tolist(),
                    "lower": None if diverged else growth.lower[index].tolist(),
                    "upper": None if diverged else growth.upper[index].tolist(),
                    "volume": None if diverged else float(extent) / space.volume,
                    "volume_clipped": None if diverged else float(inside[index]) / space.volume,
                    "mean_score": _finite(shown.mean[index]),
                    "mean_stderr": _finite(shown.mean_stderr[index]),
                    "mean_lower": _finite(shown.mean_lower[index]),
                    "mean_upper": _finite(shown.mean_upper[index]),
                    "var_score": _finite(shown.variance[index]),
                    "var_stderr": _finite(shown.var_stderr[index]),
                    "contains_u0": None if diverged else bool(shown.contains_start[index]),
                    "holds": None if diverged else bool(shown.holds[index]),
                    "evidence_points": int(shown.points[index]),
                    "loss": _finite(growth.loss[index]),
                    "iterations": int(growth.iterations[index]),
                    "converged": bool(growth.converged[index]),
                    "diverged": diverged,
                    "evaluations": int(growth.evaluations[index]),
                    **starts[box.subject, box.init],
                }
            )
        if growth.trace is not None:
            trace = growth.trace
            for row, number in enumerate(trace.box.tolist()):
                self._traces.append(
                    {
                        **_names(boxes[number]),
                        "iteration": int(trace.iteration[row]),
                        "lower": trace.lower[row].tolist(),
                        "upper": trace.upper[row].tolist(),
                        "loss": _finite(trace.loss[row]),
                    }
                )


class _Threaded:
    """A region function on a number of threads of its own."""

    def __init__(self, function: RegionFunction, threads: int) -> None:
        self._function = function
        self._threads = threads

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """As of the function."""
        with _threads(self._threads):
            return self._function.scores(points, subjects)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """As of the function."""
        with _threads(self._threads):
            return self._function.scores_and_gradients(points, subjects)


@contextmanager
def _threads(count: int) -> Iterator[int]:
    """So many threads for torch meanwhile; gives how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _one_thread() -> AbstractContextManager[int]:
    """Growth works on small tensors, on which several threads only wait for each other."""
    return _threads(1)


def _names(box: _Box) -> dict[str, object]:
    return {"shape_id": box.row["sample_id"], "init": box.init, "kind": box.kind, "method": box.method}


def _finite(value: Tensor) -> float | None:
    """A number, None where it is not known."""
    return None if value.isnan() else float(value)
