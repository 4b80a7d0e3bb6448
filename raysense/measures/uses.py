"""How an operator uses parameters, sample by sample: gradients of its parameters, and what moving them does to its output.

Every use follows from the operator's input and from the gradients d of scalars with respect to its output. Linear maps
and convolutions bring both into one form, with n samples, G groups, I inputs and O outputs of a group and T tokens
(positions at which the same weights are applied)::

    columns [n, G, I, T]     heads [n, G, O, T]     weight gradient = heads @ columns^T [n, G, O, I]

Elementwise uses are in ``raysense.measures.elementwise``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional


@dataclass(frozen=True)
class Piece:
    """A parameter, or the rows ``start`` to ``stop`` of one that an operator splits."""

    parameter: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """Where the samples are in a tensor.

    Attributes:
        samples: n.
        dim: The dimension of size n * g that holds the samples, g entries each; None where there is one sample only, to
            which then everything belongs.
        interleaved: Whether entries i, i + n, i + 2 n, ... belong to sample i, instead of g consecutive ones.
    """

    samples: int
    dim: int | None
    interleaved: bool = False

    def split(self, tensor: Tensor) -> Tensor:
        """``[n, g, ...]``, or ``[1, ...]`` of one sample."""
        if self.dim is None:
            return tensor[None]
        first = tensor.movedim(self.dim, 0)
        if self.interleaved:
            return first.reshape(-1, self.samples, *first.shape[1:]).transpose(0, 1)
        return first.reshape(self.samples, -1, *first.shape[1:])

    def join(self, values: Tensor, like: Tensor) -> Tensor:
        """Values in the order of ``split(like)``, in the shape of ``like``."""
        if self.dim is None:
            return values.reshape(like.shape)
        parts = values.reshape(self.split(like).shape)
        return (parts.transpose(0, 1) if self.interleaved else parts).flatten(0, 1).movedim(0, self.dim)


@dataclass
class Use(ABC):
    """One use of parameters by an operator, for a batch of n samples.

    Attributes:
        input: The operator's input, detached.
        weight: Which parameter its weight is; None where that is not a target.
        bias: The same for its bias.
        layout: Where the samples are in input and output.
        edge: Where gradients with respect to the output arrive.
        output_shape: Shape of the output.
    """

    input: Tensor
    weight: Piece | None
    bias: Piece | None
    layout: Layout = field(default=Layout(1, None), init=False)
    edge: GradientEdge | None = field(default=None, init=False)
    output_shape: tuple[int, ...] = field(default=(), init=False)

    @abstractmethod
    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the weight ``[n, size]`` from that of the output, which has the output's shape."""

    @abstractmethod
    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the bias ``[n, size]`` from that of the output."""

    @abstractmethod
    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """How the output, with its input held fixed, moves with weight ``[n, size]`` and bias ``[n, size]``."""

    @property
    def samples(self) -> int:
        """How many samples the batch holds."""
        return self.layout.samples

    @property
    def output_size(self) -> int:
        """Numbers of the output per sample."""
        return torch.Size(self.output_shape).numel() // self.samples

    def forget(self) -> None:
        """Keep shapes alone."""
        self.release()
        self.input = self.input.to("meta")
        self.edge = None

    def release(self) -> None:
        """Give up what was made of the input and can be made again."""
        for name in ("columns", "normalised"):
            self.__dict__.pop(name, None)

    def leave(self, generic: Collection[str]) -> None:
        """Forget the parameters of these names."""
        if self.weight is not None and self.weight.parameter in generic:
            self.weight = None
        if self.bias is not None and self.bias.parameter in generic:
            self.bias = None


class OuterUse(Use):
    """A use whose weight gradient is a sum of outer products over tokens."""

    @cached_property
    @abstractmethod
    def columns(self) -> Tensor:
        """``[n, G, I, T]``."""

    @abstractmethod
    def heads(self, gradient: Tensor) -> Tensor:
        """``[n, G, O, T]`` from a gradient in the output's shape."""

    @abstractmethod
    def body(self, heads: Tensor, output: Tensor) -> Tensor:
        """The inverse of :meth:`heads`, in the shape of ``output``."""

    @abstractmethod
    def geometry(self) -> tuple[int, int, int, int]:
        """G, I, O, T."""

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Sum of outer products over tokens."""
        heads = self.heads(gradient).to(self.columns.dtype)  # of another precision under autocast
        return torch.matmul(heads, self.columns.transpose(2, 3)).flatten(1)

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Sum over tokens."""
        return self.heads(gradient).sum(3).flatten(1)

    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Weight times columns, plus bias."""
        groups, inputs, outputs, tokens = self.geometry()
        heads = self.columns.new_zeros((self.samples, groups, outputs, tokens))
        if weight is not None:
            shaped = weight.view(self.samples, groups, outputs, inputs)
            heads = torch.matmul(shaped.to(self.columns.dtype), self.columns)
        if bias is not None:
            heads = heads + bias.view(self.samples, groups, outputs, 1).to(heads.dtype)
        return self.body(heads, output)


@dataclass
class TokenUse(OuterUse):
    """A use in whose output all dimensions but the last are tokens.

    Attributes:
        outputs: Size of the output's last dimension.
    """

    outputs: int

    def heads(self, gradient: Tensor) -> Tensor:
        """``[n, 1, O, T]``."""
        tokens = self.layout.split(gradient).reshape(self.samples, -1, self.outputs)
        return tokens.transpose(1, 2).unsqueeze(1)

    def body(self, heads: Tensor, output: Tensor) -> Tensor:
        """The inverse of :meth:`heads`."""
        return self.layout.join(heads.squeeze(1).transpose(1, 2), output)


@dataclass
class LinearUse(TokenUse):
    """``linear``: all dimensions but the last are tokens."""

    @cached_property
    def columns(self) -> Tensor:
        """``[n, 1, I, T]``, a view where it can be."""
        tokens = self.layout.split(self.input).reshape(self.samples, -1, self.input.shape[-1])
        return tokens.transpose(1, 2).unsqueeze(1)

    def geometry(self) -> tuple[int, int, int, int]:
        """1, I, O, T."""
        inputs = self.input.shape[-1]
        return 1, inputs, self.outputs, self.input.numel() // (self.samples * inputs)


@dataclass
class EmbeddingUse(TokenUse):
    """``embedding``: a linear map of one-hot rows, whose weight is stored transposed.

    Attributes:
        entries: Number of embeddings.
        padding: The entry without gradient, if any.
    """

    entries: int
    padding: int | None

    @cached_property
    def columns(self) -> Tensor:
        """``[n, 1, entries, T]``, one-hot."""
        rows = self.layout.split(self.input).reshape(self.samples, -1)
        hot = functional.one_hot(rows, self.entries)
        if self.padding is not None:
            hot[..., self.padding] = 0
        return hot.transpose(1, 2).unsqueeze(1).to(torch.get_default_dtype())

    def geometry(self) -> tuple[int, int, int, int]:
        """1, entries, outputs, T."""
        return 1, self.entries, self.outputs, self.input.numel() // self.samples

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """In the weight's own order, ``[n, entries * outputs]``."""
        heads = self.heads(gradient)
        return torch.matmul(self.columns.to(heads.dtype), heads.transpose(2, 3)).flatten(1)

    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The rows of the weight that are looked up."""
        if weight is None or bias is not None:
            raise ValueError("an embedding has a weight and no bias")
        table = weight.view(self.samples, 1, self.entries, self.outputs).transpose(2, 3)
        return self.body(torch.matmul(table, self.columns.to(table.dtype)), output)


@dataclass
class ConvUse(OuterUse):
    """``conv1d``, ``conv2d``, ``conv3d``; the output positions are tokens, the unfolded patches columns.

    Attributes:
        kernel: Shape of the weight, ``[G * O, I / positions, *kernel]``.
        stride: Per spatial dimension, as are the others.
        padding: Zeros on both sides, (before, after).
        dilation: Distance of the kernel's positions.
        groups: G.
        positions: Spatial shape of the output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        spatial = self.input.shape[-len(self.stride) :]
        return tuple(
            (size + before + after - step * (kernel - 1) - 1) // stride + 1
            for size, (before, after), kernel, stride, step in zip(
                spatial, self.padding, self.kernel[2:], self.stride, self.dilation, strict=True
            )
        )

    @cached_property
    def columns(self) -> Tensor:
        """``[n, G, I, T]``: patches, channels first; a view of the input where the kernel is one pixel."""
        spatial = len(self.stride)
        x = self.layout.split(self.input).reshape(self.samples, -1, *self.input.shape[-spatial - 1 :])
        parts = x.shape[1]
        x = x.flatten(0, 1)
        if any(side for sides in self.padding for side in sides):
            x = functional.pad(x, [side for sides in reversed(self.padding) for side in sides])
        for axis, (size, stride, step) in enumerate(zip(self.kernel[2:], self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + axis, step * (size - 1) + 1, stride)[..., ::step]
        # [n * g, C, *positions, *kernel] -> [n * g, C, *kernel, *positions]
        order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
        patches = x.permute(order).reshape(len(x), self.groups, -1, torch.Size(self.positions).numel())
        return _merge_parts(patches, self.samples, parts)

    def heads(self, gradient: Tensor) -> Tensor:
        """``[n, G, O, T]``."""
        outputs, positions = self.kernel[0], torch.Size(self.positions).numel()
        split = self.layout.split(gradient).reshape(self.samples, -1, outputs, positions)
        return _merge_parts(
            split.flatten(0, 1).unflatten(1, (self.groups, outputs // self.groups)), self.samples, split.shape[1]
        )

    def body(self, heads: Tensor, output: Tensor) -> Tensor:
        """The inverse of :meth:`heads`."""
        parts = heads.unflatten(3, (-1, torch.Size(self.positions).numel())).movedim(3, 1)
        return self.layout.join(parts, output)

    def geometry(self) -> tuple[int, int, int, int]:
        """G, I, O, T."""
        inputs = torch.Size(self.kernel[1:]).numel()
        images = self.input.numel() // (self.samples * torch.Size(self.input.shape[-len(self.stride) - 1 :]).numel())
        tokens = images * torch.Size(self.positions).numel()
        return self.groups, inputs, self.kernel[0] // self.groups, tokens


def _merge_parts(values: Tensor, samples: int, parts: int) -> Tensor:
    """``[n * g, G, X, T]`` to ``[n, G, X, g * T]``."""
    if parts == 1:
        return values
    merged: Tensor = values.unflatten(0, (samples, parts)).movedim(1, 3).flatten(3)
    return merged


def sizes(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    if isinstance(value, int):
        return (value,) * count
    values = tuple(value)
    return values * count if len(values) == 1 else values
