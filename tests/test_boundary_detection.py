"""Algorithm 2 on spheres of known curvature and on smooth networks against dense Hessians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import images, tiny_network
from torch import Tensor

from raysense.measures.boundary.classified import runs_of
from raysense.measures.boundary.detection import Detection, detect
from raysense.measures.boundary.margins import UnitVectors

SIZE = 12
SEEDS = [7, 8, 9]
DISTANCES = (2.5, 1.5, 3.5, 4.5)


class Spheres(torch.nn.Module):
    """Class 0 in the middle of the spheres of the other classes, f_i - f_0 = sign_i (|x - c_i|^2 - R_i^2)."""

    def __init__(self, signs: tuple[float, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(len(signs), SIZE, generator=generator, dtype=torch.float64)
        distances = torch.tensor(DISTANCES[: len(signs)], dtype=torch.float64)[:, None]
        self.centres = 0.5 + distances * drawn / drawn.norm(dim=1, keepdim=True)
        self.signs = torch.tensor(signs, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.flatten(1)[:, None] - self.centres).square().sum(2)
        others = self.signs * distance - 60.0 * self.signs.clamp(min=0) - torch.arange(len(self.signs))
        return torch.cat((torch.zeros_like(others[:, :1]), others), dim=1)


def points(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(seeds: list[int], like: Tensor, count: int) -> Tensor:
    """The directions of a detection, [N, T, P]."""
    stream = UnitVectors(seeds, like)
    return torch.stack([stream.draw() for _ in range(count)], dim=1)


def same(one: Detection, other: Detection, **tolerance: float) -> None:
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(other, name), equal_nan=True, **tolerance)


@pytest.mark.parametrize("how", [{"derivatives": "exact"}, {"derivatives": "differences", "step": 0.5}])
def test_spheres_of_known_curvature(how: dict[str, Any]) -> None:
    model, x = Spheres((1.0, 1.0, -1.0, 1.0)), points()
    found = detect(model, x, SEEDS, directions=60, **how)
    assert found.predicted.tolist() == [0, 0, 0]
    offsets = x.flatten(1)[:, None] - model.centres
    radius = offsets.norm(dim=2)
    vectors = drawn(SEEDS, x, 60)
    tangent = 1 - torch.einsum("ncp,ntp->nct", offsets / radius[:, :, None], vectors) ** 2
    # P v' (I / radius) P v; the region of class 0 is the inside of a ball, and of the third class's the outside.
    forms = model.signs[:, None] * tangent / radius[:, :, None]
    by_class = torch.stack([forms[n, found.classes[n] - 1] for n in range(3)])
    torch.testing.assert_close(found.curvature, by_class.mean(2), rtol=1e-9, atol=1e-10)
    by_direction = by_class.sum(1) / 5
    torch.testing.assert_close(found.rho, by_direction.mean(1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.stderr, by_direction.std(1) / 60**0.5, rtol=1e-7, atol=1e-10)
    # Without sampling: v' P v averages to (P - 1) / P.
    expected = (model.signs * (SIZE - 1) / SIZE / radius).sum(1) / 5
    assert ((found.rho - expected).abs() < 4 * found.stderr + 1e-12).all()
    assert (found.rho > 0).all()
    assert torch.equal(found.recovered, 1 + (model.signs / radius).argmax(1))


def test_the_outside_of_balls_is_curved_the_other_way_and_not_flagged() -> None:
    inside, outside = (detect(Spheres((sign,) * 3), points(), SEEDS) for sign in (1.0, -1.0))
    torch.testing.assert_close(inside.rho, -outside.rho)
    assert inside.perturbed().all()
    assert not outside.perturbed().any()
    assert not inside.perturbed(threshold=10.0).any()
    # rho < t says no; the other branch says yes.
    assert inside.perturbed(float(inside.rho[0])).tolist() == (inside.rho >= inside.rho[0]).tolist()


def dense(model: torch.nn.Module, image: Tensor, vectors: Tensor, own: int, other: int) -> Tensor:
    """Mean of v' G v of one image, from its Hessian."""

    def margin(x: Tensor) -> Tensor:
        logits = model(x.view(1, *image.shape))[0]
        return logits[other] - logits[own]

    gradient = torch.autograd.functional.jacobian(margin, image.flatten())
    hessian = torch.autograd.functional.hessian(margin, image.flatten())
    normal = gradient / gradient.norm()
    projection = torch.eye(len(normal), dtype=normal.dtype) - normal[:, None] * normal
    shape = projection @ hessian @ projection / gradient.norm()
    return torch.einsum("tp,pq,tq->t", vectors, shape, vectors).mean()


