"""Points of a semantic space that a scan visits: grids for maps, and initial points of regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.errors import UsageError
from raysense.semantics.space import SemanticSpace

PAPER_POINTS = ((130.0, 30.0), (50.0, 20.0), (200.0, 15.0), (310.0, 50.0))
"""Initial points of Hamdi & Ghanem (2020): azimuth, elevation in degrees."""

_PAPER_AXES = ("azimuth", "elevation")
_DEFAULT_CELLS = 36
_SOME_POINTS = 4
_SNAP = 1e-5
"""Part by which a step may miss the one that divides a whole turn, which is then taken."""


@dataclass(frozen=True)
class Grid:
    """The cells of a map over one or two axes of a space, the other coordinates at their defaults.

    Attributes:
        space: The whole space.
        names: Axes of the map.
        steps: Distance of neighbours along each of them.
        counts: Cells along each of them. The end of a periodic axis is its beginning, and is left out.
    """

    space: SemanticSpace
    names: tuple[str, ...]
    steps: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of cells."""
        return math.prod(self.counts)

    @property
    def axes(self) -> str:
        """Names of the axes as one text, such as ``azimuth,elevation``."""
        return ",".join(self.names)

    def cells(self, start: int, stop: int) -> Tensor:
        """Indices by axis, [stop - start, k] int64, of cells in row-major order."""
        numbers = torch.arange(start, stop)
        return torch.stack(torch.unravel_index(numbers, self.counts), dim=1)

    def coordinates(self, cells: Tensor) -> Tensor:
        """Coordinates [P, k] float64 of cells [P, k] along the map's axes."""
        lows = self.space.domain.lower[self._columns]
        return lows + cells * torch.tensor(self.steps, dtype=torch.float64)

    def points(self, cells: Tensor) -> Tensor:
        """Points [P, n] float64 of the whole space."""
        found = base_point(self.space).repeat(len(cells), 1)
        found[:, self._columns] = self.coordinates(cells)
        return found

    @property
    def _columns(self) -> list[int]:
        return [self.space.names.index(name) for name in self.names]


def base_point(space: SemanticSpace) -> Tensor:
    """The defaults of the axes, [n] float64, or the nearest end of the range where a default lies outside."""
    return space.default.clamp(space.domain.lower, space.domain.upper)


def parse_grid(text: str, space: SemanticSpace) -> Grid:
    """The map that a text such as ``azimuth:3,elevation:3`` or ``azimuth`` names; a step is optional.

    Raises:
        UsageError: an axis is not in the space, there are more than two, or a step does not fit the range.
    """
    names, steps, counts = [], [], []
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in space.names:
            raise UsageError(
                f"maps {text!r}: {name!r} is not among the axes {', '.join(space.names)}; add it to --axes"
            )
        axis = space.axes[space.names.index(name)]
        extent = axis.high - axis.low
        try:
            step = float(number) if colon else extent / _DEFAULT_CELLS
        except ValueError as error:
            raise UsageError(f"maps {text!r}: {number!r} is no step; write {name}:STEP in {axis.unit}") from error
        if not 0 < step <= extent:
            raise UsageError(f"maps {text!r}: the step {step:g} must be above 0 and at most {extent:g} {axis.unit}")
        cells = extent / step
        if axis.periodic:
            if abs(cells - round(cells)) > _SNAP * cells:
                raise UsageError(
                    f"maps {text!r}: steps of {step:g} do not divide the whole turn; use {extent / math.ceil(cells):g}"
                )
            step = extent / round(cells)
        names.append(name)
        steps.append(step)
        counts.append(round(cells) if axis.periodic else math.floor(cells + 1e-9) + 1)
    if len(names) > 2 or len(set(names)) < len(names):
        raise UsageError(f"maps {text!r}: a map has one axis or two different ones; join several maps by ;")
    return Grid(space, tuple(names), tuple(steps), tuple(counts))


def initial_points(text: str, space: SemanticSpace, seed: int) -> Tensor:
    """Initial points u0 of regions, [I, n] float64.

    Args:
        text: ``auto``: for images the image itself, for azimuth and elevation the paper's four, else four spread over the
            space; a number N: N points spread over the space (a scrambled Sobol sequence); ``default``: the axes'
            defaults; or points such as ``130:30;50:20``, coordinates in the order of the axes.
        space: The space.
        seed: Of the Sobol sequence.

    Raises:
        UsageError: a point is malformed or outside the space.
    """
    if text == "default" or (text == "auto" and space.of_images):
        return base_point(space)[None]
    if text == "auto" and sorted(space.names) == sorted(_PAPER_AXES):
        columns = [_PAPER_AXES.index(name) for name in space.names]
        points = torch.tensor(PAPER_POINTS, dtype=torch.float64)[:, columns]
        if _inside(points, space).all():
            return points
    if text == "auto" or (text.isascii() and text.isdecimal()):
        count = _SOME_POINTS if text == "auto" else int(text)
        if not count:
            raise UsageError("initial '0': at least one point is needed; give a number, default, or points")
        engine = torch.quasirandom.SobolEngine(space.dimensions, scramble=True, seed=seed)
        return space.domain.lower + space.domain.extent * engine.draw(count, dtype=torch.float64)
    parts = [part for part in text.split(";") if part.strip()]
    if not parts:
        raise UsageError(f"initial {text!r} names no point; write {_example(space)}, a number, default or auto")
    points = torch.tensor([_point(part, text, space) for part in parts], dtype=torch.float64)
    for point, inside in zip(points.tolist(), _inside(points, space).tolist(), strict=True):
        if not inside:
            ranges = ", ".join(f"{axis.name} {axis.low:g} to {axis.high:g}" for axis in space.axes)
            shown = ":".join(f"{value:g}" for value in point)
            raise UsageError(f"initial {shown!r} lies outside the space ({ranges}); choose a point inside")
    return points


def _inside(points: Tensor, space: SemanticSpace) -> Tensor:
    return ((points >= space.domain.lower) & (points <= space.domain.upper)).all(1)


def _point(part: str, text: str, space: SemanticSpace) -> Sequence[float]:
    numbers = part.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError as error:
        raise UsageError(f"initial {text!r}: {part!r} is no point; write {_example(space)}") from error
    if len(values) != space.dimensions:
        raise UsageError(
            f"initial {text!r}: {part!r} has {len(values)} coordinates, the space has {space.dimensions} axes "
            f"({', '.join(space.names)}); write {_example(space)}"
        )
    return values


def _example(space: SemanticSpace) -> str:
    return ":".join(f"{value:g}" for value in base_point(space).tolist())
