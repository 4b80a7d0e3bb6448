"""Curvature of decision boundaries: closed forms of quadrics, dense Hessians, and what differences do with the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from networks import images, tiny_network
from torch import Tensor, nn

from raysense.measures.boundary.curvature import (
    curvature_at_steps,
    extreme_curvatures,
    mean_curvature,
    spectrum,
)
from raysense.measures.boundary.kinks import smoothness
from raysense.measures.boundary.margins import margin
from raysense.measures.boundary.shape_operator import Derivatives, ShapeOperator
from raysense.measures.gradients import Model

EXACT_AND_DIFFERENCES = [("exact", None), ("differences", 1e-4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def margin_model(function: Callable[[Tensor], Tensor]) -> Model:
    """Images [N, ...] to logits (0, F): class 0 where F < 0, class 1 where F > 0."""

    def model(batch: Tensor) -> Tensor:
        value = function(batch.flatten(1))
        return torch.stack((torch.zeros_like(value), value), dim=1)

    return model


def pair(count: int, swapped: bool = False) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(count, dtype=torch.int64)
    return (zeros + 1, zeros) if swapped else (zeros, zeros + 1)


def principal(
    model: Model, point: Tensor, derivatives: Derivatives, step: float | None, swapped: bool = False
) -> Tensor:
    from_class, to_class = pair(1, swapped)
    return spectrum(model, point, from_class[0], to_class[0], derivatives, step, pass_size=6).curvatures


def dense_operator(model: Model, point: Tensor, from_class: int, to_class: int) -> tuple[Tensor, Tensor]:
    """P H P / |grad F| as a matrix, and the unit normal."""

    def value(x: Tensor) -> Tensor:
        return margin(model(x.view(1, *point.shape)), torch.tensor([from_class]), torch.tensor([to_class])).sum()

    flat = point.flatten()
    gradient = torch.autograd.functional.jacobian(value, flat)
    hessian = torch.autograd.functional.hessian(value, flat)
    unit = gradient / gradient.norm()
    projection = torch.eye(len(flat), dtype=flat.dtype) - torch.outer(unit, unit)
    return projection @ hessian @ projection / gradient.norm(), unit


def dense_curvatures(matrix: Tensor, unit: Tensor) -> Tensor:
    """Its eigenvalues on the tangent space, descending."""
    basis = torch.linalg.qr(torch.cat((unit[:, None], normal(len(unit), len(unit) - 1)), dim=1)).Q[:, 1:]
    return torch.linalg.eigvalsh(basis.T @ matrix @ basis).flip(0)


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
def test_an_affine_boundary_is_flat(derivatives: Derivatives, step: float | None) -> None:
    weights, points = normal(6, seed=9), normal(4, 1, 2, 3, seed=1)
    model = margin_model(lambda x: x @ weights - 0.5)
    operator = ShapeOperator(model, points, *pair(4), derivatives, step)
    torch.testing.assert_close(operator.normal, (weights / weights.norm()).expand(4, 6))
    torch.testing.assert_close(operator.gradient_norm, weights.norm().expand(4))
    mean = mean_curvature(operator, range(4), 5)
    assert mean.mean.shape == (4,)
    assert mean.magnitude.abs().max() < 1e-11
    assert principal(model, points[0], derivatives, step).abs().max() < 1e-11
    extremes = extreme_curvatures(operator, 2, range(4))
    assert extremes.curvatures.abs().max() < 1e-11
    assert extremes.converged.all()
    if derivatives == "exact":
        assert mean.magnitude.tolist() == [0] * 4


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
@pytest.mark.parametrize("radius", [0.3, 5.0])
def test_a_sphere_has_the_curvature_of_its_radius(radius: float, derivatives: Derivatives, step: float | None) -> None:
    """Positive for the region inside; however F changes across the boundary."""
    centre, ways = normal(8), normal(3, 8, seed=1)
    points = (centre + radius * ways / ways.norm(dim=1, keepdim=True)).view(3, 2, 2, 2)
    for across in (lambda square: square - radius**2, lambda square: torch.log(square / radius**2)):
        model = margin_model(lambda x, across=across: across((x - centre).square().sum(1)))
        for swapped, expected in ((False, 1 / radius), (True, -1 / radius)):
            operator = ShapeOperator(model, points, *pair(3, swapped), derivatives, step)
            mean = mean_curvature(operator, range(3), 4)
            torch.testing.assert_close(mean.mean, torch.full((3,), expected, dtype=torch.float64), rtol=1e-6, atol=0)
            assert mean.stderr.max() < 1e-6 / radius
            torch.testing.assert_close(mean.magnitude, mean.mean.abs())
            # All eigenvalues are the same: Lanczos has to begin again for each.
            extremes = extreme_curvatures(operator, 3, range(3))
            torch.testing.assert_close(
                extremes.curvatures, torch.full((3, 6), expected, dtype=torch.float64), rtol=1e-6, atol=0
            )
            found = principal(model, points[0], derivatives, step, swapped)
            torch.testing.assert_close(found, torch.full((7,), expected, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
def test_quadrics_have_the_curvatures_of_their_axes(derivatives: Derivatives, step: float | None) -> None:
    axes = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0], dtype=torch.float64)
    ellipsoid = margin_model(lambda x: (x / axes).square().sum(1) - 1)
    for place in range(5):  # at the end of an axis a the curvatures are a / b^2
        point = torch.zeros(5, dtype=torch.float64)
        point[place] = axes[place]
        expected = torch.cat((axes[:place], axes[place + 1 :])).pow(-2).mul(axes[place]).sort(descending=True).values
        torch.testing.assert_close(principal(ellipsoid, point, derivatives, step), expected, rtol=1e-6, atol=1e-6)
    # Elsewhere their product, the Gaussian curvature, is d^(n + 1) / (a_1 ... a_n)^2, d the tangent plane's distance.
    on = normal(5) / 3
    on = on / (on / axes).norm()
    distance = 1 / (on / axes.square()).norm()
    found = principal(ellipsoid, on, derivatives, step)
    assert found.prod().item() == pytest.approx((distance**6 / axes.prod() ** 2).item(), rel=1e-5)

    bends = torch.tensor([3.0, 1.0, 0.0, -2.0], dtype=torch.float64)
    saddle = margin_model(lambda x: 7 * (x[:, 4] - 0.5 * (bends * x[:, :4].square()).sum(1)))
    found = principal(saddle, torch.zeros(5, dtype=torch.float64), derivatives, step)
    torch.testing.assert_close(found, (-bends).sort(descending=True).values, rtol=1e-6, atol=1e-6)


def smooth_network() -> tuple[nn.Module, Tensor]:
    """Convolutions, so that images have a layout of their own, and three classes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.Softplus()
    )
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(27, 3)).double().eval().requires_grad_(False)
    return network, normal(3, 2, 4, 4, seed=5)


