"""Triangle meshes: what is kept of them, and the normalisation that puts them into the unit of the camera's distance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raysense.errors import UsageError

_NO_HEIGHT = 1e-12
"""A triangle whose height on its longest side is this part of the mesh's extent, or less, has no area but rounding."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: [V, 3] float64; after normalisation in model units: centred, the largest extent 2.
        faces: [F, 3] int64, rows of vertices; after cleaning distinct as sets of positions, none of zero area.
        name: What to call it in messages.
        duplicates: Faces that were dropped because an equal one (in any orientation) is kept.
        degenerate: Faces that were dropped because they have no area.
    """

    vertices: Tensor
    faces: Tensor
    name: str
    duplicates: int = 0
    degenerate: int = 0


def cleaned(mesh: Mesh) -> Mesh:
    """The mesh without faces of zero area and without repeated ones; vertices and the order of faces stay.

    A face repeats another where it has the same three positions, in any order and orientation, whichever vertices hold
    them: ShapeNet's meshes store most faces twice, once in each orientation. The first is kept. A face has no area where
    two of its corners are at one place, or its height is at most 1e-12 of the mesh's largest extent.

    Raises:
        UsageError: no face is left.
    """
    # Adding zero makes one place of zeros of both signs.
    _, place = torch.unique(mesh.vertices + 0.0, dim=0, return_inverse=True)
    corners = place[mesh.faces].sort(dim=1).values
    solid = _has_area(mesh.vertices, mesh.faces) & (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2])
    kept = solid.nonzero()[:, 0]
    if not len(kept):
        raise UsageError(
            f"mesh {mesh.name!r}: none of its {len(mesh.faces)} faces has an area; mend or replace the file"
        )
    distinct, group = torch.unique(corners[kept], dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(mesh.faces)).scatter_reduce(0, group, kept, "amin").sort().values
    return replace(
        mesh,
        faces=mesh.faces[first],
        duplicates=mesh.duplicates + len(kept) - len(first),
        degenerate=mesh.degenerate + len(mesh.faces) - len(kept),
    )


def normalised(mesh: Mesh) -> Mesh:
    """The mesh in model units: the largest extent 2, the middle of every axis at the origin.

    The authors' normalisation: subtract the minimum, divide by the largest extent, times 2, centre. It counts all
    vertices, also those of no face, as theirs does (so that a shape with a stray vertex is not quite in the middle).

    Raises:
        UsageError: all vertices are at one place, or so far away that their extent overflows.
    """
    vertices = mesh.vertices - mesh.vertices.min(dim=0).values
    extent = vertices.max()
    if not 0 < extent < torch.inf:
        raise UsageError(f"mesh {mesh.name!r}: its extent is {extent:g}; give a mesh of finite size")
    vertices = vertices / extent * 2
    return replace(mesh, vertices=vertices - vertices.max(dim=0).values / 2)


def _has_area(vertices: Tensor, faces: Tensor) -> Tensor:
    """Whether each face [F] is higher than rounding; scale and place of the mesh make no difference."""
    vertices = vertices - vertices.min(dim=0).values
    extent = vertices.max()
    if not extent > 0:
        return torch.zeros(len(faces), dtype=torch.bool)
    corners = (vertices / extent)[faces]
    sides = corners.roll(-1, dims=1) - corners
    double_area = torch.linalg.vector_norm(torch.linalg.cross(sides[:, 0], sides[:, 1]), dim=-1)
    longest = torch.linalg.vector_norm(sides, dim=-1).amax(dim=1)
    higher: Tensor = double_area > _NO_HEIGHT * longest
    return higher
