"""Triangles of several poses in raster coordinates, clipped at the near plane."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raysense.semantics.camera import NEAR, Camera, to_raster


class Projected(NamedTuple):
    """The triangles of a mesh under B cameras, in front of the near plane.

    Attributes:
        points: [N, 3], x and y in samples and inverse depth; differentiable in the cameras.
        corners: [3, T] int64, rows of ``points``.
        pose: [T] int64, which camera.
        face: [T] int64, which face of the mesh the triangle is, or is a part of.
        uncut: [B * F] int64, by pose and face: the triangle that is the whole face, -1 where there is none; None where all
            are whole and in this order.
    """

    points: Tensor
    corners: Tensor
    pose: Tensor
    face: Tensor
    uncut: Tensor | None


def project(camera: Camera, vertices: Tensor, faces: Tensor, size: int) -> Projected:
    """Project a mesh; faces that cross the near plane become one or two triangles, those behind it are left out.

    A face with one vertex behind the plane is cut to a quadrilateral (two triangles), one with two behind to a triangle.
    The new vertices lie on the face's own edges, so that edges keep their lines, and are differentiable.

    Args:
        camera: Of B poses.
        vertices: [V, 3] in world coordinates.
        faces: [3, F] int64, one column a face.
        size: Samples along the raster's side.
    """
    view = camera.view(vertices)
    poses, count = len(view), len(vertices)
    points = to_raster(view, camera.focal[:, None], size).reshape(-1, 3)
    offsets = torch.arange(poses, device=faces.device) * count
    pose = torch.arange(poses, device=faces.device).repeat_interleave(faces.shape[1])
    face = torch.arange(faces.shape[1], device=faces.device).repeat(poses)
    corners = (faces[:, None] + offsets[:, None]).reshape(3, -1)
    depth = view[..., 2].detach().reshape(-1)
    if bool(depth.min() >= NEAR):
        return Projected(points, corners, pose, face, None)
    in_front = (depth >= NEAR)[corners]
    number = in_front.sum(0)
    whole = (number == 3).nonzero()[:, 0]
    cut = ((number == 1) | (number == 2)).nonzero()[:, 0]
    new, first, second = _cut(view.reshape(-1, 3), corners[:, cut], in_front[:, cut], len(points))
    # Of faces with one vertex in front a triangle is left, of the others a second one.
    quadrilateral = (number[cut] == 2).nonzero()[:, 0]
    kept = torch.cat((whole, cut, cut[quadrilateral]))
    uncut = torch.full_like(pose, -1)
    uncut[whole] = torch.arange(len(whole), device=whole.device)
    return Projected(
        torch.cat((points, to_raster(new, camera.focal[pose[cut]].repeat(2), size))),
        torch.cat((corners[:, whole], first, second[:, quadrilateral]), dim=1),
        pose[kept],
        face[kept],
        uncut,
    )


def _cut(view: Tensor, corners: Tensor, in_front: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """New vertices [2 C, 3] of C crossing triangles, numbered from ``start``; the first and the second triangle of each."""
    count = corners.shape[1]
    one_in_front = in_front.sum(0) == 1
    # The vertex that is alone on its side of the plane comes first; the order stays cyclic.
    alone = (in_front == one_in_front).int().argmax(0)
    a, b, c = (corners.gather(0, ((alone + k) % 3)[None])[0] for k in range(3))
    new = torch.cat((_crossing(view, a, b), _crossing(view, a, c)))
    ab = start + torch.arange(count, device=corners.device)
    ac = ab + count
    first = torch.where(one_in_front, torch.stack((a, ab, ac)), torch.stack((ab, b, c)))
    return new, first, torch.stack((ab, c, ac))


def _crossing(view: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Points [C, 3] on the near plane between the points in rows a and b of ``view``, one of them on either side."""
    begin, end = view[a], view[b]
    share = (NEAR - begin[:, 2:]) / (end[:, 2:] - begin[:, 2:])
    plane = begin[:, :2] + share * (end[:, :2] - begin[:, :2])
    return torch.cat((plane, torch.full_like(share, NEAR)), dim=1)
