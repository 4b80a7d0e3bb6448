"""Semantic spaces Omega: boxes over named axes, some of them periodic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.measures.boxes import Domain
from raysense.semantics.axes import AXES, IMAGE_AXES, SCENE_AXES, Axis

MOST_AXES = 10
"""A box in n dimensions has 2^n corners: 1,024 for ten axes."""


@dataclass(frozen=True)
class SemanticSpace:
    """A box over one to ten axes of one family, scene or image.

    Attributes:
        axes: The axes with their ranges, in the order of the coordinates.
        fixed: Values of axes that are not part of the space, where they are not the defaults.
    """

    axes: tuple[Axis, ...]
    fixed: tuple[tuple[str, float], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def of_images(self) -> bool:
        """Whether the axes transform images rather than scenes."""
        return self.axes[0].name in IMAGE_AXES

    @property
    def dimensions(self) -> int:
        """Number n of axes."""
        return len(self.axes)

    @property
    def volume(self) -> float:
        """Product of the axes' lengths, in the product of their units."""
        return math.prod(axis.high - axis.low for axis in self.axes)

    @property
    def default(self) -> Tensor:
        """The axes' defaults, [n] float64."""
        return torch.tensor([axis.default for axis in self.axes], dtype=torch.float64)

    @property
    def domain(self) -> Domain:
        """Bounds and periods as tensors."""
        return Domain(
            torch.tensor([axis.low for axis in self.axes], dtype=torch.float64),
            torch.tensor([axis.high for axis in self.axes], dtype=torch.float64),
            torch.tensor([axis.periodic for axis in self.axes]),
        )

    def parameters(self, points: Tensor) -> dict[str, Tensor]:
        """All parameters of the family at points of the space.

        Args:
            points: [P, n] float64, in the order of the axes; periodic ones may lie beyond the range.

        Returns:
            [P] float64 by name of the axis: columns of ``points``, fixed values, or defaults. Differentiable. Where a value
            has no meaning, such as a negative scale, the nearest that has one is taken.
        """
        family = IMAGE_AXES if self.of_images else SCENE_AXES
        values = {name: points.new_full((len(points),), axis.default) for name, axis in family.items()}
        values |= {name: points.new_full((len(points),), value) for name, value in self.fixed}
        named = enumerate(self.axes)
        return values | {axis.name: points[:, index].clamp(axis.minimum, axis.maximum) for index, axis in named}


def parse_space(axes: Sequence[str], fixed: Sequence[str] = ()) -> SemanticSpace:
    """The space that texts such as ``azimuth``, ``elevation=0:60`` name.

    Args:
        axes: Name, or name=low:high, of every axis.
        fixed: name=value of axes of the same family that are held at another value than their default.

    Raises:
        UsageError: an axis is unknown or named twice, a range is inverted or senseless, the families are mixed, or there
            are more than ten axes.
    """
    parsed = tuple(_axis(text) for text in axes)
    if not parsed:
        raise UsageError("axes: name at least one, such as azimuth,elevation or rotation,scale")
    if len(parsed) > MOST_AXES:
        raise UsageError(
            f"axes: {len(parsed)} axes give boxes of 2^{len(parsed)} = {2 ** len(parsed):,} corners, each an image to "
            f"score at every step; name at most {MOST_AXES}"
        )
    names = [axis.name for axis in parsed]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"axes: {name} is named twice; name it once")
    family = IMAGE_AXES if names[0] in IMAGE_AXES else SCENE_AXES
    for name in names:
        if name not in family:
            raise UsageError(
                f"axes: {names[0]} and {name} do not go together, one is of images and one of rendered shapes; "
                f"name axes of one kind: {', '.join(family)}"
            )
    values = {}
    for text in fixed:
        name, value = _fixed(text, family)
        if name in names or name in values:
            raise UsageError(f"fixed {text!r}: {name} is already set; give it once, as an axis or as a fixed value")
        values[name] = value
    return SemanticSpace(parsed, tuple(values.items()))


def _axis(text: str) -> Axis:
    name, equals, ends = text.partition("=")
    axis = _known(name, "axes", AXES)
    if not equals:
        return axis
    low, colon, high = ends.partition(":")
    try:
        found = replace(axis, low=float(low), high=float(high))
    except ValueError as error:
        raise UsageError(f"axes: {text!r} is no range; write {name}=LOW:HIGH, such as {_example(axis)}") from error
    if not colon or not (math.isfinite(found.low) and math.isfinite(found.high)):
        raise UsageError(f"axes: {text!r} is no range; write {name}=LOW:HIGH, such as {_example(axis)}")
    if found.low >= found.high:
        raise UsageError(f"axes: {text!r} is inverted or empty; the lower end comes first, such as {_example(axis)}")
    if axis.period and found.high - found.low > axis.period:
        raise UsageError(f"axes: {text!r} is longer than a whole turn; use at most {axis.period:g} {axis.unit}")
    if found.low < axis.minimum or found.high > axis.maximum:
        raise UsageError(
            f"axes: {text!r} leaves the meaningful values {axis.minimum:g} to {axis.maximum:g}{_in_unit(axis)}; narrow it"
        )
    return found


def _fixed(text: str, family: Mapping[str, Axis]) -> tuple[str, float]:
    name, _, number = text.partition("=")
    axis = _known(name, "fixed", family)
    try:
        value = float(number)
    except ValueError as error:
        raise UsageError(f"fixed {text!r}: write {name}=VALUE, such as {name}={axis.default:g}") from error
    if not axis.minimum <= value <= axis.maximum or not math.isfinite(value):
        raise UsageError(
            f"fixed {text!r}: the value must lie in {axis.minimum:g} to {axis.maximum:g}{_in_unit(axis)}; "
            f"the default is {axis.default:g}"
        )
    return name, value


def _known(name: str, argument: str, family: Mapping[str, Axis]) -> Axis:
    if name not in family:
        raise UsageError(f"{argument}: there is no axis {name!r}; choose from {', '.join(family)}")
    return family[name]


def _in_unit(axis: Axis) -> str:
    return "" if axis.unit == "1" else f" {axis.unit}"


def _example(axis: Axis) -> str:
    return f"{axis.name}={axis.low:g}:{axis.high:g}"
