"""SqueezeNet 1.0 with the normalisation of the Caffe model zoo."""

from __future__ import annotations

from torchvision.models import squeezenet1_0

from raysense.networks import Normalize

CAFFE_MEAN = (123, 117, 104)


def squeezenet() -> Normalize:
    """Return the network for images [N, 3, 227, 227] in [0, 1]; inside it sees 255 * image - mean, in RGB order."""
    module = Normalize(squeezenet1_0(weights=None), [value / 255 for value in CAFFE_MEAN], [1 / 255] * 3)
    module.preprocessing = {"resize": 256, "crop": 227}
    return module
