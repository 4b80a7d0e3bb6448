"""Plane sections through classification regions (Fawzi et al. 2018): along a segment, and upwards along r(x)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.boundary.classified import Runs, predicted_classes, runs_of
from raysense.measures.gradients import Model

_PARALLEL = 1e-4
"""A vertical axis whose part orthogonal to the segment is less than this share of it spans no plane with it."""


@dataclass(frozen=True)
class CrossSection:
    """Predicted classes on a grid of cells of a plane, each at the middle of its cell.

    The horizontal axis runs along the segment, 0 at its start; the vertical one is orthogonal to it. Both in the Euclidean
    norm of the images.

    Attributes:
        length: Of the segment.
        low_x: Left edge.
        high_x: Right edge.
        low_y: Lower edge.
        high_y: Upper edge.
        predicted: [rows, columns] int64 on the host, the lowest row first; -1 where logits are not finite.
    """

    length: float
    low_x: float
    high_x: float
    low_y: float
    high_y: float
    predicted: Tensor


def cross_section(
    model: Model,
    start: Tensor,
    end: Tensor,
    upwards: Tensor,
    *,
    columns: int,
    rows: int,
    half_height: float,
    margin: float = 0.0,
    runs: Runs | None = None,
) -> CrossSection | None:
    """The classification regions in the plane of a segment and a vertical axis.

    Args:
        model: Maps images to logits [N, K], sample by sample.
        start: [...], where the segment begins.
        end: [...], where it ends.
        upwards: [...], such as r(x1); its part orthogonal to the segment is the vertical axis.
        columns: Cells along the segment.
        rows: Cells across.
        half_height: How far the section reaches above and below the segment.
        margin: How far it reaches beyond either end, over the length of the segment.
        runs: Runs of images classified at once; 256 by default.

    Returns:
        None where the segment and the vertical axis span no plane.
    """
    along = (end - start).double().flatten()
    length = torch.linalg.vector_norm(along)
    along = along / length
    up = upwards.double().flatten()
    whole = torch.linalg.vector_norm(up)
    up = up - (up @ along) * along
    height = torch.linalg.vector_norm(up)
    # Not-a-number spans no plane either.
    if not bool((length > 0) & (height > _PARALLEL * whole)):
        return None
    low_x, high_x = -margin * float(length), (1 + margin) * float(length)
    x = low_x + (torch.arange(columns, device=up.device) + 0.5) * ((high_x - low_x) / columns)
    y = half_height * ((torch.arange(rows, device=up.device) + 0.5) * (2 / rows) - 1)
    along, up = along.to(start), (up / height).to(start)
    x, y = x.to(start), y.to(start)

    def grid(first: int, last: int) -> Tensor:
        cells = torch.arange(first, last, device=start.device)
        offsets = torch.stack((x[cells % columns], y[cells // columns]), dim=1) @ torch.stack((along, up))
        return start + offsets.view(-1, *start.shape)

    predicted = predicted_classes(model, rows * columns, grid, runs or runs_of(256))
    return CrossSection(float(length), low_x, high_x, -half_height, half_height, predicted.view(rows, columns))
