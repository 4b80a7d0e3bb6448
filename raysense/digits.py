"""The bundled example: scikit-learn's handwritten digits and a small CNN trained on them in seconds.

The data are 1797 real 8 x 8 images of handwritten digits (the test set of the UCI "Optical Recognition of Handwritten
Digits" data), split 1347 / 450, stratified, always in the same way. The trained weights are cached in a file.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from raysense.cache import cache_directory

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
    from sklearn.datasets import load_digits as load_bundled

    bundled = load_bundled()
    labels = bundled.target.astype(np.int64)
    # RandomState's stream is frozen by NumPy, unlike Generator's, so the split never changes.
    shuffled = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[by_class[::4]] = True
    index = np.flatnonzero(in_test == (split == "test"))
    images = torch.from_numpy((bundled.images[index] / 16.0).astype(np.float32)).unsqueeze(1)
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
    data = load_digits("train")
    generator = torch.Generator().manual_seed(seed)
    with _isolated_training():
        network = DigitsNet().float()
        _initialise(network, generator)
        optimiser = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        steps = _EPOCHS * -(-len(data.labels) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(_EPOCHS):
            for batch in torch.split(torch.randperm(len(data.labels), generator=generator), _BATCH):
                loss = nn.functional.cross_entropy(network(data.images[batch]), data.labels[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return network.eval()


def trained_digits(seed: int = 0) -> DigitsNet:
    """Return the trained network, from the cache where it has been trained before.

    The cache is a file in ``raysense.cache.cache_directory()``. A damaged one is replaced; several processes may train
    at once, and readers never see half a file. Where it cannot be written, the network is trained each time, with a
    warning.
    """
    path = cache_directory() / f"digits-{_recipe_digest(seed)}.pt"
    network = DigitsNet().float()
    if path.exists():
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return network.eval()
        except Exception as error:  # a damaged file can raise anything
            warnings.warn(f"{path} is damaged ({type(error).__name__}) and is made anew", stacklevel=2)
    network = train_digits(seed)
    try:
        _publish(network.state_dict(), path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        warnings.warn(f"the trained digits network cannot be cached ({error}); set RAYSENSE_CACHE", stacklevel=2)
    return network


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


def _initialise(network: DigitsNet, generator: torch.Generator) -> None:
    """Draw He-normal weights from a private generator; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _recipe_digest(seed: int) -> str:
    """Return a digest of everything that determines the trained weights."""
    shapes = [(name, tuple(value.shape)) for name, value in DigitsNet().state_dict().items()]
    recipe = (_RECIPE_VERSION, seed, _SPLIT_SEED, _EPOCHS, _BATCH, _LEARNING_RATE, shapes)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def _publish(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict under a temporary name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{uuid4().hex}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
