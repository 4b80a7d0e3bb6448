"""What second derivatives a network has: its operators with kinks, such as ReLU, and its smooth nonlinear ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysense.measures.boundary.operators import Kind, constants, kind_of, operator_name
from raysense.measures.gradients import Model, forward_with_graph


@dataclass(frozen=True)
class Smoothness:
    """The nonlinear operators between image and logits.

    Attributes:
        kinks: Names of operators that are not differentiable everywhere (relu, max_pool2d, ...), and of those whose
            derivatives are not known here (custom functions, compiled code); ``... with a mask`` multiplies or chooses by
            what the image decides, such as x > 0.
        bends: Names of smooth operators whose second derivative is not zero (tanh, softmax, ...).
        twice: Whether PyTorch can differentiate twice; not tried, and False, where there are kinks.
    """

    kinks: tuple[str, ...]
    bends: tuple[str, ...]
    twice: bool

    @property
    def derivatives(self) -> Literal["exact", "differences"]:
        """How second derivatives are to be found: exactly, or by differences of gradients at a scale."""
        return "exact" if self.twice else "differences"

    @property
    def piecewise_linear(self) -> bool:
        """Whether exact second derivatives are zero almost everywhere, though the function is not linear."""
        return bool(self.kinks) and not self.bends


def smoothness(model: Model, images: Tensor) -> Smoothness:
    """The kinks and bends of a network, from the operators that autograd recorded between images and logits.

    So modules, functional calls and exported programs are seen alike. What a network computes without a gradient is seen
    only where it multiplies or chooses: a second pass, of other images, tells such masks from constants. ELU with
    alpha = 1, CELU and norms of order 2 count as smooth: their kinks are in the second derivative, or at one point. A
    lower bound that is a million times below all values, a guard against division by zero, counts as none.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        images: [N, ...], in [0, 1]; one or a few are enough. Two graphs are held.
    """
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(images.shape, generator=generator, dtype=torch.float64).to(images)
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with a second derivative
        logits, inputs = forward_with_graph(model, images)
        recorded, compared = _recorded(logits, inputs), _recorded(*forward_with_graph(model, others))
    found: dict[Kind, set[str]] = {"linear": set(), "bend": set(), "kink": set()}
    for part in recorded:
        found[part.kind].add(part.name)
    if [part.name for part in recorded] != [part.name for part in compared]:
        found["kink"].add("branches")  # the image decides what is computed
    else:
        for part, other in zip(recorded, compared, strict=True):
            if part.kind == "linear" and not _same(constants(part.node), constants(other.node)):
                found["kink"].add(f"{part.name} with a mask")
    twice = not found["kink"] and (not recorded or _twice_differentiable(logits, inputs))
    return Smoothness(tuple(sorted(found["kink"])), tuple(sorted(found["bend"])), twice)


@dataclass(frozen=True)
class _Recorded:
    """An operator in the graph."""

    node: Any
    name: str
    kind: Kind


def _recorded(logits: Tensor, inputs: Tensor) -> list[_Recorded]:
    """The operators that depend on the inputs, each after those that it takes."""
    return [
        _Recorded(node, operator_name(node), kind_of(node, dependent)) for node, dependent in _nodes(logits, inputs)
    ]


def _nodes(logits: Tensor, inputs: Tensor) -> Iterator[tuple[Any, Sequence[bool]]]:
    """The nodes that depend on the inputs, and which of their own inputs do."""
    depends: dict[Any, bool] = {None: False}
    stack: list[Any] = [logits.grad_fn]
    while stack:
        node = stack[-1]
        if node in depends:
            stack.pop()
            continue
        taken = [following for following, _ in node.next_functions]
        unseen = [following for following in taken if following not in depends]
        if unseen:
            stack.extend(unseen)
            continue
        stack.pop()
        dependent = [depends[following] for following in taken]
        depends[node] = any(dependent) or getattr(node, "variable", None) is inputs
        if any(dependent):
            yield node, dependent


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal, with NaN equal to itself."""
    if [value.shape for value in some] != [value.shape for value in others]:
        return False
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(some, others, strict=True))


def _twice_differentiable(logits: Tensor, inputs: Tensor) -> bool:
    """Whether a double backward pass is possible: some fused operators, such as attention, have none."""
    try:
        (gradient,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
        if gradient.requires_grad:
            torch.autograd.grad(gradient.sum(), inputs, allow_unused=True)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("not implemented", "differentiate twice", "double backward")):
            raise
        return False
    return True
