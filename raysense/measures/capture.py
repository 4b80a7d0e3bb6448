"""Forward passes that note how parameters are used, so that per-sample gradients need no parameter Jacobian.

A torch function mode sees every operator that a target parameter enters, also inside user-written modules and attention.
Before it is relied on, one image is run with a full graph, and the graph's edges into each parameter are counted: a
parameter that enters anything but the recognised operators is *generic*. With generic parameters, and where the samples
of a batch cannot be told apart in some operator, samples go one by one, and autograd gives the generic gradients exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.elementwise import WholeUse
from raysense.measures.gradients import arranged
from raysense.measures.layouts import find_samples
from raysense.measures.recorder import Pusher, Recorder, edge_key
from raysense.measures.tape import Tape
from raysense.measures.uses import Layout, LinearUse, Piece, Use


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
        recorder = Recorder(self._recognised(), self._layout_of(len(images)), self._overwritten)
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
        pusher = Pusher(self._recognised(), self._layout_of(len(images)), moves)
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
        recorder = Recorder(self._recognised(), self._layout_of(1), set())
        try:
            for value in self.parameters.values():
                value.requires_grad_(True)
            with torch.enable_grad(), recorder:
                logits = self.module(arranged(image))
            edges = _count_edges(logits)
            self._overwritten = {index for index, use in enumerate(recorder.uses) if recorder.overwritten(index)}
            by_edge = {edge_key(value): name for name, value in self.parameters.items()}
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
                recorder = Recorder(self._recognised(), self._layout_of(1), self._overwritten, without_graph=True)
                with recorder:
                    self.module(arranged(batch))
                recorders.append(recorder)
        alone, both = (recorder.uses for recorder in recorders)
        self._layouts = [find_samples(one, two) for one, two in zip(alone, both, strict=False)]
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
