"""The function f(u) of Hamdi & Ghanem (2020), Eq. (1): the softmax score of a class over a semantic space."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raysense.batching import BatchSizer, in_batches
from raysense.measures.directions import DirectionInfluence, direction_influence
from raysense.measures.gradients import forward, forward_with_graph
from raysense.semantics.subjects import Subjects


class Scored(NamedTuple):
    """What a network says of pictures.

    Attributes:
        score: [P] float64, softmax probability of the subject's class z.
        predicted: [P] int64, most probable class.
        p_predicted: [P] float64, its softmax probability.
    """

    score: Tensor
    predicted: Tensor
    p_predicted: Tensor


class SemanticScore:
    """f(u) for several subjects: renders or transforms, runs the network, in batches that fit the memory.

    A `raysense.measures.boxes.RegionFunction`.

    Args:
        model: Maps images [P, C, H, W] in [0, 1] to logits [P, K].
        subjects: Draws the pictures.
        classes: [S] int64, the class z of each subject.
        sizer: Chooses the batch size.
        device: Where the network is; points and results are on the CPU.
    """

    def __init__(
        self, model: nn.Module, subjects: Subjects, classes: Tensor, sizer: BatchSizer, device: str = "cpu"
    ) -> None:
        self._model = model
        self._subjects = subjects
        self._classes = classes
        self._sizer = sizer
        self._device = device

    def scored(self, points: Tensor, subjects: Tensor) -> Scored:
        """Score, predicted class and its probability at points [P, n] float64 of subjects [P] int64."""

        def work(at: Tensor, whose: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                pictures = self._subjects.images(at, whose)
            return _scored(forward(self._model, pictures).double(), classes)

        return Scored(*self._batched(points, subjects, work))

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P] float64 at points [P, n] float64 of subjects [P] int64."""
        return self.scored(points, subjects).score

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and their gradients by the point, [P, n] float64, one backward pass through network and picture."""

        def work(at: Tensor, whose: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaf = at.detach().requires_grad_(True)
                pictures = self._subjects.images(leaf, whose)
                logits, inputs = forward_with_graph(self._model, pictures)
                score = _scored(logits.double(), classes)[0]
                (pulled,) = torch.autograd.grad(score.sum(), inputs)
                (gradient,) = torch.autograd.grad(pictures, leaf, grad_outputs=pulled.to(pictures.dtype))
            return score.detach(), gradient

        score, gradient = self._batched(points, subjects, work)
        return score, gradient

    def influence(self, points: Tensor, subjects: Tensor) -> tuple[Scored, DirectionInfluence]:
        """FI of the semantic parameters, of f = -log p_z, exact; n forward-mode products a point."""

        def work(at: Tensor, whose: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
            pictures, tangents = self._subjects.tangents(at, whose)
            found = direction_influence(self._model, pictures, tangents, classes)
            return (*_scored(found.logits, classes), *found)

        parts = self._batched(points, subjects, work)
        return Scored(*parts[:3]), DirectionInfluence(*parts[3:])

    def measured(self, points: Tensor, subjects: Tensor, influence: bool) -> tuple[Scored, DirectionInfluence | None]:
        """:meth:`scored`, with FI where it is asked for."""
        return self.influence(points, subjects) if influence else (self.scored(points, subjects), None)

    def _batched(
        self, points: Tensor, subjects: Tensor, measure: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        """Results of all points in their order, on the CPU; points of one subject share batches."""
        order = torch.argsort(subjects, stable=True)
        parts: list[tuple[Tensor, ...]] = []

        def work(start: int, stop: int) -> None:
            chosen = order[start:stop]
            whose = subjects[chosen].to(self._device)
            found = measure(points[chosen].to(self._device), whose, self._classes.to(self._device)[whose])
            parts.append(tuple(part.cpu() for part in found))

        in_batches(len(points), self._sizer, work)
        back = torch.argsort(order)
        return [torch.cat(column)[back] for column in zip(*parts, strict=True)]


def _scored(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    probabilities = torch.softmax(logits, dim=1)
    p_predicted, predicted = probabilities.max(1)
    return probabilities.gather(1, classes[:, None]).squeeze(1), predicted, p_predicted
