"""Colours of faces: ambient and directional light on flat, two-sided, matt surfaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raysense.semantics.camera import Camera, direction


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [F, 3] of faces [F, 3] int64 of vertices [V, 3]; zero for a face without area."""
    a, b, c = vertices[faces].unbind(1)
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-300)


def turned_to_camera(normals: Tensor, corner: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """Normals [M, 3], turned round where they point away from the camera, and where that is, [M] int64 of 0 and 1.

    Args:
        normals: [M, 3], of M faces.
        corner: [M, 3], a point of each face, in world coordinates.
        eye: [M, 3], where the camera is for each.
    """
    away = (((eye - corner) * normals).sum(1) < 0).long()
    return normals * (1 - 2 * away)[:, None], away


def lit(normals: Tensor, pose: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Colours [M, 3] in [0, 1] of M faces: texture (ambient + intensity max(0, n . l)), cut off at 1.

    Args:
        normals: [M, 3], turned to the camera.
        pose: [M] int64, which row of the parameters holds for each face.
        parameters: [B] each: light_azimuth and light_elevation (degrees, of the direction l that the light comes from),
            light_intensity, ambient, and the texture's red, green, blue.
    """
    towards = direction(parameters["light_azimuth"], parameters["light_elevation"])
    facing = (towards.index_select(0, pose) * normals).sum(1).relu()
    light = parameters["ambient"].index_select(0, pose) + parameters["light_intensity"].index_select(0, pose) * facing
    texture = torch.stack([parameters[name] for name in ("red", "green", "blue")], dim=1)
    return (texture.index_select(0, pose) * light[:, None]).clamp(0, 1)


def backgrounds(parameters: Mapping[str, Tensor]) -> Tensor:
    """Colours [B, 3] of the backgrounds."""
    return parameters["background"][:, None].clamp(0, 1).expand(-1, 3)


def eyes(camera: Camera, pose: Tensor) -> Tensor:
    """Where the camera is for each of M faces, [M, 3], from their poses [M]; not differentiable."""
    return camera.eye.detach().index_select(0, pose)
