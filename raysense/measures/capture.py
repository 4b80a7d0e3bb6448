"""Forward passes that note how parameters are used, so that per-sample gradients need no parameter Jacobian.

A torch function mode sees every operator that a target parameter enters, also inside user-written modules and attention.
Before it is relied on, one image is run with a full graph, and the graph's edges into each parameter are counted: a
parameter that enters anything but the recognised operators is *generic*. With generic parameters, and where the samples
of a batch cannot be told apart in some operator, samples go one by one, and autograd gives the generic gradients exactly.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.gradients import arranged
from raysense.measures.modes import AffineBatchNorm, ConstantParameters
from raysense.measures.recognition import recognise
from raysense.measures.uses import BroadcastUse, ConvUse, Layout, LinearUse, NormUse, Piece, Use, WholeUse


@dataclass(frozen=True)
class Head:
    """A linear layer whose output is the logits: gradients of logits are combinations of those of its D features.

    Attributes:
        features: [n, D], its input, with a graph.
        weight: [K, D], detached.
    """

    features: Tensor
    weight: Tensor

    @property
    def width(self) -> int:
        """D."""
        return int(self.weight.shape[1])


@dataclass
class Tape:
    """A forward pass of n samples with a graph.

    Attributes:
        logits: [n, K].
        inputs: The images, which require grad where the input is a target.
        uses: Every recognised use of a target parameter, in order, and the generic parameters; for these n is 1.
        spanning: Names of parameters that alone can move the logits in every direction: the bias of a last linear layer,
            or its weight where no sample's features are all zero.
        head: The last layer, where it is linear, has a graph before it, and shares no target parameter with others.
    """

    logits: Tensor
    inputs: Tensor
    uses: list[Use]
    spanning: frozenset[str] = frozenset()
    head: Head | None = None

    def is_head(self, use: Use) -> bool:
        """Whether a use is that of the last layer."""
        return use.edge is not None and use.edge == get_gradient_edge(self.logits)


class ParameterCapture:
    """A network, and the parameters that are perturbed.

    Args:
        module: Maps images [N, C, H, W] to logits [N, K], sample by sample; its parameters need not require grad.
        names: Names of the target parameters, as ``module.named_parameters()`` gives them.

    Attributes:
        generic: Names of the parameters that do not only enter recognised operators.
        batchable: Whether the samples of a batch can be told apart in all operators.
        spanning: As in :class:`Tape`, for the first image seen.
        head_width: D of the head, for the first image seen; None where there is none.
        uses: Shapes of the uses for one image.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self.module = module
        own = dict(module.named_parameters())
        self.parameters: dict[str, Tensor] = {name: own[name] for name in names}
        self.generic: tuple[str, ...] = ()
        self.batchable = True
        self.spanning: frozenset[str] = frozenset()
        self.head_width: int | None = None
        self.uses: list[Use] = []
        self._layouts: list[tuple[int, bool] | None] = []
        self._overwritten: set[int] = set()
        self._shape: tuple[int, ...] | None = None

    @property
    def one_by_one(self) -> bool:
        """Whether samples cannot share a batch."""
        return bool(self.generic) or not self.batchable

    def prepare(self, images: Tensor) -> None:
        """Find out, on the first of the images, how the parameters are used; once for each shape of images."""
        if tuple(images.shape[1:]) == self._shape:
            return
        first = images[:1].detach()
        self.generic, self.batchable = (), True
        if self.parameters:
            self.generic = self._unrecognised(first)
            self._find_layouts(first)
        self._shape = tuple(images.shape[1:])
        tape = self.record(first, with_input=True)
        self.spanning = tape.spanning
        self.head_width = None if tape.head is None else tape.head.width
        self.uses = tape.uses
        for use in self.uses:
            use.forget()

    def record(self, images: Tensor, with_input: bool) -> Tape:
        """A forward pass with a graph that reaches every use.

        Args:
            images: [n, C, H, W]; n is 1 where :attr:`one_by_one`.
            with_input: Whether gradients with respect to the images are wanted too.
        """
        self.prepare(images)
        if self.one_by_one and len(images) > 1:
            raise ValueError(f"{len(images)} images where the network takes one at a time")
        recorder = _Recorder(self._recognised(), self._layout_of(len(images)), self._overwritten)
        leaves = {name: self.parameters[name].detach().clone().requires_grad_(True) for name in self.generic}
        with torch.enable_grad(), recorder:
            inputs = arranged(images.detach()).requires_grad_(with_input)
            logits = self._call(inputs, leaves)
        tape = Tape(logits, inputs, recorder.uses)
        tape.spanning = self._spanning(tape)
        tape.head = recorder.head(tape)
        tape.uses += [self._whole_use(*leaf) for leaf in leaves.items()]
        return tape

    def _whole_use(self, name: str, leaf: Tensor) -> Use:
        use = WholeUse(leaf.detach(), self.whole(name), None)
        use.edge, use.output_shape = get_gradient_edge(leaf), tuple(leaf.shape)
        return use

    def product(self, images: Tensor, moves: Mapping[Piece, Tensor], direction: Tensor | None) -> Tensor:
        """J h for one direction h per sample, in forward mode.

        Args:
            images: [n, C, H, W].
            moves: The part of h in each piece, [n, size]; whole parameters for the generic ones.
            direction: Its part in the images, of their shape; None where they do not move.

        Returns:
            [n, K].
        """
        self.prepare(images)
        images = arranged(images)
        pusher = _Pusher(self._recognised(), self._layout_of(len(images)), moves)
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), forward_ad.dual_level(), pusher:
            inputs = images if direction is None else forward_ad.make_dual(images, arranged(direction))
            moving = {
                piece.parameter: forward_ad.make_dual(
                    self.parameters[piece.parameter].detach(), move.view(self.parameters[piece.parameter].shape)
                )
                for piece, move in moves.items()
                if piece.parameter in self.generic
            }
            output = self._call(inputs, moving)
            tangent = forward_ad.unpack_dual(output).tangent
            return torch.zeros_like(output) if tangent is None else tangent.clone()

    def whole(self, name: str) -> Piece:
        """A parameter as one piece."""
        return whole_piece(name, self.parameters[name])

    def _call(self, images: Tensor, replaced: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(self.module, dict(replaced), (images,)) if replaced else self.module(images)
        return output

    def _recognised(self) -> dict[int, Piece]:
        return {id(value): self.whole(name) for name, value in self.parameters.items() if name not in self.generic}

    def _layout_of(self, samples: int) -> Callable[[int], Layout]:
        if samples == 1:
            return lambda index: Layout(1, None)
        return lambda index: Layout(samples, *(self._layouts[index] or (None,)))

    def _unrecognised(self, image: Tensor) -> tuple[str, ...]:
        """Names of the parameters that enter other than recognised operators, from the edges of the graph."""
        required = {name: value.requires_grad for name, value in self.parameters.items()}
        recorder = _Recorder(self._recognised(), self._layout_of(1), set())
        try:
            for value in self.parameters.values():
                value.requires_grad_(True)
            with torch.enable_grad(), recorder:
                logits = self.module(arranged(image))
            edges = _count_edges(logits)
            self._overwritten = {index for index, use in enumerate(recorder.uses) if recorder.overwritten(index)}
            by_edge = {_edge_key(value): name for name, value in self.parameters.items()}
            expected = Counter(recorder.splits)
            for use in recorder.uses:
                for piece in (use.weight, use.bias):
                    if piece is not None:
                        expected[recorder.key_of(piece)] += 1
            wrong = {name for key, name in by_edge.items() if edges[key] != expected[key]}
            wrong |= {piece.parameter for key, piece in recorder.parts.items() if edges[key] != expected[key]}
        finally:
            for name, value in self.parameters.items():
                value.requires_grad_(required[name])
        return tuple(name for name in self.parameters if name in wrong)

    def _find_layouts(self, image: Tensor) -> None:
        """Where the samples are in the operators' tensors: compares one image alone with a batch of two."""
        mirrored = (image.flip(-1) * 0.75 + image.roll(1, -1) * 0.25).to(image.dtype)
        with torch.no_grad():
            recorders = []
            for batch in (image, torch.cat((image, mirrored))):
                recorder = _Recorder(self._recognised(), self._layout_of(1), self._overwritten, without_graph=True)
                with recorder:
                    self.module(arranged(batch))
                recorders.append(recorder)
        alone, both = (recorder.uses for recorder in recorders)
        self._layouts = [_find_samples(one, two) for one, two in zip(alone, both, strict=False)]
        self.batchable = len(alone) == len(both) and None not in self._layouts

    def _spanning(self, tape: Tape) -> frozenset[str]:
        """Parameters of a linear layer whose output is the logits, which alone move the logits in every direction."""
        for use in tape.uses:
            if isinstance(use, LinearUse) and tape.is_head(use) and use.geometry()[3] == 1:
                features = use.columns.flatten(1)
                names = {use.bias.parameter} if use.bias is not None else set()
                if use.weight is not None and bool(features.abs().amax(1).gt(0).all()):
                    names.add(use.weight.parameter)
                return frozenset(names)
        return frozenset()


def whole_piece(name: str, parameter: Tensor) -> Piece:
    """A parameter as one piece."""
    return Piece(name, 0, parameter.shape[0] if parameter.ndim else 1, tuple(parameter.shape))


class _Noting:
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


class _Recorder(AffineBatchNorm):
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
        self._noting = _Noting(pieces)
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
            self.splits[_edge_key(args[0])] += 1
        if use is not None:
            for piece, tensor in self._arguments(args, kwargs):
                if tensor.requires_grad:
                    self._edges[piece] = _edge_key(tensor)
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
        return {_edge_key(part): piece for piece, part in self._noting.part_tensors.items() if part.requires_grad}

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


class _Pusher(ConstantParameters):
    """Forward mode in which target parameters move, each sample's in its own direction."""

    def __init__(
        self, pieces: Mapping[int, Piece], layout: Callable[[int], Layout], moves: Mapping[Piece, Tensor]
    ) -> None:
        super().__init__()
        self._noting = _Noting(pieces)
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


def _edge_key(tensor: Tensor) -> Any:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _count_edges(logits: Tensor) -> Counter[Any]:
    """How many edges of the graph arrive at each output of each node."""
    counts: Counter[Any] = Counter()
    if logits.grad_fn is None:
        return counts
    waiting, seen = [logits.grad_fn], {logits.grad_fn}
    while waiting:
        for node, output in waiting.pop().next_functions:
            if node is None:
                continue
            counts[node, output] += 1
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return counts


def _find_samples(alone: Use, both: Use) -> tuple[int, bool] | None:
    """Where the samples are in a use's tensors: the dimension, and whether interleaved; None where they cannot be told.

    Args:
        alone: The use for one image.
        both: The use for this image and another.
    """
    one, two = alone.input, both.input
    if isinstance(alone, BroadcastUse) and isinstance(both, BroadcastUse):
        # The tensor that the parameter meets may be of fewer dimensions; the output says where the samples are.
        dim = _doubled(alone.output_shape, both.output_shape)
        if dim is None or both.shape[dim] != 1:
            return None
        if alone.factor is None or both.factor is None:
            return (dim, False) if alone.output_shape[dim] == 1 else None
        one, two = alone.factor, both.factor
    dim = _doubled(one.shape, two.shape)
    if dim is None or type(alone) is not type(both) or _mixes_features(alone, dim):
        return None
    one, two = one.movedim(dim, 0).double(), two.movedim(dim, 0).double()
    scale = float(one.abs().max()) if one.numel() else 0.0
    for interleaved, mine in ((False, two[: len(one)]), (True, two[::2])):
        if torch.allclose(mine, one, rtol=1e-2, atol=1e-3 * scale):
            return dim, interleaved
    return None


def _mixes_features(use: Use, dim: int) -> bool:
    """Whether the samples' dimension is one that the operator itself treats as channels or positions."""
    if isinstance(use, LinearUse):
        return dim == use.input.ndim - 1
    if isinstance(use, ConvUse):
        return dim != 0 or use.input.ndim != len(use.stride) + 2
    if isinstance(use, NormUse):
        return dim >= use.input.ndim - use.trailing if use.trailing else dim != 0
    return False


def _doubled(one: Sequence[int], two: Sequence[int]) -> int | None:
    """The only dimension in which two shapes differ, by a factor of two."""
    if len(one) != len(two):
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 and two[differing[0]] == 2 * one[differing[0]] else None
