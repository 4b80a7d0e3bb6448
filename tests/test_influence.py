"""FI of the input: exact against the definition, certified intervals around the exact value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import dense_influence, dense_jacobian, images, of_input, tiny_network
from shared_data import shared_data
from torch import nn
from torch.nn import functional

from raysense.measures import influence
from raysense.measures.gradients import jacobian_product
from raysense.models import load_model

ZOO = "tests/zoo"
bound_influence = of_input(influence.bound_influence)
certified_influence = of_input(influence.certified_influence)
exact_influence = of_input(influence.exact_influence)


@pytest.mark.parametrize("objective", ["label", "predicted"])
@pytest.mark.parametrize(("classes", "hidden"), [(2, 8), (3, 1), (10, 16), (10, 4)])
def test_exact_equals_the_definition(classes: int, hidden: int, objective: str) -> None:
    network, x = tiny_network(classes, hidden), images(8)
    logits = network(x)
    labels = torch.arange(8) % classes
    result = exact_influence(network, x, labels if objective == "label" else None)
    chosen = labels if objective == "label" else logits.argmax(1)
    for i in range(8):
        jacobian = dense_jacobian(network, x[i])
        expected = dense_influence(jacobian, logits[i], int(chosen[i]))
        assert result.fi[i].item() == pytest.approx(expected, rel=1e-9)
        p = logits[i].softmax(0)
        slope = p @ jacobian - jacobian[chosen[i]]
        assert result.jacobian_norm[i].item() == pytest.approx(slope.norm().item(), rel=1e-9)
    assert result.rank.tolist() == [min(hidden, classes - 1)] * 8
    assert (result.fi <= result.upper).all()
    assert result.n_backward.tolist() == [min(hidden, classes - 1)] * 8, "a pass for each feature, if these are fewer"


def test_full_rank_influence_is_its_bound() -> None:
    network, x = tiny_network(10), images(20)
    exact, bound = exact_influence(network, x), bound_influence(network, x)
    torch.testing.assert_close(exact.fi, bound.upper, rtol=1e-12, atol=0)
    assert bound.fi.isnan().all()
    assert bound.n_backward.sum() == 0


def test_exact_is_invariant_under_an_invertible_map_of_the_input() -> None:
    """x = R u: the influence of u is that of x, the Jacobian norm is not."""
    network, x = tiny_network(10, hidden=4), images(6)
    generator = torch.Generator().manual_seed(5)
    mix = torch.eye(30, dtype=torch.float64) + 0.2 * torch.randn(30, 30, generator=generator, dtype=torch.float64)
    u = torch.linalg.solve(mix, x.flatten(1).T).T.view_as(x)

    class Mixed(nn.Module):
        def forward(self, u: torch.Tensor) -> torch.Tensor:
            return network((u.flatten(1) @ mix.T).view_as(u))

    labels = torch.arange(6)
    before, after = exact_influence(network, x, labels), exact_influence(Mixed(), u, labels)
    torch.testing.assert_close(after.fi, before.fi, rtol=1e-8, atol=0)
    assert ((after.jacobian_norm / before.jacobian_norm - 1).abs() > 0.05).any()


def test_batches_are_split_to_bound_the_gradients_without_changing_a_value() -> None:
    network, x = tiny_network(10, 4), images(7)
    whole = exact_influence(network, x)
    split = exact_influence(network, x, gradient_bytes=10 * 30 * 8)
    torch.testing.assert_close(whole.fi, split.fi, rtol=1e-12, atol=0)
    whole, split = certified_influence(network, x), certified_influence(network, x, gradient_bytes=10 * 30 * 8)
    torch.testing.assert_close(whole.lower, split.lower, rtol=1e-9, atol=0)


@pytest.mark.parametrize("objective", ["label", "predicted"])
@pytest.mark.parametrize(
    ("classes", "hidden", "scale"), [(2, 8, 3.0), (10, 16, 8.0), (10, 16, 40.0), (10, 4, 8.0), (1000, 64, 12.0)]
)
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3])
def test_certified_interval_contains_the_exact_value(
    classes: int, hidden: int, scale: float, tolerance: float, objective: str
) -> None:
    count = 24 if classes < 1000 else 3
    network, x = tiny_network(classes, hidden, scale=scale), images(count)
    labels = None if objective == "predicted" else torch.arange(count) % min(classes, 4)
    exact = exact_influence(network, x, labels)
    certified = certified_influence(network, x, labels, tolerance)
    slack = 1 + 1e-10
    assert (certified.lower <= exact.fi * slack).all()
    assert (exact.fi <= certified.upper * slack).all()
    assert (certified.upper - certified.lower <= tolerance * certified.upper).all()
    assert (certified.lower <= certified.fi).all()
    assert (certified.fi <= certified.upper).all()
    torch.testing.assert_close(certified.jacobian_norm, exact.jacobian_norm, rtol=1e-8, atol=0)
    assert certified.n_backward.min() >= 1


def test_certified_spends_fewer_passes_where_probability_is_concentrated() -> None:
    network, x = tiny_network(1000, 64, scale=30.0), images(4)
    certified = certified_influence(network, x, None, 1e-2)
    assert certified.n_backward.double().mean() < 200


def test_samples_without_finite_values_do_not_harm_their_neighbours() -> None:
    network = tiny_network(5)

    class Broken(nn.Module):
        """Logits of dark images are infinite; gradients of bright ones are."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            level = x.flatten(1).amax(1, keepdim=True)
            logits = torch.where(level < 0.1, torch.inf, network(x))
            return logits + torch.where(level == 1.0, torch.sqrt(1 - level), 0.0)

    x = images(4)
    expected = exact_influence(network, x)
    x[1], x[2] = 0.0, 1.0
    for measure in (exact_influence, certified_influence):
        result = measure(Broken(), x)
        assert result.upper[1].isnan()
        assert result.upper[2].isnan()
        torch.testing.assert_close(result.fi[[0, 3]], expected.fi[[0, 3]], rtol=1e-3, atol=0)


