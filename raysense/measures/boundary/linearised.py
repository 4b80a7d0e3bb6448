"""A network around images: logits at points, and gradients of margins there, from as few passes as are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from raysense.measures.boundary.projections import Box, room_around
from raysense.measures.gradients import Model, forward, forward_with_graph


class Surroundings:
    """A model around images x: points are steps away from them, and passes are counted.

    Args:
        model: Maps images [n, ...] to logits [n, K], sample by sample.
        images: [N, ...], of P values each.
        box: Where points are to stay.

    Attributes:
        start: [N, P], the images.
        room: That of the images in the box.
        forward: Images in forward passes so far.
        backward: Images in backward passes so far.
    """

    def __init__(self, model: Model, images: Tensor, box: Box | None) -> None:
        self._model, self._shape, self.box = model, images.shape[1:], box
        self.start = images.detach().flatten(1)
        self.room = room_around(self.start, box)
        self.forward = self.backward = 0

    def point(self, rows: Tensor, steps: Tensor) -> Tensor:
        """The points at steps [n, P] from some of the images, clipped to the box."""
        return self.start[rows] + (steps if self.room is None else self.room.of(rows).clipped(steps))

    def logits(self, points: Tensor) -> Tensor:
        """[n, K] float64 at points [n, P], without a graph."""
        self.forward += len(points)
        return forward(self._model, points.reshape(-1, *self._shape)).double()

    def with_graph(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, K] at points [n, P], and the images [n, ...] that require grad."""
        self.forward += len(points)
        return forward_with_graph(self._model, points.reshape(-1, *self._shape))


class Linearised:
    """The logits at points, and their gradients.

    Args:
        around: The model.
        points: [n, P].

    Attributes:
        logits: [n, K] float64.

    Raises:
        ValueError: There are fewer than two classes.
    """

    def __init__(self, around: Surroundings, points: Tensor) -> None:
        self._around, self._points = around, points
        self._rows = torch.arange(len(points), device=points.device)
        self._output, self._inputs = around.with_graph(points)
        if self._output.ndim != 2 or self._output.shape[1] < 2:
            shape = tuple(self._output.shape)
            raise ValueError(
                f"the model's output has shape {shape}; boundaries need logits [N, K] of two classes or more"
            )
        self.logits = self._output.detach().double()

    def gradients(self, rows: Tensor, from_class: Tensor, to_class: Tensor) -> Tensor:
        """Gradients [m, P] of f_to - f_from at some of the points, from one backward pass.

        Where these are at most half of those asked for last, they alone are passed on once more: a forward pass costs about
        as much as the share of the backward pass that the others would waste.

        Args:
            rows: [m] int64, ascending, among those asked for last.
            from_class: [m] int64.
            to_class: [m] int64.
        """
        if 2 * len(rows) <= len(self._rows):
            self._rows = rows
            self._output, self._inputs = self._around.with_graph(self._points[rows])
        index = torch.searchsorted(self._rows, rows)
        weight = torch.zeros_like(self._output)
        weight[index, to_class] = 1
        weight[index, from_class] = -1
        (gradient,) = torch.autograd.grad(self._output, self._inputs, grad_outputs=weight, retain_graph=True)
        self._around.backward += len(self._rows)
        return gradient.flatten(1)[index]
