"""Tiny networks and dense oracles for the tests of the measures."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from raysense.measures.perturbed import Perturbed


def tiny_network(classes: int, hidden: int = 16, size: int = 30, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """A smooth network in float64 from images [N, 1, 5, size / 5]; `hidden` bounds the rank of its Jacobian."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, hidden), nn.Tanh(), nn.Linear(hidden, classes)
    ).double()
    for parameter in network.parameters():
        parameter.data = (
            torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / parameter.shape[-1] ** 0.5
        )
        parameter.requires_grad_(False)
    network[-1].weight.mul_(scale)
    return network


def images(count: int, size: int = 30, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 5, size // 5, generator=generator, dtype=torch.float64)


def dense_jacobian(network: nn.Module, image: Tensor) -> Tensor:
    """[K, P] of one image."""
    return torch.autograd.functional.jacobian(lambda x: network(x[None])[0], image).flatten(1)


def dense_influence(jacobian: Tensor, logits: Tensor, chosen: int, rtol: float = 1e-12) -> float:
    """FI by its definition, Eq. (3): grad f G^+ grad f^T with the P x P metric."""
    p = logits.softmax(0)
    log_gradients = jacobian - p @ jacobian
    metric = log_gradients.T @ (p[:, None] * log_gradients)
    slope = -log_gradients[chosen]
    return float(slope @ torch.linalg.pinv(metric, rtol=rtol, hermitian=True) @ slope)


def of_input(measure: Callable[..., object]) -> Callable[..., SimpleNamespace]:
    """A measure of the input alone, with fields [N]."""

    def measured(model: Callable[[Tensor], Tensor], *args: object, **named: object) -> SimpleNamespace:
        fields = vars(measure(Perturbed(model), *args, **named))
        by_target = ("fi", "lower", "upper", "rank", "jacobian_norm")
        return SimpleNamespace(**{name: value[:, 0] if name in by_target else value for name, value in fields.items()})

    return measured
