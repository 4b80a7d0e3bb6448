"""Networks with images that the benchmarks of influence share, and how much work a side takes in batches of any size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import interleaved
from shared_data import shared_data
from torch import Tensor, nn

from raysense.datasets import open_data
from raysense.measures.perturbed import Perturbed
from raysense.measures.targets import INPUT, Target, layer_parameters
from raysense.models import load_model

ZOO = Path(__file__).resolve().parents[1] / "zoo"
Work = Callable[[Tensor, Tensor], Tensor]
"""Values of images and their labels."""


@dataclass(frozen=True)
class Case:
    """A network and what it is shown.

    Attributes:
        title: What it is, in words.
        module: The network, in evaluation mode, with no gradients required.
        images: [N, C, H, W].
        labels: [N] int64.
    """

    title: str
    module: nn.Module
    images: Tensor
    labels: Tensor

    def perturbed(self, kind: str) -> Perturbed:
        """The network with a target: ``input``, ``parameters``, or ``layer`` for every layer."""
        names = [name for name, _ in self.module.named_parameters()]
        targets = {
            "input": [INPUT],
            "parameters": [Target("parameters", parameters=frozenset(names))],
            "layer": [
                Target("layer", layer, parameters=frozenset(own))
                for layer, own in layer_parameters(self.module, names).items()
            ],
        }
        return Perturbed(self.module, targets[kind])

    def first(self, count: int) -> Case:
        """The same with fewer images."""
        return Case(self.title, self.module, self.images[:count], self.labels[:count])


def cifar10(count: int) -> Case:
    """The trained ResNet-20 on test images of CIFAR-10.

    Raises:
        pytest.skip.Exception: the data is absent.
    """
    checkpoint, data = shared_data("cifar10", "resnet20.pt"), shared_data("cifar10", "test.npz")
    model = load_model(f"{ZOO / 'cifar_resnet.py'}:resnet?depth=20&checkpoint={checkpoint}").module
    source = open_data(f"npz:{data}")
    table = source.list().table
    reader = source.reader(table)
    images = torch.stack([reader.read(row) for row in range(min(count, len(reader)))])
    labels = torch.tensor(table["label"].to_pylist()[: len(images)])
    return Case("CIFAR-10, ResNet-20", model, images.float() / 255, labels)


def imagenet(count: int) -> tuple[Case, list[str]]:
    """SqueezeNet 1.0 on images of ImageNet spread over the folder, and the images' ids.

    Raises:
        pytest.skip.Exception: the data is absent.
    """
    checkpoint = shared_data("imagenet", "squeezenet1_0_fp16.pt")
    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    loaded = load_model(f"{ZOO / 'squeezenet.py'}:squeezenet?checkpoint={checkpoint}")
    assert loaded.preprocessing is not None
    source = open_data(f"folder:{folder}?classes={synsets}")
    table = source.list().table
    reader = source.reader(table)
    rows = [index * len(reader) // count for index in range(min(count, len(reader)))]
    images = torch.stack([loaded.preprocessing.apply(reader.read(row)).float() / 255 for row in rows])
    labels = torch.tensor([table["label"][row].as_py() for row in rows])
    ids = [table["sample_id"][row].as_py() for row in rows]
    return Case("ImageNet, SqueezeNet 1.0", loaded.module, images, labels), ids


def cifar_size(classes: int, count: int) -> Case:
    """The ResNet-20: trained for 10 classes where its data is found, else with random weights."""
    if classes == 10:
        try:
            return cifar10(count)
        except pytest.skip.Exception as absent:
            print(f"random weights and images instead of CIFAR-10: {absent}")
    module = load_model(f"{ZOO / 'cifar_resnet.py'}:resnet?depth=20&classes={classes}").module
    return _random_images("ResNet-20, random weights", module, classes, count, 32)


def imagenet_resnet18(classes: int, count: int) -> Case:
    """torchvision's ResNet-18, 11 million parameters, on random images of 64 x 64."""
    module = load_model(f"torchvision:resnet18?weights=none&num_classes={classes}").module
    return _random_images("ResNet-18 at 64 x 64, random weights", module, classes, count, 64)


def imagenet_resnet50(count: int) -> Case:
    """torchvision's ResNet-50 on random images of 224 x 224, each labelled with the predicted class.

    A random class of a network that was not trained has hardly any probability, and takes all 999 passes.
    """
    module = load_model("torchvision:resnet50?weights=none").module
    case = _random_images("ResNet-50 at 224 x 224, random weights, predicted class", module, 1000, count, 224)
    with torch.no_grad():
        labels = module(case.images).argmax(1)
    return Case(case.title, module, case.images, labels)


def _random_images(title: str, module: nn.Module, classes: int, count: int, size: int) -> Case:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Case(title, module, images, torch.arange(count) % classes)


def batched(work: Work, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Values of all images, ``size`` at a time."""
    return torch.cat([work(x, y) for x, y in zip(images.split(size), labels.split(size), strict=True)])


def fastest_size(work: Work, images: Tensor, labels: Tensor, sizes: Sequence[int], rounds: int = 2) -> int:
    """The batch size with the least time in a few rounds over all of them; sizes beyond the images are left out."""
    sizes = [size for size in sizes if size <= len(images)] or [len(images)]
    if len(sizes) == 1:
        return sizes[0]
    sides = {str(size): partial(batched, work, images, labels, size) for size in sizes}
    seconds = interleaved(sides, rounds, time.process_time)
    return min(sizes, key=lambda size: min(seconds[str(size)]))
