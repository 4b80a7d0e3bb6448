"""Counting what goes through a scan's network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from raysense.passes import METER


def count_passes(module: nn.Module) -> None:
    """Have a network count the images that go forward and backward through it in `raysense.passes.METER`.

    A backward pass counts where it begins at the logits or behind them. Passes of transforms that hide the batch
    (`torch.func.vmap`) count as one image each.
    """
    module.register_forward_hook(_forward)


def _forward(module: nn.Module, arguments: Any, output: Any) -> None:
    if not isinstance(output, Tensor):
        return
    images = output.shape[0] if output.ndim else 1
    METER.add(images)
    if output.requires_grad and output.grad_fn is not None:
        output.register_hook(lambda gradient: METER.add(images))
