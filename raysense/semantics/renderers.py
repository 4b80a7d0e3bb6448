"""Pictures of meshes from semantic parameters, differentiable in each of them; several back ends, one picture."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.semantics.antialias import blends
from raysense.semantics.axes import SCENE_AXES
from raysense.semantics.camera import camera
from raysense.semantics.clipping import Projected, project
from raysense.semantics.meshes import Mesh
from raysense.semantics.rasterizer import rasterize
from raysense.semantics.shading import backgrounds, eyes, face_normals, lit, turned_to_camera
from raysense.semantics.surface import Surface, adjacency

_MEMORY_BYTES = 2**28
_SAMPLE_BYTES = 200
_FACE_BYTES = 300
_CACHED_SAMPLES = 2**18  # of a processor: more at a time leave its caches and take longer


@dataclass(frozen=True)
class PreparedMesh:
    """What all poses of a mesh share, on the device where it is rendered.

    Attributes:
        vertices: [V, 3] float64, those that faces use, each place once.
        faces: [3, F] int64, one column a face.
        adjacent: [3, F] int64, the face across the edge from corner k to the next; -1 for none.
        normals: [F, 3] float64, of unit length.
        plane: [F] int64, equal for faces of equal or opposite normals, which look alike from the same side.
    """

    vertices: Tensor
    faces: Tensor
    adjacent: Tensor
    normals: Tensor
    plane: Tensor


class Renderer(ABC):
    """Draws meshes under a camera and a light.

    The back ends differ in how they find which face is seen where; camera, clipping, shading and antialiasing are shared.

    Args:
        size: Side of the pictures in pixels.
        supersampling: Samples along a pixel's side; the picture is their mean. Hamdi & Ghanem (2020) use 2.
        antialias: Blend samples across visible edges. Without it edges are hard, as the authors', and the derivatives by
            the camera's parameters are zero.
        memory_bytes: About how much memory the poses that are worked on together may take. What automatic differentiation
            keeps comes on top: about as much as the pictures' samples and their edges.
        dtype: Of the pictures.
    """

    name: ClassVar[str]

    def __init__(
        self,
        size: int = 224,
        supersampling: int = 2,
        antialias: bool = True,
        memory_bytes: int = _MEMORY_BYTES,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for argument, value in (("size", size), ("supersampling", supersampling), ("memory_bytes", memory_bytes)):
            if value < 1:
                raise UsageError(f"{argument}: {value} is too small; give at least 1")
        self.size = size
        self.supersampling = supersampling
        self.antialias = antialias
        self.memory_bytes = memory_bytes
        self.dtype = dtype
        self.load()

    def load(self) -> None:  # noqa: B027 - most back ends need nothing
        """Import what the back end needs.

        Raises:
            UsageError: it is not installed.
        """

    @abstractmethod
    def visible(self, projected: Projected, poses: int) -> Tensor:
        """Which triangle is seen at every sample.

        Args:
            projected: Triangles in raster coordinates, detached.
            poses: Number B of rasters.

        Returns:
            [B, size * supersampling, size * supersampling] int64, columns of ``projected.corners``; their number for none.
        """

    def prepare(self, mesh: Mesh, device: torch.device | str = "cpu") -> PreparedMesh:
        """What all poses of a mesh share: to be made once for each mesh."""
        used, faces = torch.unique(mesh.faces, return_inverse=True)
        # Adding zero makes one place of zeros of both signs.
        vertices, place = torch.unique(mesh.vertices.double()[used] + 0.0, dim=0, return_inverse=True)
        faces = place[faces]
        normals = face_normals(vertices, faces)
        # One of the two normals of a plane, whichever way a face is wound: shading is two-sided.
        rounded = (normals * 1e9).round()
        leading = rounded.gather(1, (rounded != 0).int().argmax(1, keepdim=True))
        turn = torch.where(leading < 0, -1.0, 1.0)
        _, plane = torch.unique(rounded * turn + 0.0, dim=0, return_inverse=True)
        columns = faces.T.contiguous()
        parts = (vertices, columns, adjacency(columns), normals * turn, plane)
        return PreparedMesh(*(part.to(device) for part in parts))

    def render(self, mesh: PreparedMesh, parameters: Mapping[str, Tensor]) -> Tensor:
        """Draw poses of a mesh.

        Args:
            mesh: As from :meth:`prepare`.
            parameters: [B] float64 by name, all of `SCENE_AXES`, in their units, on the mesh's device.

        Returns:
            [B, 3, size, size] in [0, 1], differentiable in every parameter, in reverse and in forward mode. Which face is
            seen where is piecewise constant; the derivative is that of the colours and of the places of visible edges. A
            pose with a parameter that is not finite is NaN throughout.

        Raises:
            UsageError: a parameter is missing.
        """
        for name in SCENE_AXES:
            if name not in parameters:
                raise UsageError(f"parameters: {name} is missing; give all of {', '.join(SCENE_AXES)}")
        values = {name: parameters[name].double() for name in SCENE_AXES}
        poses = len(values["azimuth"])
        bytes_per_pose = _SAMPLE_BYTES * (self.size * self.supersampling) ** 2 + _FACE_BYTES * mesh.faces.shape[1]
        together = max(1, self.memory_bytes // bytes_per_pose)
        if mesh.vertices.device.type == "cpu":
            together = min(together, max(1, _CACHED_SAMPLES // (self.size * self.supersampling) ** 2))
        parts = [
            self._render(mesh, {name: value[start : start + together] for name, value in values.items()})
            for start in range(0, poses, together)
        ]
        if not parts:
            return torch.zeros(0, 3, self.size, self.size, dtype=self.dtype, device=mesh.vertices.device)
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        finite = torch.stack([value.detach().isfinite() for value in values.values()]).all(0)
        return images if bool(finite.all()) else images.masked_fill(~finite[:, None, None, None], torch.nan)

    def _render(self, mesh: PreparedMesh, values: Mapping[str, Tensor]) -> Tensor:
        poses, side = len(values["azimuth"]), self.size * self.supersampling
        view = camera(values)
        projected = project(view, mesh.vertices, mesh.faces, side)
        triangle = self.visible(projected._replace(points=projected.points.detach()), poses)
        shown, table = _compact(triangle, projected.corners.shape[1])
        pose, face = projected.pose.index_select(0, shown), projected.face.index_select(0, shown)
        corner = mesh.vertices.index_select(0, mesh.faces[0].index_select(0, face))
        normals, away = turned_to_camera(mesh.normals.index_select(0, face), corner, eyes(view, pose))
        colours = torch.cat((backgrounds(values), lit(normals, pose, values))).to(self.dtype).T.contiguous()
        # The samples of a pixel one behind the other: [supersampling^2, B size size].
        grid = table.view(poses, self.size, self.supersampling, self.size, self.supersampling)
        by_pixel = grid.permute(2, 4, 0, 1, 3).reshape(self.supersampling**2, -1)
        image = colours.index_select(1, by_pixel.view(-1)).view(3, *by_pixel.shape).mean(1)
        if self.antialias:
            shade = torch.cat((away.new_full((poses,), -1), 2 * mesh.plane.index_select(0, face) + away))
            surface = Surface(projected, mesh.adjacent, side)
            blend = blends(surface, triangle, shade.index_select(0, table).view(triangle.shape))
            from_row, to_row = (table.index_select(0, sample) for sample in (blend.neighbour, blend.sample))
            share = blend.share.to(self.dtype) / self.supersampling**2
            change = share * (colours.index_select(1, from_row) - colours.index_select(1, to_row))
            row = blend.sample.div(side, rounding_mode="floor")
            column = (blend.sample - row * side).div(self.supersampling, rounding_mode="floor")
            pixel = row.div(self.supersampling, rounding_mode="floor") * self.size + column
            image = image.index_add(1, pixel, change)
        return image.view(3, poses, self.size, self.size).transpose(0, 1)


def _compact(triangle: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which triangles are seen, [M], and for every sample the row of a table of B backgrounds and M triangles."""
    poses = len(triangle)
    seen = torch.zeros(count + 1, dtype=torch.bool, device=triangle.device)
    seen[triangle.view(-1)] = True
    shown = seen[:count].nonzero()[:, 0]
    row = torch.zeros(count + 1, dtype=torch.int64, device=triangle.device)
    row[shown] = torch.arange(poses, poses + len(shown), device=triangle.device)
    rows = row.index_select(0, triangle.view(-1)).view(poses, -1)
    background = torch.arange(poses, device=triangle.device)[:, None]
    return shown, torch.maximum(rows, background).view(-1)


