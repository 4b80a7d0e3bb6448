"""The modified AlexNet of Khaitan & Banerjee (2026), Appendix B, after Zhang et al. (2017), as a factory.

``raysense.studies.alexnet:modified_alexnet?channels=3&classes=10&crop=28`` has seeded random weights; it is trained by
`raysense.studies.significance`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_DEVIATION = 1 / 255


class ModifiedAlexNet(nn.Module):
    """Two convolutional blocks and three linear layers, for the standardised centre of images of any size.

    A block is a 5 x 5 convolution, ReLU, a 3 x 3 max pool of stride 2 and a local response normalisation (size 5,
    alpha 1e-4, beta 0.75, k 2). The paper leaves open the channels, the padding and the stride. They are those of the
    small AlexNet of Zhang et al. that it goes back to: 64 channels a block, sides halved by each pool (28, 14, 7). With
    these and hidden layers of 384 and 192 units it has, for 28 x 28 pixels in 3 channels and 10 classes, the 1,387,786
    parameters that they report.

    Images come in [0, 1]; cropping and standardising are part of the network, so that a perturbation is in pixel units.
    """

    def __init__(self, channels: int, classes: int, crop: int, width: int, hidden: int) -> None:
        super().__init__()
        self.crop = crop
        self.block1 = _block(channels, width)
        self.block2 = _block(width, width)
        side = _halved(_halved(crop))
        self.hidden1 = nn.Linear(width * side * side, hidden)
        self.hidden2 = nn.Linear(hidden, hidden // 2)
        self.output = nn.Linear(hidden // 2, classes)
        self.relu = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[N, classes]`` of images ``[N, channels, H, W]`` in [0, 1], H and W at least ``crop``.

        Raises ValueError where images are smaller than that.
        """
        features = standardised(centre(images, self.crop))
        features = self.block2(self.block1(features)).flatten(1)
        features = self.relu(self.hidden2(self.relu(self.hidden1(features))))
        return self.output(features)  # type: ignore[no-any-return]


def modified_alexnet(
    channels: int = 3, classes: int = 10, crop: int = 28, width: int = 64, hidden: int = 384, seed: int = 0
) -> ModifiedAlexNet:
    """Return a `ModifiedAlexNet` with random weights.

    Args:
        channels: Of the images, 1 or 3.
        classes: Number of outputs.
        crop: Side of the centre that it sees, in pixels; 8 for the bundled digits.
        width: Channels of its convolutions.
        hidden: Units of the first hidden layer; the second has half as many.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ModifiedAlexNet(channels, classes, crop, width, hidden)


def centre(images: Tensor, side: int) -> Tensor:
    """Return the centre ``[N, C, side, side]`` of images ``[N, C, H, W]``; ValueError where they are smaller."""
    height, width = images.shape[-2:]
    if height < side or width < side:
        raise ValueError(f"images of {height} x {width} pixels are smaller than the crop of {side}; give crop={height}")
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def standardised(images: Tensor) -> Tensor:
    """Return images ``[N, C, H, W]`` with mean 0 and standard deviation 1, each by itself over all its values.

    A deviation below that of one grey level in one value of the image counts as this (so does TensorFlow's
    ``per_image_standardization``): a constant image becomes 0, and its derivative stays finite.
    """
    centred = images - images.mean(dim=(-3, -2, -1), keepdim=True)
    variance = centred.square().mean(dim=(-3, -2, -1), keepdim=True)
    values = images.shape[-3] * images.shape[-2] * images.shape[-1]
    return centred / variance.clamp_min(_SMALLEST_DEVIATION**2 / values).sqrt()


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0),
    )


def _halved(side: int) -> int:
    """Side after a block."""
    return (side + 1) // 2
