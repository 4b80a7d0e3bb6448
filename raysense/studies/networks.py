"""Small networks for grey images such as digits, of any size from 8 x 8 on, as factories for model references.

``raysense.studies.networks:plain?classes=10&checkpoint=FILE`` has random weights without a checkpoint;
``raysense.studies.networks:residual_digits`` is trained on the bundled digits on first use, and cached.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from raysense.digits import trained_on_digits


class PlainNet(nn.Module):
    """Three convolutions with batch normalisation, pooled to 2 x 2, then two linear layers.

    ``smooth`` makes it differentiable everywhere: GELU instead of ReLU, and means instead of maxima.
    """

    def __init__(self, channels: int, classes: int, width: int, smooth: bool = False) -> None:
        super().__init__()
        activation = nn.GELU if smooth else nn.ReLU
        self.stage1 = _convolution(channels, width, activation)
        self.stage2 = _convolution(width, 2 * width, activation)
        self.stage3 = _convolution(2 * width, 2 * width, activation)
        self.halve = nn.AvgPool2d(2) if smooth else nn.MaxPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(8 * width, 4 * width)
        self.activation = activation()
        self.output = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of images ``[N, channels, H, W]``, H and W at least 8."""
        features = self.halve(self.stage2(self.halve(self.stage1(images))))
        features = self.pool(self.stage3(features)).flatten(1)
        return self.output(self.activation(self.hidden(features)))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, which is a 1 x 1 convolution; ReLUs work in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return features ``[N, outputs, H / stride, W / stride]``."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        out += self.shortcut(features)
        return self.relu(out)  # type: ignore[no-any-return]


class ResidualNet(nn.Module):
    """A convolution, three residual blocks, the average over the image, a linear layer."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = ResidualBlock(width, width, 1)
        self.block2 = ResidualBlock(width, 2 * width, 2)
        self.block3 = ResidualBlock(2 * width, 2 * width, 2)
        self.output = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of images ``[N, channels, H, W]``."""
        features = self.relu(self.bn(self.conv(images)))
        features = self.block3(self.block2(self.block1(features)))
        return self.output(features.mean((2, 3)))  # type: ignore[no-any-return]


def plain(channels: int = 1, classes: int = 10, width: int = 16, seed: int = 0, smooth: bool = False) -> PlainNet:
    """Return a `PlainNet` with random weights; ``width`` is the number of channels of its first convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return PlainNet(channels, classes, width, smooth)


def residual(channels: int = 1, classes: int = 10, width: int = 16, seed: int = 0) -> ResidualNet:
    """Return a `ResidualNet` with random weights; ``width`` is the number of channels of its first convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ResidualNet(channels, classes, width)


def plain_digits(width: int = 16, seed: int = 0) -> PlainNet:
    """Return a `PlainNet` trained on the bundled digits, from the cache where it has been trained before."""
    return trained_on_digits("plain", partial(plain, width=width), seed)


def smooth_digits(width: int = 16, seed: int = 0) -> PlainNet:
    """Return a smooth `PlainNet` trained on the bundled digits, from the cache where it has been trained before."""
    return trained_on_digits("smooth", partial(plain, width=width, smooth=True), seed)


def residual_digits(width: int = 16, seed: int = 0) -> ResidualNet:
    """Return a `ResidualNet` trained on the bundled digits, from the cache where it has been trained before."""
    return trained_on_digits("residual", partial(residual, width=width), seed)


def _convolution(inputs: int, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return a 3 x 3 convolution with batch normalisation and an activation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation())
