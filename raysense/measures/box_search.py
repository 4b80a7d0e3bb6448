"""The largest box around a start whose estimated mean and variance hold."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.measures.region_evidence import student_quantile
from raysense.measures.surrogate import Surrogate

CELLS = (120, 60)
"""Cells along an axis of the region that is searched, for up to two axes and for more."""

COARSE = 10
"""Positions on either side of the start that are tried for every face, in all combinations."""

FINER = 2
"""Refinement: steps of a face to either side, and what their length is divided by each time."""

KEPT = 2
"""Coarse boxes that are refined."""

FEWEST = 16
"""Points in a box without which it is not proved."""

CHOSEN = 1.2
"""Factor of a proof's standard errors for that its points helped to choose the box."""

IMAGINED = 2
"""Points with the average residual that every box is taken to have besides its own: few points show little."""


class Constraints(NamedTuple):
    """Eq. (2) of Hamdi & Ghanem (2020), with a margin.

    Attributes:
        least_mean: Of the score in the box.
        most_variance: Of the score in the box.
        margin: Standard errors by which both must hold.
    """

    least_mean: float
    most_variance: float
    margin: float = 0.0

    def allow(self, found: Moments) -> Tensor:
        """Whether estimates satisfy the constraints."""
        return (found.mean - self.margin * found.mean_error >= self.least_mean) & (
            found.variance + self.margin * found.variance_error <= self.most_variance
        )


class Moments(NamedTuple):
    """Estimates of boxes: mean and variance of the score, their standard errors, how many points speak for them."""

    mean: Tensor
    variance: Tensor
    mean_error: Tensor
    variance_error: Tensor
    points: Tensor


