"""Small networks for renders of the procedural shapes, trained on first use, as factories for model references.

``raysense.studies.shape_networks:narrow`` has seen its shapes from the front only, ``...:all_around`` from all sides: the
semantic scan shows the gap in the training data of the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from raysense.cache import cached_network
from raysense.semantics.axes import SCENE_AXES
from raysense.semantics.renderers import open_renderer
from raysense.semantics.shapes import open_shapes
from raysense.studies.networks import PlainNet
from raysense.training import fit

SIZE = 48
"""Pixels a side of the renders."""
TRAINING_SHAPES = "procedural?seed=1&variants=6"
"""Other shapes than those of ``procedural``, of the same classes."""
FRONT = 70.0
"""Degrees of azimuth to either side of 0 from which the narrow network has seen its shapes."""

_POSES = 32
_EPOCHS = 7
_BATCH = 48
_LEARNING_RATE = 4e-3
_WIDTH = 12
_RECIPE_VERSION = 1


class ShapesNet(PlainNet):
    """A small network for renders of 48 x 48 pixels; says its classes and its size."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__(3, len(classes), _WIDTH)
        self.classes = classes
        self.preprocessing = {"resize": SIZE, "crop": [SIZE, SIZE]}


def narrow(seed: int = 0) -> ShapesNet:
    """Return a network that was trained on azimuths within 70 degrees of 0 only, from the cache where there is one."""
    return _trained("narrow", FRONT, seed)


def all_around(seed: int = 0) -> ShapesNet:
    """Return a network that was trained on all azimuths, from the cache where there is one."""
    return _trained("all_around", 180.0, seed)


def _trained(name: str, reach: float, seed: int) -> ShapesNet:
    source = open_shapes(TRAINING_SHAPES)
    classes = tuple(sorted({entry.class_name for entry in source.entries()}))
    build = partial(_untrained, classes, seed)
    recipe = (source.fingerprint(), SIZE, reach, _POSES, _EPOCHS, _BATCH, _LEARNING_RATE, _WIDTH, seed, _RECIPE_VERSION)
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]
    return cached_network(f"shapes-{name}-{key}", build(), partial(_train, build, reach, seed))


def _untrained(classes: tuple[str, ...], seed: int) -> ShapesNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ShapesNet(classes)


def _train(build: partial[ShapesNet], reach: float, seed: int) -> ShapesNet:
    """Train on renders with random azimuth (within reach of 0), elevation, distance and light."""
    network = build().train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        images, labels = _renders(network.classes, reach)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for chosen in torch.randperm(len(labels)).split(_BATCH):
                yield images[chosen], labels[chosen]

        fit(network, batches, _EPOCHS, -(-len(labels) // _BATCH), _LEARNING_RATE)
    return network.eval()


def _renders(classes: tuple[str, ...], reach: float) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 48, 48] and labels [N], drawn with the global generator."""
    source, renderer = open_shapes(TRAINING_SHAPES), open_renderer("torch", size=SIZE)
    images, labels = [], []
    for entry in source.entries():
        scene = {name: torch.full((_POSES,), axis.default, dtype=torch.float64) for name, axis in SCENE_AXES.items()}
        for name, low, high in (
            ("azimuth", -reach, reach),
            ("elevation", -10.0, 80.0),
            ("distance", 2.4, 3.2),
            ("ambient", 0.3, 0.6),
            ("light_elevation", 40.0, 90.0),
            ("light_azimuth", 0.0, 360.0),
        ):
            scene[name] = low + (high - low) * torch.rand(_POSES, dtype=torch.float64)
        with torch.no_grad():
            images.append(renderer.render(renderer.prepare(source.mesh(entry.shape_id)), scene))
        labels += [classes.index(entry.class_name)] * _POSES
    return torch.cat(images), torch.tensor(labels)