def test_a_smooth_network_against_dense_hessians_and_differences_of_second_order() -> None:
    model, x = tiny_network(5, scale=3.0), images(3)
    exact = detect(model, x, SEEDS, directions=6)
    vectors = drawn(SEEDS, x, 6)
    expected = torch.tensor(
        [
            [dense(model, x[n], vectors[n], int(exact.predicted[n]), other) for other in exact.classes[n].tolist()]
            for n in range(3)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(exact.curvature, expected, rtol=1e-8, atol=1e-10)
    errors = []
    for step in (0.2, 0.1, 0.05):
        found = detect(model, x, SEEDS, directions=6, derivatives="differences", step=step)
        errors.append(float((found.curvature - exact.curvature).abs().max()))
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5
    assert errors[2] < 1e-2 * float(exact.curvature.abs().max())


def test_a_network_of_kinks_only_bends_at_the_scale_of_the_step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(30, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    ).double()
    exact = detect(model, images(3), SEEDS, directions=6)
    assert (exact.curvature == 0).all()
    rough = detect(model, images(3), SEEDS, directions=6, derivatives="differences", step=0.5)
    assert (rough.curvature.abs() > 1e-3).any()


@pytest.mark.parametrize("how", [{"derivatives": "exact"}, {"derivatives": "differences", "step": 0.1}])
def test_images_do_not_depend_on_the_batch_nor_on_the_runs(how: dict[str, Any]) -> None:
    model, x = tiny_network(5), images(3)
    whole = detect(model, x, SEEDS, directions=5, **how)
    for size in (1, 7, 1000):
        same(whole, detect(model, x, SEEDS, directions=5, runs=runs_of(size), **how), rtol=1e-7, atol=1e-9)
    for n in range(3):
        alone = detect(model, x[n : n + 1], SEEDS[n : n + 1], directions=5, **how)
        torch.testing.assert_close(alone.rho, whole.rho[n : n + 1], rtol=1e-7, atol=1e-9)


def test_the_largest_logits_are_measured_and_all_of_them_are_all() -> None:
    model, x = tiny_network(6), images(3)
    every = detect(model, x, SEEDS, directions=5)
    assert every.classes.shape == (3, 5)
    same(every, detect(model, x, SEEDS, directions=5, top=5))
    same(every, detect(model, x, SEEDS, directions=5, top=99))
    order = model(x).argsort(dim=1, descending=True)
    assert torch.equal(every.classes, order[:, 1:])
    two = detect(model, x, SEEDS, directions=5, top=2)
    assert torch.equal(two.classes, order[:, 1:3])
    torch.testing.assert_close(two.curvature, every.curvature[:, :2])
    # L counts the predicted class, whose term is zero.
    torch.testing.assert_close(two.rho, every.curvature[:, :2].sum(1) / 3)
    torch.testing.assert_close(every.rho, every.curvature.sum(1) / 6)


@pytest.mark.parametrize("how", [{"derivatives": "exact"}, {"derivatives": "differences", "step": 0.1}])
def test_what_is_not_finite_stays_where_it_is(how: dict[str, Any]) -> None:
    network, x = tiny_network(4), images(3)

    def model(batch: Tensor) -> Tensor:
        # The second image has logits that are constant: no gradient, so no boundary.
        flat = (batch.flatten(1)[:, :1] > 10).to(batch.dtype)
        return (1 - flat) * network(batch) + flat * torch.arange(4, dtype=batch.dtype)

    x[1] = 20.0
    x[2] = torch.nan
    found = detect(model, x, SEEDS, directions=4, **how)
    assert found.rho.isfinite().tolist() == [True, False, False]
    assert found.recovered[1:].tolist() == [-1, -1]
    assert found.n_classes.tolist() == [3, 0, 0]
    assert found.curvature[1:].isnan().all()
    assert not found.perturbed(-100.0)[1:].any()
    alone = detect(network, images(3)[:1], SEEDS[:1], directions=4, **how)
    torch.testing.assert_close(found.rho[:1], alone.rho, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("how", [{"derivatives": "exact"}, {"derivatives": "differences", "step": 0.1}])
def test_a_class_without_a_normal_is_left_out(how: dict[str, Any]) -> None:
    """At the second image class 1 has the predicted class's gradient, or one that is not finite."""
    network, x = tiny_network(4), images(3)
    predicted = int(network(x[1:2]).argmax())
    other = (predicted + 1) % 4
    expected = detect(network, x, SEEDS, directions=4, **how)
    left = expected.classes[1] != other
    terms = expected.curvature[1, left]
    for spoil in (lambda own: own - 1, lambda own: own * (1e308 * own - 1e308 * own.detach()) * 1e308):

        def model(batch: Tensor, spoil: Any = spoil) -> Tensor:
            logits = network(batch)
            here = ((batch - x[1]).flatten(1).norm(dim=1) < 1)[:, None] & (torch.arange(4) == other)
            return torch.where(here, spoil(logits[:, [predicted]]), logits)

        found = detect(model, x, SEEDS, directions=4, **how)
        assert found.n_classes.tolist() == [3, 2, 3]
        place = found.classes[1] == other
        assert found.curvature[1].isnan().tolist() == place.tolist()
        torch.testing.assert_close(found.curvature[1, ~place], terms)
        torch.testing.assert_close(found.rho[1], terms.sum() / 3)
        assert found.stderr.isfinite().all()
        assert found.recovered[1] == expected.classes[1, left][terms.argmax()]
        torch.testing.assert_close(found.rho[[0, 2]], expected.rho[[0, 2]])


@pytest.mark.parametrize("how", [{"derivatives": "exact"}, {"derivatives": "differences", "step": 0.1}])
def test_no_graph_is_left_where_parameters_require_grad(how: dict[str, Any]) -> None:
    found = detect(tiny_network(4).requires_grad_(True), images(2), [1, 2], directions=3, **how)
    assert not any(value.requires_grad for value in vars(found).values())


def test_what_cannot_be_is_refused() -> None:
    model, x = tiny_network(4), images(2)
    for named, message in [
        ({"directions": 0}, "directions 0 must be at least 1"),
        ({"top": -1}, "top -1 must not be negative"),
        ({"derivatives": "differences"}, "step None must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            detect(model, x, [1, 2], **named)
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        detect(model, x, SEEDS)
    assert detect(model, x, [1, 2], directions=1).stderr.isnan().all()
