"""The perspective camera that looks at the origin, from its semantic parameters, as Hamdi & Ghanem (2020) have it.

World coordinates: y up, left-handed as the authors' pictures are. View coordinates: x to the right, y up, z away from the
camera. Raster coordinates: sample centres at whole numbers, x to the right from 0, y downwards from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

NEAR = 0.01
"""Distance of the near plane from the camera, in model units: what is nearer is cut off."""


class Camera(NamedTuple):
    """Cameras of B poses.

    Attributes:
        rotation: [B, 3, 3]; its rows are the camera's right, up and viewing direction in world coordinates.
        distance: [B], from the origin, in model units.
        focal: [B], 1 / tan(half the field of view): a point at height y and depth z is drawn at focal y / z, of half the
            image's height.
    """

    rotation: Tensor
    distance: Tensor
    focal: Tensor

    def view(self, vertices: Tensor) -> Tensor:
        """View coordinates [B, V, 3] of points [V, 3] in world coordinates."""
        # Not a matrix product, whose rounding depends on the number of poses: faces at equal depth would change places.
        columns = zip(vertices.unbind(1), self.rotation[:, None].unbind(3), strict=True)
        turned = sum((values[:, None] * column for values, column in columns), start=torch.zeros_like(vertices))
        away = self.distance[:, None] * self.distance.new_tensor([0.0, 0.0, 1.0])
        return turned + away[:, None]

    @property
    def eye(self) -> Tensor:
        """Places of the cameras in the world, [B, 3]: d (cos e sin a, sin e, -cos e cos a)."""
        return -self.distance[:, None] * self.rotation[:, 2]


def camera(parameters: Mapping[str, Tensor]) -> Camera:
    """The camera of azimuth, elevation, roll and field of view (degrees) and distance (model units), each [B].

    Its axes are written as functions of the angles, so that no pose is degenerate: at |elevation| < 90 degrees they are
    those of a camera held upright; past a pole the camera goes on over it, upside down. A positive roll turns the camera
    clockwise as it looks, so that the picture's content turns counterclockwise.
    """
    azimuth, elevation, roll, field = (
        torch.deg2rad(parameters[name]) for name in ("azimuth", "elevation", "roll", "field_of_view")
    )
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    right = torch.stack((cos_a, torch.zeros_like(cos_a), sin_a), dim=1)
    up = torch.stack((-sin_e * sin_a, cos_e, sin_e * cos_a), dim=1)
    forward = torch.stack((-cos_e * sin_a, -sin_e, cos_e * cos_a), dim=1)
    sin_r, cos_r = roll.sin()[:, None], roll.cos()[:, None]
    rotation = torch.stack((cos_r * right - sin_r * up, sin_r * right + cos_r * up, forward), dim=1)
    return Camera(rotation, parameters["distance"], 1 / torch.tan(field / 2))


def direction(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors [B, 3] from the origin towards (cos e sin a, sin e, -cos e cos a), angles [B] in degrees."""
    azimuth, elevation = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack((elevation.cos() * azimuth.sin(), elevation.sin(), -elevation.cos() * azimuth.cos()), dim=1)


def to_raster(view: Tensor, focal: Tensor, size: int) -> Tensor:
    """Raster coordinates and inverse depths of points in view coordinates.

    Args:
        view: [..., 3]; what has a depth below the near plane gets finite values without a meaning.
        focal: Of each point, broadcast against [...].
        size: Samples along the raster's side.

    Returns:
        [..., 3]: x, y in samples and 1 / z. Unlike z itself, 1 / z is linear in x and y on a plane.
    """
    depth = view[..., 2]
    inverse = 1 / depth.clamp(min=NEAR)
    across = focal * inverse * (size / 2)
    middle = (size - 1) / 2
    return torch.stack((middle + view[..., 0] * across, middle - view[..., 1] * across, inverse), dim=-1)