def test_a_smooth_network_equals_its_dense_hessian() -> None:
    network, points = smooth_network()
    assert smoothness(network, points).derivatives == "exact"
    from_class, to_class = torch.tensor([0, 2, 1]), torch.tensor([1, 0, 0])
    operator = ShapeOperator(network, points, from_class, to_class, "exact")
    vectors = normal(3, 32, seed=6)
    products, curvatures = operator.product(vectors), operator.normal_curvature(3 * vectors)
    mean = mean_curvature(operator, (4, 5, 6), 400)
    extremes = extreme_curvatures(operator, 3, (1, 2, 3), tolerance=1e-8, iterations=31)
    assert extremes.converged.all()
    for i in range(3):
        matrix, unit = dense_operator(network, points[i], int(from_class[i]), int(to_class[i]))
        expected = dense_curvatures(matrix, unit)
        torch.testing.assert_close(operator.normal[i], unit)
        torch.testing.assert_close(products[i], matrix @ vectors[i])
        tangent = vectors[i] - unit * (unit @ vectors[i])
        torch.testing.assert_close(curvatures[i], tangent @ matrix @ tangent / (tangent @ tangent))
        found = spectrum(network, points[i], from_class[i], to_class[i], "exact", pass_size=5)
        torch.testing.assert_close(found.curvatures, expected)
        torch.testing.assert_close(found.directions @ matrix, expected[:, None] * found.directions)
        torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(31, dtype=torch.float64))
        assert (found.directions @ unit).abs().max() < 1e-12
        assert found.residual.max() < 1e-12
        assert (found.asymmetry < 1e-12, found.stderr) == (True, 0)
        assert abs(mean.mean[i] - expected.mean()) < 4 * mean.stderr[i]
        # Its own spread: of a quadratic form on the sphere of d dimensions, 2 (mean square - square of the mean) / (d + 2).
        variance = 2 * (expected.square().mean() - expected.mean() ** 2) / (31 + 2)
        assert mean.stderr[i].item() == pytest.approx(math.sqrt(variance / 400), rel=0.2)
        ends = torch.cat((expected[:3], expected[-3:]))
        torch.testing.assert_close(extremes.curvatures[i], ends)
        assert ((extremes.curvatures[i] - ends).abs() <= extremes.residuals[i]).all()
        torch.testing.assert_close(
            extremes.directions[i] @ matrix, ends[:, None] * extremes.directions[i], rtol=1e-6, atol=1e-6
        )


