"""Pixel maps against brute force: the FI of every square from the columns of the dense Jacobian."""

from __future__ import annotations

import pytest
import torch
from networks import dense_influence, dense_jacobian, of_input
from torch import Tensor, nn

from raysense.measures.fisher import (
    attained,
    gram_matrix,
    influence,
    influence_of_rows,
    published_influence,
    published_influence_of_rows,
)
from raysense.measures.influence import exact_influence
from raysense.measures.pixel_maps import pixel_maps

SHAPE = (2, 5, 6)


def network_of(classes: int, shape: tuple[int, int, int] = SHAPE, scale: float = 3.0) -> nn.Module:
    torch.manual_seed(classes)
    size = shape[0] * shape[1] * shape[2]
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, 80), nn.Tanh(), nn.Linear(80, classes)).double()
    network[-1].weight.data *= scale
    return network.requires_grad_(False)


def images_of(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def squares_of(jacobian: Tensor, shape: tuple[int, int, int], scale: int, channel: int | None) -> list[Tensor]:
    """Columns [K, P'] of every clipped square, row by row of the image."""
    pixels, reach = jacobian.view(-1, *shape), scale // 2
    if channel is not None:
        pixels = pixels[:, channel : channel + 1]
    return [
        pixels[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1].flatten(1)
        for i in range(shape[1])
        for j in range(shape[2])
    ]


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_every_square_equals_its_definition(classes: int) -> None:
    """Squares of fewer and of more values than K - 1, whole and clipped at the borders, joint and of one channel."""
    network, x = network_of(classes), images_of(2)
    labels = torch.tensor([1, 0])
    result = pixel_maps(network, x, labels, scales=(1, 3, 5), channels=True)
    assert set(result.maps) == {(scale, channel) for scale in (1, 3, 5) for channel in (None, 0, 1)}
    torch.testing.assert_close(result.logits, network(x))
    assert result.n_backward.tolist() == [classes - 1] * 2
    below = 0
    for n in range(2):
        jacobian = dense_jacobian(network, x[n])
        for (scale, channel), found in result.maps.items():
            squares = squares_of(jacobian, SHAPE, scale, channel)
            expected = [dense_influence(square, result.logits[n], int(labels[n])) for square in squares]
            torch.testing.assert_close(found[n].flatten(), found.new_tensor(expected), rtol=1e-7, atol=0)
            below += int((found[n] < 0.999 * result.bound[n]).sum())
    if classes > 2:
        assert below > 100  # the bound says nothing about most squares here


def test_the_predicted_class_is_the_default() -> None:
    network, x = network_of(10), images_of(2)
    result = pixel_maps(network, x, scales=(3,))
    torch.testing.assert_close(result.maps, pixel_maps(network, x, network(x).argmax(1), scales=(3,)).maps)


@pytest.mark.parametrize("rank_rule", ["invariant", "published"])
@pytest.mark.parametrize("classes", [10, 40])
def test_the_memory_bound_changes_no_value(classes: int, rank_rule: str) -> None:
    """From samples in groups over tiles of an image to strips of rows with their own passes."""
    network, x = network_of(classes), images_of(2)
    whole = pixel_maps(network, x, channels=True, rank_rule=rank_rule)
    image_bytes = classes * x[0].numel() * 8
    for memory in (2**18, image_bytes, image_bytes // 2, 1):
        tiled = pixel_maps(network, x, channels=True, rank_rule=rank_rule, memory_bytes=memory)
        for key, found in tiled.maps.items():
            torch.testing.assert_close(found, whole.maps[key], rtol=1e-9, atol=0)
        strips = 1 if memory >= image_bytes else 5
        assert tiled.n_backward.tolist() == [strips * (classes - 1)] * 2


def test_strips_hold_the_rows_within_reach() -> None:
    shape = (1, 23, 4)
    network, x = network_of(6, shape), images_of(1, shape)
    whole = pixel_maps(network, x, scales=(1, 3))
    row_bytes = 6 * 4 * 8
    for rows, strips in ((23, 1), (22, 2), (9, 4), (3, 23)):
        result = pixel_maps(network, x, scales=(1, 3), memory_bytes=rows * row_bytes)
        assert result.n_backward.item() == strips * 5
        torch.testing.assert_close(result.maps, whole.maps, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [11, 13, 101])
def test_a_square_that_covers_the_image_is_the_whole_input(scale: int) -> None:
    network, x = network_of(70), images_of(2)
    found = pixel_maps(network, x, scales=(scale,)).maps[scale, None]
    expected = of_input(exact_influence)(network, x)
    assert (expected.rank == 60).all()
    torch.testing.assert_close(found, expected.fi[:, None, None].expand_as(found), rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [10, 40])
def test_published_rule_is_that_of_the_squares_own_gradients(classes: int) -> None:
    network, x = network_of(classes, scale=0.3), images_of(1)
    logits, y, epsilon = network(x), torch.tensor([1]), 1e-3
    jacobian, p = dense_jacobian(network, x[0]), logits[0].softmax(0)
    result = pixel_maps(network, x, y, channels=True, rank_rule="published")
    dropped = 0
    for (scale, channel), found in result.maps.items():
        for square, value in zip(squares_of(jacobian, SHAPE, scale, channel), found[0].flatten().tolist(), strict=True):
            gradients = (p[:, None] * (square - p @ square)).T
            u, s, _ = torch.linalg.svd(gradients / (p.sqrt() + epsilon), full_matrices=False)
            kept = s > epsilon
            coordinates = (gradients[:, 1] / (p[1] + epsilon)) @ u[:, kept] / s[kept]
            assert value == pytest.approx(float(coordinates @ coordinates), rel=1e-7)
            dropped += int((~kept).sum())
    assert dropped > 0


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize(("size", "rank"), [(3, 3), (5, 2), (4, 0), (11, 4), (25, 25)])
def test_rows_and_their_gram_matrix_give_the_same(size: int, rank: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits, classes = spread * normal(5, 12), torch.arange(5)
    reference = logits.argmax(1)
    rows = normal(5, 12, rank) @ normal(5, rank, size)
    rows = rows - rows.gather(1, reference[:, None, None].expand(-1, 1, size))
    gram = gram_matrix(rows)
    expected, found = influence(logits, gram, classes, reference), influence_of_rows(logits, rows, classes, reference)
    assert found.rank.tolist() == expected.rank.tolist() == [min(rank, 11)] * 5
    torch.testing.assert_close(found.fi, expected.fi, rtol=1e-6, atol=0)
    torch.testing.assert_close(attained(logits, found.move, classes), found.fi, rtol=1e-6, atol=0)
    published, ranks = published_influence(logits, gram, classes)
    published_of_rows, ranks_of_rows = published_influence_of_rows(logits, rows, classes)
    torch.testing.assert_close(published_of_rows, published, rtol=1e-7, atol=1e-12)
    assert ranks.tolist() == ranks_of_rows.tolist()


def test_samples_without_finite_values_are_nan_and_harm_no_other() -> None:
    network, x = network_of(5), images_of(5)
    expected = pixel_maps(network, x)

    class Broken(nn.Module):
        """Logits of dark images are infinite; gradients of bright ones are; the squares of still brighter ones' are."""

        def forward(self, images: Tensor) -> Tensor:
            level = images.flatten(1).amax(1, keepdim=True)
            logits = torch.where(level < 0.1, torch.inf, network(images))
            logits = logits + torch.where(level == 1.0, torch.sqrt(1 - level), 0.0)
            return logits + torch.where(level == 2.0, 1e160 * (level - 2), 0.0) * torch.arange(5)

    x[1], x[2], x[4] = 0.0, 1.0, 2.0
    for memory in (2**29, 1):
        result = pixel_maps(Broken(), x, memory_bytes=memory)
        assert result.bound.isnan().tolist() == [False, True, True, False, True]
        for key, found in result.maps.items():
            assert found[[1, 2, 4]].isnan().all()
            torch.testing.assert_close(found[[0, 3]], expected.maps[key][[0, 3]], rtol=1e-9, atol=0)


def test_convolutions_in_float32_with_channels_last() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 48, 8)
    ).eval()
    x = images_of(2, (3, 6, 8)).float()
    single, double = pixel_maps(network, x, channels=True), pixel_maps(network.double(), x.double(), channels=True)
    strips = pixel_maps(network, x.double(), channels=True, memory_bytes=8 * 3 * 6 * 8 * 8 - 1)
    for key, found in double.maps.items():
        torch.testing.assert_close(single.maps[key], found, rtol=1e-3, atol=0)
        torch.testing.assert_close(strips.maps[key], found, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scales", [(2,), (1, 0), (-1,), ()])
def test_wrong_scales(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="scales are odd"):
        pixel_maps(network_of(3), images_of(1), scales=scales)


def test_wrong_rank_rule() -> None:
    with pytest.raises(ValueError, match="rank_rule is one of invariant, published, not 'other'"):
        pixel_maps(network_of(3), images_of(1), rank_rule="other")
