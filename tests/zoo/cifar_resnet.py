"""The ResNets for CIFAR-10 of He et al. 2016 (section 4.2), with shortcuts of option A."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from raysense.networks import Normalize

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return self.activation(out + x)


class ResNet(nn.Module):
    """Three stages of ``(depth - 2) / 6`` blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1, activation)
        self.layer2 = self._stage(16, 32, blocks, 2, activation)
        self.layer3 = self._stage(32, 64, blocks, 2, activation)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int, activation: str) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, activation)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, activation) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def resnet(depth: int = 20, classes: int = 10, activation: str = "relu") -> Normalize:
    """Return the network of a depth 6n + 2, with normalisation inside: images [N, 3, 32, 32] in [0, 1] to logits."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2")
    return Normalize(ResNet(depth, classes, activation), MEAN, STD)