class BoxSearch:
    """Boxes on a lattice of cells over a region around a start.

    The moments of a box are the surrogate's integrals plus, for a proof, the mean residual of the points known in the box,
    each at its prediction out of all others: a difference estimator (Särndal, Swensson & Wretman 1992, "Model Assisted
    Survey Sampling", chapter 6), which is unbiased whatever the surrogate as far as the points are uniform in the box. The
    standard errors come from the same residuals.

    Args:
        surrogate: What is known.
        start: [n] float64, as shares of the axes.
        region: Bounds [n] each of what is searched; two turns of a periodic axis are centred on the start.
        periodic: [n] bool.
        proof: Whether boxes are to be proved: residuals correct the moments, and few points prove nothing.
    """

    def __init__(
        self, surrogate: Surrogate, start: Tensor, region: tuple[Tensor, Tensor], periodic: Tensor, proof: bool = False
    ) -> None:
        lower, upper = region
        dimensions = len(start)
        turns = [max(1, round(float(high - low))) for low, high in zip(lower, upper, strict=True)]
        cells = [CELLS[dimensions > 2] * turn for turn in turns]
        self._surrogate, self._proof, self._periodic = surrogate, proof, periodic
        self._edges = [
            torch.linspace(float(low), float(high), count + 1, dtype=torch.float64)
            for low, high, count in zip(lower, upper, cells, strict=True)
        ]
        self._kernels = [surrogate.integrals(axis, edges) for axis, edges in enumerate(self._edges)]
        self._start = [int((edges[1:-1] <= start[axis]).sum()) for axis, edges in enumerate(self._edges)]
        self._turn = [
            int(cells[axis] / float(high - low) + 1e-9) if periodic[axis] else cells[axis]
            for axis, (low, high) in enumerate(zip(lower, upper, strict=True))
        ]
        self._origin = start
        residuals = surrogate.residuals
        r, q = residuals[:, 0], residuals[:, 1]
        self._statistics = torch.stack((torch.ones_like(r), r, q, r * r, r * q, q * q))
        self._doubt = self._statistics[3:].mean(1) * IMAGINED
        self._points = surrogate.points
        self._lower, self._upper = lower, upper
        self._only: _Plane | None = None

    def over(self, region: tuple[Tensor, Tensor]) -> BoxSearch:
        """The same search on a lattice over another region."""
        return BoxSearch(self._surrogate, self._origin, region, self._periodic, self._proof)

    def closer(self, box: tuple[Tensor, Tensor], constraints: Constraints) -> tuple[Tensor, Tensor]:
        """A box at least as good, from a lattice around the given one that is finer where the box is small."""
        lower, upper = box
        reach = torch.minimum(upper - lower, self._upper - self._lower) / 3
        low, high = torch.maximum(lower - reach, self._lower), torch.minimum(upper + reach, self._upper)
        if bool(((high - low) > 0.34 * (self._upper - self._lower)).all()):
            return box
        finer = self.over((low, high)).largest(constraints)
        return box if finer is None or float((finer[1] - finer[0]).prod()) < float((upper - lower).prod()) else finer

    def largest(self, constraints: Constraints) -> tuple[Tensor, Tensor] | None:
        """The largest feasible box found: [n] lower and upper; None when there is none.

        Up to two axes all boxes are tried coarsely and the largest are refined; of more axes two at a time, all pairs in
        turn until nothing grows, from cubes of several sizes.
        """
        dimensions = len(self._edges)
        if dimensions <= 2:
            faces = self._over((0, dimensions - 1), [], constraints)
            return None if faces is None else self.bounds(faces)
        best: list[int] | None = None
        volume = 0.0
        for size in (0.15, 0.6):
            faces = []
            for edges, start in zip(self._edges, self._start, strict=True):
                count = len(edges) - 1
                reach = max(1, round(count * size / 2))
                faces += [max(0, start - reach), min(count, start + reach + 1)]
            faces, found = self._ascended(faces, constraints)
            if found > volume:
                best, volume = faces, found
        return None if best is None else self.bounds(best)

    def bounds(self, faces: list[int]) -> tuple[Tensor, Tensor]:
        """Bounds [n] of a box whose faces (low, high, by axis) are numbers of edges."""
        low = [float(edges[faces[2 * axis]]) for axis, edges in enumerate(self._edges)]
        high = [float(edges[faces[2 * axis + 1]]) for axis, edges in enumerate(self._edges)]
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)

    def moments(self, box: tuple[Tensor, Tensor]) -> Moments:
        """Estimates of one box, scalars; its sides are not 0."""
        lower, upper = box
        product = torch.ones(len(self._surrogate.points), dtype=torch.float64)
        for axis in range(len(lower)):
            ends = self._surrogate.integrals(axis, torch.stack((lower[axis], upper[axis])))
            product = product * (ends[1] - ends[0]) / (upper[axis] - lower[axis])
        place = self._points - lower
        place = torch.where(self._periodic, torch.remainder(place, 1.0), place)
        inside = ((place >= 0) & (place <= upper - lower)).all(1)
        integrals = self._surrogate.centre + product @ self._surrogate.weights
        return self._estimates(integrals, self._statistics[:, inside].sum(1))

    def holds(self, box: tuple[Tensor, Tensor], constraints: Constraints) -> bool:
        """Whether one box is feasible."""
        return bool(constraints.allow(self.moments(box)))

    def _ascended(self, faces: list[int], constraints: Constraints) -> tuple[list[int], float]:
        """The box after all pairs of axes stopped growing it, and its volume, 0 if it never became feasible."""
        volume = 0.0
        for _ in range(4):
            before = volume
            for pair in combinations(range(len(self._edges)), 2):
                found = self._over(pair, faces, constraints)
                if found is None:
                    continue
                candidate = [*faces]
                for axis, (low, high) in zip(pair, (found[:2], found[2:]), strict=True):
                    candidate[2 * axis : 2 * axis + 2] = [low, high]
                lower, upper = self.bounds(candidate)
                if float((upper - lower).prod()) > volume:
                    faces, volume = candidate, float((upper - lower).prod())
            if volume <= before * 1.01:
                break
        return faces, volume

    def _over(self, pair: tuple[int, int], faces: list[int], constraints: Constraints) -> list[int] | None:
        """Faces over two axes (low, high, low, high) of the largest feasible box, the other faces given."""
        if len(self._edges) > 2:
            plane = self._plane(pair, faces)
        else:  # no other faces: the same sums for all constraints
            plane = self._only = self._only or self._plane(pair, faces)
        return _largest(plane, _Feasible(self, constraints))

    def _plane(self, pair: tuple[int, int], faces: list[int]) -> _Plane:
        """Summed areas over two axes, the other faces given."""
        weights = self._surrogate.weights
        inside = torch.ones(len(self._points), dtype=torch.bool)
        for axis in range(len(self._edges)):
            if axis in pair:
                continue
            low, high = faces[2 * axis], faces[2 * axis + 1]
            low_edge, high_edge = self._edges[axis][low], self._edges[axis][high]
            weights = (
                weights * ((self._kernels[axis][high] - self._kernels[axis][low]) / (high_edge - low_edge))[:, None]
            )
            place = self._points[:, axis] - low_edge
            place = torch.remainder(place, 1.0) if self._periodic[axis] else place
            inside &= (place >= 0) & (place <= high_edge - low_edge)
        a, b = pair
        single = torch.tensor([0.0, 1.0], dtype=torch.float64)
        if a == b:  # one axis: the second is a single cell
            sums = (self._kernels[a] @ weights).T[:, :, None] * single
            edges, start, turn = [self._edges[a], single], [self._start[a], 0], [self._turn[a], 1]
        else:
            sums = torch.stack([(self._kernels[a] * weights[:, k]) @ self._kernels[b].T for k in range(2)])
            edges = [self._edges[a], self._edges[b]]
            start, turn = [self._start[a], self._start[b]], [self._turn[a], self._turn[b]]
        # Statistics last: what is gathered together lies together.
        summed = torch.cat((sums, self._binned(pair, inside, edges))).permute(1, 2, 0).contiguous()
        return _Plane(summed, edges, start, turn)

    def _binned(self, pair: tuple[int, int], inside: Tensor, edges: list[Tensor]) -> Tensor:
        """Sums of the statistics of points up to every edge of both axes, [6, K + 1, L + 1]."""
        points, statistics = self._points[inside], self._statistics[:, inside]
        counts = [len(edge) - 1 for edge in edges]
        table = statistics.new_zeros(len(statistics), counts[0], counts[1])
        shifts = [(-1, 0, 1) if self._periodic[axis] else (0,) for axis in pair]
        if pair[0] == pair[1]:
            shifts[1] = (0,)
        for first in shifts[0]:
            for second in shifts[1]:
                places = []
                for axis, edge, shift in zip(pair, edges, (first, second), strict=True):
                    width = edge[1] - edge[0]
                    places.append(((points[:, axis] + shift - edge[0]) / width).floor().long())
                if pair[0] == pair[1]:
                    places[1] = torch.zeros_like(places[0])
                fits = (places[0] >= 0) & (places[0] < counts[0]) & (places[1] >= 0) & (places[1] < counts[1])
                cell = places[0] * counts[1] + places[1]
                table.flatten(1).index_add_(1, cell[fits], statistics[:, fits])
        return torch.nn.functional.pad(table.cumsum(1).cumsum(2), (1, 0, 1, 0))

    def _estimates(self, integrals: Tensor, sums: Tensor) -> Moments:
        """Estimates from the surrogate's mean and mean square [2, Q] and sums of statistics [6, Q]."""
        points = sums[0]
        mean, square = integrals
        if self._proof:
            known = points.clamp(min=1)
            mean, square = mean + sums[1] / known, square + sums[2] / known
        rr, rq, qq = (total + doubt for total, doubt in zip(sums[3:], self._doubt, strict=True))
        reach = points + IMAGINED
        if self._proof:
            reach = reach * 1.96 / (CHOSEN * student_quantile(reach - 1))
            reach = torch.where(points < FEWEST, 1e-9, reach)
        spread = qq - 4 * mean * rq + 4 * mean.square() * rr  # of f^2 - 2 m f, the variance's linearisation
        return Moments(mean, square - mean.square(), rr.sqrt() / reach, spread.clamp(min=0).sqrt() / reach, points)


