"""The semantic scan end to end: scores, gradients and FI a second, and where the time goes.

The bundled network on small renders, and SqueezeNet on renders of 224 x 224 where its weights are found. On one thread, in
processor time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

import time

from harness import Verdict, interleaved, print_sides, print_title
from shared_data import shared_data

from raysense.batching import BatchSizer
from raysense.measures.boxes import Evaluator
from raysense.measures.constrained_growth import ConstrainedSettings
from raysense.measures.constrained_growth import grow as grow_constrained
from raysense.measures.gradients import forward
from raysense.measures.published_growth import PublishedSettings
from raysense.measures.published_growth import grow as grow_published
from raysense.models import LoadedModel, load_model
from raysense.semantics.grids import initial_points
from raysense.semantics.renderers import open_renderer
from raysense.semantics.score import SemanticScore
from raysense.semantics.shapes import open_shapes
from raysense.semantics.space import parse_space
from raysense.semantics.subjects import RenderedShapes

SPACE = parse_space(["azimuth", "elevation"])
ROUNDS = 3
POINTS = 16
ZOO = Path(__file__).resolve().parents[1] / "zoo"


def measure(title: str, model: LoadedModel, shapes: str, shape_id: str, size: int, label: int) -> None:
    """Print the costs of one network on one shape."""
    renderer = open_renderer("torch", size=size)
    mesh = open_shapes(shapes).mesh(shape_id)
    subjects = RenderedShapes(SPACE, renderer, [renderer.prepare(mesh)])
    score = SemanticScore(model.module, subjects, torch.tensor([label]), BatchSizer(8))
    generator = torch.Generator().manual_seed(0)
    points = SPACE.domain.lower + SPACE.domain.extent * torch.rand(POINTS, 2, generator=generator, dtype=torch.float64)
    whose = torch.zeros(POINTS, dtype=torch.int64)
    with torch.no_grad():
        pictures = subjects.images(points, whose)
    print_title(f"{title}, {len(mesh.faces):,} faces, {size} x {size}: {POINTS} poses, batches of 8")

    def rendered() -> None:
        with torch.no_grad():
            for part in points.split(8):
                subjects.images(part, whose[: len(part)])

    sides: dict[str, Callable[[], object]] = {
        "rendering alone": rendered,
        "network alone": lambda: [forward(model.module, part) for part in pictures.split(8)],
        "score": lambda: score.scores(points, whose),
        "score and gradient": lambda: score.scores_and_gradients(points, whose),
        "score and FI": lambda: score.influence(points, whose),
    }
    seconds = interleaved(sides, ROUNDS, time.process_time)
    print_sides(seconds, POINTS, "ms/pose")
    for name in ("score", "score and gradient", "score and FI"):
        print(f"  {name}: {POINTS / min(seconds[name]):.0f} evaluations a second")
    regions(score, "constrained", grow_all_constrained)
    regions(score, "naive, oir_b, oir_w, 8 iterations", grow_all_published)


def regions(score: SemanticScore, title: str, grow: Callable[[Evaluator, Tensor], object]) -> None:
    """Print how long the regions of the paper's four initial points take, and how much of it is f(u)."""
    timed = _Timed(score)
    evaluator = Evaluator(timed)
    began = time.process_time()
    grow(evaluator, initial_points("auto", SPACE, 0))
    total = time.process_time() - began
    print(
        f"  regions, {title}: {total:.1f} s for {evaluator.evaluated:,} evaluations ({evaluator.requested:,} asked for), "
        f"{100 * timed.seconds / total:.1f}% of it in f(u)"
    )


def grow_all_constrained(evaluator: Evaluator, start: Tensor) -> None:
    """Four regions by our own method."""
    none = torch.zeros(len(start), dtype=torch.int64)
    grow_constrained(evaluator, SPACE.domain, start, none, none.bool(), settings=ConstrainedSettings(evaluations=200))


def grow_all_published(evaluator: Evaluator, start: Tensor) -> None:
    """Twelve regions by the paper's three methods."""
    methods = ["naive", "oir_b", "oir_w"] * len(start)
    none = torch.zeros(len(methods), dtype=torch.int64)
    grow_published(
        evaluator,
        SPACE.domain,
        start.repeat_interleave(3, dim=0),
        none,
        methods,
        none.bool(),
        settings=PublishedSettings(iterations=8, half_width=0.5),
    )


class _Timed:
    """A region function that adds up its processor time."""

    def __init__(self, score: SemanticScore) -> None:
        self._score = score
        self.seconds = 0.0

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """As of the function."""
        began = time.process_time()
        found = self._score.scores(points, subjects)
        self.seconds += time.process_time() - began
        return found

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """As of the function."""
        began = time.process_time()
        found = self._score.scores_and_gradients(points, subjects)
        self.seconds += time.process_time() - began
        return found


def main() -> list[Verdict]:
    """Run and print all; there are no targets."""
    torch.set_num_threads(1)
    measure(
        "bundled network", load_model("raysense.studies.shape_networks:narrow"), "procedural?variants=1", "cup/0", 48, 6
    )
    try:
        weights = shared_data("imagenet", "squeezenet1_0_fp16.pt")
        shapes = shared_data("semantic", "shapes_dev")
    except pytest.skip.Exception as absent:
        print(f"SqueezeNet is left out: {absent}")
        return []
    model = load_model(f"{ZOO / 'squeezenet.py'}:squeezenet?checkpoint={weights}")
    (first, *_) = (entry.shape_id for entry in open_shapes(str(shapes)).entries() if entry.class_name == "chair")
    measure("SqueezeNet 1.0", model, str(shapes), first, 224, 559)
    return []


if __name__ == "__main__":
    main()
