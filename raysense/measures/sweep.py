"""The backward passes of a batch: one for each logit difference, or each feature of the last layer if these are fewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from raysense.measures.contraction import PieceUses
from raysense.measures.merged import MergedClasses
from raysense.measures.tape import Tape


@dataclass(frozen=True)
class Sources:
    """What gradients are taken with respect to.

    Attributes:
        edges: Where they arrive.
        shapes: Their shapes.
    """

    edges: list[Tensor | GradientEdge]
    shapes: list[tuple[int, ...]]


def sources_of(pieces: Sequence[PieceUses], images: Tensor | None) -> Sources:
    """The outputs of all uses of the pieces, in order, and then the images, where given."""
    uses = [use for piece in pieces for use, _ in piece.uses]
    edges: list[Tensor | GradientEdge] = [use.edge for use in uses if use.edge is not None]
    shapes = [use.output_shape for use in uses]
    if images is not None:
        edges.append(images)
        shapes.append(tuple(images.shape))
    return Sources(edges, shapes)


def backward(root: Tensor, sources: Sources, weight: Tensor, twice: bool = False) -> list[Tensor]:
    """Gradients of a weighted sum of ``root``; the graph is kept.

    Args:
        root: [n, K], with a graph.
        sources: With respect to what.
        weight: [n, K].
        twice: Whether the gradients get a graph themselves.
    """
    found = torch.autograd.grad(
        root,
        cast(Sequence[Tensor], sources.edges),
        grad_outputs=weight.to(root.dtype),
        retain_graph=True,
        create_graph=twice,
        allow_unused=True,
    )
    # None where the root does not depend on an operator's output.
    return [
        root.new_zeros(shape) if gradient is None else gradient
        for gradient, shape in zip(found, sources.shapes, strict=True)
    ]


class Sweep:
    """The passes that give the gradients of all logit differences of a problem.

    Where the logits are a linear layer of D features, and D is smaller than the number of differences, D passes from the
    features give a basis, of which the differences are known combinations.

    Args:
        tape: A forward pass.
        problem: The kept classes.
        known: How many of the first positions' gradients are known already; 0, or at least 2.

    Attributes:
        weights: The differences as combinations of the logits, [n, K] float64 each.
        by_feature: Whether the passes start at the features.
    """

    def __init__(self, tape: Tape, problem: MergedClasses, known: int = 0) -> None:
        self._positions, self.weights = problem.scalars(known)
        self._count = problem.positions
        self._tape = tape
        head = tape.head
        self.by_feature = head is not None and head.width < len(self.weights)
        if head is not None and self.by_feature:
            self._positions, self.weights = problem.scalars()  # what is known already is not worth the passes' basis
            self._root = head.features
            units = torch.eye(head.width, dtype=head.features.dtype, device=head.features.device)
            self._seeds = [unit.expand_as(head.features) for unit in units]
            self._mixing = torch.stack(self.weights, dim=1) @ head.weight.double()
        else:
            self._root = tape.logits
            self._seeds = self.weights

    def __len__(self) -> int:
        return len(self._seeds)

    def gradients(self, sources: Sources) -> Iterator[list[Tensor]]:
        """The gradients that each pass gives."""
        for seed in self._seeds:
            yield backward(self._root, sources, seed)

    def knows(self, uses: PieceUses) -> bool:
        """Whether a piece belongs to the last layer, which passes from the features do not reach."""
        return self.by_feature and all(self._tape.is_head(use) for use, _ in uses.uses)

    def mixed(self, gram: Tensor) -> Tensor:
        """Gram matrices [n, differences, differences] from those of the passes, [n, passes, passes], float64."""
        if not self.by_feature:
            return gram
        return self._mixing @ gram @ self._mixing.transpose(1, 2)

    def placed(self, gram: Tensor) -> Tensor:
        """Gram matrices at the problem's positions, [n, positions, positions], zero at the reference."""
        places = torch.stack(self._positions, dim=1)
        result = gram.new_zeros((len(gram), self._count, self._count))
        samples = torch.arange(len(gram), device=gram.device)[:, None, None]
        result[samples, places[:, :, None], places[:, None, :]] = gram
        return result

    def placed_rows(self, rows: Tensor, earlier: Tensor | None) -> Tensor:
        """Rows [n, differences, P] at the problem's positions, zero at the reference, after those known before."""
        result = rows.new_zeros((len(rows), self._count, rows.shape[2]))
        if earlier is not None:
            result[:, : earlier.shape[1]] = earlier
        samples = torch.arange(len(rows), device=rows.device)
        for index, position in enumerate(self._positions):
            result[samples, position] = rows[:, index]
        return result
