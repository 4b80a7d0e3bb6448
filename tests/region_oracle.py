"""The largest feasible box of a map by exhaustive search, and exact moments of any box, where f is bilinear on a grid.

A map is a grid of scores [A, E], the first axis periodic. Its bilinear interpolation is f; beyond the last point of the
second axis f keeps the last value. Every grid point owns the cell of points nearest to it. All integrals are exact: on
the pieces between grid lines and cell borders f^2 is quadratic in each coordinate, so two Gauss points per axis suffice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GAUSS = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)


class Grid(NamedTuple):
    """Points of a map: ``low + step * i`` on both axes; axis 0 is periodic with period ``counts[0] * steps[0]``."""

    low: tuple[float, float]
    step: tuple[float, float]
    counts: tuple[int, int]
    high: float  # end of axis 1

    @property
    def period(self) -> float:
        return self.step[0] * self.counts[0]


AUTHORS_GRID = Grid((0.0, -10.0), (3.0, 3.0), (120, 34), 90.0)


def bilinear(grid: Grid, maps: Tensor, points: Tensor, subjects: Tensor) -> Tensor:
    """Scores [P] of maps [S, A, E] at points [P, 2]."""
    azimuth = torch.remainder(points[:, 0] - grid.low[0], grid.period) / grid.step[0]
    elevation = ((points[:, 1] - grid.low[1]) / grid.step[1]).clamp(0, grid.counts[1] - 1)
    left = azimuth.floor().long().clamp(max=grid.counts[0] - 1)
    below = elevation.floor().long().clamp(max=grid.counts[1] - 2)
    s, t = azimuth - left, elevation - below
    right = (left + 1) % grid.counts[0]
    return (1 - s) * ((1 - t) * maps[subjects, left, below] + t * maps[subjects, left, below + 1]) + s * (
        (1 - t) * maps[subjects, right, below] + t * maps[subjects, right, below + 1]
    )


def box_moments(grid: Grid, maps: Tensor, subject: int, lower: Tensor, upper: Tensor) -> tuple[float, float]:
    """Exact mean and variance of the bilinear f over one box [2]; a side of length 0 is averaged over what is left."""
    nodes, weights = [], []
    for axis in range(2):
        low, high = float(lower[axis]), float(upper[axis])
        if high <= low:
            nodes.append(torch.tensor([low], dtype=torch.float64))
            weights.append(torch.ones(1, dtype=torch.float64))
            continue
        first = int((low - grid.low[axis]) // grid.step[axis]) + 1
        last = int((high - grid.low[axis]) // grid.step[axis])
        lines = [grid.low[axis] + grid.step[axis] * index for index in range(first, last + 1)]
        edges = torch.tensor([low, *[x for x in lines if low < x < high], high], dtype=torch.float64)
        lengths = edges.diff()
        nodes.append(torch.stack([edges[:-1] + g * lengths for g in GAUSS], dim=1).flatten())
        weights.append((lengths / lengths.sum() / 2).repeat_interleave(2))
    points = torch.cartesian_prod(*nodes)
    weight = (weights[0][:, None] * weights[1]).flatten()
    scores = bilinear(grid, maps, points, torch.full((len(points),), subject))
    mean = weight @ scores
    return float(mean), float(weight @ (scores - mean).square())


def point_moments(grid: Grid, maps: Tensor, subject: int, lower: Tensor, upper: Tensor) -> tuple[float, float] | None:
    """Mean and population variance of the grid's points inside one box; None where it has none."""
    azimuth = grid.low[0] + grid.step[0] * torch.arange(grid.counts[0], dtype=torch.float64)
    elevation = grid.low[1] + grid.step[1] * torch.arange(grid.counts[1], dtype=torch.float64)
    columns = torch.remainder(azimuth - lower[0], grid.period) <= upper[0] - lower[0]
    rows = (elevation >= lower[1]) & (elevation <= upper[1])
    inside = maps[subject][columns][:, rows]
    return (float(inside.mean()), float(inside.var(correction=0))) if inside.numel() else None


