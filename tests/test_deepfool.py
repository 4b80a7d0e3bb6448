"""Nearest boundary points: closed forms in float64, an independent DeepFool, and what must hold at any point found."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from networks import images, tiny_network
from scipy.optimize import nnls
from torch import Tensor, nn

from raysense.measures.boundary.crossing import find_crossings
from raysense.measures.boundary.deepfool import (
    BLOCKED,
    FOUND,
    OUTSIDE,
    NearestBoundary,
    nearest_boundary,
    project_to_class,
)
from raysense.measures.boundary.margins import largest_margin
from raysense.measures.boundary.projections import Box, Norm, into_halfspaces, onto_hyperplane, room_around

UNIT: Box = (0.0, 1.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine:
    """Logits W x + b with rows of very different lengths."""

    def __init__(self, classes: int, size: int, spread: float = 0.0, seed: int = 0) -> None:
        lengths = torch.exp(spread * normal(classes, seed=seed + 1))
        self.weight = lengths[:, None] * normal(classes, size, seed=seed)
        self.bias = 0.3 * normal(classes, seed=seed + 2)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def faces(self, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """Gaps [N, K] of all classes to the predicted one, and the dual norms [N, K] of their gradients."""
        logits = self(x)
        source = logits.argmax(1)
        gaps = logits.gather(1, source[:, None]) - logits
        gradients = self.weight[None] - self.weight[source][:, None]
        return gaps, torch.linalg.vector_norm(gradients, 2 if norm == "l2" else 1, dim=2)

    def distances(self, x: Tensor, norm: Norm) -> Tensor:
        """Distances [N, K] to all classes; infinite for the predicted one."""
        gaps, lengths = self.faces(x, norm)
        return torch.where(lengths > 0, gaps / lengths, torch.inf)


def boxed_distance(gradient: Tensor, offset: float, lower: Tensor, upper: Tensor, norm: Norm) -> float:
    """Least norm of r with g.r >= offset within limits, by bisection over the multiplier."""
    towards = gradient if norm == "l2" else gradient.sign()

    def step(scale: float) -> Tensor:
        return torch.minimum(torch.maximum(scale * towards, lower), upper)

    low, high = 0.0, 1e6
    if gradient @ step(high) < offset:
        return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient @ step(middle) < offset else (low, middle)
    return float(torch.linalg.vector_norm(step(high), 2 if norm == "l2" else torch.inf))


def assert_on_boundary(
    model: Callable[[Tensor], Tensor], x: Tensor, found: NearestBoundary, tolerance: float, norm: Norm
) -> None:
    """The class changes on the segment from x within the tolerance of z, to ``to_class``."""
    assert (found.status == FOUND).all()
    ray = found.points - x
    inside, beyond = (model(x + (1 + side * tolerance) * ray) for side in (-1, 1))
    assert (largest_margin(inside, found.from_class)[0] < 0).all()
    value, to_class = largest_margin(beyond, found.from_class)
    assert (value > 0).all()
    assert (to_class == found.to_class).all()
    order = 2 if norm == "l2" else torch.inf
    torch.testing.assert_close(found.distance, torch.linalg.vector_norm(ray.flatten(1), order, dim=1))
    assert (found.residual <= tolerance * found.distance).all()
    assert (found.alignment <= 1 + 1e-12).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("polish", [0, 5])
def test_affine_models_are_exact(norm: Norm, polish: int) -> None:
    model, x = Affine(12, 40, spread=1.0), normal(50, 1, 5, 8, seed=5)
    found = nearest_boundary(model, x, norm=norm, candidates=11, polish=polish, slack=torch.inf)
    expected, to_class = model.distances(x, norm).min(1)
    torch.testing.assert_close(found.distance, expected, rtol=1e-10, atol=0)
    assert (found.to_class == to_class).all()
    assert (found.from_class == model(x).argmax(1)).all()
    assert (found.status == FOUND).all()
    assert (found.iterations == 1).all()
    assert (found.residual <= 1e-10 * expected).all()
    torch.testing.assert_close(found.alignment, torch.ones(50, dtype=torch.float64), rtol=1e-12, atol=0)
    gradients = model.weight[found.to_class] - model.weight[found.from_class]
    torch.testing.assert_close(found.gradient_norm, torch.linalg.vector_norm(gradients, dim=1))
    assert torch.isinf(found.slack).all()
    assert found.points.shape == x.shape


@pytest.mark.parametrize("candidates", [1, 3, 19])
def test_the_slack_bounds_what_was_left_out(candidates: int) -> None:
    """A nearer class has a gradient that much longer than that of the first one; and some are left out, and missed."""
    model, x = Affine(20, 30, spread=1.0), normal(200, 30, seed=5)
    found = nearest_boundary(model, x, candidates=candidates, slack=1.5)
    distances, (gaps, lengths) = model.distances(x, "l2"), model.faces(x, "l2")
    nearer = distances < found.distance[:, None] * (1 - 1e-9)
    assert nearer.any()
    first = gaps.scatter(1, found.from_class[:, None], torch.inf).argmin(1, keepdim=True)
    assert (lengths >= found.slack[:, None] * lengths.gather(1, first) * (1 - 1e-9))[nearer].all()
    if candidates == 19:
        assert (found.slack >= 1.5).all()
    assert found.n_backward < len(x) * candidates + 3 * len(x)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_affine_models_within_a_box(norm: Norm) -> None:
    """Nearest point of the box that is on a boundary, against one multiplier for each class."""
    model, x = Affine(5, 12, spread=0.5, seed=3), uniform(40, 12, seed=1)
    x[:, ::3] = x[:, ::3].round()  # at the box's faces
    found = nearest_boundary(model, x, norm=norm, box=UNIT, slack=torch.inf, tolerance=1e-11)
    gaps, _ = model.faces(x, norm)
    source = model(x).argmax(1)
    expected = [
        min(
            boxed_distance(model.weight[k] - model.weight[source[n]], float(gaps[n, k]), -x[n], 1 - x[n], norm)
            for k in range(5)
            if k != source[n]
        )
        for n in range(len(x))
    ]
    torch.testing.assert_close(
        found.distance,
        torch.tensor(expected, dtype=torch.float64).nan_to_num(posinf=torch.nan),
        rtol=1e-8,
        atol=0,
        equal_nan=True,
    )
    free = nearest_boundary(model, x, norm=norm, slack=torch.inf)
    assert (found.distance > free.distance * (1 + 1e-6)).sum() > 10  # the box matters
    assert (found.points >= 0).all()
    assert (found.points <= 1).all()
    blocked = torch.isinf(torch.tensor(expected))
    assert (found.status == torch.where(blocked, BLOCKED, FOUND)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_steps_onto_hyperplanes_in_a_box(norm: Norm) -> None:
    gradients, points = normal(60, 9, seed=1), uniform(60, 9, seed=2)
    gradients[:, 4] = 0
    points[:5, 3] = 1.5  # outside: it may stay, or move towards the box
    room = room_around(points, UNIT)
    assert room is not None
    offsets = 6 * uniform(60, seed=3)
    steps, reached = onto_hyperplane(gradients, offsets, norm, room)
    for n in range(60):
        expected = boxed_distance(gradients[n], float(offsets[n]), room.lower[n], room.upper[n], norm)
        assert reached[n] == math.isfinite(expected)
        if reached[n]:
            size = torch.linalg.vector_norm(steps[n], 2 if norm == "l2" else torch.inf)
            assert float(size) == pytest.approx(expected, rel=1e-9)
            assert float(gradients[n] @ steps[n]) == pytest.approx(float(offsets[n]), rel=1e-9)
        else:
            corner = torch.where(gradients[n] > 0, room.upper[n], room.lower[n])
            assert torch.equal(steps[n], torch.where(gradients[n] == 0, 0.0, corner))
    assert 5 < int(reached.sum()) < 55
    assert (steps[:5, 3] <= 0).all()


def test_no_step_without_a_finite_gradient() -> None:
    gradients = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, torch.inf], [3.0, 4.0]], dtype=torch.float64)
    for room in (None, room_around(torch.full((4, 2), 0.5, dtype=torch.float64), (-9, 9))):
        steps, reached = onto_hyperplane(gradients, torch.full((4,), 5.0, dtype=torch.float64), "l2", room)
        assert reached.tolist() == [False, False, False, True]
        assert torch.equal(steps[:3], torch.zeros_like(steps[:3]))
        torch.testing.assert_close(steps[3], torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_into_halfspaces_against_least_distance_programming() -> None:
    """Lawson & Hanson 1974, chapter 23: the least distance by non-negative least squares."""
    gradients, offsets = normal(60, 6, 10, seed=1), normal(60, 6, seed=2) + 0.5
    gradients[:10, 2], offsets[:10, 2] = 0, 0
    gradients[10:20, 5] = 2 * gradients[10:20, 0]
    gradients[20:30, 5], offsets[20:30, 5] = -gradients[20:30, 0], 1 - offsets[20:30, 0]  # nothing in common
    steps, inside = into_halfspaces(gradients, offsets)
    for n in range(60):
        system = torch.cat((gradients[n].T, offsets[n][None])).numpy()
        weights, residual = nnls(system, [0.0] * 10 + [1.0])
        rest = torch.tensor(system @ weights) - torch.tensor([0.0] * 10 + [1.0])
        assert inside[n] == (residual > 1e-9)
        if inside[n]:
            torch.testing.assert_close(steps[n], -rest[:10] / rest[10], rtol=1e-6, atol=1e-9)
    assert not inside[20:30].any()
    assert inside[:20].all()


def ellipsoid(axes: Tensor) -> Callable[[Tensor], Tensor]:
    """Class 0 within sum (x_i / axes_i)^2 = 1, class 1 outside, class 2 nowhere near."""

    def model(x: Tensor) -> Tensor:
        level = (x.flatten(1) / axes).square().sum(1) - 1
        return torch.stack((-level, level, torch.full_like(level, -9.0)), dim=1)

    return model


def distance_to_ellipsoid(x: Tensor, axes: Tensor) -> float:
    """Of a point outside: z_i = x_i a_i^2 / (a_i^2 + t) with the t > 0 that brings z onto the ellipsoid."""
    low, high = 0.0, 1e3
    for _ in range(200):
        t = (low + high) / 2
        z = x * axes**2 / (axes**2 + t)
        low, high = (t, high) if ((z / axes) ** 2).sum() > 1 else (low, t)
    return float(torch.linalg.vector_norm(x - z))


@pytest.mark.parametrize("radius", [0.5, 1.5])
def test_distance_to_a_sphere(radius: float) -> None:
    """From inside and from outside, |R - |x||."""
    x = normal(20, 7, seed=4)
    x = radius * x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    found = nearest_boundary(ellipsoid(torch.ones(7, dtype=torch.float64)), x, tolerance=1e-9)
    torch.testing.assert_close(found.distance, torch.full_like(found.distance, abs(radius - 1)), rtol=1e-9, atol=0)
    assert (found.from_class == int(radius > 1)).all()
    assert (found.to_class == int(radius < 1)).all()


def test_polish_finds_the_nearest_point_of_an_ellipsoid() -> None:
    axes = torch.tensor([0.8, 1.0, 1.2, 1.4, 1.6], dtype=torch.float64)
    x = normal(20, 5, seed=4)
    x = 1.8 * x / (x / axes).square().sum(1, keepdim=True).sqrt()
    expected = torch.tensor([distance_to_ellipsoid(point, axes) for point in x], dtype=torch.float64)
    plain, few, many = (
        nearest_boundary(ellipsoid(axes), x, polish=polish, tolerance=1e-12).distance for polish in (0, 5, 80)
    )
    torch.testing.assert_close(many, expected, rtol=1e-8, atol=0)
    assert (few <= plain * (1 + 1e-9)).all()
    assert float((few / expected - 1).mean()) < 0.05 * float((plain / expected - 1).mean())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, UNIT])
def test_points_are_on_the_boundary(norm: Norm, box: Box | None) -> None:
    model, x = tiny_network(8, scale=6.0), images(40)
    found = nearest_boundary(model, x, norm=norm, box=box, tolerance=1e-6)
    assert_on_boundary(model, x, found, 2e-6, norm)
    plain = nearest_boundary(model, x, norm=norm, box=box, tolerance=1e-6, polish=0)
    assert_on_boundary(model, x, plain, 2e-6, norm)
    assert (found.distance <= plain.distance * (1 + 1e-3)).all()
    assert float((found.distance / plain.distance).mean()) < 0.995
    if box is None:
        assert float(found.alignment.min()) > float(plain.alignment.min())
    else:
        assert (found.points >= 0).all()
        assert (found.points <= 1).all()


def plain_deepfool(model: nn.Module, x: Tensor, overshoot: float) -> tuple[Tensor, int]:
    """One image, all classes, as published: the perturbation and the number of steps."""
    source = int(model(x[None]).argmax())
    total, steps = torch.zeros_like(x), 0
    while int(model((x + (1 + overshoot) * total)[None]).argmax()) == source:
        jacobian = torch.autograd.functional.jacobian(lambda y: model(y[None])[0], x + (1 + overshoot) * total)
        logits = model((x + (1 + overshoot) * total)[None])[0]
        best = min(
            (
                (logits[source] - logits[k])
                / (jacobian[k] - jacobian[source]).square().sum()
                * (jacobian[k] - jacobian[source])
                for k in range(len(logits))
                if k != source
            ),
            key=lambda step: float(step.norm()),
        )
        total, steps = total + best, steps + 1
    return total, steps


def test_without_polish_it_is_deepfool() -> None:
    model, x = tiny_network(8, scale=6.0), images(12)
    found = nearest_boundary(model, x, polish=0, slack=torch.inf, tolerance=1e-9)
    for n, image in enumerate(x):
        step, count = plain_deepfool(model, image, 0.02)
        assert found.iterations[n] == count
        r = found.points[n] - image
        assert float((r * step).sum() / r.norm() / step.norm()) == pytest.approx(1, abs=1e-10)
        assert float(found.distance[n]) <= 1.02 * float(step.norm())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_samples_do_not_depend_on_their_batch(norm: Norm) -> None:
    """Nor on one that is not a number, which alone is blocked; passes are counted as they are made."""
    model, x = tiny_network(8, scale=6.0), images(9)
    x[4, 0, 2, 2] = torch.nan
    passed = [0]

    def counted(batch: Tensor) -> Tensor:
        passed[0] += len(batch)
        result: Tensor = model(batch)
        return result

    together = nearest_boundary(counted, x, norm=norm)
    assert together.n_forward == passed[0]
    assert together.n_backward <= together.n_forward * 7
    assert together.status.tolist() == [FOUND] * 4 + [BLOCKED] + [FOUND] * 4
    assert torch.isnan(together.distance).tolist() == [n == 4 for n in range(9)]
    assert together.to_class[4] == -1
    assert torch.equal(together.points[4], x[4]) or torch.isnan(together.points[4]).any()
    targets = (together.from_class + 1) % 8
    projected = project_to_class(model, x, targets, norm=norm)
    assert projected.reached.tolist() == [n != 4 for n in range(9)]
    for n in range(9):
        alone = nearest_boundary(model, x[n : n + 1], norm=norm)
        for name in ("distance", "to_class", "iterations", "residual", "alignment", "slack", "gradient_norm"):
            value, expected = getattr(alone, name), getattr(together, name)[n : n + 1]
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12, equal_nan=True)
        single = project_to_class(model, x[n : n + 1], targets[n : n + 1], norm=norm)
        torch.testing.assert_close(single.distance, projected.distance[n : n + 1], rtol=1e-8, atol=0, equal_nan=True)


def test_images_outside_the_region() -> None:
    """Misclassified, and with two classes equally likely: at distance 0."""
    model, x = Affine(4, 6), normal(8, 6, seed=1)
    predicted = model(x).argmax(1)
    source = predicted.clone()
    source[::2] = (predicted[::2] + 1) % 4
    found = nearest_boundary(model, x, source)
    assert found.status.tolist() == [OUTSIDE, FOUND] * 4
    assert (found.distance[::2] == 0).all()
    assert (found.to_class[::2] == -1).all()
    assert torch.equal(found.points[::2], x[::2])
    assert torch.isnan(found.alignment[::2]).all()
    assert torch.isnan(found.slack).tolist() == [True, False] * 4
    assert (found.iterations[::2] == 0).all()
    torch.testing.assert_close(found.distance[1::2], nearest_boundary(model, x).distance[1::2])
    tied = nearest_boundary(lambda batch: batch @ torch.ones(6, 3, dtype=torch.float64), x)
    assert (tied.status == OUTSIDE).all()


def test_images_that_cannot_leave() -> None:
    x = uniform(5, 6, seed=1)

    def bounded(batch: Tensor) -> Tensor:
        """The second class comes near, but never wins."""
        return torch.stack((torch.zeros(len(batch)).double() + 3, 2 * torch.tanh(batch.sum(1))), dim=1)

    for polish in (0, 5):
        found = nearest_boundary(bounded, x, max_iterations=4, polish=polish)
        assert (found.status == BLOCKED).all()
        assert torch.isnan(found.distance).all()
        assert torch.isnan(found.slack).all()
        assert torch.equal(found.points, x)
        assert (found.iterations <= 4).all()
    flat = nearest_boundary(lambda batch: batch[:, :2] * 0 + torch.tensor([1.0, 0.0]).double(), x)
    assert (flat.status == BLOCKED).all()
    assert (flat.iterations == 0).all()
    far = nearest_boundary(lambda batch: torch.stack((batch.sum(1) * 0 + 9, batch.sum(1)), dim=1), x, box=UNIT)
    assert (far.status == BLOCKED).all()
    missed = project_to_class(bounded, x, torch.ones(5, dtype=torch.int64), max_iterations=4)
    assert not missed.reached.any()
    assert torch.isnan(missed.distance).all()
    assert torch.equal(missed.points, x)


@pytest.mark.parametrize("lost", [slice(None), [0], [1]])
def test_images_without_logits_do_not_reach_a_class(lost: slice | list[int]) -> None:
    """NaN is the largest value to argmax, and its first place the class."""
    model, x = Affine(3, 6), normal(4, 6, seed=1)

    def spoiled(batch: Tensor) -> Tensor:
        logits = model(batch)
        rows = (batch == x[1]).all(1).nonzero()
        logits[rows, lost] = torch.nan
        return logits

    target = torch.zeros(4, dtype=torch.int64)
    found, clean = project_to_class(spoiled, x, target), project_to_class(model, x, target)
    assert clean.reached.all()
    assert found.reached.tolist() == [True, False, True, True]
    assert found.distance[1].isnan()
    assert torch.equal(found.points[1], x[1])
    torch.testing.assert_close(found.points[[0, 2, 3]], clean.points[[0, 2, 3]])


def test_projection_onto_an_affine_region() -> None:
    """Regions with corners, against least distance programming."""
    model, x = Affine(7, 5, seed=4), 2 * normal(40, 5, seed=1)
    target = torch.arange(40) % 7
    found = project_to_class(model, x, target, tolerance=1e-7)
    corners = 0
    for n in range(40):
        rows = [k for k in range(7) if k != target[n]]
        gradients = model.weight[target[n]] - model.weight[rows]
        system = torch.cat((gradients.T, -(gradients @ x[n] + model.bias[target[n]] - model.bias[rows])[None])).numpy()
        weights, residual = nnls(system, [0.0] * 5 + [1.0])
        assert residual > 1e-9 or not found.reached[n]
        if residual <= 1e-9:
            continue
        rest = torch.tensor(system @ weights) - torch.tensor([0.0] * 5 + [1.0])
        torch.testing.assert_close(found.points[n] - x[n], -rest[:5] / rest[5], rtol=1e-5, atol=1e-6)
        corners += int((weights > 1e-9).sum() > 1)
    assert corners > 5
    assert (model(found.points).argmax(1) == target)[found.reached].all()
    inside = model(x).argmax(1) == target
    assert inside.any()
    assert (found.distance[inside] == 0).all()
    assert (found.iterations[inside] == 0).all()
    assert torch.equal(found.points[inside], x[inside])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, UNIT])
def test_projections_end_inside_next_to_the_boundary(norm: Norm, box: Box | None) -> None:
    model, x = tiny_network(6, scale=6.0), images(40)
    with torch.no_grad():
        target = (model(x).argmax(1) + torch.arange(40) % 4) % 6
        found = project_to_class(model, x, target, norm=norm, box=box)
        assert int(found.reached.sum()) >= (40 if box is None else 25)
        assert (model(found.points).argmax(1) == target)[found.reached].all()
        assert ((found.iterations == 0) == (torch.arange(40) % 4 == 0)).all()
        short = x + (1 - 2e-3) * (found.points - x)
        assert (model(short).argmax(1) != target)[found.iterations > 0].all()
    if box is not None:
        assert (found.points >= 0).all()
        assert (found.points <= 1).all()


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "line": lambda t: t - 0.3,
    "power": lambda t: t**9 - 1e-4,
    "steep": lambda t: torch.tanh(1e4 * (t - 0.123456)),
    "step": lambda t: (t >= 0.777).double() - 0.5,
    "next to 0": lambda t: t - 1e-5,
    "beyond 1": lambda t: t - 7.7,
    "never": lambda t: -torch.ones_like(t),
    "not a number": lambda t: torch.where((t == 0) | (t == 1), t - 0.5, torch.nan),
}


def test_crossings_of_any_function() -> None:
    """All at once, each within the tolerance, in as many evaluations as bisection twice over at the worst."""
    curves, zeros = list(CURVES.values()), [0.3, 1e-4 ** (1 / 9), 0.123456, 0.777, 1e-5, 7.7]
    evaluated = [0] * len(curves)

    def value(numbers: Tensor, t: Tensor) -> Tensor:
        for n in numbers.tolist():
            evaluated[n] += 1
        return torch.stack([curves[n](at) for n, at in zip(numbers.tolist(), t, strict=True)])

    every = torch.arange(len(curves))
    ends = [value(every, torch.full((len(curves),), end, dtype=torch.float64)) for end in (0.0, 1.0)]
    evaluated = [0] * len(curves)
    found = find_crossings(value, *ends, torch.full_like(ends[0], torch.nan), 1e-6)
    for n, zero in enumerate(zeros):
        assert found.before[n] < zero * (1 + 1e-12)
        assert zero * (1 - 1e-12) <= found.beyond[n]
        assert found.beyond[n] - found.before[n] <= 1e-6 * found.beyond[n]
        assert found.before[n] <= found.t[n] <= found.beyond[n]
    assert torch.isnan(found.t[6:]).all()
    assert torch.isinf(found.beyond[6:]).all()
    assert evaluated[0] <= 4
    assert max(evaluated) <= 6 + 2 * 40
    assert found.evaluations == sum(evaluated)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"norm": "l1"}, "norm 'l1'"),
        ({"candidates": 0}, "candidates 0"),
        ({"max_iterations": 0}, "max_iterations 0"),
        ({"overshoot": 0.0}, "overshoot 0"),
        ({"tolerance": 1.0}, "tolerance 1"),
        ({"polish": -1}, "polish -1"),
        ({"slack": 0.5}, "slack 0.5"),
        ({"box": (1.0, 0.0)}, "box"),
        ({"from_class": torch.zeros(2, dtype=torch.int64)}, "from_class"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        nearest_boundary(Affine(3, 4), normal(5, 4), **settings)  # type: ignore[arg-type]


def test_models_that_are_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        nearest_boundary(lambda x: x[:, :1], normal(5, 4))
    with pytest.raises(ValueError, match="target"):
        project_to_class(Affine(3, 4), normal(5, 4), torch.zeros(4, dtype=torch.int64))
