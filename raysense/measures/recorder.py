"""Torch function modes that see every operator a target parameter enters: to note it, or to move the parameter."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from raysense.measures.modes import AffineBatchNorm, ConstantParameters
from raysense.measures.recognition import recognise
from raysense.measures.tape import Head
from raysense.measures.uses import Layout, Piece, Use


class Noting:
    """Finds target parameters, and the parts of them that an operator has split off, among an operator's arguments."""

    def __init__(self, pieces: Mapping[int, Piece]) -> None:
        self._pieces = dict(pieces)
        self.parts: list[tuple[Tensor, Piece]] = []  # kept, since an id is only good while its tensor lives

    def find(self, value: Any) -> Piece | None:
        """The piece that a value is."""
        return self._pieces.get(id(value)) if isinstance(value, Tensor) else None

    def note_split(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> Piece | None:
        """Take note of the parts where a target parameter is split along its first dimension."""
        # An exported program's are called split.Tensor or split_with_sizes.default.
        if getattr(func, "__name__", "").partition(".")[0] not in ("split", "chunk", "split_with_sizes") or not args:
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
            self.parts.append((part, piece))
        return whole


class _Watching(AffineBatchNorm):
    """Sees every call in which the model asks for gradients, and which target parameters it uses.

    Args:
        pieces: The target parameters by the id of their tensor.
        layout: Gives the layout of the use of an index.
        everywhere: Whether calls are seen also where the model turns gradients off.
    """

    def __init__(self, pieces: Mapping[int, Piece], layout: Callable[[int], Layout], everywhere: bool = False) -> None:
        super().__init__()
        self._noting = Noting(pieces)
        self._layout = layout
        self._everywhere = everywhere

    def _called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func is functional.multi_head_attention_forward:
            with self:
                return _open_attention(*args, **kwargs)
        use = recognise(func, args, kwargs, self._noting.find)
        result = super()._called(func, args, kwargs)
        seen = self._everywhere or torch.is_grad_enabled()
        return self._seen(func, args, kwargs, use, result) if seen else result

    def _seen(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], use: Use | None, result: Any
    ) -> Any:
        """What the model gets for the result of a call.

        Args:
            func: What was called.
            args: Its arguments.
            kwargs: Its named arguments.
            use: The use that it makes of target parameters, if a known one.
            result: What it gave.
        """
        raise NotImplementedError