def test_differences_converge_as_the_square_of_the_step() -> None:
    network, points = smooth_network()
    exact = ShapeOperator(network, points, *pair(3), "exact")
    vectors = normal(3, 32, seed=6)
    expected, mean = exact.product(vectors), mean_curvature(exact, range(3), 8)
    steps = (0.4, 0.2, 0.1, 0.05)
    differences = [ShapeOperator(network, points, *pair(3), "differences", step) for step in steps]
    errors = [(operator.product(vectors) - expected).norm().item() for operator in differences]
    study = curvature_at_steps(network, points, *pair(3), steps, range(3), 8)
    mean_errors = [(found.mean - mean.mean).norm().item() for found in study]
    for measured in (errors, mean_errors):
        orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(measured)]
        assert orders[-1] == pytest.approx(2, abs=0.05)
        assert measured[-1] < measured[0] / 30
    torch.testing.assert_close(study[1].mean, mean_curvature(differences[1], range(3), 8).mean)
    with pytest.raises(ValueError, match="step"):
        ShapeOperator(network, points, *pair(3), "differences")
    with pytest.raises(ValueError, match="step -1"):
        exact.with_step(-1)
    with pytest.raises(ValueError, match="directions 1 "):
        mean_curvature(exact, range(3), 1)
    with pytest.raises(ValueError, match="whole spectrum"):
        extreme_curvatures(exact, 16, range(3))
    with pytest.raises(ValueError, match="iterations 9 "):
        extreme_curvatures(exact, 5, range(3), iterations=9)


def test_a_relu_network_is_flat_almost_everywhere_and_curved_at_a_scale() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 3)).double().requires_grad_(False)
    points = images(3)
    found = smoothness(network, points)
    assert (found.piecewise_linear, found.derivatives, found.kinks) == (True, "differences", ("relu",))
    exact = ShapeOperator(network, points, *pair(3), "exact")
    assert mean_curvature(exact, range(3), 4).magnitude.tolist() == [0, 0, 0]
    assert principal(network, points[0], "exact", None).abs().max() == 0
    study = curvature_at_steps(network, points, *pair(3), (1e-9, 0.5), range(3), 8)
    assert study[0].magnitude.max() < 1e-6  # no kink so near
    assert study[1].magnitude.min() > 1e-3
    spread = spectrum(network, points[0], *(value[0] for value in pair(1)), "differences", 0.5)
    assert spread.curvatures[0] > 1e-2 > -1e-2 > spread.curvatures[-1]
    assert 1e-3 < spread.asymmetry < 1
    assert 0 < spread.stderr < spread.curvatures.abs().mean()


