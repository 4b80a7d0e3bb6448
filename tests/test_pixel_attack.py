"""One-pixel attacks on models whose worst value is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raysense.measures.pixel_attack import one_pixel_attack


def linear(channels: int, classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 20, classes)).requires_grad_(False)


def images_of(count: int, channels: int) -> Tensor:
    return torch.rand(count, channels, 4, 5, generator=torch.Generator().manual_seed(1))


def replaced(image: Tensor, pixel: Tensor, value: Tensor) -> Tensor:
    image = image.clone()
    image[:, pixel[0], pixel[1]] = value.to(image.dtype)
    return image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_values", [2**22, 700])
def test_the_worst_value_of_a_linear_model_of_two_classes_is_a_corner(channels: int, batch_values: int) -> None:
    network, x = linear(channels, classes=2), images_of(6, channels)
    pixels = torch.tensor([[0, 0], [3, 4], [1, 2], [2, 0], [3, 3], [0, 4]])
    result = one_pixel_attack(network, x, pixels, batch_values)
    predicted = network(x).argmax(1)
    weight = network[1].weight.view(2, channels, 4, 5)
    for i, (row, column) in enumerate(pixels.tolist()):
        slope = (weight[predicted[i]] - weight[1 - predicted[i]])[:, row, column]
        assert result.after[i].tolist() == (slope < 0).double().tolist()
        assert result.before[i].tolist() == x[i, :, row, column].tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_probabilities_are_those_of_the_images(channels: int) -> None:
    network, x = linear(channels, classes=5, seed=2), images_of(8, channels)
    pixels = torch.stack((torch.arange(8) % 4, torch.arange(8) % 5), dim=1)
    result = one_pixel_attack(network, x, pixels)
    attacked = torch.stack([replaced(*case) for case in zip(x, pixels, result.after, strict=True)])
    original, changed = network(x).double().softmax(1), network(attacked).double().softmax(1)
    assert result.class_before.tolist() == original.argmax(1).tolist()
    assert result.class_after.tolist() == changed.argmax(1).tolist()
    torch.testing.assert_close(result.p_before, original.amax(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(result.p_after, changed.amax(1), rtol=1e-6, atol=0)
    expected = changed.gather(1, result.class_before[:, None]).squeeze(1)
    torch.testing.assert_close(result.p_before_after, expected, rtol=1e-6, atol=0)
    assert (result.p_before_after < result.p_before).all()
    assert (result.class_after != result.class_before).any()


class Nearness(nn.Module):
    """Class 0 is the less probable, the nearer the pixel (1, 1) is to a given value."""

    def __init__(self, value: list[float], sharpness: float = 1.0) -> None:
        super().__init__()
        self.value, self.sharpness = torch.tensor(value), sharpness

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, :, 1, 1] - self.value).double().square().sum(1) * self.sharpness
        return torch.stack((distance + 1, torch.zeros_like(distance)), dim=1)


@pytest.mark.parametrize("value", [[100], [0], [255], [37, 250], [30, 151, 77], [1, 2, 254], [100, 0, 255, 3]])
@pytest.mark.parametrize("sharpness", [1.0, 1000.0])
def test_an_optimum_inside_is_found_to_the_last_step(value: list[int], sharpness: float) -> None:
    """Also where the class is certain to all digits of its probability."""
    goal = [level / 255 for level in value]
    pixels = torch.tensor([[1, 1]])
    result = one_pixel_attack(Nearness(goal, sharpness), images_of(1, len(value)), pixels)
    assert (result.after[0] * 255).round().tolist() == value
    torch.testing.assert_close(result.after[0], torch.tensor(goal).double(), rtol=0, atol=1e-6)


def test_of_values_alike_the_smallest_change_is_taken() -> None:
    network, x = linear(3), images_of(2, 3)
    network[1].weight.view(3, 3, 4, 5)[:, 0, 2, 2] = 0.0
    network[1].weight.view(3, 3, 4, 5)[:, :, 1, 1] = 0.0
    result = one_pixel_attack(network, x, torch.tensor([[1, 1], [2, 2]]))
    assert result.after[0].tolist() == result.before[0].tolist()
    assert result.p_before_after[0].item() == pytest.approx(result.p_before[0].item(), rel=1e-6)
    assert abs(result.after[1, 0] - result.before[1, 0]) <= 0.5 / 255
    assert (result.after[1, 1:] != result.before[1, 1:]).all()


def test_a_pixel_at_its_worst_value_stays() -> None:
    x = images_of(1, 3)
    result = one_pixel_attack(Nearness(x[0, :, 1, 1].tolist()), x, torch.tensor([[1, 1]]))
    assert result.after.tolist() == result.before.tolist()


def test_logits_that_are_not_finite_are_no_worse_than_others() -> None:
    class Partly(Nearness):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1, 1, 1] > 0.5, torch.nan, super().forward(x))

    x = torch.full((2, 1, 4, 5), 0.1)
    x[1, 0, 1, 1] = 0.9
    result = one_pixel_attack(Partly([0.8]), x, torch.tensor([[1, 1], [1, 1]]))
    assert result.after[0].item() == pytest.approx(127 / 255)
    assert result.p_before[1].isnan()


def test_what_cannot_be_attacked() -> None:
    with pytest.raises(ValueError, match="5 channels; a one-pixel attack takes at most 4"):
        one_pixel_attack(linear(5), images_of(1, 5), torch.tensor([[0, 0]]))
    for outside in ([4, 0], [0, 5], [-1, 0]):
        with pytest.raises(ValueError, match="rows and columns of images of 4 x 5"):
            one_pixel_attack(linear(1), images_of(1, 1), torch.tensor([outside]))
