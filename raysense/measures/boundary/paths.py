"""Paths between two points of one class, within the class (Fawzi et al. 2018, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.boundary.classified import Runs, predicted_classes, runs_of
from raysense.measures.boundary.deepfool import ClassPoints, project_to_class
from raysense.measures.gradients import Model, forward

_FIRST_ROUND, _LARGEST_ROUND = 16, 1024
_ROUNDING = 1e-6
"""A segment this much longer than a whole number of spacings, relatively, counts as that number."""


@dataclass(frozen=True)
class Path:
    """A piecewise linear path, and whether it stays in the class.

    Attributes:
        anchors: [n + 2, ...], the two ends included.
        connected: Whether every image that was checked on it is in the class.
        straight: Whether it is the straight segment, and connected.
        depth: Deepest recursion; 0 where the straight segment was not divided.
        checked: Images classified to check segments.
        bad_segments: Segments that leave the class where the recursion ended.
    """

    anchors: Tensor
    connected: bool
    straight: bool
    depth: int
    checked: int
    bad_segments: int

    @property
    def distance(self) -> float:
        """Euclidean distance of the ends."""
        return float(torch.linalg.vector_norm(self.anchors[-1] - self.anchors[0], dtype=torch.float64))

    @property
    def length_ratio(self) -> float:
        """D(p), the length over the distance of the ends, 1 and beyond; NaN where the ends are one point."""
        pieces = (self.anchors[1:] - self.anchors[:-1]).flatten(1)
        length = float(torch.linalg.vector_norm(pieces, dim=1, dtype=torch.float64).sum())
        distance = self.distance
        return length / distance if distance > 0 else math.nan


def moved_into_class(
    model: Model,
    images: Tensor,
    classes: Tensor,
    *,
    overshoot: float = 0.02,
    max_iterations: int = 50,
    box: tuple[float, float] | None = None,
) -> ClassPoints:
    """Algorithm 1's x + r: the nearest point found in a class's region, and a little further in.

    DeepFool ends as far beyond the boundary. Without that, points of a path around an obstacle lie on its surface, where
    no segment between two of them keeps clear of it, however short.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        images: [N, ...]; those that are in the region stay as they are.
        classes: [N] int64.
        overshoot: How much further, over the length of r; less where the region ends before.
        max_iterations: Steps, at the most.
        box: Lowest and highest value of a moved image, if bounded.
    """
    found = project_to_class(model, images, classes, max_iterations=max_iterations, box=box)
    further = torch.lerp(images, found.points, 1 + overshoot)
    further = further if box is None else further.clamp(*box)
    value, top = forward(model, further).max(1)
    chosen = found.reached & (top == classes) & value.isfinite()
    points = torch.where(chosen.view(-1, *[1] * (images.ndim - 1)), further, found.points)
    moved = torch.linalg.vector_norm((points - images).flatten(1), dim=1, dtype=torch.float64)
    return replace(found, points=points, distance=torch.where(found.reached, moved, torch.nan))


class _Segment(NamedTuple):
    """Between two points of the store; ``steps`` intervals between the images checked on it."""

    pair: int
    left: int
    right: int
    steps: int


def find_paths(
    model: Model,
    starts: Tensor,
    ends: Tensor,
    classes: Tensor,
    *,
    spacing: float = 1e-4,
    max_depth: int = 12,
    overshoot: float = 0.2,
    max_iterations: int = 50,
    box: tuple[float, float] | None = None,
    runs: Runs | None = None,
    gradient_runs: Runs | None = None,
) -> list[Path]:
    """Connect pairs of points of one class within it: Algorithm 1, all segments of a depth at once.

    The straight segment first, as the slides say. A segment that leaves the class is divided at its midpoint, which is
    first moved to the nearest point found in the class where it lies outside, and its halves are checked in turn; a half
    that stays inside is done (the published recursion would divide it too). The recursion is bounded: what is not connected
    then is reported so. A midpoint that cannot be brought into the class ends the recursion of its segment as well.

    A segment is checked at points evenly spaced between its ends, the coarsest first, so that one that leaves the class is
    found out early. The ends themselves are taken to be in the class.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        starts: [N, ...].
        ends: [N, ...].
        classes: [N] int64, the class that both ends of a pair are predicted as.
        spacing: Largest distance between images checked, over the distance of the pair's ends.
        max_depth: Recursions, at the most; 0 tries the straight segment only.
        overshoot: How far beyond the boundary the first midpoint is moved, over the length of its step. It doubles with
            every recursion: around an obstacle with an edge, what one recursion leaves outside is half of what the last
            one did, and points as near to the boundary as that never see around the edge. The steps get so short that the
            path hardly gets longer.
        max_iterations: Steps of a projection, at the most.
        box: Lowest and highest value of a projected image, if bounded.
        runs: Runs of images classified at once; 256 by default.
        gradient_runs: Runs of images projected at once; 32 by default.

    Returns:
        One path a pair. It depends on the other pairs in the last digits only.

    Raises:
        ValueError: the spacing is not in (0, 1], or the depth is negative.
    """
    if not 0 < spacing <= 1:
        raise ValueError(f"spacing {spacing:g} must be above 0 and at most 1; use 1e-4, say")
    if max_depth < 0:
        raise ValueError(f"max_depth {max_depth} must not be negative; 0 tries the straight segment only")
    runs, gradient_runs = runs or runs_of(256), gradient_runs or runs_of(32)
    move = partial(moved_into_class, model, max_iterations=max_iterations, box=box)
    search = _Search(model, starts, ends, classes, spacing)
    level = search.level
    for depth in range(max_depth + 1):
        broken = search.checked(level, depth, runs)
        if depth == max_depth or not broken:
            break
        level = search.divided(broken, partial(move, overshoot=overshoot * 2**depth), runs, gradient_runs)
    search.give_up(broken)
    return [search.path(pair) for pair in range(len(starts))]


class _Search:
    """All pairs at once: the points so far, which follows which, and what was spent on each pair."""

    def __init__(self, model: Model, starts: Tensor, ends: Tensor, classes: Tensor, spacing: float) -> None:
        count = len(starts)
        self._model, self._classes = model, classes
        self._points = torch.cat((starts, ends))
        gaps = torch.linalg.vector_norm((ends - starts).flatten(1), dim=1, dtype=torch.float64)
        self._spacings = (spacing * gaps).tolist()
        self._following = {pair: count + pair for pair in range(count)}
        self._count = count
        self._depth, self._checked, self._bad = [0] * count, [0] * count, [0] * count
        self.level = []
        for pair, gap in enumerate(gaps.tolist()):
            if math.isfinite(gap):
                self.level.append(self._segment(pair, pair, count + pair))
            else:
                self._bad[pair] = 1

    def checked(self, level: Sequence[_Segment], depth: int, runs: Runs) -> list[_Segment]:
        """Those segments of a level that leave their class."""
        broken = []
        for segment, (inside, images) in zip(level, self._stay_inside(level, runs), strict=True):
            self._depth[segment.pair] = depth
            self._checked[segment.pair] += images
            if not inside:
                broken.append(segment)
        return broken

    def divided(
        self,
        segments: Sequence[_Segment],
        move: Callable[[Tensor, Tensor], ClassPoints],
        runs: Runs,
        gradient_runs: Runs,
    ) -> list[_Segment]:
        """Both halves of each segment, which meet in the class; one whose middle does not reach it is given up."""
        middles, reached = self._middles(segments, move, runs, gradient_runs)
        first = len(self._points)
        self._points = torch.cat((self._points, middles))
        halves = []
        for place, segment in enumerate(segments):
            if not reached[place]:
                self.give_up([segment])
                continue
            middle = first + place
            self._following[segment.left], self._following[middle] = middle, segment.right
            halves.append(self._segment(segment.pair, segment.left, middle))
            halves.append(self._segment(segment.pair, middle, segment.right))
        return halves

    def give_up(self, segments: Sequence[_Segment]) -> None:
        """Note segments that leave the class for good."""
        for segment in segments:
            self._bad[segment.pair] += 1

    def path(self, pair: int) -> Path:
        """What became of a pair."""
        chain = [pair]
        while chain[-1] != self._count + pair:
            chain.append(self._following[chain[-1]])
        connected = self._bad[pair] == 0
        return Path(
            anchors=self._points[chain],
            connected=connected,
            straight=connected and self._depth[pair] == 0,
            depth=self._depth[pair],
            checked=self._checked[pair],
            bad_segments=self._bad[pair],
        )

    def _segment(self, pair: int, left: int, right: int) -> _Segment:
        spacing = self._spacings[pair]
        if spacing == 0:
            return _Segment(pair, left, right, 1)
        length = float(torch.linalg.vector_norm(self._points[right] - self._points[left], dtype=torch.float64))
        return _Segment(pair, left, right, max(1, math.ceil(length / spacing - _ROUNDING)))

    def _stay_inside(self, segments: Sequence[_Segment], runs: Runs) -> list[tuple[bool, int]]:
        """Whether each segment stays in its class, and how many images that took.

        In rounds of more and more points of every segment that has not left the class yet, so that runs are full. A
        round that was begun is finished, so that the count does not depend on the size of a pass.
        """
        points = self._points
        left, right, pairs, steps = torch.tensor(segments, dtype=torch.int64).view(-1, 4)[:, [1, 2, 0, 3]].unbind(1)
        wanted = self._classes.cpu()[pairs]
        left, right = left.to(points.device), right.to(points.device)
        inside, images = [True] * len(segments), [0] * len(segments)
        active = [index for index, segment in enumerate(segments) if segment.steps > 1]
        begin, size = 0, _FIRST_ROUND
        while active:
            parts = [_coarse_to_fine(segments[index].steps)[begin : begin + size] for index in active]
            which = torch.repeat_interleave(torch.tensor(active), torch.tensor([len(part) for part in parts]))
            share = (torch.cat(parts) / steps[which]).to(points).view(-1, *[1] * (points.ndim - 1))
            place = which.to(points.device)

            def between(start: int, stop: int, place: Tensor = place, share: Tensor = share) -> Tensor:
                at = place[start:stop]
                return torch.lerp(points[left[at]], points[right[at]], share[start:stop])

            predicted = predicted_classes(self._model, len(which), between, runs)
            for index in which[predicted != wanted[which]].unique().tolist():
                inside[index] = False
            for index, part in zip(active, parts, strict=True):
                images[index] += len(part)
            begin += size
            active = [index for index in active if inside[index] and segments[index].steps - 1 > begin]
            size = min(begin, _LARGEST_ROUND)
        return list(zip(inside, images, strict=True))

    def _middles(
        self,
        segments: Sequence[_Segment],
        move: Callable[[Tensor, Tensor], ClassPoints],
        runs: Runs,
        gradient_runs: Runs,
    ) -> tuple[Tensor, list[bool]]:
        """The midpoints of segments, moved into the class where they lie outside, and whether they are in it then."""
        left, right = ([segment[place] for segment in segments] for place in (1, 2))
        middles = torch.lerp(self._points[left], self._points[right], 0.5)
        wanted = self._classes[[segment.pair for segment in segments]]
        predicted = predicted_classes(self._model, len(middles), lambda start, stop: middles[start:stop], runs)
        reached = predicted == wanted.cpu()
        outside = (~reached).nonzero().squeeze(1)
        chosen = outside.to(middles.device)

        def into_class(start: int, stop: int) -> None:
            rows = chosen[start:stop]
            found = move(middles[rows], wanted[rows])
            middles[rows] = found.points
            reached[outside[start:stop]] = found.reached.cpu()

        gradient_runs(len(outside), into_class)
        return middles, reached.tolist()


@lru_cache(maxsize=64)
def _coarse_to_fine(steps: int) -> Tensor:
    """1 to ``steps`` - 1 as float64, in the order of van der Corput: halves first, then quarters, and so on."""
    bits = (steps - 1).bit_length()
    numbers = torch.arange(1, 2**bits)
    mirrored = torch.zeros_like(numbers)
    for bit in range(bits):
        mirrored |= (numbers >> bit & 1) << (bits - 1 - bit)
    return mirrored[mirrored < steps].double()
