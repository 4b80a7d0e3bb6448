"""A forward pass with a graph, and what it says of the last layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from raysense.measures.uses import Use


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
        generic: Names of the generic parameters.
        spanning: Names of parameters that alone can move the logits in every direction: the bias of a last linear layer,
            or its weight where no sample's features are all zero.
        head: The last layer, where it is linear, has a graph before it, and shares no target parameter with others.
    """

    logits: Tensor
    inputs: Tensor
    uses: list[Use]
    generic: frozenset[str] = frozenset()
    spanning: frozenset[str] = frozenset()
    head: Head | None = None

    def is_head(self, use: Use) -> bool:
        """Whether a use is that of the last layer."""
        return use.edge is not None and use.edge == get_gradient_edge(self.logits)
