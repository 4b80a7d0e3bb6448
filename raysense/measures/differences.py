"""Gradients of logit differences: their Gram matrices by target, and products J h along their combinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.contraction import HeldGradients, PieceUses, in_groups, uses_by_piece
from raysense.measures.fisher import gram_matrix
from raysense.measures.gradients import jacobian_product
from raysense.measures.merged import MergedClasses, by_probability
from raysense.measures.perturbed import Perturbed
from raysense.measures.sweep import Sweep, backward, sources_of
from raysense.measures.tape import Tape
from raysense.measures.targets import Target
from raysense.measures.uses import Piece


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
        spanning: As in :class:`raysense.measures.tape.Tape`.
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
        self._tape = perturbed.record(images, with_input)
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
        self._sweep = Sweep(self._tape, problem, 0 if self._earlier is None else self._earlier.shape[1])
        sums: dict[int, Tensor] = {}
        pieces = [uses for uses in uses_by_piece(self._tape.uses).values() if self._wanted(uses.piece)]
        missing = {index: self._parts(index, pieces) for index in self._active}
        before = [uses for uses in pieces if not self._sweep.knows(uses)]
        for uses in pieces:
            if self._sweep.knows(uses):
                yield from self._added(uses.piece, self._at_head(uses), sums, missing)
        with_input = self._with_input
        for group in in_groups(before, len(self._sweep), len(self._images), self._room) if before else [[]]:
            held, rows = self._held(group, with_input)
            if rows is not None:
                yield from self._input_added(rows, sums, missing)
            with_input = False
            for uses, gradients in held:
                yield from self._added(
                    uses.piece, self._sweep.placed(self._sweep.mixed(gradients.gram())), sums, missing
                )
        yield from self._complete(sums, missing)

    def _added(
        self, piece: Piece, gram: Tensor, sums: dict[int, Tensor], missing: dict[int, int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Add a piece's Gram matrices to those of the targets that hold it; the targets that this completes."""
        for index in self._active:
            if piece.parameter in self._targets[index].parameters:
                sums[index] = gram.clone() if index not in sums else sums[index].add_(gram)
                missing[index] -= 1
        yield from self._complete(sums, missing)

    def _input_added(
        self, raw: Tensor, sums: dict[int, Tensor], missing: dict[int, int]
    ) -> Iterator[tuple[int, Tensor]]:
        """The same for the input's gradients [n, passes, P]."""
        if not self._sweep.by_feature:
            self.rows = raw = self._sweep.placed_rows(raw, self._earlier)
        for index in self._active:
            space = self._targets[index].input
            if space is not None:
                gram = gram_matrix(space.pulled(raw, self._images))
                if self._sweep.by_feature:
                    gram = self._sweep.placed(self._sweep.mixed(gram))
                sums[index] = gram if index not in sums else sums[index].add_(gram)
                missing[index] -= 1
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
            if any(piece.parameter in self._tape.generic for piece in moves):
                return self._double_backward(moves, direction).double()
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

    def _held(
        self, group: Sequence[PieceUses], with_input: bool
    ) -> tuple[list[tuple[PieceUses, HeldGradients]], Tensor | None]:
        """Gradients with respect to a group of pieces, and the input's [n, passes, P] where asked for, from one sweep."""
        count = len(self._sweep)
        inputs = self._tape.inputs
        held = [(uses, HeldGradients(uses, count)) for uses in group]
        rows = inputs.new_empty((len(inputs), count, inputs[0].numel())) if with_input else None
        if not group and rows is None:
            return [], None
        for number, found in enumerate(self._sweep.gradients(sources_of(group, inputs if with_input else None))):
            for uses, gradients in held:
                gradients.add([found.pop(0) for _ in uses.uses])
            if rows is not None:
                rows[:, number] = found.pop(0).flatten(1)
        self.passes += count
        return held, rows

    def _at_head(self, uses: PieceUses) -> Tensor:
        """Gram matrices of a piece of the last layer, the gradients of whose output are known without a pass."""
        gradients = HeldGradients(uses, len(self._sweep.weights))
        for weight in self._sweep.weights:
            gradients.add([weight.to(self.dtype)] * len(uses.uses))
        return self._sweep.placed(gradients.gram())

    def _combination(self, target: Target, coefficients: Tensor) -> tuple[Tensor | None, dict[Piece, Tensor]]:
        """The combined gradient by part of a target, from one backward pass."""
        pieces = [uses for uses in uses_by_piece(self._tape.uses).values() if uses.piece.parameter in target.parameters]
        if not pieces and target.input is None:
            return None, {}
        self.passes += 1
        return self._pulled(self._tape, pieces, target.input is not None, self._problem.combined(coefficients))

    def _pulled(
        self, tape: Tape, pieces: Sequence[PieceUses], with_input: bool, weight: Tensor, twice: bool = False
    ) -> tuple[Tensor | None, dict[Piece, Tensor]]:
        """Gradient of a combination of the logits by input and by piece, from one backward pass."""
        found = backward(tape.logits, sources_of(pieces, tape.inputs if with_input else None), weight, twice)
        moves = {uses.piece: uses.gradient([found.pop(0) for _ in uses.uses]) for uses in pieces}
        return found.pop(0).flatten(1) if with_input else None, moves

    def _double_backward(self, moves: dict[Piece, Tensor], direction: Tensor | None) -> Tensor:
        """J h as the derivative by v of (v^T J) h."""
        # Of the attention kernels only the plain one has a second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            tape = self._perturbed.record(self._images, direction is not None)
        pieces = [uses for uses in uses_by_piece(tape.uses).values() if uses.piece in moves]
        with torch.enable_grad():
            dummy = torch.zeros_like(tape.logits, requires_grad=True)
            image, pulled = self._pulled(tape, pieces, direction is not None, dummy, twice=True)
            total = sum(((gradient * moves[piece]).sum() for piece, gradient in pulled.items()), dummy.new_zeros(()))
            if image is not None and direction is not None:
                total = total + (image * direction.flatten(1)).sum()
            (pushed,) = torch.autograd.grad(total, dummy)
        return pushed


def try_passes(perturbed: Perturbed, images: Tensor, held_bytes: int) -> None:
    """One backward pass for all targets of the first image, and one product J h: raises what a model does not bear.

    Args:
        perturbed: Network and targets.
        images: [n, C, H, W].
        held_bytes: As for :class:`Differences`.
    """
    logits = perturbed.forward(images[:1])
    problem = MergedClasses(logits, by_probability(logits, logits.argmax(1))[:, :1])
    differences = Differences(perturbed, images[:1], range(len(perturbed.targets)), held_bytes)
    for _ in differences.grams(problem):
        pass
    differences.moves(0, torch.ones_like(problem.logits))