class Recorder(_Watching):
    """Notes the uses of target parameters.

    Args:
        pieces: The target parameters by the id of their tensor, which require grad where there is to be a graph.
        layout: Gives the layout of the use of an index.
        overwritten: Indices of uses whose input is known to be changed in place later, so that a copy is kept.
        without_graph: Whether uses are noted although they have no graph.
        everywhere: Whether they are noted also where the model turns gradients off.

    Attributes:
        uses: The uses in order.
        signature: Which operators used what, in order.
    """

    def __init__(
        self,
        pieces: Mapping[int, Piece],
        layout: Callable[[int], Layout],
        overwritten: set[int],
        without_graph: bool = False,
        everywhere: bool = False,
    ) -> None:
        super().__init__(pieces, layout, everywhere)
        self.uses: list[Use] = []
        self.signature: list[object] = []
        self._clone = overwritten
        self._without_graph = without_graph
        self._versions: list[tuple[int, Tensor, int]] = []
        self._arguments: list[list[tuple[Piece, Any]]] = []  # of every use: which nodes of the graph its pieces are
        self._splits: list[tuple[Tensor, Any]] = []
        self._last_linear: tuple[GradientEdge, Tensor, Tensor, Tensor | None] | None = None

    def _seen(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], use: Use | None, result: Any
    ) -> Any:
        whole = self._noting.note_split(func, args, kwargs, result)
        if whole is not None and args[0].requires_grad:
            self._splits.append((result[0], edge_key(args[0])))
        if use is not None and (result.requires_grad or self._without_graph):
            self._note(use, result, [*args, *kwargs.values()])
        if func is functional.linear and not self._without_graph:
            self._note_linear(result, *args, **kwargs)
        return result

    def overwritten(self) -> set[int]:
        """Indices of the uses whose input was changed in place afterwards."""
        return {index for index, tensor, version in self._versions if tensor._version != version}

    def unrecognised(self, logits: Tensor, parameters: Mapping[str, Tensor]) -> set[str]:
        """Names of the parameters that enter other than recognised operators, by the edges of the graph.

        Args:
            logits: [n, K], with a graph.
            parameters: The target parameters, which require grad.
        """
        edges, nodes = count_edges(logits)
        expected: Counter[Any] = Counter(key for part, key in self._splits if edge_key(part)[0] in nodes)
        used: dict[str, set[Piece]] = {}
        for use, arguments in zip(self.uses, self._arguments, strict=True):
            if use.edge is None or use.edge.node not in nodes:
                continue  # what came of it is not used
            for piece, key in arguments:
                expected[key] += 1
                used.setdefault(piece.parameter, set()).add(piece)
        wrong = {name for name, value in parameters.items() if edges[edge_key(value)] != expected[edge_key(value)]}
        wrong |= {
            piece.parameter
            for part, piece in self._noting.parts
            if part.requires_grad and edges[edge_key(part)] != expected[edge_key(part)]
        }
        # The Gram matrices of pieces add where the pieces share no entries.
        return wrong | {name for name, pieces in used.items() if _overlap(pieces)}

    def head(self, logits: Tensor, generic: set[str], parameters: Mapping[str, Tensor]) -> Head | None:
        """The last layer, if it is as :class:`raysense.measures.tape.Tape` says."""
        if self._last_linear is None or not logits.requires_grad:
            return None
        edge, features, weight, bias = self._last_linear
        if edge != get_gradient_edge(logits) or features.ndim != 2:
            return None
        own = {name for name, value in parameters.items() if value is weight or value is bias}
        others = {
            piece.parameter
            for use in self.uses
            if use.edge != edge
            for piece in (use.weight, use.bias)
            if piece is not None
        }
        return None if own & (others | generic) else Head(features, weight.detach())

    def _note(self, use: Use, output: Tensor, arguments: Sequence[Any]) -> None:
        index = len(self.uses)
        if use.input.is_inference():  # whose changes are not counted
            use.input = use.input.clone()
        else:
            self._versions.append((index, use.input, use.input._version))
        self._arguments.append(
            [
                (piece, edge_key(value))
                for value in arguments
                if (piece := self._noting.find(value)) is not None and value.requires_grad
            ]
        )
        if index in self._clone:
            use.input = use.input.clone()
        use.layout = self._layout(index)
        use.output_shape = tuple(output.shape)
        use.edge = get_gradient_edge(output) if output.requires_grad else None
        self.uses.append(use)
        self.signature.append((type(use), use.weight, use.bias))

    def _note_linear(self, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        plain = weight.is_leaf and weight.ndim == 2 and (bias is None or bias.is_leaf)
        if result.requires_grad and input.requires_grad and plain:
            self._last_linear = get_gradient_edge(result), input, weight, bias
        else:
            self._last_linear = None


class Pusher(_Watching, ConstantParameters):
    """Forward mode in which target parameters move, each sample's in its own direction."""

    def __init__(
        self, pieces: Mapping[int, Piece], layout: Callable[[int], Layout], moves: Mapping[Piece, Tensor]
    ) -> None:
        super().__init__(pieces, layout)
        self._moves = moves
        self._count = 0

    def _seen(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], use: Use | None, result: Any
    ) -> Any:
        self._noting.note_split(func, args, kwargs, result)
        if use is None:
            return result
        use.layout = self._layout(self._count)
        self._count += 1
        weight, bias = (None if piece is None else self._moves.get(piece) for piece in (use.weight, use.bias))
        if weight is None and bias is None:
            return result
        primal, tangent = forward_ad.unpack_dual(result)
        moved = use.moved(primal, weight, bias).to(primal.dtype)
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


def count_edges(logits: Tensor) -> tuple[Counter[Any], set[Any]]:
    """How many edges of the graph arrive at each output of each node, and all nodes."""
    counts: Counter[Any] = Counter()
    if logits.grad_fn is None:
        return counts, set()
    waiting, seen = [logits.grad_fn], {logits.grad_fn}
    while waiting:
        for node, output in waiting.pop().next_functions:
            if node is None:
                continue
            counts[node, output] += 1
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return counts, seen


def _overlap(pieces: set[Piece]) -> bool:
    """Whether different pieces of a parameter share rows."""
    ordered = sorted(pieces, key=lambda piece: (piece.start, piece.stop))
    return any(later.start < earlier.stop for earlier, later in pairwise(ordered))
