"""The training loop: Adam with a cosine schedule on the cross-entropy. What it is fed with is the caller's matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from raysense.errors import UsageError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images ``[N, C, H, W]``, floating in [0, 1], and labels ``[N]``, int64, on the network's device."""


def fit(
    network: nn.Module,
    batches: Callable[[], Batches],
    epochs: int,
    steps: int,
    learning_rate: float,
    tell: Callable[[int, int], None] | None = None,
) -> float:
    """Train a network in place: one step of Adam a batch, the learning rate falling to zero along half a cosine.

    Args:
        network: Returns logits ``[N, K]``; put it into training mode first; parameters that require gradients are trained.
        batches: Called once an epoch for its batches.
        epochs: Number of epochs, 1 or more.
        steps: Batches of one epoch, which the schedule counts on.
        learning_rate: Of the first step.
        tell: Called with (steps done, steps in all) after every step.

    Returns:
        Mean cross-entropy (nats) of the last epoch, taken while it trained.

    Raises:
        UsageError: the network returns something else than logits.
        FloatingPointError: the loss of an epoch is not finite.
    """
    optimiser = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    done, mean = 0, 0.0
    for epoch in range(epochs):
        total, seen = torch.zeros(()), 0
        for images, labels in batches():
            logits = network(images)
            if not isinstance(logits, Tensor):
                raise UsageError(f"the network returns {type(logits).__name__} while it is trained, not logits [N, K]")
            loss = nn.functional.cross_entropy(logits, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total = total.to(loss.device) + loss.detach() * len(labels)
            seen += len(labels)
            done += 1
            if tell is not None:
                tell(done, epochs * steps)
        mean = float(total) / max(1, seen)
        if not mean < float("inf"):
            raise FloatingPointError(f"the loss is {mean} in epoch {epoch + 1}")
    return mean
