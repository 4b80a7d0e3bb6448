"""Inputs of layers, noted by operator, against hooks on modules and against what the layers return."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from raysense.measures.layer_inputs import LayerInputs, find_layers


class Functional(nn.Module):
    """No layer is a module: two convolutions by function (the second strided, dilated, grouped), a shared linear map."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
        self.grouped_weight = nn.Parameter(torch.randn(8, 3, 3, 2, generator=generator))
        self.shared = nn.Parameter(torch.randn(8, 8, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        x = functional.conv2d(images, self.kernel, padding="same").relu_()
        x = functional.conv2d(x, self.grouped_weight, stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2)
        x = x.mean((2, 3))
        y = functional.linear(x, self.shared)
        x.mul_(2)  # in place, after it was read
        return functional.linear(y.relu(), self.shared)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def images(count: int, side: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def all_columns(inputs: LayerInputs, batch: Tensor, layer: int) -> Tensor:
    parts = inputs.run(batch)
    assert sum(part.samples for part in parts) == len(batch)
    return torch.cat([part.columns(layer, torch.arange(part.samples)) for part in parts])


def test_functional_layers_are_found_with_their_geometry() -> None:
    layers = find_layers(frozen(Functional()), images(1))
    found = [(layer.name, layer.operator, layer.groups, layer.rows, layer.inputs, layer.positions) for layer in layers]
    assert found == [
        ("kernel", "convolution", 1, 6, 27, 1024),
        ("grouped", "convolution", 2, 8, 18, 465),
        ("shared", "linear", 1, 8, 8, 2),
    ]


def test_columns_of_functional_layers_give_their_outputs() -> None:
    module, batch = frozen(Functional()), images(5)
    layers = find_layers(module, batch[:1])
    inputs = LayerInputs(module, layers)
    assert len(inputs.run(batch)) == 1
    kernel, grouped, shared = (layer.weight(module).double() for layer in layers)
    x = batch.double()
    first = functional.conv2d(x, module.kernel.double(), padding="same")
    columns = all_columns(inputs, batch, 0)
    torch.testing.assert_close((kernel @ columns).flatten(1, 2).unflatten(2, (32, 32)), first, rtol=1e-4, atol=1e-4)
    second = functional.conv2d(
        first.relu(), module.grouped_weight.double(), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2
    )
    columns = all_columns(inputs, batch, 1)
    torch.testing.assert_close(
        (grouped @ columns).flatten(1, 2).unflatten(2, second.shape[2:]), second, rtol=1e-4, atol=1e-3
    )
    # Both calls of the shared weight, and what the first read although it was overwritten later.
    mean = second.mean((2, 3))
    columns = all_columns(inputs, batch, 2)
    assert columns.shape == (5, 1, 8, 2)
    torch.testing.assert_close(columns[:, 0, :, 0], mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(columns[:, 0, :, 1], (mean @ shared[0].T).relu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("squeezenet1_0", ["features.0", "classifier.1"]),
        ("resnet18", ["conv1", "layer2.0.downsample.0", "fc"]),
        ("mobilenet_v3_small", ["features.4.block.1.0", "classifier.3"]),  # depthwise
        ("swin_t", ["features.3.1.mlp.0", "head"]),
    ],
)
def test_equals_hooks_on_modules(name: str, names: list[str]) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = frozen(torchvision.models.get_model(name, weights=None))
    batch = images(3, 64)
    by_name = {layer.name: layer for layer in find_layers(module, batch[:1])}
    convolutions_and_linears = [
        part for part, value in module.named_modules() if isinstance(value, nn.Linear | nn.Conv2d)
    ]
    assert set(convolutions_and_linears) <= set(by_name)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.get_submodule(part).register_forward_hook(
            lambda layer, arguments, output, part=part: seen.__setitem__(part, (arguments[0].clone(), output.clone()))
        )
        for part in names
    ]
    with torch.no_grad():
        logits = module(batch)
    for hook in hooks:
        hook.remove()
    inputs = LayerInputs(module, [by_name[part] for part in names])
    (found,) = inputs.run(batch)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    chosen = torch.tensor([2, 0])
    for index, part in enumerate(names):
        layer, output = by_name[part], seen[part][1].double()
        bias = module.get_submodule(part).bias
        output = (
            output
            if bias is None
            else output
            - (bias.double() if output.ndim != 4 or layer.operator == "linear" else bias[:, None, None].double())
        )
        output = (
            output.flatten(2) if layer.operator == "convolution" else output.reshape(3, -1, layer.rows).transpose(1, 2)
        )
        product = (layer.weight(module).double() @ found.columns(index, chosen)).flatten(1, 2)
        torch.testing.assert_close(product, output[chosen], rtol=1e-3, atol=1e-3)
        assert found.columns(index, chosen).shape == (2, layer.groups, layer.inputs, layer.positions)
        assert found.exact_products(index)
        assert found.finite(index).all()


def test_attention_projections_are_layers_and_their_samples_are_told_apart() -> None:
    """Inside nn.MultiheadAttention no hook fires, and tokens come before samples."""
    torch.manual_seed(0)
    module = frozen(torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=7))
    batch = images(4)
    layers = {layer.name: layer for layer in find_layers(module, batch[:1])}
    names = [
        f"encoder.layers.encoder_layer_0.{part}"
        for part in ("self_attention.in_proj", "self_attention.out_proj", "mlp.0")
    ]
    assert [layers[name].positions for name in names] == [17, 17, 17]
    assert [layers[name].rows for name in names] == [72, 24, 48]
    inputs = LayerInputs(module, [layers[name] for name in names])
    seen: list[Tensor] = []
    hook = module.encoder.layers[0].ln_1.register_forward_hook(lambda part, arguments, output: seen.append(output))
    (found,) = inputs.run(batch)
    hook.remove()
    normalised = seen[-1]
    columns = found.columns(0, torch.arange(4))
    torch.testing.assert_close(columns[:, 0].transpose(1, 2), normalised.double(), rtol=1e-5, atol=1e-5)
    for row, image in enumerate(batch):
        (alone,) = inputs.run(image[None])
        for index in range(3):
            torch.testing.assert_close(
                alone.columns(index, torch.tensor([0]))[0],
                found.columns(index, torch.tensor([row]))[0],
                rtol=1e-4,
                atol=1e-5,
            )


def test_layers_of_an_exported_program() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    program = torch.export.export(network, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    module = program.module().requires_grad_(False)
    batch = images(3)
    layers = find_layers(module, batch[:1])
    assert [(layer.name, layer.rows) for layer in layers] == [("0", 4), ("4", 5)]
    columns = all_columns(LayerInputs(module, layers), batch, 1)[:, 0, :, 0]
    torch.testing.assert_close(columns, network[:4](batch).detach().double(), rtol=1e-5, atol=1e-6)


class Mixing(nn.Module):
    """Subtracts the batch's mean, so that what is in a batch matters: samples must go one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, batch: Tensor) -> Tensor:
        x = self.first(functional.adaptive_avg_pool2d(batch, 2).flatten(1))
        return self.last(x.T.reshape(8, -1).mean(1, keepdim=True).T + 0 * x)


def test_where_samples_cannot_be_told_apart_they_go_one_by_one() -> None:
    torch.manual_seed(0)
    module, batch = frozen(Mixing()), images(3)
    inputs = LayerInputs(module, find_layers(module, batch[:1]))
    parts = inputs.run(batch)
    assert [part.samples for part in parts] == [1, 1, 1]
    for part, image in zip(parts, batch, strict=True):
        torch.testing.assert_close(part.logits, module(image[None]))


def test_values_that_are_not_finite_are_found_by_sample() -> None:
    torch.manual_seed(0)
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3)))
    batch = torch.rand(3, 3, 2, 2)
    batch[1, 0, 0, 0] = torch.nan
    inputs = LayerInputs(module, find_layers(module, batch[:1]))
    (found,) = inputs.run(batch)
    assert found.finite(0).tolist() == found.finite(1).tolist() == [True, False, True]
