"""The named axes of semantic spaces: camera, light and colour of rendered scenes, and transforms of plain images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One semantic parameter.

    Attributes:
        name: Name of the axis.
        unit: Unit of its values.
        low: Lower end of its range.
        high: Upper end of its range.
        default: Value where the axis is not part of the space.
        period: After which values repeat, in ``unit``; 0 for none.
        minimum: Smallest value that has a meaning.
        maximum: Largest value that has a meaning.
        doc: What the parameter does.
    """

    name: str
    unit: str
    low: float
    high: float
    default: float
    doc: str
    period: float = 0.0
    minimum: float = -float("inf")
    maximum: float = float("inf")

    @property
    def periodic(self) -> bool:
        """Whether the range is one whole period, so that its ends meet."""
        return self.period > 0 and self.high - self.low == self.period


def _named(*axes: Axis) -> dict[str, Axis]:
    return {axis.name: axis for axis in axes}


SCENE_AXES = _named(
    Axis("azimuth", "degrees", 0, 360, 0, "angle of the camera around the vertical axis", period=360),
    Axis(
        "elevation", "degrees", -10, 90, 30, "angle of the camera above the horizontal plane", minimum=-180, maximum=180
    ),
    Axis(
        "distance", "model units", 2, 6, 2.732, "distance of the camera from the centre of the shape",
        minimum=0.05, maximum=1000,
    ),
    Axis("roll", "degrees", -180, 180, 0, "rotation of the camera about its viewing direction", period=360),
    Axis("field_of_view", "degrees", 30, 90, 60, "whole viewing angle of the camera", minimum=1, maximum=170),
    Axis("light_azimuth", "degrees", 0, 360, 0, "azimuth of the direction the light comes from", period=360),
    Axis(
        "light_elevation", "degrees", -90, 90, 90, "elevation of the direction the light comes from; 90 is overhead",
        minimum=-180, maximum=180,
    ),
    Axis("light_intensity", "1", 0, 1, 0.5, "intensity of the directional light", minimum=0),
    Axis("ambient", "1", 0, 1, 0.5, "intensity of the ambient light", minimum=0),
    Axis("red", "1", 0, 1, 1, "red part of the texture's colour", minimum=0, maximum=1),
    Axis("green", "1", 0, 1, 1, "green part of the texture's colour", minimum=0, maximum=1),
    Axis("blue", "1", 0, 1, 1, "blue part of the texture's colour", minimum=0, maximum=1),
    Axis("background", "1", 0, 1, 0, "grey level of the background", minimum=0, maximum=1),
)  # fmt: skip
"""Axes of rendered shapes. The defaults are those of Hamdi & Ghanem (2020)."""

IMAGE_AXES = _named(
    Axis("rotation", "degrees", -180, 180, 0, "counterclockwise rotation about the centre", period=360),
    Axis("scale", "factor", 0.5, 2, 1, "magnification about the centre", minimum=0.05, maximum=1000),
    Axis("shear", "degrees", -45, 45, 0, "horizontal shear: angle of the vertical lines", minimum=-85, maximum=85),
    Axis("translate_x", "image widths", -0.5, 0.5, 0, "shift to the right"),
    Axis("translate_y", "image heights", -0.5, 0.5, 0, "shift downwards"),
    Axis("brightness", "1", -0.5, 0.5, 0, "added to every pixel value"),
    Axis("contrast", "factor", 0.25, 2, 1, "scales the pixel values about the image's mean grey", minimum=0),
    Axis("saturation", "factor", 0, 2, 1, "scales the pixel values about their own grey", minimum=0),
    Axis("blur", "pixels", 0, 4, 0, "standard deviation of a Gaussian blur", minimum=0, maximum=1000),
)
"""Axes of plain images; the defaults leave the image as it is."""

AXES = SCENE_AXES | IMAGE_AXES
