"""Small meshes with known properties, for tests of renderers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raysense.semantics.axes import SCENE_AXES
from raysense.semantics.meshes import Mesh


def cube(half: float = 0.6) -> Mesh:
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    sides = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [part for a, b, c, d in sides for part in ([a, b, c], [a, c, d])]
    return Mesh(half * corners, torch.tensor(faces), "cube")


def torus(around: int = 24, across: int = 12, radius: float = 0.7, tube: float = 0.3) -> Mesh:
    """A surface that hides parts of itself, of 2 * around * across faces."""
    u = torch.arange(around, dtype=torch.float64)[:, None] * (2 * math.pi / around)
    v = torch.arange(across, dtype=torch.float64)[None] * (2 * math.pi / across)
    ring = radius + tube * v.cos()
    places = torch.stack((ring * u.cos(), tube * v.sin() + 0 * u, ring * u.sin()), dim=-1).view(-1, 3)
    i, j = torch.meshgrid(torch.arange(around), torch.arange(across), indexing="ij")
    a, b, c, d = (
        ((i + di) % around * across + (j + dj) % across).view(-1) for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1))
    )
    return Mesh(places, torch.cat((torch.stack((a, b, c), 1), torch.stack((a, c, d), 1))), "torus")


def joined(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    starts = torch.tensor([0, *(len(mesh.vertices) for mesh in meshes)]).cumsum(0)
    return Mesh(
        torch.cat([mesh.vertices for mesh in meshes]),
        torch.cat([mesh.faces + start for mesh, start in zip(meshes, starts.tolist(), strict=False)]),
        "+".join(mesh.name for mesh in meshes),
    )


def crossed_boards() -> Mesh:
    """Two boards that pierce each other along a slanting line; no edge of the mesh lies where they meet."""
    first = torch.tensor([[-0.8, -0.7, -0.5], [0.8, -0.7, 0.5], [0.8, 0.7, 0.5], [-0.8, 0.7, -0.5]])
    second = torch.tensor([[-0.8, -0.5, 0.7], [0.8, -0.8, -0.6], [0.8, 0.8, -0.7], [-0.8, 0.5, 0.4]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return Mesh(torch.cat((first, second)).double(), torch.cat((faces, faces + 4)), "boards")


def floor(height: float = -0.5, half: float = 40.0) -> Mesh:
    """A square in two triangles that reaches far behind any camera."""
    x = half
    places = torch.tensor([[-x, height, -x], [x, height, -x], [x, height, x], [-x, height, x]], dtype=torch.float64)
    return Mesh(places, torch.tensor([[0, 1, 2], [0, 2, 3]]), "floor")


def subdivided(mesh: Mesh, least: int) -> Mesh:
    """The same surface in at least so many faces: the largest are cut into four until there are enough."""
    vertices, faces = mesh.vertices, mesh.faces
    while len(faces) < least:
        a, b, c = vertices[faces].unbind(1)
        area = torch.linalg.vector_norm(torch.linalg.cross(b - a, c - a), dim=1)
        cut = torch.zeros(len(faces), dtype=torch.bool)
        cut[area.argsort(descending=True)[: -(-(least - len(faces)) // 3)]] = True
        old = faces[cut]
        middles = torch.cat([(vertices[old[:, k]] + vertices[old[:, (k + 1) % 3]]) / 2 for k in range(3)])
        ab, bc, ca = (len(vertices) + torch.arange(3 * len(old))).view(3, -1)
        a, b, c = old.unbind(1)
        parts = [torch.stack(part, dim=1) for part in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        vertices, faces = torch.cat((vertices, middles)), torch.cat((faces[~cut], *parts))
    return Mesh(vertices, faces, f"{mesh.name}, subdivided")


GENERIC = {
    "azimuth": 33.0, "elevation": 25.0, "distance": 2.9, "roll": 10.0, "field_of_view": 55.0, "light_azimuth": 40.0,
    "light_elevation": 50.0, "light_intensity": 0.45, "ambient": 0.4, "red": 0.9, "green": 0.8, "blue": 0.7,
    "background": 0.2,
}  # fmt: skip
"""A scene in which every parameter matters and nothing is symmetric."""


def poses(count: int = 1, *, generic: bool = False, **values: float | Tensor) -> dict[str, Tensor]:
    """Scene parameters [count] each: the defaults, or `GENERIC`, and what is given."""
    start = GENERIC if generic else {name: axis.default for name, axis in SCENE_AXES.items()}
    return {
        name: torch.as_tensor(values.get(name, value), dtype=torch.float64).expand(count).clone()
        for name, value in start.items()
    }
