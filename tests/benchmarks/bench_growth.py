"""Published region growth: all boxes at once against one box, and one corner, at a time; and where the time goes.

On the authors' recorded maps where they are found, else on smooth hills. On one thread, in processor time, which on an idle
machine is wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict

from raysense.measures.boxes import Domain, Evaluator, RegionFunction
from raysense.measures.growth import Growth
from raysense.measures.published_growth import PublishedSettings, grow

METHODS = ("naive", "oir_b", "oir_w")
ITERATIONS = 600
AGREE = 1e-6
"""Degrees that the boxes of two sides may differ by after all updates."""
HILLS = 80


class Case(NamedTuple):
    """A function and the boxes that are grown on it: subjects x 4 initial points x 3 methods.

    Attributes:
        title: What it is.
        function: f.
        space: Where its points lie.
        start: [B, 2] float64.
        subjects: [B] int64.
        methods: Of every box.
    """

    title: str
    function: RegionFunction
    space: Domain
    start: Tensor
    subjects: Tensor
    methods: list[str]

    def first(self, count: int) -> Case:
        """With only some of the boxes, drawn at random."""
        rows = torch.randperm(len(self.start), generator=torch.Generator().manual_seed(0))[:count].sort().values
        methods = [self.methods[row] for row in rows.tolist()]
        return self._replace(start=self.start[rows], subjects=self.subjects[rows], methods=methods)

    def grown(self, function: RegionFunction) -> Growth:
        """The growth of all its boxes together."""
        robust = torch.zeros(len(self.start), dtype=torch.bool)
        settings = PublishedSettings(iterations=ITERATIONS, settled=0)
        return grow(function, self.space, self.start, self.subjects, self.methods, robust, settings=settings)

    def one_box_at_a_time(self, function: RegionFunction) -> list[Growth]:
        """The growth of each box alone."""
        return [
            Case(*self[:3], self.start[row : row + 1], self.subjects[row : row + 1], [self.methods[row]]).grown(
                function
            )
            for row in range(len(self.start))
        ]


class Hills:
    """Smooth hills over [azimuth, elevation], one for every subject."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._height = 0.5 + torch.rand(HILLS, generator=generator, dtype=torch.float64) / 2
        self._width = 60 + 60 * torch.rand(HILLS, 2, generator=generator, dtype=torch.float64)

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P]."""
        return self.scores_and_gradients(points, subjects)[0]

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and gradients [P, 2]."""
        width = self._width[subjects]
        away = (points - torch.tensor([180.0, 40.0], dtype=torch.float64)) / width
        scores = self._height[subjects] * torch.exp(-away.square().sum(dim=1) / 2)
        return scores, -scores[:, None] * away / width


class OneAtATime:
    """A function that is asked for one point at a time."""

    def __init__(self, function: RegionFunction) -> None:
        self._function = function

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P]."""
        return torch.cat([self._function.scores(p, s) for p, s in zip(points.split(1), subjects.split(1), strict=True)])

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and gradients [P, 2]."""
        each = [
            self._function.scores_and_gradients(p, s) for p, s in zip(points.split(1), subjects.split(1), strict=True)
        ]
        return torch.cat([scores for scores, _ in each]), torch.cat([gradients for _, gradients in each])


class Timed:
    """A function whose processor time is summed up."""

    def __init__(self, function: RegionFunction) -> None:
        self._function = function
        self.seconds = 0.0

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P]."""
        began = time.process_time()
        try:
            return self._function.scores(points, subjects)
        finally:
            self.seconds += time.process_time() - began

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and gradients [P, 2]."""
        began = time.process_time()
        try:
            return self._function.scores_and_gradients(points, subjects)
        finally:
            self.seconds += time.process_time() - began


