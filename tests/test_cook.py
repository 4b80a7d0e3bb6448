"""Cook's local influence by Lanczos against the dense generalised eigenproblem, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import dense_influence, dense_jacobian, images, tiny_network
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from raysense.measures.cook import cook_influence, cook_of_input, cook_of_parameters


def dense_spectrum(hessian: Tensor, gradient: Tensor) -> Tensor:
    """The stationary values of Eq. (5): generalised eigenvalues of (H, I + g g^T), over sqrt(1 + g.g)."""
    metric = torch.eye(len(gradient), dtype=torch.float64) + torch.outer(gradient, gradient)
    return torch.linalg.eigvals(torch.linalg.solve(metric, hessian)).real / (1 + gradient @ gradient).sqrt()


def dense_cook(hessian: Tensor, gradient: Tensor) -> float:
    return float(dense_spectrum(hessian, gradient).max())


def dense_cook_of(f: Callable[[Tensor], Tensor], w: Tensor) -> float:
    return dense_cook(torch.autograd.functional.hessian(f, w), torch.autograd.functional.jacobian(f, w))


def surprise(logits: Tensor, chosen: int) -> Tensor:
    return -logits.log_softmax(-1)[..., chosen].sum()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(samples: int, size: int, seed: int = 0) -> Tensor:
    matrix = normal(samples, size, size, seed=seed)
    return matrix + matrix.transpose(1, 2)


def product_of(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda vectors: (matrix @ vectors[:, :, None]).squeeze(2)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_largest_eigenvalue_of_any_sign(size: int, shift: float) -> None:
    """Indefinite and negative definite Hessians, and gradients of very different lengths, among them zero."""
    matrix = symmetric(5, size) + shift * torch.eye(size, dtype=torch.float64)
    gradient = normal(5, size, seed=1) * torch.tensor([0.0, 1e-9, 1.0, 30.0, 1e6])[:, None]
    result = cook_influence(product_of(matrix), gradient, tolerance=1e-9, iterations=60)
    expected = torch.tensor([dense_cook(h, g) for h, g in zip(matrix, gradient, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(result.value[:4], expected[:4], rtol=1e-7, atol=0)
    # The dense solution itself has a rounding of 1e-16 (1 + g.g).
    torch.testing.assert_close(result.value[4], expected[4], rtol=1e-3, atol=1e-12)
    assert result.products <= size
    if shift and size > 1:
        assert (result.value[:4] < 0).all()


@pytest.mark.parametrize("iterations", [1, 2, 4, 8, 16])
def test_an_eigenvalue_lies_within_the_error(iterations: int) -> None:
    """However few the products; from a few on, with a gap in the spectrum, it is the largest one."""
    matrix, top = symmetric(6, 40, seed=1), normal(6, 40)
    matrix, gradient = matrix + 3 * top[:, :, None] * top[:, None, :], normal(6, 40, seed=3)
    result = cook_influence(product_of(matrix), gradient, tolerance=1e-14, iterations=iterations)
    for i in range(6):
        eigenvalues = dense_spectrum(matrix[i], gradient[i])
        distances = (eigenvalues - result.value[i]).abs()
        assert distances.min() <= result.error[i]
        assert result.value[i] <= eigenvalues.max() * (1 + 1e-12)
        if iterations > 4:
            assert distances[eigenvalues.argmax()] <= result.error[i] < 0.5 * eigenvalues.max()
    assert result.products == iterations


def test_stops_at_the_tolerance_for_all_samples() -> None:
    matrix, gradient = symmetric(6, 200), normal(6, 200, seed=1)
    loose, tight = (cook_influence(product_of(matrix), gradient, tolerance, 200) for tolerance in (1e-2, 1e-8))
    assert (loose.error <= 1e-2 * loose.value).all()
    assert (tight.error <= 1e-8 * tight.value).all()
    assert loose.products < tight.products < 150


def test_an_invariant_subspace_ends_the_search() -> None:
    """Hessians of rank 0, 1 and 2, also negative ones, whose largest eigenvalue is 0."""
    factor = normal(4, 30, 2)
    signs = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, -1.0], [-1.0, -2.0]], dtype=torch.float64)
    matrix = torch.einsum("nis,ns,njs->nij", factor, signs, factor)
    gradient = normal(4, 30, seed=1)
    result = cook_influence(product_of(matrix), gradient, tolerance=1e-12, iterations=30)
    expected = torch.tensor([dense_cook(h, g) for h, g in zip(matrix, gradient, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(result.value, expected, rtol=1e-9, atol=1e-12)
    assert ((result.value - expected).abs() <= result.error + 1e-14).all()
    assert result.value[0] == 0
    assert result.error[0] == 0
    assert result.products <= 5


def test_samples_without_finite_values_and_other_batches_change_nothing() -> None:
    matrix, gradient = symmetric(4, 20), normal(4, 20, seed=1)
    expected = cook_influence(product_of(matrix), gradient)
    alone = cook_influence(product_of(matrix[3:]), gradient[3:])
    torch.testing.assert_close(expected.value[3:], alone.value, rtol=1e-3, atol=0)
    matrix[0, 0, 0], gradient[1, 4] = torch.nan, torch.inf
    result = cook_influence(product_of(matrix), gradient)
    assert result.value.isnan().tolist() == [True, True, False, False]
    assert result.error.isnan().tolist() == [True, True, False, False]
    torch.testing.assert_close(result.value[2:], expected.value[2:], rtol=1e-3, atol=0)


def small_network(activation: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), activation(), nn.Flatten(), nn.Linear(12, 4))
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    return network.double().eval().requires_grad_(False)


class InPlaceReLU(nn.ReLU):
    def __init__(self) -> None:
        super().__init__(inplace=True)


@pytest.mark.parametrize("activation", [nn.Softplus, InPlaceReLU])
def test_input_and_parameters_of_a_network_equal_the_dense_hessian(activation: type[nn.Module]) -> None:
    network = small_network(activation)
    x = normal(3, 1, 4, 4)
    classes = torch.tensor([0, 3, 2])
    of_input = cook_of_input(network, x, classes, tolerance=1e-10)
    names = ["0.weight", "0.bias", "1.weight", "4.weight"]
    sizes = [network.get_parameter(name).numel() for name in names]
    for i, chosen in enumerate(classes.tolist()):

        def at(w: Tensor, image: Tensor, chosen: int = chosen) -> Tensor:
            parts = {
                name: part.view_as(network.get_parameter(name))
                for name, part in zip(names, w.split(sizes), strict=True)
            }
            return surprise(functional_call(network, parts, (image.view(1, 1, 4, 4),)), chosen)

        def of_weights(w: Tensor, i: int = i) -> Tensor:
            return at(w, x[i])

        def jointly(w: Tensor) -> Tensor:
            return at(w[:-16], w[-16:])

        weights = torch.cat([network.get_parameter(name).flatten() for name in names])
        expected = dense_cook_of(
            lambda image, i=i: surprise(network(image.view(1, 1, 4, 4)), int(classes[i])), x[i].flatten()
        )
        assert of_input.value[i].item() == pytest.approx(expected, rel=1e-8)
        assert abs(of_input.value[i].item() - expected) <= of_input.error[i].item()
        alone = cook_of_parameters(network, names, x[i], chosen, tolerance=1e-10)
        joint = cook_of_parameters(network, names, x[i : i + 1], chosen, with_input=True, tolerance=1e-10)
        assert alone.value.item() == pytest.approx(dense_cook_of(of_weights, weights), rel=1e-8)
        assert joint.value.item() == pytest.approx(
            dense_cook_of(jointly, torch.cat((weights, x[i].flatten()))), rel=1e-8
        )
        assert joint.value.shape == joint.error.shape == (1,)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(AttributeError, match="nothing"):
        cook_of_parameters(network, ["nothing"], x[0], 0)


def test_a_piecewise_linear_network_has_the_gauss_newton_hessian() -> None:
    network = small_network(InPlaceReLU)
    x = normal(1, 1, 4, 4)
    jacobian, p = dense_jacobian(network, x[0]), network(x)[0].softmax(0)
    metric = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
    expected = dense_cook(metric, p @ jacobian - jacobian[1])
    result = cook_of_input(network, x, torch.tensor([1]), tolerance=1e-10)
    assert result.value.item() == pytest.approx(expected, rel=1e-8)


def test_parameters_without_effect_have_no_influence() -> None:
    network = small_network(nn.Softplus)
    network.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    network.forward = nn.Sequential(*list(network)).forward
    x = normal(1, 1, 4, 4)
    result = cook_of_parameters(network, ["unused"], x, 1)
    assert (result.value.item(), result.error.item()) == (0, 0)


def test_parameters_that_a_module_reaches_by_a_reference_of_its_own() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(16, 3))
            self.kept = [self.weight]

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.kept[0]

    direct = Direct().requires_grad_(False)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)).double()
    plain[1].weight.data = direct.weight.T.clone()
    x = normal(1, 1, 4, 4)
    found, expected = cook_of_parameters(direct, ["weight"], x, 1), cook_of_parameters(plain, ["1.weight"], x, 1)
    assert expected.value.abs().item() > 0
    assert found.value.item() == pytest.approx(expected.value.item(), rel=1e-3)
    assert not direct.weight.requires_grad


def test_confident_samples_keep_their_digits() -> None:
    """p_y is 1 but for 1e-26 and less: the measure is still relative to 1 - p_y."""
    network = tiny_network(3)
    x = images(1)
    y = network(x).argmax(1)
    lifted = Shifted(network, 60.0 * functional.one_hot(y, 3).double())
    p_others = torch.logsumexp(network(x)[0][torch.arange(3) != y], 0) - network(x)[0, y] - 60
    value = cook_of_input(lifted, x, y, tolerance=1e-8).value.item()
    again = cook_of_input(
        Shifted(network, 160.0 * functional.one_hot(y, 3).double()), x, y, tolerance=1e-8
    ).value.item()
    # H is proportional to 1 - p_y where that is small.
    assert again / value == pytest.approx(torch.exp(torch.tensor(-100.0, dtype=torch.float64)).item(), rel=1e-6)
    assert 0 < value < 1e3 * p_others.exp().item()


class Shifted(nn.Module):
    def __init__(self, network: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.shift


def test_float32_networks_and_attention() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.inner(x.flatten(1, 2))
            return self.head(functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(1))

    torch.manual_seed(0)
    network = Attention()
    x, classes = images(4).float(), torch.tensor([0, 1, 2, 3])
    single = cook_of_input(network, x, classes, tolerance=1e-4)
    names = [name for name, _ in network.named_parameters()]
    weights = cook_of_parameters(network, names, x[0], 0, with_input=True, tolerance=1e-4)
    network.double()
    double = cook_of_input(network, x.double(), classes, tolerance=1e-10)
    torch.testing.assert_close(single.value, double.value, rtol=1e-4, atol=0)
    assert ((single.value - double.value).abs() <= single.error).all()
    exact = cook_of_parameters(network, names, x[0].double(), 0, with_input=True, tolerance=1e-10)
    torch.testing.assert_close(weights.value, exact.value, rtol=1e-4, atol=0)
    assert single.value.dtype == torch.float64


def test_not_invariant_where_fi_is() -> None:
    """w -> c w leaves FI as it is, and changes Cook's measure and the Jacobian norm: of the input, and of a layer."""
    network, x = tiny_network(5, hidden=3), images(1)

    class Rescaled(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return network(4 * u)

    logits, y = network(x)[0], 2
    before, after = dense_jacobian(network, x[0]), dense_jacobian(Rescaled(), x[0] / 4)
    assert dense_influence(after, logits, y) == pytest.approx(dense_influence(before, logits, y), rel=1e-8)
    slopes = [(logits.softmax(0) @ jacobian - jacobian[y]).norm().item() for jacobian in (before, after)]
    assert slopes[1] == pytest.approx(4 * slopes[0], rel=1e-9)
    chosen = torch.tensor([y])
    values = [cook_of_input(model, u, chosen).value.item() for model, u in ((network, x), (Rescaled(), x / 4))]
    assert abs(values[1] / values[0] - 1) > 0.5

    scaled = nn.Sequential(*network[:1], nn.Linear(30, 32), Divided(4.0), *network[2:]).double()
    scaled[1].weight.data, scaled[1].bias.data = 4 * network[1].weight, 4 * network[1].bias
    torch.testing.assert_close(scaled(x), network(x))
    values = [cook_of_parameters(model, ["1.weight", "1.bias"], x[0], y).value.item() for model in (network, scaled)]
    assert abs(values[1] / values[0] - 1) > 0.5


class Divided(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by
