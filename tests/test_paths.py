"""Paths within a class, convex combinations and cross-sections: regions of the plane and of space in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from raysense.measures.boundary.classified import UNKNOWN, predicted_classes, runs_of
from raysense.measures.boundary.convex import combinations_inside, convex_weights
from raysense.measures.boundary.paths import Path, _coarse_to_fine, find_paths, moved_into_class
from raysense.measures.boundary.sections import cross_section

Field = Callable[[Tensor], Tensor]


def region(inside: Field) -> Callable[[Tensor], Tensor]:
    """A model of points [N, 1, 1, d] that gives class 0 where a field is positive, class 1 elsewhere."""

    def model(images: Tensor) -> Tensor:
        value = inside(images.flatten(1))
        return torch.stack((value, torch.zeros_like(value)), dim=1)

    return model


def ball(radius: float, *centre: float) -> Field:
    return lambda x: radius**2 - ((x - torch.tensor(centre, dtype=x.dtype)) ** 2).sum(1)


def diamond(x: Tensor) -> Tensor:
    return 1.0 - x.abs().sum(1)


DISC = region(ball(2.0, 0, 0))
RING = region(lambda x: torch.minimum(ball(2.0, 0, 0)(x), -ball(1.0, 0, 0)(x)))
BITTEN = region(lambda x: torch.minimum(ball(2.0, 0, 0)(x), -ball(0.8, 0, 1.5)(x)))
AROUND_AN_EDGE = region(lambda x: -diamond(x))
TWO_DISCS = region(lambda x: torch.maximum(ball(1.0, -2, 0)(x), ball(1.0, 2, 0)(x)))


def points(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)[:, None, None, :]


def connect(
    model: Callable[[Tensor], Tensor], start: tuple[float, ...], end: tuple[float, ...], **named: object
) -> Path:
    settings = {"spacing": 1e-3, **named}
    (path,) = find_paths(model, points(start), points(end), torch.zeros(1, dtype=torch.int64), **settings)
    return path


def assert_inside(model: Callable[[Tensor], Tensor], path: Path) -> None:
    """Look at the path in other places than the search did."""
    shares = torch.linspace(0, 1, 1733, dtype=torch.float64)[:, None, None, None]
    for one, other in pairwise(path.anchors):
        assert (model(torch.lerp(one, other, shares)).argmax(1) == 0).all()


def test_a_convex_region_is_crossed_straight() -> None:
    path = connect(DISC, (-1.9, 0.1), (1.2, 1.5), spacing=1e-4)
    assert (path.connected, path.straight, path.depth, path.bad_segments) == (True, True, 0, 0)
    assert path.checked == 9999
    assert path.length_ratio == pytest.approx(1, abs=1e-12)
    assert path.distance == pytest.approx(math.hypot(3.1, 1.4))
    torch.testing.assert_close(path.anchors, points((-1.9, 0.1), (1.2, 1.5)))


@pytest.mark.parametrize(
    ("model", "start", "end", "shortest"),
    [
        # Tangents to the obstacle and the arc between them; along two sides of the square on its corner.
        (RING, (-1.5, 0.02), (1.5, 0.02), 2 * math.sqrt(1.25) + math.pi - 2 * math.acos(1 / 1.5)),
        (BITTEN, (-1.2, 1.2), (1.2, 1.2), 2 * math.hypot(1.2, 0.5)),
        (AROUND_AN_EDGE, (-1.5, 0.02), (1.5, 0.02), 2 * math.hypot(1.5, 0.98)),
    ],
)
def test_around_an_obstacle(
    model: Callable[[Tensor], Tensor], start: tuple[float, float], end: tuple[float, float], shortest: float
) -> None:
    path = connect(model, start, end)
    assert path.connected
    assert not path.straight
    assert path.depth <= 8
    assert path.bad_segments == 0
    assert_inside(model, path)
    assert shortest / path.distance < path.length_ratio + 1e-3
    assert path.length_ratio < 1.3 * shortest / path.distance
    pieces = (path.anchors[1:] - path.anchors[:-1]).flatten(1).norm(dim=1)
    assert path.length_ratio == pytest.approx(float(pieces.sum()) / path.distance)
    assert len(path.anchors) - 2 == len(pieces) - 1 > 0


def test_corners_of_an_obstacle_take_depth_but_not_for_ever() -> None:
    angles = 2 * math.pi * torch.rand(2, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts, ends = ((1.5 * torch.stack((a.cos(), a.sin()), 1))[:, None, None] for a in angles)
    paths = find_paths(AROUND_AN_EDGE, starts, ends, torch.zeros(60, dtype=torch.int64), spacing=1e-3, max_depth=12)
    assert sum(path.connected for path in paths) >= 58
    assert sum(path.straight for path in paths) < 50
    # What a connected path cuts off a corner is shorter than the spacing.
    shares = torch.linspace(0, 1, 5001, dtype=torch.float64)[:, None, None, None]
    for path in paths:
        for one, other in pairwise(path.anchors if path.connected else ()):
            cut = (AROUND_AN_EDGE(torch.lerp(one, other, shares)).argmax(1) == 1).double().mean() * (other - one).norm()
            assert cut < 1e-3 * path.distance


@pytest.mark.parametrize("depth", [0, 3, 6])
def test_regions_apart_are_reported_unconnected_within_the_depth(depth: int) -> None:
    path = connect(TWO_DISCS, (-2.4, 0.3), (2.0, 0.1), max_depth=depth)
    assert not path.connected
    assert not path.straight
    assert path.depth == depth
    # What leaves the class is found out in a round or two; the rest is looked at once, and is 1000 images long.
    assert path.checked < 40 * (depth + 1) + 1500
    assert path.bad_segments == 1
    assert len(path.anchors) - 2 <= 2 * depth


def test_a_wall_as_thin_as_the_spacing_is_noticed() -> None:
    for place in (0.1234, 0.5001, 0.9876):
        wall = region(lambda x, at=place: (x[:, 0] - at).abs() - 0.51e-3)
        path = connect(wall, (0.0, 0.0), (1.0, 0.0), max_depth=0)
        assert not path.connected
        assert path.bad_segments == 1


def test_segments_are_checked_from_coarse_to_fine() -> None:
    for steps in (2, 3, 64, 100, 1000):
        order = _coarse_to_fine(steps)
        assert sorted(order.tolist()) == list(range(1, steps))
        for count in (1, 3, 7, 15, 31):
            if count < steps:
                first = [0, *sorted(order[:count].tolist()), steps]
                assert max(b - a for a, b in pairwise(first)) <= 4 * steps / (count + 1)
    # A quarter of the segment outside: found in the first round.
    assert connect(RING, (-1.5, -1.0), (1.5, 0.9), max_depth=0).checked == 16
    assert _coarse_to_fine(1).tolist() == []


def test_pairs_do_not_depend_on_each_other_nor_on_the_runs() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(2, 12, generator=generator, dtype=torch.float64)
    starts, ends = ((1.5 * torch.stack((a.cos(), a.sin()), 1))[:, None, None] for a in angles)
    classes = torch.zeros(12, dtype=torch.int64)
    whole = find_paths(RING, starts, ends, classes, spacing=1e-3)
    split = find_paths(RING, starts, ends, classes, spacing=1e-3, runs=runs_of(37), gradient_runs=runs_of(1))
    alone = [
        find_paths(RING, *one, spacing=1e-3)[0]
        for one in zip(starts.split(1), ends.split(1), classes.split(1), strict=True)
    ]
    assert {path.straight for path in whole} == {False, True}
    for paths in zip(whole, split, alone, strict=True):
        assert len({(path.connected, path.depth, path.checked, path.bad_segments) for path in paths}) == 1
        for other in paths[1:]:
            torch.testing.assert_close(paths[0].anchors, other.anchors, rtol=0, atol=1e-9)


def test_odd_pairs_leave_the_others_alone() -> None:
    starts = points((-1.5, 0.02), (1.0, 1.0), (float("nan"), 0.0))
    ends = points((1.5, 0.02), (1.0, 1.0), (1.0, 1.0))
    good, same, broken = find_paths(RING, starts, ends, torch.zeros(3, dtype=torch.int64), spacing=1e-3)
    assert good.connected
    assert (same.straight, same.checked) == (True, 0)
    assert math.isnan(same.length_ratio)
    assert (broken.connected, broken.straight, broken.bad_segments) == (False, False, 1)
    assert good.checked == connect(RING, (-1.5, 0.02), (1.5, 0.02)).checked
    assert find_paths(RING, starts[:0], ends[:0], torch.zeros(0, dtype=torch.int64)) == []


def test_what_cannot_be_is_refused() -> None:
    for named, message in [({"spacing": 0.0}, "spacing 0 must be above 0"), ({"max_depth": -1}, "max_depth -1")]:
        with pytest.raises(ValueError, match=message):
            connect(DISC, (0.0, 0.0), (1.0, 0.0), **named)
    with pytest.raises(ValueError, match="runs of 0 items"):
        runs_of(0)


def test_images_are_moved_into_the_class_and_a_little_further() -> None:
    images = points((3.0, 0.0), (0.0, -4.0), (1.0, 0.0))
    found = moved_into_class(DISC, images, torch.zeros(3, dtype=torch.int64))
    assert found.reached.all()
    torch.testing.assert_close(found.points, points((1.98, 0.0), (0.0, -1.96), (1.0, 0.0)), rtol=0, atol=5e-3)
    torch.testing.assert_close(found.distance, (found.points - images).flatten(1).norm(dim=1))
    # The far side of a thin wall is no place to go to: the boundary itself is.
    film = region(lambda x: 0.01 - (x[:, 0] - 1).abs())
    found = moved_into_class(film, points((3.0, 0.0)), torch.zeros(1, dtype=torch.int64), overshoot=0.5)
    assert found.reached.all()
    assert film(found.points).argmax(1).item() == 0
    nowhere = region(lambda x: -1 - x[:, 0] ** 2)
    found = moved_into_class(nowhere, points((3.0, 0.0)), torch.zeros(1, dtype=torch.int64))
    assert not found.reached.any()
    assert found.distance.isnan().all()


def test_predicted_classes_of_what_is_not_finite() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [2.0, 1.0], [0.0, float("inf")]])
    for size in (1, 3, 10):
        found = predicted_classes(lambda x: x, 4, lambda start, stop: logits[start:stop], runs_of(size))
        assert found.tolist() == [1, UNKNOWN, 0, UNKNOWN]


def test_weights_are_uniform_on_the_simplex() -> None:
    for k in (2, 5):
        weights = convex_weights(k, 20000, seed=k)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(20000, dtype=torch.float64))
        torch.testing.assert_close(weights.mean(0), torch.full((k,), 1 / k, dtype=torch.float64), rtol=0, atol=0.01)
        variance = (k - 1) / (k**2 * (k + 1))
        torch.testing.assert_close(weights.var(0), torch.full((k,), variance, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(convex_weights(3, 4, seed=1), convex_weights(3, 4, seed=1), rtol=0, atol=0)
    assert not torch.equal(convex_weights(3, 4, seed=1), convex_weights(3, 4, seed=2))


def test_convex_combinations_of_a_convex_region_and_of_a_ring() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    images = 1.5 * torch.stack((angles.cos(), angles.sin()), dim=2)[:, :, None, None]
    weights = torch.stack([convex_weights(4, 50, seed) for seed in range(6)])
    classes = torch.zeros(6, dtype=torch.int64)
    assert combinations_inside(DISC, images, classes, weights).all()
    inside = combinations_inside(RING, images, classes, weights)
    expected = torch.einsum("gmk,gkd->gmd", weights, images.flatten(2)).norm(dim=2) > 1
    assert torch.equal(inside, expected)
    assert 0 < inside.double().mean() < 1
    for size in (1, 7, 60, 1000):
        assert torch.equal(combinations_inside(RING, images, classes, weights, runs=runs_of(size)), inside)
    assert not combinations_inside(RING, images, torch.ones(6, dtype=torch.int64), weights)[expected].any()


def test_cross_section_of_a_ball() -> None:
    model = region(ball(1.0, 0, 0, 0))
    start, end, upwards = points((-1.0, 0.0, 0.5), (1.0, 0.0, 0.5), (0.7, 0.0, 0.1)).unbind(0)
    section = cross_section(model, start, end, upwards, columns=20, rows=16, half_height=2.0, margin=0.25)
    assert section is not None
    assert (section.length, section.low_x, section.high_x) == pytest.approx((2.0, -0.5, 2.5))
    assert (section.low_y, section.high_y) == (-2.0, 2.0)
    x = -0.5 + (torch.arange(20) + 0.5) * 3 / 20
    y = -2.0 + (torch.arange(16) + 0.5) * 4 / 16
    expected = ((x[None] - 1) ** 2 + (y[:, None] + 0.5) ** 2 >= 1).long()
    assert torch.equal(section.predicted, expected)
    assert 0 < expected.sum() < expected.numel()
    again = cross_section(
        model, start, end, upwards, columns=20, rows=16, half_height=2.0, margin=0.25, runs=runs_of(7)
    )
    assert again is not None
    assert torch.equal(again.predicted, expected)


def test_a_segment_along_the_vertical_axis_has_no_section() -> None:
    start, end, along = points((0.0, 0.0), (2.0, 2.0), (-0.5, -0.5)).unbind(0)
    for one, other, upwards in [(start, end, along), (start, start, along), (start, end, start)]:
        assert cross_section(DISC, one, other, upwards, columns=8, rows=8, half_height=1.0) is None