class TorchRenderer(Renderer):
    """Our own rasteriser, in PyTorch operations alone."""

    name = "torch"

    def visible(self, projected: Projected, poses: int) -> Tensor:
        """See the base class."""
        side = self.size * self.supersampling
        points, corners, pose = projected[:3]
        faces = len(pose if projected.uncut is None else projected.uncut) // max(1, poses)
        # A face that is cut at the near plane becomes two triangles at most.
        return rasterize(points, corners, pose, poses, side, self.memory_bytes, 2 * faces).triangle


class PyTorch3DRenderer(Renderer):
    """PyTorch3D's rasteriser finds the visible faces; everything else is ours, so that the pictures are the same."""

    name = "pytorch3d"

    def load(self) -> None:
        """Import PyTorch3D."""
        try:
            self._library = importlib.import_module("pytorch3d.renderer.mesh")
            self._structures = importlib.import_module("pytorch3d.structures")
        except ImportError as error:
            raise UsageError(
                f"renderer: 'pytorch3d' cannot be imported ({error}); install PyTorch3D for this PyTorch, or use 'torch'"
            ) from error

    def visible(self, projected: Projected, poses: int) -> Tensor:
        """See the base class."""
        side = self.size * self.supersampling
        points, corners, pose = projected[:3]
        # Its coordinates: x to the left and y upwards from -1 to 1, and depth.
        x, y, inverse_depth = points.unbind(1)
        middle, half = (side - 1) / 2, side / 2
        vertices = torch.stack(((middle - x) / half, (middle - y) / half, 1 / inverse_depth), dim=1).float()
        chosen = [(pose == index).nonzero()[:, 0] for index in range(poses)]
        meshes = self._structures.Meshes([vertices] * poses, [corners[:, some].T for some in chosen])
        found: tuple[Tensor, ...] = self._library.rasterize_meshes(
            meshes, image_size=side, blur_radius=0.0, faces_per_pixel=1, perspective_correct=True
        )
        # It numbers the faces through, and says -1 for none.
        numbers = torch.cat((*chosen, pose.new_tensor([corners.shape[1]])))
        return numbers[found[0][..., 0]]


_RENDERERS: dict[str, type[Renderer]] = {
    "auto": TorchRenderer,
    TorchRenderer.name: TorchRenderer,
    PyTorch3DRenderer.name: PyTorch3DRenderer,
}


def open_renderer(
    name: str,
    size: int = 224,
    supersampling: int = 2,
    antialias: bool = True,
    memory_bytes: int = _MEMORY_BYTES,
    dtype: torch.dtype = torch.float32,
) -> Renderer:
    """A renderer by name: ``torch``, ``pytorch3d``, or ``auto`` for the recommended one, which is ``torch``.

    Args: as of `Renderer`.

    Raises:
        UsageError: there is no such renderer, it cannot be imported here, or a number is out of range.
    """
    if name not in _RENDERERS:
        raise UsageError(f"renderer: there is no {name!r}; choose from {', '.join(_RENDERERS)}")
    return _RENDERERS[name](size, supersampling, antialias, memory_bytes, dtype)
