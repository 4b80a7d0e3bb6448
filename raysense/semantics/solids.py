"""Closed surfaces that the procedural shapes are put together from: lofts, solids of revolution, tubes, boxes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TURN = 2 * math.pi


class Solid(NamedTuple):
    """A closed surface: every edge has two faces, which run counterclockwise seen from outside.

    Attributes:
        vertices: [V, 3] float64, y up.
        faces: [F, 3] int64.
    """

    vertices: Floats
    faces: NDArray[np.int64]

    @property
    def volume(self) -> float:
        """Volume inside."""
        corners = self.vertices[self.faces]
        return float((corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6)

    def moved(self, by: ArrayLike) -> Solid:
        """The solid, shifted by [3]."""
        return Solid(self.vertices + np.asarray(by, dtype=np.float64), self.faces)

    def turned(self, axis: str, degrees: float) -> Solid:
        """The solid, rotated about the axis x, y or z through the origin, counterclockwise seen from its tip."""
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        vertices = self.vertices.copy()
        vertices[:, first] = cosine * self.vertices[:, first] - sine * self.vertices[:, second]
        vertices[:, second] = sine * self.vertices[:, first] + cosine * self.vertices[:, second]
        return Solid(vertices, self.faces)


def joined(parts: Iterable[Solid]) -> Solid:
    """All parts as one, as they lie."""
    vertices, faces, first = [], [], 0
    for part in parts:
        vertices.append(part.vertices)
        faces.append(part.faces + first)
        first += len(part.vertices)
    return Solid(np.concatenate(vertices), np.concatenate(faces))


def lofted(rings: ArrayLike) -> Solid:
    """The surface through a row of rings, closed at both ends by a fan around the ring's middle.

    Args:
        rings: [R, S, 3]; corner s of a ring is joined to corner s of the next.
    """
    rings = np.asarray(rings, dtype=np.float64)
    count, sides, _ = rings.shape
    vertices = np.concatenate((rings.reshape(-1, 3), rings[[0, -1]].mean(axis=1)))
    here = (np.arange(count - 1)[:, None] * sides + np.arange(sides)).reshape(-1)
    beside = (np.arange(count - 1)[:, None] * sides + np.roll(np.arange(sides), -1)).reshape(-1)
    around, onward = np.arange(sides), np.roll(np.arange(sides), -1)
    last, bottom, top = (count - 1) * sides, count * sides, count * sides + 1
    faces = np.concatenate(
        (
            np.stack((here, beside, here + sides), axis=1),
            np.stack((beside, beside + sides, here + sides), axis=1),
            np.stack((onward, around, np.full(sides, bottom)), axis=1),
            np.stack((last + around, last + onward, np.full(sides, top)), axis=1),
        )
    )
    solid = Solid(vertices, faces)
    return solid if solid.volume > 0 else Solid(vertices, faces[:, ::-1].copy())


def outline(sides: int, width: float = 1.0, depth: float = 1.0, squareness: float = 2.0) -> Floats:
    """A horizontal superellipse [sides, 2] in (x, z) of half axes width and depth; 2 is an ellipse, large a rectangle."""
    angles = np.arange(sides) * (TURN / sides)
    ring = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    ring = np.sign(ring) * np.abs(ring) ** (2 / squareness)
    return np.asarray(ring * (width, depth))


def revolved(profile: ArrayLike, section: Floats) -> Solid:
    """A vertical solid whose horizontal sections are one outline at several sizes.

    Args:
        profile: [R, 2] of (size, height), from end to end; both ends are closed.
        section: [S, 2] in (x, z), as of `outline`.
    """
    profile = np.asarray(profile, dtype=np.float64)
    flat = profile[:, :1, None] * section[None]
    height = np.broadcast_to(profile[:, 1][:, None], flat.shape[:2])
    return lofted(np.stack((flat[..., 0], height, flat[..., 1]), axis=-1))


def tube(path: ArrayLike, radius: ArrayLike, sides: int = 10, flatness: float = 1.0) -> Solid:
    """A tube of circular or elliptic section around a path.

    Args:
        path: [N, 3], the middle line.
        radius: One for all, or [N].
        sides: Corners of the section.
        flatness: Section's axis across the plane that the path bends in, against the one in it.
    """
    path = np.asarray(path, dtype=np.float64)
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    bend = np.cross(tangents[0], tangents[len(path) // 2])
    if np.linalg.norm(bend) < 1e-6:
        bend = np.cross(tangents[0], np.eye(3)[np.abs(tangents[0]).argmin()])
    # One direction serves all sections, as the paths lie in a plane: it never twists.
    across = np.broadcast_to(bend / np.linalg.norm(bend), path.shape)
    inward = np.cross(tangents, across)
    angles = np.arange(sides) * (TURN / sides)
    sizes = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path),))[:, None, None]
    ring = inward[:, None] * np.cos(angles)[:, None] + flatness * across[:, None] * np.sin(angles)[:, None]
    return lofted(path[:, None] + sizes * ring)


def box(size: Sequence[float], at: Sequence[float] = (0.0, 0.0, 0.0), taper: float = 1.0) -> Solid:
    """A box of size [3] about a middle [3]; its upper side is ``taper`` times as wide and deep as its lower one."""
    half = np.asarray(size, dtype=np.float64) / 2
    square = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], dtype=np.float64)
    rings = [
        np.stack((square[:, 0] * half[0] * part, np.full(4, height), square[:, 1] * half[2] * part), axis=1)
        for height, part in ((-half[1], 1.0), (half[1], taper))
    ]
    return lofted(rings).moved(at)


def smooth(points: ArrayLike, count: int) -> Floats:
    """A curve [count, D] through points [N, D]: a Catmull-Rom spline, its ends included."""
    points = np.asarray(points, dtype=np.float64)
    padded = np.concatenate((2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]))
    place = np.linspace(0, len(points) - 1, count)
    piece = np.minimum(place.astype(np.int64), len(points) - 2)
    t = (place - piece)[:, None]
    before, start, end, after = (padded[piece + step] for step in range(4))
    curve = (2 * start + (end - before) * t + (2 * before - 5 * start + 4 * end - after) * t**2) / 2
    return np.asarray(curve + (3 * start - before - 3 * end + after) * t**3 / 2)
