"""A network with what is perturbed in it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raysense.measures.capture import ParameterCapture
from raysense.measures.contraction import uses_by_piece
from raysense.measures.gradients import Model, forward, forward_with_graph
from raysense.measures.tape import Tape
from raysense.measures.targets import INPUT, Target

_GRAM_BYTES = 4 * 8  # per entry of a Gram matrix: it and what its solution goes through, in float64


class Perturbed:
    """A network and the targets of one scan.

    Args:
        model: Maps images [N, C, H, W] to logits [N, K], sample by sample, with no randomness; a module where there are
            parameters among the targets.
        targets: What is perturbed.

    Attributes:
        input_only: Whether no parameters are perturbed.
    """

    def __init__(self, model: Model, targets: Sequence[Target] = (INPUT,)) -> None:
        self.model = model
        self.targets = tuple(targets)
        names = {name for target in targets for name in target.parameters}
        self.capture: ParameterCapture | None = None
        if isinstance(model, nn.Module):
            present = [name for name, value in model.named_parameters() if name in names and value.numel()]
            self.capture = ParameterCapture(model, present)
        elif names:
            raise TypeError("a model whose parameters are perturbed must be a torch.nn.Module")
        self.input_only = not names

    def passes(self, count: int) -> int:
        """Backward passes that the exact value takes at ``count`` classes: no more than the last layer has inputs."""
        width = None if self.capture is None else self.capture.head_width
        return count - 1 if width is None else min(count - 1, width)

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
            pieces, held = uses_by_piece(self.capture.uses).values(), self.passes(count)
            values += sum(held * piece.held_values(held) + 3 * piece.working_values(held) for piece in pieces)
        return values * images.element_size() + _GRAM_BYTES * count**2

    def record(self, images: Tensor, with_input: bool) -> Tape:
        """A forward pass with a graph that reaches the parameters of all targets, and the images where asked for."""
        if self.capture is not None:
            return self.capture.record(images, with_input)
        raw, inputs = forward_with_graph(self.model, images)
        return Tape(raw, inputs, [])

    @property
    def one_by_one(self) -> bool:
        """Whether samples cannot share a batch."""
        return self.capture is not None and self.capture.one_by_one
