"""What a semantic space is about: shapes that are rendered, or images that are transformed. From u to pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from raysense.semantics.image_transforms import transform
from raysense.semantics.renderers import PreparedMesh, Renderer
from raysense.semantics.space import SemanticSpace


class Subjects(ABC):
    """Several subjects over one space: R(S, u) of Hamdi & Ghanem (2020), Eq. (1).

    Args:
        space: The space Omega.
    """

    def __init__(self, space: SemanticSpace) -> None:
        self.space = space

    @abstractmethod
    def images(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Pictures of subjects at points of the space, differentiable by the points.

        Args:
            points: [P, n] float64.
            subjects: [P] int64, which subject.

        Returns:
            [P, C, H, W] float32 in [0, 1].
        """

    def tangents(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, and their derivatives by each coordinate, per length of its range, in forward mode.

        Returns:
            [P, C, H, W] and [P, n, C, H, W].
        """
        columns = []
        extent = self.space.domain.extent.to(points.device)
        pictures = self.images(points, subjects)
        for index in range(points.shape[1]):
            direction = torch.zeros_like(points)
            direction[:, index] = extent[index]
            with forward_ad.dual_level():
                moved = self.images(forward_ad.make_dual(points, direction), subjects)
                tangent = forward_ad.unpack_dual(moved).tangent
                columns.append(torch.zeros_like(pictures) if tangent is None else tangent.clone())
        return pictures, torch.stack(columns, dim=1)


class RenderedShapes(Subjects):
    """Shapes under a renderer.

    Args:
        space: Over scene axes.
        renderer: Draws them.
        meshes: The shapes, prepared by the renderer.
    """

    def __init__(self, space: SemanticSpace, renderer: Renderer, meshes: Sequence[PreparedMesh]) -> None:
        super().__init__(space)
        self._renderer = renderer
        self._meshes = meshes

    def images(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Renders; the poses of one shape share its work."""
        parameters = self.space.parameters(points)
        order: list[Tensor] = []
        parts: list[Tensor] = []
        for index in subjects.unique().tolist():
            chosen = (subjects == index).nonzero().squeeze(1)
            order.append(chosen)
            parts.append(
                self._renderer.render(self._meshes[index], {name: part[chosen] for name, part in parameters.items()})
            )
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[torch.argsort(torch.cat(order))]


class TransformedImages(Subjects):
    """Plain images under transforms.

    Args:
        space: Over image axes.
        images: [S, C, H, W] float32 in [0, 1], the subjects as they are.
    """

    def __init__(self, space: SemanticSpace, images: Tensor) -> None:
        super().__init__(space)
        self._images = images

    def images(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Transformed images."""
        return transform(self._images[subjects], self.space.parameters(points))
