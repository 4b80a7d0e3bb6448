"""Elementwise uses of parameters: normalisations, broadcast parameters, and parameters that stand for themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raysense.measures.uses import Use


@dataclass
class NormUse(Use):
    """A normalisation: weight * normalised + bias.

    Attributes:
        standardise: Normalises the input.
        trailing: How many last dimensions weight and bias have, for a layer norm; 0 where they belong to dimension 1.
    """

    standardise: Callable[[Tensor], Tensor]
    trailing: int

    @cached_property
    def normalised(self) -> Tensor:
        """The normalised input, in the input's shape."""
        return self.standardise(self.input)

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Sum of gradient times normalised input."""
        return self._summed(gradient * self.normalised)

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """Sum of the gradient."""
        return self._summed(gradient)

    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Weight times normalised input, plus bias."""
        total = torch.zeros_like(self.input)
        if weight is not None:
            total = total + self._spread(weight) * self.normalised
        return total if bias is None else total + self._spread(bias)

    def _summed(self, values: Tensor) -> Tensor:
        split = self.layout.split(values)
        if self.trailing:
            rows: Tensor = split.reshape(self.samples, -1, values.shape[-self.trailing :].numel())
            return rows.sum(1)
        channels: Tensor = split.reshape(self.samples, -1, values.shape[1], values.shape[2:].numel())
        return channels.sum((1, 3))

    def _spread(self, values: Tensor) -> Tensor:
        """Values ``[n, size]`` of the samples at every position of the input."""
        shape = self.input.shape
        like = self.layout.split(self.input)
        if self.trailing:
            inner = (*[1] * (like.ndim - 1 - self.trailing), *shape[-self.trailing :])
        else:
            inner = (*[1] * (like.ndim - len(shape)), shape[1], *[1] * (len(shape) - 2))
        return self.layout.join(values.view(self.samples, *inner).expand(like.shape), self.input)


@dataclass
class BroadcastUse(Use):
    """A parameter that is added to, multiplies, or is expanded to a tensor of more dimensions.

    Attributes:
        shape: The parameter's shape, filled up to the output's dimensions.
        factor: What it multiplies; None where it is added.
    """

    shape: tuple[int, ...]
    factor: Tensor | None

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Sum over the dimensions along which the parameter is broadcast."""
        values = gradient if self.factor is None else gradient * self.factor
        split = self.layout.split(values)
        inner = self._inner(split)
        spread = [axis for axis in range(1, split.ndim) if inner[axis - 1] == 1 and split.shape[axis] != 1]
        return (split.sum(spread) if spread else split).reshape(self.samples, -1)

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """There is none."""
        raise ValueError("a broadcast parameter has no bias")

    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The parameter's move, broadcast."""
        if weight is None or bias is not None:
            raise ValueError("a broadcast parameter has no bias")
        like = self.layout.split(output)
        values = self.layout.join(weight.view(self.samples, *self._inner(like)).expand(like.shape), output)
        return values if self.factor is None else values * self.factor

    def _inner(self, split: Tensor) -> tuple[int, ...]:
        """The parameter's shape along the dimensions of a split tensor but the first."""
        if self.layout.dim is None:
            return self.shape
        rest = [size for axis, size in enumerate(self.shape) if axis != self.layout.dim]
        return (1, *rest)


@dataclass
class WholeUse(Use):
    """Stands for everything that a generic parameter does, for one sample: its gradient is autograd's."""

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient itself."""
        return gradient.reshape(1, -1)

    def bias_gradient(self, gradient: Tensor) -> Tensor:
        """There is none."""
        raise ValueError("a generic parameter stands for itself")

    def moved(self, output: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Nothing beyond what forward mode does by itself."""
        raise ValueError("a generic parameter moves in forward mode")
