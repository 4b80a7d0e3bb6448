"""A network with what is perturbed in it: Gram matrices of gradient differences by target, and products J h."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from raysense.measures.capture import ParameterCapture, Tape
from raysense.measures.contraction import HeldGradients, PieceUses, in_groups, uses_by_piece
from raysense.measures.fisher import gram_matrix
from raysense.measures.gradients import Model, forward, forward_with_graph, input_gradients, jacobian_product
from raysense.measures.merged import MergedClasses
from raysense.measures.targets import INPUT, Target
from raysense.measures.uses import Piece

_GRAM_BYTES = 4 * 8  # per entry of a Gram matrix: it and what its solution goes through, in float64


class Perturbed:
    """A network and the targets of one scan.

    Args:
        model: Maps images [N, C, H, W] to logits [N, K], sample by sample, with no randomness; a module where there are
            parameters among the targets.
        targets: What is perturbed.
    """

    def __init__(self, model: Model, targets: Sequence[Target] = (INPUT,)) -> None:
        self.model = model
        self.targets = tuple(targets)
        names = {name for target in targets for name in target.parameters}
        self.capture: ParameterCapture | None = None
        if names:
            if not isinstance(model, nn.Module):
                raise TypeError("a model whose parameters are perturbed must be a torch.nn.Module")
            self.capture = ParameterCapture(model, [name for name, _ in model.named_parameters() if name in names])

    @property
    def input_only(self) -> bool:
        """Whether no parameters are perturbed."""
        return self.capture is None

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] in float64, without a graph; also looks at how the parameters are used, the first time."""
        if self.capture is not None:
            self.capture.prepare(images)
        return forward(self.model, images).double()

    def spans(self, target: Target, spanning: frozenset[str] | None = None) -> bool:
        """Whether a target holds parameters that alone move the logits in every direction, so that FI is its bound.

        Args:
            target: The target.
            spanning: Names of such parameters; None takes those of the first image seen.
        """
        known = frozenset() if self.capture is None else self.capture.spanning
        return bool(target.parameters & (known if spanning is None else spanning))

    def sample_bytes(self, images: Tensor, count: int) -> int:
        """Bytes that a sample takes while ``count`` gradients of it are held and solved."""
        values = 0
        if any(target.input is not None for target in self.targets):
            values += count * images[0].numel()
        if self.capture is not None:
            pieces = uses_by_piece(self.capture.uses).values()
            values += sum(count * piece.held_values(count) + 3 * piece.working_values(count) for piece in pieces)
        return values * images.element_size() + _GRAM_BYTES * count**2

    @property
    def one_by_one(self) -> bool:
        """Whether samples cannot share a batch."""
        return self.capture is not None and self.capture.one_by_one


@dataclass(frozen=True)
class _Group:
    """Pieces whose gradients are held together, and where they arrive."""

    pieces: list[PieceUses]
    edges: list[GradientEdge]


