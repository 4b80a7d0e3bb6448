"""Triangle meshes: what is kept of them, and the normalisation that puts them into the unit of the camera's distance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: [V, 3] float64, in model units after normalisation: centred, the largest extent 2.
        faces: [F, 3] int64, rows of vertices; distinct as sets, none of zero area.
        name: What to call it in messages.
        duplicates: Faces that were dropped because an equal one (in any orientation) is kept.
        degenerate: Faces that were dropped because they have no area.
    """

    vertices: Tensor
    faces: Tensor
    name: str
    duplicates: int = 0
    degenerate: int = 0
