"""The training loop on the cross-entropy. What it is fed with is the caller's matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from raysense.errors import UsageError

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images ``[N, C, H, W]``, floating in [0, 1], and labels ``[N]``, int64, on the network's device."""


@dataclass(frozen=True)
class Adam:
    """Adam; the learning rate falls to zero along half a cosine, step by step.

    Attributes:
        learning_rate: Of the first step.
    """

    learning_rate: float

    def begin(self, weights: list[nn.Parameter], epochs: int, steps: int) -> tuple[Optimizer, LRScheduler]:
        """Return the optimiser and its schedule for so many epochs of so many steps."""
        optimiser = torch.optim.Adam(weights, lr=self.learning_rate)
        return optimiser, CosineAnnealingLR(optimiser, epochs * steps)


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent without weight decay; the learning rate is multiplied after every epoch.

    Attributes:
        learning_rate: Of the first epoch.
        decay: What it is multiplied by.
        momentum: Of the gradients; 0 for none.
    """

    learning_rate: float
    decay: float = 1.0
    momentum: float = 0.0

    def begin(self, weights: list[nn.Parameter], epochs: int, steps: int) -> tuple[Optimizer, LRScheduler]:
        """Return the optimiser and its schedule for so many epochs of so many steps."""
        optimiser = torch.optim.SGD(weights, lr=self.learning_rate, momentum=self.momentum)
        return optimiser, LambdaLR(optimiser, lambda step: self.decay ** (step // steps))


Method = Adam | Sgd


@dataclass(frozen=True)
class Epoch:
    """One epoch, as it went while the network trained.

    Attributes:
        learning_rate: Of its first step.
        loss: Mean cross-entropy, nats.
        accuracy: Fraction of the images classified right; NaN without images.
    """

    learning_rate: float
    loss: float
    accuracy: float


class Training:
    """A network in training: it, its optimiser and its schedule, which go on epoch by epoch and can be saved in between.

    Attributes:
        done: Epochs done.
    """

    def __init__(self, network: nn.Module, method: Method, epochs: int, steps: int) -> None:
        """Begin.

        Args:
            network: Returns logits ``[N, K]``; parameters that require gradients are trained, in place. In training mode.
            method: How the weights move.
            epochs: Number of epochs, 1 or more, which the schedule counts on.
            steps: Batches of one epoch, likewise.
        """
        self._network = network
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimiser, self._schedule = method.begin(weights, epochs, steps)
        self._of = epochs * steps
        self._steps = steps
        self.done = 0

    def epoch(self, batches: Batches, tell: Callable[[int, int], None] | None = None) -> Epoch:
        """Train for one epoch: one step a batch.

        Args:
            batches: Of the epoch.
            tell: Called with (steps done, steps in all) after every step.

        Raises:
            UsageError: the network returns something else than logits.
            FloatingPointError: the loss is not finite.
        """
        rate = float(self._schedule.get_last_lr()[0])
        total, right, seen = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        for step, (images, labels) in enumerate(batches, self.done * self._steps + 1):
            logits = self._network(images)
            if not isinstance(logits, Tensor):
                raise UsageError(f"the network returns {type(logits).__name__} while it is trained, not logits [N, K]")
            loss = nn.functional.cross_entropy(logits, labels)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            total = total.to(loss.device) + loss.detach() * len(labels)
            right = right.to(loss.device) + (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if tell is not None:
                tell(step, self._of)
        self.done += 1
        mean = float(total) / max(1, seen)
        if not mean < float("inf"):
            raise FloatingPointError(f"the loss is {mean} in epoch {self.done}")
        return Epoch(rate, mean, int(right) / seen if seen else float("nan"))

    def state(self) -> dict[str, Any]:
        """All that going on needs, as plain values and tensors that `torch.load` takes with ``weights_only``."""
        return {
            "done": self.done,
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same training."""
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self.done = int(state["done"])


def fit(
    network: nn.Module,
    batches: Callable[[], Batches],
    epochs: int,
    steps: int,
    learning_rate: float,
) -> float:
    """Train a network in place with `Adam`, all epochs at once.

    Args:
        network: Returns logits ``[N, K]``; put it into training mode first; parameters that require gradients are trained.
        batches: Called once an epoch for its batches.
        epochs: Number of epochs, 1 or more.
        steps: Batches of one epoch, which the schedule counts on.
        learning_rate: Of the first step.

    Returns:
        Mean cross-entropy (nats) of the last epoch, taken while it trained.

    Raises:
        UsageError: the network returns something else than logits.
        FloatingPointError: the loss of an epoch is not finite.
    """
    training = Training(network, Adam(learning_rate), epochs, steps)
    return [training.epoch(batches()).loss for _ in range(epochs)][-1]