def case() -> Case:
    """The recorded maps of 4 networks and 20 shapes, or hills."""
    from semantic_maps import SPACE, STARTS, recording

    function: RegionFunction
    try:
        maps = recording().maps
        title, function, count = "recorded maps of 4 networks and 20 shapes", maps, len(maps)
    except pytest.skip.Exception as absent:
        print(f"hills instead of recorded maps: {absent}")
        title, function, count = "smooth hills", Hills(), HILLS
    rows = [(subject, point, name) for name in METHODS for subject in range(count) for point in range(len(STARTS))]
    start = STARTS[torch.tensor([row[1] for row in rows])]
    return Case(title, function, SPACE, start, torch.tensor([row[0] for row in rows]), [row[2] for row in rows])


def compare(whole: Case, boxes: int, rounds: int) -> list[Verdict]:
    """All boxes at once, some at once, and these one by one."""
    few = whole.first(boxes)
    print_title(
        f"Published growth, {ITERATIONS} updates, {whole.title}: {len(whole.start)} boxes, of which {boxes} also alone"
    )
    corner, box, batch, everything = "one corner at a time", "one box at a time", f"{boxes} boxes", "all boxes"
    together = few.grown(few.function)
    for name, alone in (
        (corner, few.one_box_at_a_time(OneAtATime(few.function))),
        (box, few.one_box_at_a_time(few.function)),
    ):
        difference = max(
            float((torch.cat([getattr(growth, bound) for growth in alone]) - getattr(together, bound)).abs().max())
            for bound in ("lower", "upper")
        )
        print(f"  {name}: bounds differ by at most {difference:.1e} degrees from those of the batch")
        if not difference <= AGREE:
            raise AssertionError(f"the boxes grown {name} differ by {difference!r} degrees from those grown together")
    widest = float((together.upper - together.lower).max())
    print(
        f"  the widest of these boxes is {widest:.1f} degrees wide, {float(together.diverged.double().sum()):.0f} diverged"
    )
    sides: dict[str, Callable[[], object]] = {
        corner: lambda: few.one_box_at_a_time(OneAtATime(few.function)),
        box: lambda: few.one_box_at_a_time(few.function),
        batch: lambda: few.grown(few.function),
        everything: lambda: whole.grown(whole.function),
    }
    seconds = interleaved(sides, rounds, time.process_time)
    for name in (corner, box, batch):
        print_sides({name: seconds[name]}, boxes * ITERATIONS // 1000, "ms/1000 updates of a box")
    print_sides({everything: seconds[everything]}, len(whole.start) * ITERATIONS // 1000, "ms/1000 updates of a box")
    per_box = {
        name: [value / count for value in seconds[name]]
        for name, count in ((corner, boxes), (box, boxes), (batch, boxes), (everything, len(whole.start)))
    }
    total = statistics.median(seconds[everything])
    print(f"  all boxes: {total:.2f} s, {1e3 * total / ITERATIONS:.2f} ms per update of all")
    return [
        *print_ratio(per_box, corner, everything, 10.0),
        *print_ratio(per_box, box, everything, 10.0),
        *print_ratio(per_box, corner, batch),
        *print_ratio(per_box, box, batch),
        print_verdict("all boxes at once", f"{total:.2f} s", "< 2 s", total < 2),
    ]


def print_profile(whole: Case) -> None:
    """Shares of the function, of finding equal points, and of the growth itself."""
    print_title("Where the time goes, all boxes at once, equal corners evaluated once")
    function = Timed(whole.function)
    evaluator = Evaluator(function)
    timed = Timed(evaluator)
    began = time.process_time()
    whole.grown(timed)
    total = time.process_time() - began
    shares = {
        "function": function.seconds,
        "finding equal points": timed.seconds - function.seconds,
        "corners, updates and the rest": total - timed.seconds,
    }
    for name, value in shares.items():
        print(f"  {name:30s} {value:7.3f} s  {100 * value / total:5.1f}%")
    saved = 1 - evaluator.evaluated / evaluator.requested
    print(f"  {evaluator.requested} points asked for, {100 * saved:.2f}% of them equal to others of the same update")


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print both; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=12, help="boxes that are also grown alone")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = case()
        verdicts = compare(whole, options.boxes, options.rounds)
        print_profile(whole)
    finally:
        torch.set_num_threads(threads)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
