"""What a study trains: which network on which data, how, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raysense.training import Method, Sgd


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: without augmentation or weight decay, starting from the weights it has.

    Attributes:
        epochs: Passes over the data.
        batch_size: Images a step.
        method: How the weights move, and with what learning rate.
        seed: Of the order of the images, of random layers and of shuffled labels.
        shuffled_labels: Whether the labels are permuted over the whole training set first (Zhang et al. 2017).
        keep: The network of which epoch is used: the last one, or the one of best validation accuracy (the first such).
    """

    epochs: int
    batch_size: int
    method: Method
    seed: int
    shuffled_labels: bool = False
    keep: Literal["last", "best"] = "last"

    def as_dict(self) -> dict[str, Any]:
        """Return what tells recipes apart, as JSON values."""
        values: dict[str, Any] = {
            "epochs": self.epochs, "batch_size": self.batch_size, **vars(self.method), "seed": self.seed
        }  # fmt: skip
        if isinstance(self.method, Sgd):
            values["method"] = "sgd"
        if self.shuffled_labels:
            values["labels"] = "shuffled"
        if self.keep != "last":
            values["kept epoch"] = self.keep
        return values


@dataclass(frozen=True)
class Trained:
    """What came of training.

    Attributes:
        model: Reference of the trained network.
        loss: Mean cross-entropy of the last epoch, nats.
        accuracy: Fraction of the validation samples that the network used classifies right; None without validation data.
        unreadable: Training samples that could not be read and were left out.
        train_accuracy: Fraction of the training samples to which it gives the label it was trained on.
        epoch: The epoch, from 1, whose network is used.
        curve: One entry an epoch: epoch, learning_rate, loss, train_accuracy (both while it trained),
            validation_accuracy, seconds, unreadable.
    """

    model: str
    loss: float
    accuracy: float | None
    unreadable: int
    train_accuracy: float | None = None
    epoch: int | None = None
    curve: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class TrainingTask:
    """A network to train, on what and how.

    Attributes:
        model: Model reference; training goes on from the weights it has.
        data: Data reference.
        splits: Splits to train on.
        validation: Data reference and split on which accuracy is measured after every epoch, never trained on.
        recipe: How to train.
        out: Directory or URI. While it trains, ``checkpoint.pt`` holds all that going on needs, and ``curve.json`` the
            epochs done; in the end there are ``network.pt``, the network used, ``last.pt``, that of the last epoch where
            it is another one, ``curve.json`` and, written last, ``training.json``.
    """

    model: str
    data: str
    splits: Sequence[str]
    validation: tuple[str, str] | None
    recipe: Recipe
    out: str
