"""Polygons of mesh files cut into triangles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def triangulated(vertices: Floats, indices: Integers, counts: Integers) -> Integers:
    """Triangles of simple polygons, in their order and orientation; no vertex is added.

    Polygons that the fan around their first corner covers (all convex ones) are cut into it, others by ear clipping
    (Meisters 1975) in the plane of their area vector.

    Args:
        vertices: [V, 3] float64.
        indices: [I] int64, the corners of all polygons one after the other.
        counts: [P] int64, corners of each polygon, at least 3; their sum is I.

    Returns:
        [sum(counts - 2), 3] int64, rows of vertices.
    """
    triangles = np.empty((int((counts - 2).sum()), 3), dtype=np.int64)
    starts = np.cumsum(counts) - counts
    places = np.cumsum(counts - 2) - (counts - 2)
    for count in np.unique(counts):
        chosen = counts == count
        corners = indices[starts[chosen][:, None] + np.arange(count)]
        cut = _fans(corners)
        if count > 3:
            for row in np.flatnonzero(~_fan_covers(vertices[corners])):
                cut[row] = corners[row][_ears(vertices[corners[row]])]
        triangles[places[chosen][:, None] + np.arange(count - 2)] = cut
    return triangles


def _fans(corners: Integers) -> Integers:
    """Fans [P, n-2, 3] around the first of corners [P, n]."""
    first = np.broadcast_to(corners[:, :1], corners[:, 1:-1].shape)
    return np.stack((first, corners[:, 1:-1], corners[:, 2:]), axis=-1)


def _fan_covers(points: Floats) -> NDArray[np.bool_]:
    """Whether no triangle of the fan around the first of points [P, n, 3] is turned over, [P]."""
    arms = points[:, 1:] - points[:, :1]
    areas = np.cross(arms[:, :-1], arms[:, 1:])
    along = (areas * areas.sum(axis=1, keepdims=True)).sum(axis=-1)
    return np.asarray((along >= 0).all(axis=1))


def _ears(points: Floats) -> Integers:
    """Triangles [n-2, 3] of corners' numbers of one simple polygon [n, 3], by ear clipping."""
    flat = _projected(points)
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        place = next((place for place in range(len(left)) if _is_ear(flat, left, place)), 0)
        triangles.append([left[place - 1], left[place], left[(place + 1) % len(left)]])
        del left[place]
    return np.array([*triangles, left], dtype=np.int64)


def _projected(points: Floats) -> Floats:
    """Points [n, 2] in the plane of the polygon's area vector, where it runs counterclockwise."""
    area = np.cross(points - points[0], np.roll(points, -1, axis=0) - points[0]).sum(axis=0)
    normal = area / (np.linalg.norm(area) or 1.0)
    across = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    across /= np.linalg.norm(across)
    return np.asarray(points @ np.stack((across, np.cross(normal, across)), axis=1))


def _is_ear(flat: Floats, left: list[int], place: int) -> bool:
    """Whether the corner at a place turns left and no other corner lies in its triangle."""
    before, here, after = left[place - 1], left[place], left[(place + 1) % len(left)]
    triangle = flat[[before, here, after]]
    if _turn(*triangle) <= 0:
        return False
    others = flat[[corner for corner in left if corner not in (before, here, after)]]
    inside = np.ones(len(others), dtype=bool)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        inside &= _turn(triangle[start], triangle[end], others) >= 0
    # A corner that only repeats one of the triangle's (a keyhole's seam) is not in the way.
    inside &= ~(others[:, None] == triangle).all(axis=-1).any(axis=-1)
    return not inside.any()


def _turn(start: Floats, end: Floats, point: Floats) -> Floats:
    """Twice the signed area of the triangle start, end, point [..., 2]."""
    first, second = end - start, point - start
    return np.asarray(first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0])