def relu_network(size: int) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(size, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    return network.double().requires_grad_(False)


def test_more_bases_divide_the_noise_that_spreads_the_ends() -> None:
    network, point, classes = relu_network(30), images(1)[0], [value[0] for value in pair(1)]

    def spectra(count: int, bases: int, first: int) -> tuple[Tensor, Tensor, float, float]:
        """Ends and means of the curvatures with several seeds, and means of asymmetry and standard error."""
        found = [
            spectrum(network, point, *classes, "differences", 0.5, seed=seed, bases=bases)
            for seed in range(first, first + count)
        ]
        curvatures = torch.stack([one.curvatures for one in found])
        asymmetry, stderr = (sum(getattr(one, name) for one in found) / count for name in ("asymmetry", "stderr"))
        return curvatures[:, [0, -1]], curvatures.mean(1), asymmetry, stderr

    reference = spectra(1, 300, 1000)[0][0]
    ends, means, asymmetry, stderr = spectra(24, 1, 0)
    beyond = ends.mean(0) / reference - 1
    assert (beyond > 0.04).all()
    assert means.std() < stderr < 5 * means.std()  # orthonormal directions are not independent
    ends, fewer, less, error = spectra(12, 8, 100)
    assert (ends.mean(0) / reference - 1).abs().max() < 0.08
    assert (ends.mean(0) / reference - 1 < beyond / 2).all()
    assert less == pytest.approx(asymmetry / math.sqrt(8), rel=0.3)
    assert error == pytest.approx(means.std().item() / math.sqrt(8), rel=0.4)
    assert error == pytest.approx(fewer.std().item(), rel=0.6)
    # The first basis is the same.
    one, two = (spectrum(network, point, *classes, "differences", 0.5, seed=1, bases=bases) for bases in (1, 2))
    assert 0 < abs(one.curvatures.mean() - two.curvatures.mean()) < 4 * one.stderr
    smooth, points = smooth_network()
    for bases in (1, 3):
        exact = spectrum(smooth, points[0], *classes, "exact", bases=bases)
        torch.testing.assert_close(exact.curvatures, spectrum(smooth, points[0], *classes, "exact").curvatures)
        assert exact.stderr == 0
    with pytest.raises(ValueError, match="bases 0 "):
        spectrum(network, point, *classes, "differences", 0.5, bases=0)


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
def test_directions_of_the_largest_magnitudes_are_kept(derivatives: Derivatives, step: float | None) -> None:
    network, points = smooth_network()
    classes = [value[0] for value in pair(1)]
    every = spectrum(network, points[0], *classes, derivatives, step)
    order = every.curvatures.abs().argsort(descending=True)
    assert (every.curvatures[order[:5]] < 0).any()
    for keep in (0, 5, 31, 99):
        found = spectrum(network, points[0], *classes, derivatives, step, keep=keep)
        torch.testing.assert_close(found.curvatures, every.curvatures)
        torch.testing.assert_close(found.residual, every.residual, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.directions, every.directions[order[:keep]])
        lost = spectrum(network, points[0] / 0, *classes, derivatives, step, keep=keep)
        assert lost.directions.isnan().all()
        assert (lost.directions.shape, lost.residual.shape) == (found.directions.shape, (31,))
    with pytest.raises(ValueError, match="keep -1 "):
        spectrum(network, points[0], *classes, derivatives, step, keep=-1)


def test_passes_shrink_with_the_batch_and_the_size_that_is_allowed() -> None:
    network, sizes = relu_network(30), []

    def model(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return network(batch)

    classes = [value[0] for value in pair(1)]
    for derivatives, allowed, most in (("differences", 1, 2), ("differences", 7, 6), ("exact", 1, 1), ("exact", 7, 7)):
        sizes.clear()
        spectrum(model, images(1)[0], *classes, derivatives, 0.1, pass_size=allowed)
        assert max(sizes) == most
    operator = ShapeOperator(model, images(2), *pair(2), "differences", 0.1)
    for allowed, most in ((1, 4), (7, 4), (8, 8)):
        sizes.clear()
        extreme_curvatures(operator, 1, range(2), iterations=3, samples=4, pass_size=allowed)
        assert max(sizes) == most


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
def test_no_graph_is_left_where_parameters_require_grad(derivatives: Derivatives, step: float | None) -> None:
    network, points = smooth_network()
    network.requires_grad_(True)
    operator = ShapeOperator(network, points, *pair(3), derivatives, step)
    extremes = extreme_curvatures(operator, 1, range(3), iterations=4)
    found = spectrum(network, points[0], *(value[0] for value in pair(1)), derivatives, step)
    tensors = [operator.normal, operator.gradient_norm, *mean_curvature(operator, range(3), 2)]
    tensors += [extremes.curvatures, extremes.residuals, extremes.directions]
    tensors += [found.curvatures, found.directions, found.residual]
    assert not any(value.requires_grad for value in tensors)


def test_a_crease_has_the_curvature_of_its_angle_over_the_step() -> None:
    """F = y + a |x| turns its normal by 2a over the length 2h."""
    model = margin_model(lambda x: x[:, 1] + 0.7 * x[:, 0].abs())
    operator = ShapeOperator(model, torch.zeros(1, 3, dtype=torch.float64), *pair(1), "differences", 0.1)
    across, along = torch.eye(3, dtype=torch.float64)[[0, 2]]
    for step in (0.1, 0.02):
        scaled = operator.with_step(step)
        assert scaled.normal_curvature(across[None]).item() == pytest.approx(0.7 / step)
        assert scaled.normal_curvature(along[None]).item() == 0
        torch.testing.assert_close(scaled.product(5 * across[None]), 5 * 0.7 / step * across[None])


def test_random_directions_see_the_crease_averaged_over_a_disc() -> None:
    """The tangent space is a plane; a share s of the disc of radius h lies within h / sqrt(2) of the crease."""
    step, bend = 0.1, 0.7
    model = margin_model(lambda x: x[:, 1] + bend * x[:, 0].abs())
    point = torch.zeros(3, dtype=torch.float64)
    operator = ShapeOperator(model, point[None], *pair(1), "differences", step)
    averaged = operator.averaged([5], 3000, pass_size=3000)
    across, along = torch.eye(3, dtype=torch.float64)[[0, 2]]
    share = (math.pi / 4 + 0.5) * 2 / math.pi
    expected = bend * share / (step / math.sqrt(2))
    assert averaged.normal_curvature(across[None]).item() == pytest.approx(expected, rel=0.03)
    assert averaged.normal_curvature(along[None]).abs().item() < 1e-9
    # The mean of the second derivative over the disc is 2 bend times the density of x there, 2 / (pi h); half the trace.
    mean = 2 * bend / (math.pi * step)
    found = mean_curvature(operator, [1], 600)
    assert abs(found.mean.item() - mean) < 4 * found.stderr.item()
    classes = [value[0] for value in pair(1)]
    spectra = [spectrum(model, point, *classes, "differences", step, seed=seed) for seed in range(150)]
    means = torch.stack([one.curvatures.mean() for one in spectra])
    assert abs(means.mean().item() - mean) < 4 * means.std().item() / math.sqrt(150)
    assert 0 < torch.tensor([one.stderr for one in spectra]).mean() < mean
    largest = torch.stack([one.curvatures[0] for one in spectra])
    assert largest.mean().item() == pytest.approx(2 * mean, rel=0.1)


def test_extremes_by_differences_are_measured_by_other_moves_than_those_of_the_search() -> None:
    network, points = smooth_network()
    exact = extreme_curvatures(ShapeOperator(network, points, *pair(3), "exact"), 2, range(3), 1e-6, 31)
    operator = ShapeOperator(network, points, *pair(3), "differences", 0.01)
    found = extreme_curvatures(operator, 2, range(3), 1e-3, 31, samples=4)
    torch.testing.assert_close(found.curvatures, exact.curvatures, rtol=1e-2, atol=1e-3)
    assert (found.residuals < 0.05 * exact.curvatures.abs().amax()).all()
    assert found.converged.all()
    assert (
        operator.averaged(range(3), 4)
        .with_step(0.01)
        .product(operator.normal + 1)
        .equal(operator.product(operator.normal + 1))
    )

    torch.manual_seed(0)
    kinked = nn.Sequential(nn.Flatten(), nn.Linear(30, 200), nn.ReLU(), nn.Linear(200, 3)).double()
    kinked.requires_grad_(False)
    operator = ShapeOperator(kinked, images(2), *pair(2), "differences", 0.5)
    found = extreme_curvatures(operator, 2, range(2), iterations=20, samples=8)
    reference = operator.averaged((70, 71), 400)
    for place in range(4):
        directions = found.directions[:, place]
        torch.testing.assert_close(directions.norm(dim=1), torch.ones(2, dtype=torch.float64))
        assert (directions * operator.normal).sum(1).abs().max() < 1e-12
        torch.testing.assert_close(
            reference.normal_curvature(directions), found.curvatures[:, place], rtol=0.5, atol=0.1
        )
    assert (found.curvatures.diff(dim=1) <= 0).all()
    assert (found.curvatures[:, 0] > 0.05).all()
    assert (found.curvatures[:, 3] < -0.05).all()


@pytest.mark.parametrize(("derivatives", "step"), EXACT_AND_DIFFERENCES)
def test_points_do_not_notice_each_other(derivatives: Derivatives, step: float | None) -> None:
    network = tiny_network(3)
    points = images(4)
    operator = ShapeOperator(network, points, *pair(4), derivatives, step)
    expected, ends = mean_curvature(operator, range(4), 3), extreme_curvatures(operator, 2, range(4))
    spoiled = points.clone()
    spoiled[1] = torch.nan
    flat = network[-1].weight.clone()

    def model(batch: Tensor) -> Tensor:  # no gradient at the third point
        constant = (batch.flatten(1) == points[2].flatten()).all(1)
        return torch.where(constant[:, None], flat[:, 0] + 0 * network(batch), network(batch))

    chosen = [3, 1, 2, 0]
    operator = ShapeOperator(model, spoiled[chosen], *pair(4), derivatives, step)
    found, found_ends = mean_curvature(operator, chosen, 3), extreme_curvatures(operator, 2, chosen)
    assert operator.gradient_norm[2] == 0
    for values in (found.mean, found.stderr, found.magnitude, found_ends.curvatures, found_ends.residuals):
        assert values[1:3].isnan().all()
        assert values[[0, 3]].isfinite().all()
    torch.testing.assert_close(found.mean[[0, 3]], expected.mean[[3, 0]])
    torch.testing.assert_close(found_ends.curvatures[[0, 3]], ends.curvatures[[3, 0]])
    assert found_ends.converged.tolist() == [True, False, False, True]
    lost = spectrum(model, spoiled[1], *(value[0] for value in pair(1)), derivatives, step)
    assert lost.curvatures.isnan().all()
    assert math.isnan(lost.asymmetry)
    assert math.isnan(lost.stderr)


def test_single_precision() -> None:
    network, points = smooth_network()
    double = mean_curvature(ShapeOperator(network, points, *pair(3), "exact"), range(3), 16)
    network, points = network.float(), points.float()
    for derivatives, step in (("exact", None), ("differences", 0.01)):
        operator = ShapeOperator(network, points, *pair(3), derivatives, step)
        assert (operator.normal.dtype, operator.product(operator.normal).dtype) == (torch.float32, torch.float32)
        found = mean_curvature(operator, range(3), 16)
        assert found.mean.dtype == torch.float64
        torch.testing.assert_close(found.mean, double.mean, rtol=1e-3, atol=1e-4)