class Differences:
    """The gradients of logit differences of one batch, with respect to the targets asked for.

    Args:
        perturbed: Network and targets.
        images: [n, C, H, W]; n is 1 where the network takes samples one by one.
        active: Positions of the targets asked for.
        held_bytes: Bound on the bytes of parameter gradients held at once; where they exceed it for one sample, the
            backward passes are repeated for parts of the parameters.
        earlier: [n, j, P], the input's rows known from a smaller problem, j of at least 2; only without parameters.

    Attributes:
        logits: [n, K] float64.
        dtype: In which the gradients are computed.
        passes: Backward passes spent so far on every sample.
        rows: The input's gradients [n, positions, P], zero at the reference; None where the input is no target.
        spanning: As in :class:`raysense.measures.capture.Tape`.
    """

    def __init__(
        self,
        perturbed: Perturbed,
        images: Tensor,
        active: Sequence[int],
        held_bytes: int,
        earlier: Tensor | None = None,
    ) -> None:
        self._perturbed, self._images = perturbed, images
        self._active = list(active)
        self._room = held_bytes // images.element_size()
        self._earlier = earlier
        self._targets = perturbed.targets
        with_input = any(self._targets[index].input is not None for index in active)
        if perturbed.capture is None:
            raw, inputs = forward_with_graph(perturbed.model, images)
            self._tape = Tape(raw, inputs, [], frozenset())
        else:
            self._tape = perturbed.capture.record(images, with_input)
        self._with_input = with_input
        self.spanning = self._tape.spanning
        self.logits = self._tape.logits.detach().double()
        self.dtype = self._tape.logits.dtype
        self.rows: Tensor | None = None
        self.passes = 0

    def grams(self, problem: MergedClasses) -> Iterator[tuple[int, Tensor]]:
        """Position of a target and its Gram matrices [n, positions, positions] float64, one target after the other.

        Args:
            problem: The kept classes.
        """
        self._problem = problem
        count, samples = problem.positions, len(self._images)
        sums: dict[int, Tensor] = {}
        pieces = [uses for uses in uses_by_piece(self._tape.uses).values() if self._wanted(uses.piece)]
        missing = {index: self._parts(index, pieces) for index in self._active}
        groups = [
            _Group(group, [edge for uses in group for edge in _edges(uses)])
            for group in in_groups(pieces, count, samples, self._room)
        ]
        for number, group in enumerate(groups or [_Group([], [])]):
            held = self._backward(group, with_input=number == 0 and self._with_input)
            if number == 0 and self.rows is not None:
                for index in self._active:
                    space = self._targets[index].input
                    if space is not None:
                        rows = space.pulled(self.rows, self._images)
                        sums[index] = gram_matrix(rows)
                        missing[index] -= 1
                yield from self._complete(sums, missing)
            for uses, gradients in held:
                gram = gradients.gram(self._positions, count)
                for index in self._active:
                    if uses.piece.parameter in self._targets[index].parameters:
                        sums[index] = gram.clone() if index not in sums else sums[index].add_(gram)
                        missing[index] -= 1
                del gram
                yield from self._complete(sums, missing)
        yield from self._complete(sums, missing)

    def moves(self, index: int, coefficients: Tensor) -> Tensor:
        """J h [n, K] float64 along the direction h of a target that combines its gradients.

        Args:
            index: Position of the target.
            coefficients: [n, positions] float64; the direction is normalised.
        """
        target = self._targets[index]
        direction: Tensor | None = None
        moves: dict[Piece, Tensor] = {}
        if self.rows is not None and not target.parameters:
            combined: Tensor | None = torch.einsum("nm,nmp->np", coefficients.to(self.rows.dtype), self.rows)
        else:
            combined, moves = self._combination(target, coefficients)
        if target.input is not None and combined is not None:
            direction = target.input.pulled(combined[:, None], self._images).squeeze(1)
        parts = [part for part in (direction, *moves.values()) if part is not None]
        if not parts:
            return torch.zeros_like(self._problem.full)
        # Twice, since the square of a length may be beyond the range of single precision.
        for norm in (torch.inf, 2):
            length = torch.stack([torch.linalg.vector_norm(part, ord=norm, dim=1) for part in parts])
            length = torch.linalg.vector_norm(length, ord=norm, dim=0)[:, None]
            parts = [part / length.clamp_min(torch.finfo(part.dtype).tiny) for part in parts]
        if direction is not None and target.input is not None:
            direction = target.input.pushed(parts.pop(0), self._images).view_as(self._images)
        moves = dict(zip(moves, parts, strict=True))
        if self._perturbed.capture is not None and moves:
            try:
                return self._perturbed.capture.product(self._images, moves, direction).double()
            except NotImplementedError:  # an operator without a rule for forward mode
                return self._double_backward(moves, direction).double()
        if direction is None:
            return torch.zeros_like(self._problem.full)
        return jacobian_product(self._perturbed.model, self._images, direction).double()

    def _wanted(self, piece: Piece) -> bool:
        return any(piece.parameter in self._targets[index].parameters for index in self._active)

    def _parts(self, index: int, pieces: Sequence[PieceUses]) -> int:
        target = self._targets[index]
        return sum(uses.piece.parameter in target.parameters for uses in pieces) + (target.input is not None)

    def _complete(self, sums: dict[int, Tensor], missing: dict[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Targets of which no part is missing any more, once each."""
        for index in [index for index, parts in missing.items() if parts == 0]:
            del missing[index]
            empty = self._problem.full.new_zeros((len(self._images), self._problem.positions, self._problem.positions))
            yield index, sums.pop(index, empty)

    def _backward(self, group: _Group, with_input: bool) -> list[tuple[PieceUses, HeldGradients]]:
        """The backward passes for one group of pieces, and for the input."""
        known = 0 if self._earlier is None else self._earlier.shape[1]
        positions, weights = self._problem.scalars(known)
        self._positions = positions
        raw, inputs = self._tape.logits, self._tape.inputs
        self.passes += len(positions)
        if not group.edges:
            if with_input:
                gradients = input_gradients(raw, inputs, weights, retain=self._perturbed.capture is not None)
                self.rows = self._placed(gradients, positions)
            return []
        held = [(uses, HeldGradients(uses, len(positions))) for uses in group.pieces]
        places = inputs.new_empty((len(inputs), len(positions), inputs[0].numel())) if with_input else None
        sources: list[Tensor | GradientEdge] = [*group.edges, *([inputs] if with_input else [])]
        for number, weight in enumerate(weights):
            found = self._gradients(sources, group, weight)
            for uses, rows in held:
                rows.add([found.pop(0) for _ in uses.uses])
            if places is not None:
                places[:, number] = found.pop(0).flatten(1)
        if places is not None:
            self.rows = self._placed(places, positions)
        return held

    def _gradients(
        self, sources: Sequence[Tensor | GradientEdge], group: _Group, weight: Tensor, twice: bool = False
    ) -> list[Tensor]:
        raw = self._tape.logits
        found = torch.autograd.grad(
            raw,
            cast(Sequence[Tensor], sources),
            grad_outputs=weight.to(raw.dtype),
            retain_graph=True,
            create_graph=twice,
            allow_unused=True,
        )
        shapes = [use.output_shape for uses in group.pieces for use, _ in uses.uses] + [tuple(self._images.shape)]
        # None where the logits do not depend on an operator's output.
        return [raw.new_zeros(shape) if grad is None else grad for grad, shape in zip(found, shapes, strict=False)]

    def _placed(self, gradients: Tensor, positions: Sequence[Tensor]) -> Tensor:
        """Rows at their positions, zero at the reference."""
        samples = torch.arange(len(gradients), device=gradients.device)
        rows = gradients.new_zeros((len(gradients), self._problem.positions, gradients.shape[2]))
        if self._earlier is not None:
            rows[:, : self._earlier.shape[1]] = self._earlier
        for index, position in enumerate(positions):
            rows[samples, position] = gradients[:, index]
        return rows

    def _combination(self, target: Target, coefficients: Tensor) -> tuple[Tensor | None, dict[Piece, Tensor]]:
        """The combined gradient by part of a target, from one backward pass."""
        pieces = [uses for uses in uses_by_piece(self._tape.uses).values() if uses.piece.parameter in target.parameters]
        if not pieces and target.input is None:
            return None, {}
        self.passes += 1
        return self._pulled(pieces, target.input is not None, self._problem.combined(coefficients))

    def _pulled(
        self, pieces: Sequence[PieceUses], with_input: bool, weight: Tensor, twice: bool = False
    ) -> tuple[Tensor | None, dict[Piece, Tensor]]:
        """Gradient of a combination of the logits by input and by piece, from one backward pass."""
        group = _Group(list(pieces), [edge for uses in pieces for edge in _edges(uses)])
        sources: list[Tensor | GradientEdge] = [*group.edges, *([self._tape.inputs] if with_input else [])]
        found = self._gradients(sources, group, weight, twice)
        moves = {uses.piece: uses.gradient([found.pop(0) for _ in uses.uses]) for uses in pieces}
        return found.pop(0).flatten(1) if with_input else None, moves

    def _double_backward(self, moves: dict[Piece, Tensor], direction: Tensor | None) -> Tensor:
        """J h as the derivative by v of (v^T J) h."""
        pieces = [uses for uses in uses_by_piece(self._tape.uses).values() if uses.piece in moves]
        with torch.enable_grad():
            dummy = torch.zeros_like(self._tape.logits, requires_grad=True)
            image, pulled = self._pulled(pieces, direction is not None, dummy, twice=True)
            total = sum(((gradient * moves[piece]).sum() for piece, gradient in pulled.items()), dummy.new_zeros(()))
            if image is not None and direction is not None:
                total = total + (image * direction.flatten(1)).sum()
            (pushed,) = torch.autograd.grad(total, dummy)
        return pushed


def _edges(uses: PieceUses) -> list[GradientEdge]:
    return [use.edge for use, _ in uses.uses if use.edge is not None]
