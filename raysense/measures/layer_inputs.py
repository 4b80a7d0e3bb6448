"""Inputs of linear maps and convolutions, noted while a network runs, whatever module or function calls them.

A torch function mode sees the operators themselves (:mod:`raysense.measures.noting`), so that weights are also found in
attention, in functional code and in exported programs, where no module could be hooked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raysense.measures.noting import Batches, Noted, compare_batches, note_uses, whole_pieces
from raysense.measures.uses import ConvUse, Layout, LinearUse, Piece, Use


@dataclass(frozen=True)
class LinearLayer:
    """A weight that is applied to activations: by a linear map, or by a convolution at every position.

    Attributes:
        name: The weight's name without its ending, which for a module is the module's; ``...in_proj`` for the projections
            into an attention, with the rows where these are used apart.
        piece: The weight, or the rows of it.
        operator: ``linear`` or ``convolution``.
        groups: G.
        outputs: O, rows of a group.
        inputs: I, inputs of each row: of a convolution those of a patch.
        positions: T: tokens, or positions of the output, of one image; those of several calls add up.
    """

    name: str
    piece: Piece
    operator: str
    groups: int
    outputs: int
    inputs: int
    positions: int

    @property
    def rows(self) -> int:
        """G * O."""
        return self.groups * self.outputs

    def weight(self, module: nn.Module) -> Tensor:
        """The weight as [G, O, I], in the network's precision."""
        value = dict(module.named_parameters())[self.piece.parameter].detach()
        return value[self.piece.start : self.piece.stop].reshape(self.groups, self.outputs, self.inputs)


def find_layers(module: nn.Module, image: Tensor) -> list[LinearLayer]:
    """The layers that a network applies to an image, in the order in which it first does.

    Args:
        module: Maps images [N, C, H, W] to logits [N, K]; its parameters do not require grad.
        image: [1, C, H, W].
    """
    weights = {name: value for name, value in module.named_parameters() if value.ndim >= 2 and value.numel()}
    noted = note_uses(module, whole_pieces(weights), image, lambda index: Layout(1, None), set(), everywhere=True)
    found: dict[Piece, LinearLayer] = {}
    different: set[Piece] = set()
    for use in _weight_uses(noted.uses):
        assert use.weight is not None
        groups, inputs, outputs, positions = use.geometry()
        earlier = found.get(use.weight)
        if earlier is not None:
            if (groups, inputs) != (earlier.groups, earlier.inputs):
                different.add(use.weight)  # its rows mean one thing here and another there
            found[use.weight] = replace(earlier, positions=earlier.positions + positions)
            continue
        operator = "linear" if isinstance(use, LinearUse) else "convolution"
        found[use.weight] = LinearLayer(
            _layer_name(use.weight, weights), use.weight, operator, groups, outputs, inputs, positions
        )
    layers = [layer for piece, layer in found.items() if piece not in different]
    names = [layer.name for layer in layers]
    return [layer if names.count(layer.name) == 1 else replace(layer, name=layer.piece.parameter) for layer in layers]


class LayerInputs:
    """Runs a network and gives the inputs of some of its layers, sample by sample.

    Args:
        module: Maps images [N, C, H, W] to logits [N, K], sample by sample; its parameters do not require grad.
        layers: The layers, as :func:`find_layers` gives them.
    """

    def __init__(self, module: nn.Module, layers: Sequence[LinearLayer]) -> None:
        self.module = module
        self.layers = tuple(layers)
        parameters = dict(module.named_parameters())
        self._pieces = whole_pieces({layer.piece.parameter: parameters[layer.piece.parameter] for layer in layers})
        self._overwritten: set[int] = set()
        self._batches: Batches | None = None
        self._shape: tuple[int, ...] | None = None

    def run(self, images: Tensor) -> list[Activations]:
        """What enters the layers for images [N, C, H, W]: of all at once, or one by one where a batch mixes its samples.

        Which it is depends on these images alone, not on earlier ones.

        Returns:
            The activations of consecutive samples; together those of all.
        """
        if self._batches is None or tuple(images.shape[1:]) != self._shape:
            self._batches = compare_batches(self.module, self._pieces, images, self._overwritten, everywhere=True)
            self._shape = tuple(images.shape[1:])
        if len(images) > 1 and self._batches.separable:
            noted = self._noted(images, self._batches.layouts)
            # What a network does may depend on the image, and apply a layer to some of them only.
            if self._batches.fits(noted.recorder, len(images)):
                return [self._activations(noted, len(images))]
        return [self._activations(self._noted(image[None], []), 1) for image in images]

    def _noted(self, images: Tensor, layouts: list[tuple[int, bool] | None]) -> Noted:
        def layout(index: int) -> Layout:
            known = layouts[index] if index < len(layouts) else None
            return Layout(len(images), *(known or (None,)))

        def note() -> Noted:
            return note_uses(self.module, self._pieces, images, layout, self._overwritten, everywhere=True)

        noted = note()
        if changed := noted.recorder.overwritten() - self._overwritten:
            self._overwritten |= changed
            noted = note()
        return noted

    def _activations(self, noted: Noted, samples: int) -> Activations:
        uses: dict[Piece, list[LinearUse | ConvUse]] = {layer.piece: [] for layer in self.layers}
        for use in _weight_uses(noted.uses):
            if use.weight in uses:
                uses[use.weight].append(use)
        return Activations(noted.logits.detach(), samples, [uses[layer.piece] for layer in self.layers])


@dataclass(frozen=True)
class Activations:
    """What entered some layers in a forward pass of n samples.

    Attributes:
        logits: [n, K].
        samples: n.
        uses: For every layer the operators that applied its weight.
    """

    logits: Tensor
    samples: int
    uses: list[list[LinearUse | ConvUse]]

    def columns(self, layer: int, samples: Tensor) -> Tensor:
        """The inputs of a layer (by its place) for k of the samples [k]: [k, G, I, T], float64."""
        parts = [_of_samples(use, samples).columns.double() for use in self.uses[layer]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)

    def finite(self, layer: int) -> Tensor:
        """Whether a layer was applied and all its inputs are finite, by sample: bool [n]."""
        found = [use.layout.split(use.input).isfinite().flatten(1).all(1) for use in self.uses[layer]]
        return torch.stack(found).all(0) if found else torch.zeros(self.samples, dtype=torch.bool)

    def exact_products(self, layer: int) -> bool:
        """Whether products of inputs and weights are exact in float64: those of single precision or less are."""
        return all(use.input.dtype != torch.float64 for use in self.uses[layer])


def _of_samples(use: LinearUse | ConvUse, samples: Tensor) -> LinearUse | ConvUse:
    """The same use of some of the samples, which then come first."""
    split = use.layout.split(use.input)[samples.to(use.input.device)]
    if use.layout.dim is None:  # one sample, to which every dimension belongs
        part = replace(use, input=split.squeeze(0))
        part.layout = use.layout
        return part
    part = replace(use, input=split.flatten(0, 1))
    part.layout = Layout(len(samples), 0)
    return part


def _weight_uses(uses: Iterable[Use]) -> Iterator[LinearUse | ConvUse]:
    for use in uses:
        if isinstance(use, LinearUse | ConvUse) and use.weight is not None:
            yield use


def _layer_name(piece: Piece, weights: Mapping[str, Tensor]) -> str:
    name = piece.parameter
    for ending in (".weight", "_weight"):
        name = name.removesuffix(ending)
    whole = len(weights[piece.parameter]) == piece.stop - piece.start
    return name if whole else f"{name}[{piece.start}:{piece.stop}]"
