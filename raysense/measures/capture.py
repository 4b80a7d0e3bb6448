"""Forward passes that note how parameters are used, so that per-sample gradients need no parameter Jacobian.

A torch function mode sees every operator that a target parameter enters, also inside user-written modules and attention.
Every forward pass is checked: the edges of its graph into each parameter must be those of recognised operators. A
parameter that enters anything else is *generic*. With generic parameters, where the samples of a batch cannot be told
apart in some operator, and where operators differ from image to image, samples go one by one; the gradients of generic
parameters are then autograd's own, and as exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.elementwise import WholeUse
from raysense.measures.gradients import in_best_layout, laid_out_like, requiring_grad
from raysense.measures.noting import compare_batches, whole_piece, whole_pieces
from raysense.measures.recorder import Pusher, Recorder
from raysense.measures.tape import Tape
from raysense.measures.uses import Layout, LinearUse, Piece, Use


class IrregularUses(Exception):
    """A batch uses parameters in other ways than the first image did, so that its samples must go one by one."""


class ParameterCapture:
    """A network, and the parameters that are perturbed.

    Args:
        module: Maps images [N, C, H, W] to logits [N, K], sample by sample; its parameters need not require grad.
        names: Names of the target parameters, as ``module.named_parameters()`` gives them.

    Attributes:
        generic: Names of the parameters that do not only enter recognised operators, for the first image seen.
        batchable: Whether the samples of a batch can be told apart in all operators.
        spanning: As in :class:`raysense.measures.tape.Tape`, for the first image seen.
        head_width: D of the head, for the first image seen; None where there is none.
        uses: Shapes of the uses for one image.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self.module = module
        own = dict(module.named_parameters())
        self.parameters: dict[str, Tensor] = {name: own[name] for name in names}
        self.generic: frozenset[str] = frozenset()
        self.batchable = True
        self.spanning: frozenset[str] = frozenset()
        self.head_width: int | None = None
        self.uses: list[Use] = []
        self._layouts: list[tuple[int, bool] | None] = []
        self._signature: list[object] = []
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
        self.batchable = True
        tape, recorder = self._recorded(images[:1].detach(), with_input=True)
        self.generic, self.spanning, self.uses = tape.generic, tape.spanning, tape.uses
        self.head_width = None if tape.head is None else tape.head.width
        for use in self.uses:
            use.forget()
        if self.parameters:
            self._find_layouts(images, recorder)
        self._shape = tuple(images.shape[1:])

    def record(self, images: Tensor, with_input: bool) -> Tape:
        """A forward pass with a graph that reaches every use.

        Args:
            images: [n, C, H, W]; n is 1 where :attr:`one_by_one`.
            with_input: Whether gradients with respect to the images are wanted too.

        Raises:
            IrregularUses: n exceeds 1 and samples must go one by one, as :attr:`one_by_one` says from now on.
        """
        self.prepare(images)
        tape, recorder = self._recorded(images, with_input)
        if len(images) > 1 and (self.one_by_one or tape.generic or recorder.signature != self._signature):
            self.batchable = False
            raise IrregularUses
        return tape

    def _recorded(self, images: Tensor, with_input: bool) -> tuple[Tape, Recorder]:
        recorder, inputs, logits = self._run(images, with_input)
        if overwritten := recorder.overwritten() - self._overwritten:
            self._overwritten |= overwritten
            recorder, inputs, logits = self._run(images, with_input)
        with requiring_grad(self.parameters.values()):
            generic = recorder.unrecognised(logits, self.parameters) if self.parameters else set()
            wholes = [self._whole_use(name) for name in self.parameters if name in generic]
        head = recorder.head(logits, generic, self.parameters)
        for use in recorder.uses if generic else []:
            use.leave(generic)
        uses = [use for use in recorder.uses if use.weight is not None or use.bias is not None]
        tape = Tape(logits, inputs, [*uses, *wholes], generic=frozenset(generic), head=head)
        tape.spanning = self._spanning(tape)
        return tape, recorder

    def _run(self, images: Tensor, with_input: bool) -> tuple[Recorder, Tensor, Tensor]:
        def work(inputs: Tensor) -> tuple[Recorder, Tensor, Tensor]:
            recorder = Recorder(self._pieces(), self._layout_of(len(images)), self._overwritten)
            with requiring_grad(self.parameters.values()), torch.enable_grad(), recorder:
                inputs = inputs.detach().requires_grad_(with_input)
                return recorder, inputs, self.module(inputs)

        return in_best_layout(images, work)

    def product(self, images: Tensor, moves: Mapping[Piece, Tensor], direction: Tensor | None) -> Tensor:
        """J h for one direction h per sample, in forward mode.

        Args:
            images: [n, C, H, W].
            moves: The part of h in each piece of parameters that are not generic, [n, size].
            direction: Its part in the images, of their shape; None where they do not move.

        Returns:
            [n, K].

        Raises:
            NotImplementedError: an operator has no rule for forward mode.
        """
        self.prepare(images)

        def work(inputs: Tensor) -> Tensor:
            pusher = Pusher(self._pieces(), self._layout_of(len(images)), moves)
            with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level(), pusher:
                inputs = inputs.detach()
                if direction is not None:
                    inputs = forward_ad.make_dual(inputs, laid_out_like(inputs, direction))
                output = self.module(inputs)
                tangent = forward_ad.unpack_dual(output).tangent
                return torch.zeros_like(output) if tangent is None else tangent.clone()

        return in_best_layout(images, work)

    def _pieces(self) -> dict[int, Piece]:
        return whole_pieces(self.parameters)

    def _whole_use(self, name: str) -> Use:
        value = self.parameters[name]
        use = WholeUse(value.detach(), whole_piece(name, value), None)
        use.edge, use.output_shape = get_gradient_edge(value), tuple(value.shape)
        return use

    def _layout_of(self, samples: int) -> Callable[[int], Layout]:
        if samples == 1:
            return lambda index: Layout(1, None)
        layouts = self._layouts

        def layout(index: int) -> Layout:
            if index >= len(layouts):
                self.batchable = False
                raise IrregularUses
            return Layout(samples, *(layouts[index] or (None,)))

        return layout

    def _find_layouts(self, images: Tensor, recorder: Recorder) -> None:
        """Where the samples are in the operators' tensors."""
        found = compare_batches(self.module, self._pieces(), images, self._overwritten)
        self._signature, self._layouts = found.signature, found.layouts
        self.batchable = found.separable and found.signature == recorder.signature

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
