"""Antialiasing of a raster along the visible edges of its faces, which makes pictures differentiable in the camera.

After Laine et al. 2020, Modular Primitives for High-Performance Differentiable Rendering, section 3.5: where two
neighbouring samples show different faces, the place between them where the one gives way to the other is computed from the
projected edges, and the sample on the side of that place gets a share of the other's colour. Different from there: faces
are flat, so that edges between two visible faces count as silhouettes do; faces smaller than the samples' distance are
followed to the silhouette; a horizontal and a vertical crossing of one edge count with the squared components of its unit
normal instead of one of them being ignored; places where faces pierce each other count; and a sample's shares are at most
its whole colour.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raysense.semantics.surface import Lines, Surface

_SAME = 1e-9  # samples: crossings as near as this are those of one edge that two faces share


class Crossings(NamedTuple):
    """Edges that cross the line through a pair of samples.

    Attributes:
        pair: [E] int64, which pair.
        a: [E] int64, the point at the edge's one end.
        b: [E] int64, at the other.
    """

    pair: Tensor
    a: Tensor
    b: Tensor


class Boundaries(NamedTuple):
    """How the visible boundary between each of P pairs of samples comes about; each pair is in at most one of the lists.

    Attributes:
        edges: One edge is the boundary.
        gaps: Something else is seen between two edges; the boundary is taken in the middle. Each pair is there twice: the
            first half of the list are the one edges, the second half the others, in the same order.
        piercings: [E] int64, the pairs where the two faces pierce each other.
    """

    edges: Crossings
    gaps: Crossings
    piercings: Tensor


class Blend(NamedTuple):
    """Shares that samples get of their neighbours' colours.

    Attributes:
        sample: [E] int64, which sample of the flattened raster.
        neighbour: [E] int64, whose colour it gets.
        share: [E] float64, in [0, 1]; those of one sample sum to at most 1. Differentiable.
    """

    sample: Tensor
    neighbour: Tensor
    share: Tensor


def blends(surface: Surface, triangle: Tensor, shade: Tensor) -> Blend:
    """Shares of colours across the visible edges, differentiable in the surface's points.

    Args:
        surface: The projected triangles.
        triangle: [B, size, size] int64, which one is seen at every sample.
        shade: [B, size, size] int64, equal where triangles of one pose look alike under any light.
    """
    place, step, lines = neighbours(shade)
    flat = triangle.view(-1)
    one, other = flat.index_select(0, place), flat.index_select(0, place + step)
    found = boundaries(surface, one, other, lines)
    edge, edge_weight = _edge_places(surface.points, found.edges, lines)
    gap, gap_weight = (values.view(2, -1).mean(0) for values in _edge_places(surface.points, found.gaps, lines))
    pierced, pierced_weight = _piercing_places(surface, one, other, found.piercings, lines)
    pair = torch.cat((found.edges.pair, found.gaps.pair[: len(gap)], found.piercings))
    # What lies beyond the pair is approximate, or rounded.
    beyond = torch.cat((edge, gap, pierced)).clamp(0, 1) - 0.5
    weight = torch.cat((edge_weight, gap_weight, pierced_weight))
    far = beyond.detach() > 0
    near_sample = place.index_select(0, pair)
    far_sample = near_sample + step.index_select(0, pair)
    sample, neighbour = torch.where(far, far_sample, near_sample), torch.where(far, near_sample, far_sample)
    share = beyond.abs() * weight
    total = torch.zeros(len(flat), dtype=share.dtype, device=share.device).index_add(0, sample, share)
    return Blend(sample, neighbour, share / total.index_select(0, sample).clamp(min=1))


def neighbours(shade: Tensor) -> tuple[Tensor, Tensor, Lines]:
    """Pairs of neighbouring samples that differ, of rasters [B, size, size].

    Returns:
        Place of the left or upper sample in the flattened raster, [P]; step from there to the other one, [P]; and the lines
        through the pairs.
    """
    size = shade.shape[2]
    across = torch.zeros(shade.shape, dtype=torch.bool, device=shade.device)
    down = across.clone()
    torch.ne(shade[:, :, 1:], shade[:, :, :-1], out=across[:, :, :-1])
    torch.ne(shade[:, 1:], shade[:, :-1], out=down[:, :-1])
    horizontal, vertical = (differ.view(-1).nonzero()[:, 0] for differ in (across, down))
    place = torch.cat((horizontal, vertical))
    axis = (torch.arange(len(place), device=place.device) >= len(horizontal)).long()
    x, y = place % size, place.div(size, rounding_mode="floor") % size
    near, other = torch.where(axis == 0, x, y), torch.where(axis == 0, y, x)
    near, other = near.double(), other.double()
    return place, torch.where(axis == 0, 1, size), Lines(axis, near, torch.ones_like(near), other)


def boundaries(surface: Surface, one: Tensor, other: Tensor, lines: Lines) -> Boundaries:
    """Find the boundary between the two triangles of each pair; not differentiable.

    Args:
        surface: The projected triangles.
        one: [P] int64, the triangle seen at the pair's near sample (place 0 on the line).
        other: [P] int64, at the far sample (place 1).
        lines: Through the pairs.
    """
    pairs = len(one)
    at, towards, ways = torch.cat((one, other)), torch.cat((other, one)), lines.both_ways()
    chord = surface.chord(at, ways)
    final = surface.follow(at, chord, towards, ways)
    # A triangle that is seen at a sample covers it, whatever rounding says.
    place, w_end = final.place.clamp(min=0), final.inverse_depth
    w_begin = chord.inverse_depth(torch.zeros_like(place))
    hit = chord.enters < torch.inf
    known, joined = hit[:pairs] & hit[pairs:], final.reached[:pairs] | final.reached[pairs:]
    # Where the one surface ends and the other begins, both seen from place 0.
    end, begin = place[:pairs], 1 - place[pairs:]
    first, last = begin.clamp(min=0), end.clamp(max=1)
    ahead = []
    for spot in (first, last):
        # Along each surface, inverse depth is taken as linear between its sample and its end.
        share = (torch.cat((spot, 1 - spot)) / place.clamp(min=1e-300)).clamp(0, 1)
        w = torch.lerp(w_begin, w_end, share)
        ahead.append(w[:pairs] >= w[pairs:])
    apart = first - last
    overlap = known & ~joined & (apart < -_SAME)
    by_one = overlap & ahead[0] & ahead[1] & (end < 1)
    by_other = overlap & ~ahead[0] & (begin > 0)
    touching = known & ~overlap & (apart <= _SAME)
    by_one |= touching
    between = known & (apart > _SAME)
    pierced = overlap & ahead[0] & ~ahead[1]
    first_edge, second_edge = (
        (final.triangle[side], final.edge[side]) for side in (slice(0, pairs), slice(pairs, None))
    )

    def crossings(chosen: Tensor, triangle: Tensor, edge: Tensor) -> Crossings:
        pair = chosen.nonzero()[:, 0]
        owner, number = triangle.index_select(0, pair), edge.index_select(0, pair)
        return Crossings(pair, surface.corner(owner, number), surface.corner(owner, number + 1))

    def both(first: Crossings, second: Crossings) -> Crossings:
        return Crossings(*(torch.cat(columns) for columns in zip(first, second, strict=True)))

    return Boundaries(
        both(crossings(by_one, *first_edge), crossings(by_other, *second_edge)),
        both(crossings(between, *first_edge), crossings(between, *second_edge)),
        pierced.nonzero()[:, 0],
    )


def _edge_places(points: Tensor, crossings: Crossings, lines: Lines) -> tuple[Tensor, Tensor]:
    """Places on the lines where edges cross them, and their weights: the squared part of their unit normals along it.

    Differentiable in the points.
    """
    axis, near, _, across = lines.at(crossings.pair)
    flat = points.reshape(-1)
    (u_a, v_a), (u_b, v_b) = (
        (flat.index_select(0, 3 * row + axis), flat.index_select(0, 3 * row + (1 - axis)))
        for row in (crossings.a, crossings.b)
    )
    du, dv = u_b - u_a, v_b - v_a
    return u_a + (across - v_a) / dv * du - near, dv * dv / (du * du + dv * dv)


def _piercing_places(
    surface: Surface, one: Tensor, other: Tensor, chosen: Tensor, lines: Lines
) -> tuple[Tensor, Tensor]:
    """The same for the lines on which the planes of two triangles are at equal depths."""
    axis, near, _, across = lines.at(chosen)
    flat = surface.points.reshape(-1)
    planes = []
    for triangles in (one, other):
        rows = 3 * surface.corners.index_select(1, triangles.index_select(0, chosen))
        u, v, w = (flat.index_select(0, (rows + part).view(-1)).view(3, -1) for part in (axis, 1 - axis, 2))
        u, v = u - near, v - across
        (u1, v1, w1), (u2, v2, w2) = ((u[k] - u[0], v[k] - v[0], w[k] - w[0]) for k in (1, 2))
        area = u1 * v2 - u2 * v1
        by_u, by_v = (w1 * v2 - w2 * v1) / area, (u1 * w2 - u2 * w1) / area
        planes.append((by_u, by_v, w[0] - by_u * u[0] - by_v * v[0]))
    (u_i, v_i, w_i), (u_j, v_j, w_j) = planes
    du, dv = u_i - u_j, v_i - v_j
    return (w_j - w_i) / du, du * du / (du * du + dv * dv)
