"""Torch function modes that see every operator a target parameter enters: to note it, or to move the parameter."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from raysense.measures.modes import AffineBatchNorm, ConstantParameters
from raysense.measures.recognition import recognise
from raysense.measures.tape import Head, Tape
from raysense.measures.uses import Layout, Piece, Use


class Noting:
    """Finds target parameters, and the parts of them that an operator has split off, among an operator's arguments."""

    def __init__(self, pieces: Mapping[int, Piece]) -> None:
        self._pieces = dict(pieces)
        self._kept: list[Tensor] = []  # an id is only good while its tensor lives
        self.part_tensors: dict[Piece, Tensor] = {}

    def find(self, value: Any) -> Piece | None:
        """The piece that a value is."""
        return self._pieces.get(id(value)) if isinstance(value, Tensor) else None

    def note_split(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> Piece | None:
        """Take note of the parts where a target parameter is split along its first dimension."""
        if getattr(func, "__name__", "") not in ("split", "chunk") or not args:
            return None
        whole = self.find(args[0])
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        if whole is None or dim != 0:
            return None
        start = whole.start
        for part in result:
            piece = Piece(whole.parameter, start, start + part.shape[0], tuple(part.shape))
            start = piece.stop
            self._pieces[id(part)] = piece
            self._kept.append(part)
            self.part_tensors[piece] = part
        return whole


class Recorder(AffineBatchNorm):
    """Notes the uses of target parameters, and makes the graph begin at the first of them."""

    def __init__(
        self,
        pieces: Mapping[int, Piece],
        layout: Callable[[int], Layout],
        overwritten: set[int],
        without_graph: bool = False,
    ) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.splits: Counter[Any] = Counter()
        self._noting = Noting(pieces)
        self._parameters = {piece.parameter: key for key, piece in pieces.items()}
        self._layout = layout
        self._clone = overwritten
        self._without_graph = without_graph
        self._versions: list[tuple[Tensor, int]] = []
        self._edges: dict[Piece, Any] = {}
        self._last_linear: tuple[GradientEdge, Tensor, Tensor] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _open_attention(*args, **kwargs)
        use = recognise(func, args, kwargs, self._noting.find)
        result = super().__torch_function__(func, types, args, kwargs)
        if not self._without_graph and not torch.is_grad_enabled():
            return result
        whole = self._noting.note_split(func, args, kwargs, result)
        if whole is not None and isinstance(args[0], Tensor) and args[0].requires_grad:
            self.splits[edge_key(args[0])] += 1
        if use is not None:
            for piece, tensor in self._arguments(args, kwargs):
                if tensor.requires_grad:
                    self._edges[piece] = edge_key(tensor)
            result = self._noted(use, result)
        if func is functional.linear and not self._without_graph:
            self._note_linear(result, *args, **kwargs)
        return result

    def head(self, tape: Tape) -> Head | None:
        """The last layer, if it is as :class:`Tape` says."""
        if self._last_linear is None or not tape.logits.requires_grad:
            return None
        edge, features, weight = self._last_linear
        if edge != get_gradient_edge(tape.logits) or features.ndim != 2:
            return None
        uses = [use for use in tape.uses if tape.is_head(use)]
        own = {piece for use in uses for piece in (use.weight, use.bias)}
        others = {piece for use in tape.uses if not tape.is_head(use) for piece in (use.weight, use.bias)}
        return None if len(uses) > 1 or (own & others) - {None} else Head(features, weight.detach())

    def _note_linear(self, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        if result.requires_grad and input.requires_grad and not weight.requires_grad:
            self._last_linear = get_gradient_edge(result), input, weight
        else:
            self._last_linear = None

    def key_of(self, piece: Piece) -> Any:
        """Which node of the graph a piece is."""
        return self._edges[piece]

    @property
    def parts(self) -> dict[Any, Piece]:
        """The nodes of the parts that were split off."""
        return {edge_key(part): piece for piece, part in self._noting.part_tensors.items() if part.requires_grad}

    def overwritten(self, index: int) -> bool:
        """Whether the input of a use was changed in place afterwards."""
        tensor, version = self._versions[index]
        return tensor._version != version

    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Piece, Tensor]]:
        values = [*args, *kwargs.values()]
        return [(piece, value) for value in values if (piece := self._noting.find(value)) is not None]

    def _noted(self, use: Use, output: Tensor) -> Tensor:
        index = len(self.uses)
        self._versions.append((use.input, use.input._version))
        if index in self._clone:
            use.input = use.input.clone()
        use.layout = self._layout(index)
        use.output_shape = tuple(output.shape)
        self.uses.append(use)
        if self._without_graph:
            return output
        if not output.requires_grad:
            # The graph begins here. A clone, since what follows may work in place, which a leaf does not bear.
            output = output.detach().requires_grad_(True).clone()
        use.edge = get_gradient_edge(output)
        return output


class Pusher(ConstantParameters):
    """Forward mode in which target parameters move, each sample's in its own direction."""

    def __init__(
        self, pieces: Mapping[int, Piece], layout: Callable[[int], Layout], moves: Mapping[Piece, Tensor]
    ) -> None:
        super().__init__()
        self._noting = Noting(pieces)
        self._layout = layout
        self._moves = moves
        self._count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            with self:
                return _open_attention(*args, **kwargs)
        use = recognise(func, args, kwargs, self._noting.find)
        result = super().__torch_function__(func, types, args, kwargs)
        self._noting.note_split(func, args, kwargs, result)
        if use is None:
            return result
        use.layout = self._layout(self._count)
        self._count += 1
        weight, bias = (None if piece is None else self._moves.get(piece) for piece in (use.weight, use.bias))
        if weight is None and bias is None:
            return result
        primal, tangent = forward_ad.unpack_dual(result)
        moved = use.moved(primal, weight, bias)
        if 0 in primal.stride():  # expanded, so that its tangent could not be laid out like it
            primal = primal.contiguous()
        return forward_ad.make_dual(primal, moved if tangent is None else tangent + moved)


# Its body asks whether a mode is to be called instead, which would never end; a copy that does not ask lets the mode see
# the projections inside.
_open_attention = types.FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**functional.__dict__, "has_torch_function": lambda tensors: False},
    "multi_head_attention_forward",
    functional.multi_head_attention_forward.__defaults__,
    functional.multi_head_attention_forward.__closure__,
)
_open_attention.__kwdefaults__ = functional.multi_head_attention_forward.__kwdefaults__


def edge_key(tensor: Tensor) -> Any:
    """The node of the graph, and its output, that a tensor is."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
