"""Projected faces as surfaces: where a line through two neighbouring samples enters and leaves them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raysense.semantics.clipping import Projected

_MOST_STEPS = 8  # faces that are followed between two samples
_LEAST_STEP = 1e-9  # samples: what a face must add for the surface to go on


class Lines(NamedTuple):
    """Lines through P pairs of neighbouring samples, from the one at place 0 to the one at place 1.

    Attributes:
        axis: [P] int64, 0 for lines along x, 1 along y.
        origin: [P] float64, coordinate along the axis of the sample at place 0.
        sign: [P] float64, 1 where places count with the coordinate, -1 where against it.
        across: [P] float64, the line's other coordinate.
    """

    axis: Tensor
    origin: Tensor
    sign: Tensor
    across: Tensor

    def at(self, rows: Tensor) -> Lines:
        """Some of the lines."""
        return Lines(*(field.index_select(0, rows) for field in self))

    def both_ways(self) -> Lines:
        """The lines, and behind them the same from the other sample, [2 P]."""
        return Lines(
            self.axis.repeat(2),
            torch.cat((self.origin, self.origin + self.sign)),
            torch.cat((self.sign, -self.sign)),
            self.across.repeat(2),
        )


class Chord(NamedTuple):
    """Where lines enter and leave a triangle, [P] each; where a line misses it, infinity and minus infinity.

    Attributes:
        enters: Place on the line, float64.
        leaves: Place on the line, float64.
        w_enters: Inverse depth there.
        w_leaves: Inverse depth there.
        edge: int64, the edge over which the line leaves; edge k is that from corner k to the next.
    """

    enters: Tensor
    leaves: Tensor
    w_enters: Tensor
    w_leaves: Tensor
    edge: Tensor

    def inverse_depth(self, place: Tensor) -> Tensor:
        """Inverse depth at places between the ends."""
        share = ((place - self.enters) / (self.leaves - self.enters).clamp(min=1e-300)).clamp(0, 1)
        return torch.lerp(self.w_enters, self.w_leaves, share)


class End(NamedTuple):
    """Where a connected surface ends on a line, [P] each.

    Attributes:
        triangle: int64, the last triangle.
        edge: int64, the edge of it over which the line leaves.
        place: Place on the line, float64.
        inverse_depth: There, float64.
        reached: bool, whether the surface leads to the wanted triangle; then the rest is of the first triangle.
    """

    triangle: Tensor
    edge: Tensor
    place: Tensor
    inverse_depth: Tensor
    reached: Tensor


def adjacency(faces: Tensor) -> Tensor:
    """Which face lies on the other side of each edge, [3, F] int64; -1 for none, or several.

    Args:
        faces: [3, F] int64; vertices at the same place must be the same vertex.
    """
    count = faces.shape[1]
    ends = torch.stack((faces, faces.roll(-1, 0))).sort(0).values.view(2, -1)
    key = ends[0] * (int(faces.max()) + 1) + ends[1]
    ordered, place = key.sort(stable=True)
    same = ordered[1:] == ordered[:-1]
    padded = torch.nn.functional.pad(same.long(), (1, 1))
    first = ((padded[1:] == 1) & (padded[:-1] == 0)).nonzero()[:, 0]
    first = first[padded[first + 2] == 0] if len(first) else first
    found = torch.full((3 * count,), -1, dtype=torch.int64, device=faces.device)
    one, other = place[first], place[first + 1]
    found[one], found[other] = other % count, one % count
    return found.view(3, count)


class Surface:
    """The projected triangles, and a background: one more triangle, number T, that is everywhere and infinitely far.

    Args:
        projected: T triangles.
        adjacent: As from :func:`adjacency`, of the mesh.
        size: Samples along the raster's side.
    """

    def __init__(self, projected: Projected, adjacent: Tensor, size: int) -> None:
        far = 4.0 * size
        behind = projected.points.new_tensor([[-far, -far, 0.0], [3 * far, -far, 0.0], [-far, 3 * far, 0.0]])
        self.points = torch.cat((projected.points, behind))
        self.background = projected.corners.shape[1]
        everywhere = torch.arange(len(projected.points), len(self.points), device=self.points.device)
        self.corners = torch.cat((projected.corners, everywhere[:, None]), dim=1)
        self._flat = self.points.detach().reshape(-1)
        self._projected = projected
        self._adjacent = adjacent

    def corner(self, triangle: Tensor, which: Tensor) -> Tensor:
        """Rows [P] of the points: corner 0, 1 or 2 (counted on from 3) of each triangle."""
        return self.corners.view(-1).index_select(0, (which % 3) * self.corners.shape[1] + triangle)

    def chord(self, triangle: Tensor, lines: Lines) -> Chord:
        """Where lines [P] cross triangles [P]; not differentiable."""
        rows = 3 * self.corners.index_select(1, triangle)
        u, v, w = (
            self._flat.index_select(0, (rows + part).view(-1)).view(3, -1) for part in (lines.axis, 1 - lines.axis, 2)
        )
        u, v = (u - lines.origin).mul_(lines.sign), v - lines.across
        above = v > 0
        u, v, w = (torch.cat((part, part[:1])) for part in (u, v, w))
        share = v[:3] / (v[:3] - v[1:])
        missed = above == above.roll(-1, 0)
        places = torch.addcmul(u[:3], share, u[1:] - u[:3])
        depths = torch.addcmul(w[:3], share, w[1:] - w[:3])
        enters, first = places.masked_fill(missed, torch.inf).min(0)
        leaves, last = places.masked_fill(missed, -torch.inf).max(0)
        return Chord(enters, leaves, depths.gather(0, first[None])[0], depths.gather(0, last[None])[0], last)

    def follow(self, triangle: Tensor, chord: Chord, wanted: Tensor, lines: Lines) -> End:
        """Follow the surface from triangles along lines, over edges, until it ends, folds back or passes place 1.

        Args:
            triangle: [P] int64, where to begin.
            chord: Of it.
            wanted: [P] int64, the triangle at place 1: the search ends where it is reached.
            lines: The lines.
        """
        begin = (triangle, chord.edge, chord.leaves, chord.w_leaves)
        ends = tuple(field.clone() for field in begin)
        reached = torch.zeros_like(triangle, dtype=torch.bool)
        active = (chord.leaves < 1).nonzero()[:, 0]
        for _ in range(_MOST_STEPS):
            following = self._next(ends[0].index_select(0, active), ends[1].index_select(0, active))
            arrived = following == wanted.index_select(0, active)
            reached[active[arrived]] = True
            kept = ((following >= 0) & ~arrived).nonzero()[:, 0]
            if not len(kept):
                break
            active, following = active.index_select(0, kept), following.index_select(0, kept)
            found = self.chord(following, lines.at(active))
            kept = (found.leaves > ends[2].index_select(0, active) + _LEAST_STEP).nonzero()[:, 0]
            if not len(kept):
                break
            active = active.index_select(0, kept)
            for end, values in zip(ends, (following, found.edge, found.leaves, found.w_leaves), strict=True):
                end.index_copy_(0, active, values.index_select(0, kept))
            active = active.index_select(0, (found.leaves.index_select(0, kept) < 1).nonzero()[:, 0])
        triangle, edge, place, depth = (
            torch.where(reached, values, end) for values, end in zip(begin, ends, strict=True)
        )
        return End(triangle, edge, place, depth, reached)

    def _next(self, triangle: Tensor, edge: Tensor) -> Tensor:
        """The triangle on the other side of an edge, or -1; those cut at the near plane have and are no neighbours."""
        pose, face, uncut = self._projected.pose, self._projected.face, self._projected.uncut
        safe = triangle.clamp(max=self.background - 1)
        known = triangle < self.background
        at = pose.index_select(0, safe) * self._adjacent.shape[1]
        if uncut is not None:
            known &= uncut.index_select(0, at + face.index_select(0, safe)) == triangle
        neighbour = self._adjacent.view(-1).index_select(0, edge * self._adjacent.shape[1] + face.index_select(0, safe))
        known &= neighbour >= 0
        found = at + neighbour.clamp(min=0)
        if uncut is not None:
            found = uncut.index_select(0, found)
        return torch.where(known, found, -1)