def test_forward_product_of_common_layers_and_its_fallback() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, groups=3),
        nn.GroupNorm(2, 6), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4),
    ).double().eval()  # fmt: skip
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)

    class Fallback(torch.autograd.Function):
        """An operator without a forward rule."""

        @staticmethod
        def forward(context: object, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * 2

    x, h = torch.rand(3, 2, 8, 8).double(), torch.randn(3, 2, 8, 8).double()
    for model in (network, nn.Sequential(*network[:-1], Doubled(Fallback), network[-1])):
        jacobian = torch.autograd.functional.jacobian(model, x)
        expected = torch.stack([torch.einsum("kchw,chw->k", jacobian[i, :, i], h[i]) for i in range(3)])
        torch.testing.assert_close(jacobian_product(model, x, h), expected, rtol=1e-9, atol=1e-12)


class Doubled(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.apply(x)


def test_resnet20_exact_and_certified_agree_on_500_images() -> None:
    checkpoint, data = shared_data("cifar10", "resnet20.pt"), np.load(shared_data("cifar10", "test.npz"))
    network = load_model(f"{ZOO}/cifar_resnet.py:resnet?depth=20&checkpoint={checkpoint}").module
    x = torch.tensor(data["x"][:500]).permute(0, 3, 1, 2).float() / 255
    y = torch.tensor(data["y"][:500])
    worst = 0.0
    for rows in torch.arange(500).split(100):
        exact = exact_influence(network, x[rows], y[rows])
        certified = certified_influence(network, x[rows], y[rows], 1e-3)
        torch.testing.assert_close(certified.fi, exact.fi, rtol=1e-3, atol=0)
        assert (certified.upper - certified.lower <= 1e-3 * certified.upper).all()
        assert (exact.fi <= exact.upper).all()
        assert (exact.rank == 9).all()
        worst = max(worst, float((exact.fi / exact.upper - 1).abs().max()))
    assert worst < 1e-9


def test_squeezenet_certifies_within_4_gb() -> None:
    resource = pytest.importorskip("resource")
    checkpoint = shared_data("imagenet", "squeezenet1_0_fp16.pt")
    model = load_model(f"{ZOO}/squeezenet.py:squeezenet?checkpoint={checkpoint}")
    torch.manual_seed(0)
    from raysense.datasets import open_data

    folder, synsets = shared_data("imagenet", "images"), shared_data("imagenet", "synsets.txt")
    source = open_data(f"folder:{folder}?classes={synsets}")
    reader = source.reader(source.list().table)
    assert model.preprocessing is not None
    x = torch.stack([model.preprocessing.apply(reader.read(row)) for row in (2, 5, 30)]).float() / 255
    certified = certified_influence(model.module, x, None, 1e-2)
    assert (certified.upper - certified.lower <= 1e-2 * certified.upper).all()
    assert certified.n_backward.max() < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6


def test_certified_intervals_of_a_vision_transformer_contain_the_exact_value() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=60
    ).eval()
    nn.init.normal_(network.heads.head.weight, std=1.0)
    x = torch.rand(6, 3, 16, 16)
    exact, certified = exact_influence(network, x), certified_influence(network, x, None, 1e-2)
    assert certified.n_backward.min() < 60
    assert (certified.lower <= exact.fi * (1 + 1e-4)).all()
    assert (exact.fi <= certified.upper * (1 + 1e-4)).all()


def test_forward_product_of_operators_called_by_keyword() -> None:
    weight, bias = torch.randn(4, 2, 3, 3).double(), torch.randn(4).double()
    mean, var = torch.randn(4).double(), torch.rand(4).double()

    def model(x: torch.Tensor) -> torch.Tensor:
        z = functional.conv2d(input=x, weight=weight, bias=bias, padding="same")
        z = functional.batch_norm(input=z, running_mean=mean, running_var=var, eps=1e-3)
        return functional.linear(input=z.mean((2, 3)), weight=torch.ones(3, 4).double())

    x, h = torch.rand(2, 2, 5, 5).double(), torch.randn(2, 2, 5, 5).double()
    expected = torch.autograd.functional.jvp(model, x, h)[1]
    torch.testing.assert_close(jacobian_product(model, x, h), expected, rtol=1e-9, atol=1e-12)
