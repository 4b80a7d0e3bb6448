"""What is perturbed: the input, parameters, layers, directions in the input, and any of them jointly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor, nn


class InputSpace(Protocol):
    """Perturbations w of the input, by the derivative dx/dw at w = 0. A semantic space is one."""

    def pulled(self, gradients: Tensor, images: Tensor) -> Tensor:
        """Gradients with respect to w, [n, M, s], from those with respect to the images, [n, M, P]."""

    def pushed(self, direction: Tensor, images: Tensor) -> Tensor:
        """The direction [n, s] as a change of the images, [n, P]."""


class Pixels:
    """Every pixel value by itself: w is the image."""

    def pulled(self, gradients: Tensor, images: Tensor) -> Tensor:
        """The gradients as they are."""
        return gradients

    def pushed(self, direction: Tensor, images: Tensor) -> Tensor:
        """The direction as it is."""
        return direction


@dataclass(frozen=True)
class Tangents:
    """A few directions in the input for every image, such as the derivatives of an image by semantic parameters.

    Attributes:
        tangents: Gives dx/dw, [n, s, C, H, W], for images [n, C, H, W].
    """

    tangents: Callable[[Tensor], Tensor]

    def pulled(self, gradients: Tensor, images: Tensor) -> Tensor:
        """Products of gradients and tangents."""
        return torch.einsum("nmp,nsp->nms", gradients, self.tangents(images).flatten(2).to(gradients.dtype))

    def pushed(self, direction: Tensor, images: Tensor) -> Tensor:
        """Combination of the tangents."""
        return torch.einsum("ns,nsp->np", direction, self.tangents(images).flatten(2).to(direction.dtype))


@dataclass(frozen=True)
class Target:
    """What is perturbed at once; the Gram matrices of its parts add (section 2.2 of Shu & Zhu 2019).

    Attributes:
        name: Name of the target, such as ``input`` or ``layer``.
        layer: Which layer, for targets that are layers.
        input: Perturbations of the input; None where it is not perturbed.
        parameters: Names of the perturbed parameters.
    """

    name: str
    layer: str | None = None
    input: InputSpace | None = None
    parameters: frozenset[str] = frozenset()


INPUT = Target("input", input=Pixels())
"""All pixel values, Case 1 of section 2.3 of Shu & Zhu (2019)."""


def layer_parameters(module: nn.Module, trainable: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The layers of a network: modules with trainable parameters of their own, in the network's order.

    Args:
        module: The network.
        trainable: Names of its trainable parameters.

    Returns:
        Names of the parameters by the module's name. A parameter that several modules share belongs to each of them,
        under its first name. Parameters of the network itself belong to the layer "".
    """
    first = {id(value): name for name, value in module.named_parameters()}
    wanted = set(trainable)
    layers: dict[str, tuple[str, ...]] = {}
    for prefix, part in module.named_modules():
        names = (first[id(value)] for value in part.parameters(recurse=False))
        own = tuple(name for name in names if name in wanted)
        if own:
            layers[prefix] = own
    return layers


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that are, or match, any of the patterns (as of a shell), in the order of the names.

    Raises:
        ValueError: a pattern matches none; the text names it and some of the names.
    """
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"{pattern!r} matches none of {shown}")
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
