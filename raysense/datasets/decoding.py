"""Decoding of image files. Apart from the rest, since torchvision takes over a second to import."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import rgb_to_grayscale

# Every decoding process would print these: torchvision's announcement of TorchCodec, and that it decodes WebP to RGB
# alone, which decode() makes up for.
warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
warnings.filterwarnings("ignore", "Webp does not support grayscale", UserWarning)


def decode(data: bytes, mode: str) -> Tensor:
    """Decode a JPEG, PNG, GIF or WebP file to uint8 ``[3, H, W]`` (mode rgb) or ``[1, H, W]`` (mode gray).

    EXIF orientation is not applied (torchvision's default). Of an animation the first frame is taken; transparency is
    dropped; 16 bits become 8. Raises ValueError where the data are damaged, truncated or of another format.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode[mode.upper()])
    except RuntimeError as error:
        raise ValueError(f"damaged or not an image ({_reason(error)})") from error
    if image.ndim == 4:
        image = image[0]
    if image.dtype == torch.uint16:
        image = (image.int() >> 8).to(torch.uint8)
    if mode == "gray" and image.shape[0] == 3:
        image = rgb_to_grayscale(image)
    return torch.as_tensor(image)


def _reason(error: RuntimeError) -> str:
    """Return the message of a torchvision decoder without its source location."""
    return str(error).strip().partition("\n")[0].rpartition(", ")[2]
