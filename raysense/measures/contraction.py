"""Gram matrices of per-sample parameter gradients, without a Jacobian of all parameters.

For one piece of the parameters and M scalars per sample, either the M gradients themselves are held (the materialised
form, M x size numbers), or the gradients with respect to the outputs of the operators that use it (the ghost form,
M x O x T numbers), whose Gram matrix is the sum over tokens s, t of (d_k,s . d_l,t) (a_s . a_t). Uses of the same piece are
joined as further tokens, so that their contributions add before they are contracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.fisher import gram_matrix
from raysense.measures.uses import EmbeddingUse, OuterUse, Piece, Use

_BLOCK_VALUES = 2**23  # float64 values of an intermediate of the ghost form: 64 MiB
_TOGETHER = 8  # gradients of outputs that are contracted at once: small products take as long for many as for one
_FLOAT64_COST = 2.0  # an operation of the ghost form, in float64, against one of the materialised form


@dataclass(frozen=True)
class PieceUses:
    """All uses of a piece in a forward pass.

    Attributes:
        piece: The parameter or part of one.
        uses: Each use, and whether the piece is its weight (else its bias).
    """

    piece: Piece
    uses: tuple[tuple[Use, bool], ...]

    def ghost_pays(self, count: int) -> bool:
        """Whether the ghost form takes fewer operations than the materialised one for ``count`` gradients."""
        outer = self._outer()
        if outer is None:
            return False
        groups, inputs, outputs, _ = outer[0].geometry()
        tokens = sum(use.geometry()[3] for use in outer)
        ghost = tokens * tokens * (inputs + count * outputs) + count * count * tokens * outputs
        materialised = count * tokens * outputs * inputs + _FLOAT64_COST * count * count * outputs * inputs
        return bool(groups * _FLOAT64_COST * ghost < groups * materialised)

    @property
    def elementwise(self) -> bool:
        """Whether no use is a product of matrices."""
        return not any(is_weight and isinstance(use, OuterUse) for use, is_weight in self.uses)

    def held_values(self, count: int) -> int:
        """Numbers that are held per sample and gradient."""
        if not self.ghost_pays(count):
            return self.piece.size
        return sum(use.output_size for use, _ in self.uses)

    def working_values(self, count: int) -> int:
        """Numbers per sample that work on the gradients needs besides: the outputs' gradients and unfolded inputs."""
        together = 1 if self.ghost_pays(count) else min(count, _TOGETHER)
        total = 0
        for use, is_weight in self.uses:
            if is_weight and isinstance(use, OuterUse):
                groups, inputs, _, tokens = use.geometry()
                total += groups * inputs * tokens + together * use.output_size
            else:
                total += use.output_size
        return total

    def gradient(self, gradients: Sequence[Tensor]) -> Tensor:
        """Gradient of one scalar with respect to the piece, [n, size], from those with respect to its uses' outputs."""
        parts = [
            use.weight_gradient(gradient) if is_weight else use.bias_gradient(gradient)
            for (use, is_weight), gradient in zip(self.uses, gradients, strict=True)
        ]
        return sum(parts[1:], parts[0])

    def gradients_together(self, several: Sequence[Sequence[Tensor]]) -> Tensor:
        """The same for B scalars, [n, B, size]."""
        outer = self._outer()
        if outer is None or len(several) == 1 or isinstance(outer[0], EmbeddingUse):
            return torch.stack([self.gradient(gradients) for gradients in several], dim=1)
        total: Tensor | None = None
        for use, gradients in zip(outer, zip(*several, strict=True), strict=True):
            heads = torch.stack([use.heads(gradient) for gradient in gradients], dim=2).to(use.columns.dtype)
            part = torch.matmul(heads.flatten(2, 3), use.columns.transpose(2, 3))
            total = part if total is None else total + part
        assert total is not None
        samples, groups, _, inputs = total.shape
        return total.view(samples, groups, len(several), -1, inputs).transpose(1, 2).reshape(samples, len(several), -1)

    def _outer(self) -> list[OuterUse] | None:
        """The uses where all are linear maps of the same shape, and the piece is their weight."""
        outer = [use for use, is_weight in self.uses if is_weight and isinstance(use, OuterUse)]
        alike = {(use.geometry()[:3], isinstance(use, EmbeddingUse)) for use in outer}
        return outer if len(outer) == len(self.uses) and len(alike) == 1 else None


