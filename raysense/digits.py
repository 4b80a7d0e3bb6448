"""The bundled example: scikit-learn's handwritten digits and a small CNN trained on them in seconds.

The data are 1797 real 8 x 8 images of handwritten digits (the test set of the UCI "Optical Recognition of Handwritten
Digits" data), split 1347 / 450, stratified, always in the same way. The trained weights are cached in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from raysense.cache import cached_network
from raysense.training import Batches, fit

N = TypeVar("N", bound=nn.Module)

DIGIT_CLASSES = tuple("0123456789")
DIGIT_SPLITS = ("train", "test")

_SPLIT_SEED = 0
_EPOCHS = 30
_BATCH = 64
_LEARNING_RATE = 4e-3
_RECIPE_VERSION = 1


@dataclass(frozen=True)
class Digits:
    """One split of the digits.

    ``images`` has shape ``[N, 1, 8, 8]``, float32 in [0, 1]; ``labels`` ``[N]`` int64; ``index`` ``[N]`` int64 is each
    image's position in scikit-learn's order, which names it for good.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


@cache
def load_digits(split: Literal["train", "test"]) -> Digits:
    """Return one split of the bundled digits (1347 train, 450 test images)."""
    # scikit-learn's file, read without scikit-learn, which takes over a second to import: every worker would.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    pixels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    # RandomState's stream is frozen by NumPy, unlike Generator's, so the split never changes.
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[by_class[::4]] = True
    index = np.flatnonzero(in_test == (split == "test"))
    images = torch.from_numpy((pixels[index] / 16.0).astype(np.float32)).unsqueeze(1)
    return Digits(images, torch.from_numpy(labels[index]), torch.from_numpy(index))


class DigitsNet(nn.Module):
    """A small convolutional ReLU network for the digits: images ``[N, 1, 8, 8]`` in [0, 1] to logits ``[N, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 2 * 2, 64)
        self.output = nn.Linear(64, 10)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, 10]`` of images ``[N, 1, 8, 8]``."""
        features = self.relu(self.conv1(images))
        features = self.pool(self.relu(self.conv2(features)))
        features = self.pool(self.relu(self.conv3(features)))
        return self.output(self.relu(self.hidden(features.flatten(1))))  # type: ignore[no-any-return]


def train_digits(seed: int = 0) -> DigitsNet:
    """Train the network on the train split: a few seconds on one core, test accuracy above 97 %.

    The result depends on ``seed`` alone, and the global random state and thread count are left as they were.
    """
    return train_on_digits(DigitsNet, seed)


def train_on_digits(build: Callable[[], N], seed: int = 0) -> N:
    """Train a network for images ``[N, 1, 8, 8]`` and 10 classes on the train split, as `train_digits` does.

    The weights of its convolutions and linear layers are drawn from ``seed``; all others are as ``build`` makes them.
    """
    data = load_digits("train")
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Batches:
        for batch in torch.split(torch.randperm(len(data.labels), generator=generator), _BATCH):
            yield data.images[batch], data.labels[batch]

    with _isolated_training():
        network = build().float().train()
        _initialise(network, generator)
        fit(network, batches, _EPOCHS, -(-len(data.labels) // _BATCH), _LEARNING_RATE)
    return network.eval()


def trained_digits(seed: int = 0) -> DigitsNet:
    """Return the trained network, from the cache where it has been trained before (`raysense.cache.cached_network`)."""
    return cached_network(f"digits-{_recipe_digest(DigitsNet, seed)}", DigitsNet().float(), lambda: train_digits(seed))


def trained_on_digits(name: str, build: Callable[[], N], seed: int = 0) -> N:
    """Return a network trained by `train_on_digits`, cached under ``name`` like the bundled one."""
    file = f"digits-{name}-{_recipe_digest(build, seed)}"
    return cached_network(file, build().float(), lambda: train_on_digits(build, seed))


@contextmanager
def _isolated_training() -> Iterator[None]:
    """Train on one thread (so that sums have one order) with gradients on; restore the global state afterwards."""
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random_state)


def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw He-normal weights from a private generator; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _recipe_digest(build: Callable[[], nn.Module], seed: int) -> str:
    """Return a digest of everything that determines the trained weights."""
    shapes = [(name, tuple(value.shape)) for name, value in build().state_dict().items()]
    recipe = (_RECIPE_VERSION, seed, _SPLIT_SEED, _EPOCHS, _BATCH, _LEARNING_RATE, shapes)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