class _Feasible:
    """Which of many boxes are feasible."""

    def __init__(self, search: BoxSearch, constraints: Constraints) -> None:
        self._search, self._constraints = search, constraints

    def __call__(self, sums: Tensor, volume: Tensor) -> Tensor:
        """[Q] bool for sums [8, Q] over boxes and their volumes [Q] over the two axes."""
        search, limits = self._search, self._constraints
        return limits.allow(search._estimates(search._surrogate.centre[:, None] + sums[:2] / volume, sums[2:]))


class _Plane(NamedTuple):
    """Summed areas over two axes.

    Attributes:
        summed: [K + 1, L + 1, 8] float64, up to every edge: integrals of the two processes, sums of the six statistics.
        edges: Positions of the edges, by axis.
        start: Cell of the start, by axis.
        turn: Cells of a whole turn, by axis: boxes are no wider.
    """

    summed: Tensor
    edges: list[Tensor]
    start: list[int]
    turn: list[int]


def _largest(plane: _Plane, feasible: _Feasible) -> list[int] | None:
    """Faces (low, high, low, high) of the largest feasible box of cells that holds the start's."""
    summed, edges, start, turn = plane
    counts = [len(edge) - 1 for edge in edges]
    widths = [float(edge[1] - edge[0]) for edge in edges]
    steps = [max(1, -(-max(here, count - here - 1) // COARSE)) for here, count in zip(start, counts, strict=True)]
    pairs = []
    for axis in range(2):
        low = torch.unique(torch.cat((torch.arange(start[axis], -1, -steps[axis]), torch.tensor([0]))))
        high = torch.arange(start[axis] + 1, counts[axis] + 1, steps[axis])
        high = torch.unique(torch.cat((high, torch.tensor([counts[axis]]))))
        low, high = (part.flatten() for part in torch.meshgrid(low, high, indexing="ij"))
        fits = high - low <= turn[axis]
        pairs.append((low[fits], high[fits]))
    (low_a, high_a), (low_b, high_b) = pairs
    strips = summed[high_a] - summed[low_a]
    sums = (strips.index_select(1, high_b) - strips.index_select(1, low_b)).flatten(0, 1).T
    volume = ((high_a - low_a)[:, None] * (high_b - low_b)).flatten() * (widths[0] * widths[1])
    index = feasible(sums, volume).nonzero()[:, 0]
    if not len(index):
        return None
    top = index[volume[index].topk(min(KEPT, len(index))).indices]
    a, b = top // len(low_b), top % len(low_b)
    boxes, before = torch.stack((low_a[a], high_a[a], low_b[b], high_b[b]), dim=1), volume[top]
    reach = torch.cartesian_prod(*[torch.arange(-FINER, FINER + 1)] * 4)
    least = torch.tensor([0, start[0] + 1, 0, start[1] + 1])
    most = torch.tensor([start[0], counts[0], start[1], counts[1]])
    flat = summed.flatten(0, 1)
    row = counts[1] + 1
    while True:
        steps = [-(-step // FINER) for step in steps]
        stride = torch.tensor([steps[0], steps[0], steps[1], steps[1]])
        tried = torch.maximum(torch.minimum(boxes[:, None] + reach * stride, most), least)
        f = tried.flatten(0, 1)
        sums = (
            flat[f[:, 1] * row + f[:, 3]]
            - flat[f[:, 0] * row + f[:, 3]]
            - flat[f[:, 1] * row + f[:, 2]]
            + flat[f[:, 0] * row + f[:, 2]]
        ).T
        wide_a, wide_b = f[:, 1] - f[:, 0], f[:, 3] - f[:, 2]
        volume = wide_a * wide_b * (widths[0] * widths[1])
        holds = feasible(sums, volume) & (wide_a <= turn[0]) & (wide_b <= turn[1])
        volume = torch.where(holds, volume, 0.0).reshape(len(boxes), -1)
        largest = volume.max(dim=1)
        moved = tried[torch.arange(len(boxes)), largest.indices]
        grown = largest.values > before
        moved = torch.where(grown[:, None], moved, boxes)
        if max(steps) == 1 and not grown.any():
            return [int(face) for face in boxes[before.argmax()]]
        boxes, before = moved, torch.maximum(before, largest.values)
