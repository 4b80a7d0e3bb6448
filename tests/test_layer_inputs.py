"""Inputs of layers, noted by operator, against hooks on modules and against what the layers return."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

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


class Routing(nn.Module):
    """Bright images go through a further layer: by their own rows, or all of a batch where any is bright."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.whole = whole

    def forward(self, batch: Tensor) -> Tensor:
        x = self.first(functional.adaptive_avg_pool2d(batch, 2).flatten(1))
        bright = batch.mean((1, 2, 3)) > 0.6
        if self.whole:
            return self.last(self.second(x) if bright.any() else x)
        if bright.any():
            x = x.clone()
            x[bright] = self.second(x[bright])
        return self.last(x)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_noted_depends_on_the_images_of_the_pass_alone(whole: bool) -> None:
    torch.manual_seed(0)
    module, dark = frozen(Routing(whole)), images(4) * 0.5
    mixed = torch.cat((dark[:2], dark[:2] + 0.5))
    layers = find_layers(module, dark[:1] + 0.5)
    assert [layer.name for layer in layers] == ["first", "second", "last"]

    def seen(inputs: LayerInputs, batch: Tensor) -> list[tuple[int, list[int], list[float]]]:
        return [
            (
                part.samples,
                [len(uses) for uses in part.uses],
                part.columns(2, torch.arange(part.samples)).flatten().tolist(),
            )
            for part in inputs.run(batch)
        ]

    inputs = LayerInputs(module, layers)
    first = [seen(inputs, batch) for batch in (dark, mixed, mixed + 0.2, dark)]
    again = LayerInputs(module, layers)
    assert [seen(again, batch) for batch in (mixed + 0.2, mixed, dark)] == [first[2], first[1], first[0]]
    assert first[0] == first[3]
    # Where only some images of a pass go through the layer, they go one by one, and only they have inputs of it.
    if not whole:
        assert [(samples, uses) for samples, uses, _ in first[1]] == [(1, [1, 0, 1])] * 2 + [(1, [1, 1, 1])] * 2
        parts = inputs.run(mixed)
        assert [bool(part.finite(1)) for part in parts] == [False, False, True, True]


class Frozen(nn.Module):
    """A backbone that runs without gradients, as frozen ones do."""

    def __init__(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.backbone, self.head = (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6)),
            nn.Linear(6, 3),
        )
        self.context = context

    def forward(self, batch: Tensor) -> Tensor:
        with self.context():
            x = self.backbone(batch)
        return self.head(x.relu())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_layers_that_run_without_gradients_are_found(context: Callable[[], AbstractContextManager[object]]) -> None:
    torch.manual_seed(0)
    module, batch = frozen(Frozen(context)), torch.rand(4, 3, 2, 2)
    layers = find_layers(module, batch[:1])
    assert [layer.name for layer in layers] == ["backbone.1", "backbone.3", "head"]
    columns = all_columns(LayerInputs(module, layers), batch, 1)[:, 0, :, 0]
    torch.testing.assert_close(columns, module.backbone[:3](batch).double())


def test_inputs_overwritten_later_are_those_that_were_read_also_in_the_first_pass() -> None:
    module, batch = frozen(Functional()), images(2)
    layers = [layer for layer in find_layers(module, batch[:1]) if layer.name == "shared"]
    (found,) = LayerInputs(module, layers).run(batch)
    whole = LayerInputs(module, layers)
    whole.run(images(2, seed=5))
    assert torch.equal(found.columns(0, torch.arange(2)), all_columns(whole, batch, 0))
    second = functional.conv2d(
        functional.conv2d(batch, module.kernel, padding="same").relu(),
        module.grouped_weight, stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2,
    )  # fmt: skip
    torch.testing.assert_close(
        found.columns(0, torch.arange(2))[:, 0, :, 0].float(), second.mean((2, 3)), rtol=1e-3, atol=1e-4
    )


def test_exported_convolutions_and_split_projections_are_found() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.three = nn.Conv1d(4, 6, 3, padding="same"), nn.Conv3d(1, 2, 3, padding="same")
            self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

        def forward(self, batch: Tensor) -> Tensor:
            x = self.one(batch.flatten(1).unflatten(1, (4, -1))).transpose(1, 2)
            y = self.attention(x, 2 * x, x, need_weights=False)[0].mean(1)
            return self.head(y) + self.three(batch[:, None]).mean((1, 2, 3, 4))[:, None]

    torch.manual_seed(0)
    network, batch = frozen(Parts()), torch.rand(3, 3, 4, 4)
    program = torch.export.export(network, (batch[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    module = program.module().requires_grad_(False)
    expected = [(layer.name, layer.rows, layer.inputs, layer.positions) for layer in find_layers(network, batch[:1])]
    found = find_layers(module, batch[:1])
    assert sorted((layer.name, layer.rows, layer.inputs, layer.positions) for layer in found) == sorted(expected)
    mine, theirs = LayerInputs(network, find_layers(network, batch[:1])), LayerInputs(module, found)
    names = [layer.name for layer in theirs.layers]
    for index, layer in enumerate(mine.layers):
        torch.testing.assert_close(
            all_columns(mine, batch, index), all_columns(theirs, batch, names.index(layer.name)), rtol=1e-4, atol=1e-5
        )


def test_layers_of_one_name_and_weights_of_two_meanings() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 4)
            self.fc_weight = nn.Parameter(torch.randn(3, 4))
            self.twice = nn.Parameter(torch.randn(4, 3, 1, 1))

        def forward(self, batch: Tensor) -> Tensor:
            wide = functional.conv2d(batch.repeat(1, 4, 1, 1)[:, :12], self.twice, groups=4)
            x = functional.conv2d(batch, self.twice).mean((2, 3)) + wide.mean((2, 3))
            return functional.linear(self.fc(batch.flatten(1)) + x, self.fc_weight)

    torch.manual_seed(0)
    assert [layer.name for layer in find_layers(frozen(Odd()), torch.rand(1, 3, 2, 2))] == ["fc.weight", "fc_weight"]


def test_values_that_are_not_finite_are_found_by_sample() -> None:
    torch.manual_seed(0)
    module = frozen(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3)))
    batch = torch.rand(3, 3, 2, 2)
    batch[1, 0, 0, 0] = torch.nan
    inputs = LayerInputs(module, find_layers(module, batch[:1]))
    (found,) = inputs.run(batch)
    assert found.finite(0).tolist() == found.finite(1).tolist() == [True, False, True]