class HeldGradients:
    """The gradients of M scalars with respect to one piece, in the form that is cheaper."""

    def __init__(self, uses: PieceUses, count: int) -> None:
        self.uses = uses
        self._ghost = uses.ghost_pays(count)
        self._waiting: list[Sequence[Tensor]] = []
        self._rows: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Take the next scalar's gradients with respect to the outputs of the uses."""
        if self._ghost:
            pairs = zip(self.uses.uses, gradients, strict=True)
            heads = [use.heads(gradient) for (use, _), gradient in pairs if isinstance(use, OuterUse)]
            self._rows.append(heads[0] if len(heads) == 1 else torch.cat(heads, dim=3))
            return
        self._waiting.append(gradients)
        # Only products of matrices gain from company; what is elementwise is small once it is summed.
        if len(self._waiting) == _TOGETHER or self.uses.elementwise:
            self._contract()

    def _contract(self) -> None:
        if self._waiting:
            self._rows.append(self.uses.gradients_together(self._waiting))
            self._waiting = []

    def gram(self) -> Tensor:
        """Gram matrices [n, M, M] float64; what is held is given up."""
        self._contract()
        dense = self._ghost_gram() if self._ghost else gram_matrix(torch.cat(self._rows, dim=1))
        self._rows = []
        for use, _ in self.uses.uses:
            use.release()
        return dense

    def _ghost_gram(self) -> Tensor:
        columns = torch.cat([use.columns for use, _ in self.uses.uses if isinstance(use, OuterUse)], dim=3).double()
        kernel = torch.matmul(columns.transpose(2, 3), columns)
        samples, groups, outputs, tokens = self._rows[0].shape
        count = len(self._rows)
        total = kernel.new_zeros((samples, count, count))
        width = max(1, _BLOCK_VALUES // max(1, samples * groups * tokens * count))
        for start in range(0, outputs, width):
            # [n, G, M, o, T]
            heads = torch.stack([row[:, :, start : start + width] for row in self._rows], dim=2).double()
            seen = torch.matmul(heads.flatten(2, 3), kernel).view(heads.shape)
            total += torch.matmul(
                heads.transpose(1, 2).reshape(samples, count, -1),
                seen.transpose(1, 2).reshape(samples, count, -1).transpose(1, 2),
            )
        return total


def uses_by_piece(uses: Sequence[Use]) -> dict[Piece, PieceUses]:
    """The uses of every piece, in the order in which the pieces are first used."""
    found: dict[Piece, list[tuple[Use, bool]]] = {}
    for use in uses:
        for piece, is_weight in ((use.weight, True), (use.bias, False)):
            if piece is not None:
                found.setdefault(piece, []).append((use, is_weight))
    return {piece: PieceUses(piece, tuple(pairs)) for piece, pairs in found.items()}


def in_groups(pieces: Sequence[PieceUses], count: int, samples: int, room: int) -> Iterator[list[PieceUses]]:
    """Pieces in groups whose gradients can be held together.

    Args:
        pieces: In any order.
        count: Gradients per sample.
        samples: Samples in the batch.
        room: How many numbers may be held; a group of one piece may exceed it.
    """
    group: list[PieceUses] = []
    held = 0
    for piece in pieces:
        values = samples * (count * piece.held_values(count) + piece.working_values(count))
        if group and held + values > room:
            yield group
            group, held = [], 0
        group.append(piece)
        held += values
    if group:
        yield group