def nearest_scores(grid: Grid, maps: Tensor, points: Tensor, subjects: Tensor) -> Tensor:
    """Scores [P] at points [P, 2] of the function that is constant on every grid point's cell."""
    azimuth = ((points[:, 0] - grid.low[0]) / grid.step[0] + 0.5).floor().long() % grid.counts[0]
    elevation = ((points[:, 1] - grid.low[1]) / grid.step[1] + 0.5).floor().long().clamp(0, grid.counts[1] - 1)
    return maps[subjects, azimuth, elevation]


def nearest_moments(grid: Grid, maps: Tensor, subject: int, lower: Tensor, upper: Tensor) -> tuple[float, float]:
    """Mean and variance over one box where f is constant on every cell: cells count by what of them is in the box."""
    weights = []
    for axis in range(2):
        centre = grid.low[axis] + grid.step[axis] * torch.arange(grid.counts[axis], dtype=torch.float64)
        left, right = centre - grid.step[axis] / 2, centre + grid.step[axis] / 2
        if axis == 1:
            right[-1] = grid.high
        turns = (-2, -1, 0, 1, 2) if axis == 0 else (0,)
        weights.append(
            sum(
                (
                    torch.minimum(upper[axis], right + turn * grid.period)
                    - torch.maximum(lower[axis], left + turn * grid.period)
                ).clamp(min=0)
                for turn in turns
            )
        )
    weight = weights[0][:, None] * weights[1]
    weight = weight / weight.sum()
    mean = (weight * maps[subject]).sum()
    return float(mean), float((weight * (maps[subject] - mean).square()).sum())


