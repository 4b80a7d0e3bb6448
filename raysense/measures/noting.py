"""Forward passes without a graph that note which operators use which parameters, and where their samples are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysense.measures.gradients import in_best_layout
from raysense.measures.layouts import find_samples
from raysense.measures.recorder import Recorder
from raysense.measures.uses import Layout, Piece, Use


@dataclass(frozen=True)
class Noted:
    """A forward pass that noted uses.

    Attributes:
        logits: What the network returned.
        recorder: Holds the uses.
    """

    logits: Tensor
    recorder: Recorder

    @property
    def uses(self) -> list[Use]:
        """The uses in order."""
        return self.recorder.uses


def note_uses(
    module: nn.Module,
    pieces: Mapping[int, Piece],
    images: Tensor,
    layout: Callable[[int], Layout],
    overwritten: set[int],
    everywhere: bool = False,
) -> Noted:
    """Run a network on images [N, C, H, W], none of which requires grad, and note every recognised use of the parameters.

    Args:
        module: The network; its parameters do not require grad.
        pieces: The parameters by the id of their tensor.
        images: [N, C, H, W].
        layout: Gives the layout of the use of an index.
        overwritten: Indices of uses whose input is known to be changed in place later, so that a copy is kept.
        everywhere: Whether uses are noted also where the model turns gradients off.
    """

    def work(inputs: Tensor) -> Noted:
        recorder = Recorder(pieces, layout, overwritten, without_graph=True, everywhere=everywhere)
        with torch.enable_grad(), recorder:
            return Noted(module(inputs.detach()), recorder)

    return in_best_layout(images, work)


@dataclass(frozen=True)
class Batches:
    """What a batch of two tells about where the samples are.

    Attributes:
        layouts: The dimension of every use that holds the samples, and whether interleaved; None where it cannot be told.
        signature: Which operators used what, for one image alone.
        shapes: Of the inputs of the uses, for one image alone.
        same: Whether the batch used the same as one image.
    """

    layouts: list[tuple[int, bool] | None]
    signature: list[object]
    shapes: list[tuple[int, ...]]
    same: bool

    @property
    def separable(self) -> bool:
        """Whether the samples of a batch can be told apart in every use."""
        return self.same and None not in self.layouts

    def fits(self, recorder: Recorder, samples: int) -> bool:
        """Whether a pass of so many samples used the parameters as one image did, every sample as much as any other."""
        if not self.separable or recorder.signature != self.signature:
            return False
        return all(
            use.input.shape == _stretched(shape, layout, samples)
            for use, layout, shape in zip(recorder.uses, self.layouts, self.shapes, strict=True)
        )


def compare_batches(
    module: nn.Module,
    pieces: Mapping[int, Piece],
    images: Tensor,
    overwritten: set[int],
    everywhere: bool = False,
) -> Batches:
    """Find the samples in the operators' tensors: compares one image of noise alone with a batch of two.

    Args:
        module: The network.
        pieces: The parameters by the id of their tensor.
        images: [N, C, H, W], whose shape and type the noise has.
        overwritten: As for :func:`note_uses`.
        everywhere: As for :func:`note_uses`.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((2, *images.shape[1:]), generator=generator, dtype=torch.float64).to(images)
    alone, both = (
        note_uses(module, pieces, batch, lambda index: Layout(1, None), overwritten, everywhere).recorder
        for batch in (noise[:1], noise)
    )
    layouts = [find_samples(one, two) for one, two in zip(alone.uses, both.uses, strict=False)]
    shapes = [tuple(use.input.shape) for use in alone.uses]
    return Batches(layouts, list(alone.signature), shapes, alone.signature == both.signature)


def _stretched(shape: tuple[int, ...], layout: tuple[int, bool] | None, samples: int) -> tuple[int, ...]:
    """The shape for one image, as it is for several."""
    return tuple(size * samples if layout and axis == layout[0] else size for axis, size in enumerate(shape))


def whole_pieces(parameters: Mapping[str, Tensor]) -> dict[int, Piece]:
    """Parameters, each as one piece, by the id of their tensor."""
    return {id(value): whole_piece(name, value) for name, value in parameters.items()}


def whole_piece(name: str, parameter: Tensor) -> Piece:
    """A parameter as one piece."""
    return Piece(name, 0, parameter.shape[0] if parameter.ndim else 1, tuple(parameter.shape))
