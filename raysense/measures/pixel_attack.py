"""One-pixel attacks: the value of one pixel that makes the predicted class least probable (Shu & Zhu 2019, Figure 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysense.measures.fisher import log_odds_against
from raysense.measures.gradients import Model, forward

_TOP = 255  # values are multiples of 1 / 255, so that the attacked image is one of 8 bits
_FIRST_STEP = {1: 1, 2: 8, 3: 32, 4: 64}  # by channels: of the grid over all values, in 1 / 255
_TIE = 8  # odds within this multiple of the machine precision are alike


@dataclass(frozen=True)
class OnePixelAttack:
    """What changing one pixel did to N images of C channels.

    Attributes:
        before: [N, C] float64, the pixel's values in [0, 1].
        after: [N, C] float64, its values in the attacked image: multiples of 1/255, or ``before`` where none is worse.
        class_before: [N] int64, predicted class.
        p_before: [N] float64, its probability.
        class_after: [N] int64, predicted class of the attacked image.
        p_before_after: [N] float64, probability of ``class_before`` after the attack.
        p_after: [N] float64, probability of ``class_after`` after the attack.
    """

    before: Tensor
    after: Tensor
    class_before: Tensor
    p_before: Tensor
    class_after: Tensor
    p_before_after: Tensor
    p_after: Tensor


def one_pixel_attack(model: Model, images: Tensor, pixels: Tensor, batch_values: int = 2**22) -> OnePixelAttack:
    """Attack one given pixel of every image: its value is chosen to minimise the probability of the predicted class.

    Candidates lie on a grid over all values, of which the best is refined by ever finer grids around it, down to steps of
    1/255. With one channel these are all values of 8 bits; with RGB the first grid has 9 values a channel, the ends among
    them, and the result is the best of a local search from there. Of candidates that are alike up to rounding the smallest
    change is taken; no change is a candidate too.

    Args:
        model: Maps images in [0, 1] to logits [N, K], sample by sample, with no randomness.
        images: [N, C, H, W] with C at most 4.
        pixels: [N, 2] int64, row and column of each image's pixel.
        batch_values: Values of the images in a forward pass, of which there is at least one.

    Returns:
        Probabilities are of the attacked image as a whole, and NaN where logits are not finite.

    Raises:
        ValueError: There are more than 4 channels, or a pixel lies outside its image.
    """
    channels, height, width = images.shape[1:]
    if channels not in _FIRST_STEP:
        raise ValueError(f"images have {channels} channels; a one-pixel attack takes at most {max(_FIRST_STEP)}")
    if ((pixels < 0) | (pixels >= pixels.new_tensor((height, width)))).any():
        raise ValueError(f"pixels must be rows and columns of images of {height} x {width}")
    batch_size = max(1, batch_values // images[0].numel())
    everything = torch.arange(len(images), device=images.device)
    original = _probabilities(model, images, batch_size)
    p_before, classes = original.max(1)
    before = images[everything, :, pixels[:, 0], pixels[:, 1]]
    step = _FIRST_STEP[channels]
    offsets = torch.arange(0, _TOP + step, step, device=images.device)
    centre, best = torch.zeros_like(before), before
    while True:
        levels = (centre[:, None] + _grid(offsets, channels)).clamp(0, _TOP) / _TOP
        candidates = torch.cat((best[:, None], levels.to(images.dtype)), dim=1)
        odds = _log_odds(model, images, pixels, candidates, classes, batch_size)
        best = _least_change(odds, candidates, before)
        if step == 1:
            break
        centre, step = (best * _TOP).round(), step // 2
        offsets = step * torch.arange(-2, 3, device=images.device)
    attacked = _with_pixel(images, pixels, best)
    changed = _probabilities(model, attacked, batch_size)
    p_after, class_after = changed.max(1)
    p_before_after = changed.gather(1, classes[:, None]).squeeze(1)
    return OnePixelAttack(before.double(), best.double(), classes, p_before, class_after, p_before_after, p_after)


def _grid(offsets: Tensor, channels: int) -> Tensor:
    """All combinations of offsets: [len(offsets) ** channels, channels]."""
    return torch.cartesian_prod(*[offsets] * channels).view(-1, channels)


def _with_pixel(images: Tensor, pixels: Tensor, values: Tensor) -> Tensor:
    """Copies of the images with the values [N, C] at the pixels [N, 2]."""
    images = images.clone()
    images[torch.arange(len(images), device=images.device), :, pixels[:, 0], pixels[:, 1]] = values
    return images


def _probabilities(model: Model, images: Tensor, batch_size: int) -> Tensor:
    """[N, K] float64."""
    return torch.cat([torch.softmax(forward(model, part).double(), dim=1) for part in images.split(batch_size)])


def _log_odds(
    model: Model, images: Tensor, pixels: Tensor, candidates: Tensor, classes: Tensor, batch_size: int
) -> Tensor:
    """Log odds against the classes [N] for every candidate [N, M, C] of the pixel: [N, M] float64, -inf where not known.

    Unlike probabilities they tell apart candidates of a sample that is all but certain.
    """
    samples, count = candidates.shape[:2]
    parts = []
    for pairs in torch.arange(samples * count, device=images.device).split(batch_size):
        sample = pairs // count
        changed = _with_pixel(images[sample], pixels[sample], candidates[sample, pairs % count])
        parts.append(log_odds_against(forward(model, changed).double(), classes[sample]))
    return torch.cat(parts).view(samples, count).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _least_change(odds: Tensor, candidates: Tensor, before: Tensor) -> Tensor:
    """Of the candidates [N, M, C] with the largest odds [N, M], up to rounding, the one nearest to ``before``: [N, C]."""
    largest = odds.amax(1, keepdim=True)
    rounding = _TIE * torch.finfo(candidates.dtype).eps * (1 + largest.abs().nan_to_num(posinf=0.0))
    change = (candidates - before[:, None]).double().square().sum(2)
    chosen = torch.where(odds >= largest - rounding, change, torch.inf).argmin(1)
    return candidates[torch.arange(len(candidates), device=candidates.device), chosen]