def cell_integrals(grid: Grid, maps: Tensor, nearest: bool = False) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Integrals of f and f^2 over every grid point's cell, [S, A, E] each, and the cells' lengths by axis.

    ``nearest`` takes f as constant on every cell instead of bilinear.
    """
    nodes, weights, lengths = [], [], []
    for axis in range(2):
        index = torch.arange(grid.counts[axis], dtype=torch.float64)
        centre = grid.low[axis] + grid.step[axis] * index
        left, right = centre - grid.step[axis] / 2, centre + grid.step[axis] / 2
        if axis == 1:
            left, right = left.clamp(min=grid.low[1]), right.clamp(max=grid.high)
            right[-1] = grid.high
        halves = torch.stack((centre - left, right - centre), dim=1)
        begin = torch.stack((left, centre), dim=1)
        nodes.append(torch.stack([begin + g * halves for g in GAUSS], dim=2).flatten())
        weights.append((halves / 2).repeat_interleave(2, dim=1).reshape(-1, 4))
        lengths.append(right - left)
    points = torch.cartesian_prod(*nodes)
    first, second = [], []
    for subject in range(len(maps)):
        function = nearest_scores if nearest else bilinear
        scores = function(grid, maps, points, torch.full((len(points),), subject))
        scores = scores.reshape(grid.counts[0], 4, grid.counts[1], 4)
        first.append(torch.einsum("aiej,ai,ej->ae", scores, *weights))
        second.append(torch.einsum("aiej,ai,ej->ae", scores.square(), *weights))
    return torch.stack(first), torch.stack(second), (lengths[0], lengths[1])


class LargestBoxes(NamedTuple):
    """Largest feasible boxes made of whole cells around one start, one a map.

    Attributes:
        volume: [S], 0 where no box of cells is feasible.
        lower: [S, 2], NaN where none is; axis 0 may begin below the grid's low.
        upper: [S, 2].
    """

    volume: Tensor
    lower: Tensor
    upper: Tensor


def largest_boxes(
    grid: Grid,
    integrals: tuple[Tensor, Tensor, tuple[Tensor, Tensor]],
    start: tuple[float, float],
    *,
    eps_m: float = 0.5,
    eps_v: float = 0.05,
) -> LargestBoxes:
    """All boxes of whole cells that hold the start, by summed areas; the largest with mean and variance as Eq. (2) asks.

    Args:
        grid: The maps' grid.
        integrals: As of ``cell_integrals``; for the adversarial kind those of 1 - f.
        start: Point of the space.
        eps_m: The mean is at least 1 - eps_m.
        eps_v: The variance is at most this.
    """
    first, second, (_, lengths_e) = integrals
    count_a, count_e = grid.counts
    here_a = round((start[0] - grid.low[0]) / grid.step[0]) % count_a
    here_e = min(round((start[1] - grid.low[1]) / grid.step[1]), count_e - 1)
    # The columns turn so that the start's is in the middle of two whole turns.
    turn = (torch.arange(2 * count_a) + here_a - count_a + 1) % count_a
    place = count_a - 1
    zero = torch.zeros(1, 2 * count_a, len(first), dtype=torch.float64)
    # [elevation, azimuth, map]: what is gathered together lies together.
    rows = [torch.cat((zero, values[:, turn].permute(2, 1, 0).cumsum(0))) for values in (first, second)]
    begins, ends = torch.meshgrid(torch.arange(place + 1), torch.arange(place + 1, 2 * count_a), indexing="ij")
    fits = (ends - begins < count_a) | ((ends - begins == count_a) & (begins == place))
    begins, ends = begins[fits], ends[fits]
    order = torch.argsort(ends - begins, descending=True, stable=True)
    begins, ends = begins[order], ends[order]
    widths = (ends - begins) * grid.step[0]
    best = torch.zeros(len(first), dtype=torch.float64)
    which = torch.zeros(len(first), 4, dtype=torch.int64)
    pairs = [(low, high) for low in range(here_e + 1) for high in range(here_e + 1, count_e + 1)]
    for low, high in sorted(pairs, key=lambda pair: pair[0] - pair[1]):
        height = float(lengths_e[low:high].sum())
        strips = [values[high] - values[low] for values in rows]
        # Only maps with a column that is high enough on average, and whose best box is smaller than the largest possible.
        active = strips[0].amax(0) / (height * grid.step[0]) >= 1 - eps_m
        active &= best < height * grid.period
        chosen = active.nonzero()[:, 0]
        if not len(chosen):
            continue
        most = int((widths * height > best[chosen].min()).sum())
        begin, end, volume = begins[:most], ends[:most], (widths[:most] * height)[:, None]
        sums = []
        for strip in strips:
            columns = torch.cat((zero[0, :1, : len(chosen)], strip[:, chosen].cumsum(0)))
            sums.append(columns.index_select(0, end) - columns.index_select(0, begin))
        mean = sums[0] / volume
        feasible = (mean >= 1 - eps_m) & (sums[1] / volume - mean.square() <= eps_v)
        candidate, index = torch.where(feasible, volume, 0.0).max(dim=0)
        better = candidate > best[chosen]
        best[chosen] = torch.where(better, candidate, best[chosen])
        limits = torch.tensor([low, high]).expand(len(chosen), 2)
        found = torch.cat((begin[index, None], end[index, None], limits), dim=1)
        which[chosen] = torch.where(better[:, None], found, which[chosen])
    edges_e = torch.cat((torch.zeros(1, dtype=torch.float64), lengths_e.cumsum(0))) + grid.low[1]
    azimuth = grid.low[0] + (which[:, :2] + here_a - count_a + 1 - 0.5) * grid.step[0]
    lower = torch.stack((azimuth[:, 0], edges_e[which[:, 2]]), dim=1)
    upper = torch.stack((azimuth[:, 1], edges_e[which[:, 3]]), dim=1)
    none = (best == 0)[:, None]
    return LargestBoxes(best, lower.masked_fill(none, torch.nan), upper.masked_fill(none, torch.nan))
