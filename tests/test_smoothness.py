"""Which operators between image and logits have kinks, however a network calls them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from raysense.measures.boundary.kinks import Smoothness, smoothness
from raysense.networks import ExportedModel

Function = Callable[[Tensor], Tensor]


def found(function: Function, dtype: torch.dtype = torch.float32) -> Smoothness:
    """Of a function of images [N, 3, 8, 8] of the same shape, with an affine layer behind it."""
    weights = torch.rand(192, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    images = torch.rand(2, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(2))
    return smoothness(lambda x: function(x).flatten(1) @ weights, images)


def slice_assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, 1:]
    return y


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


EIGHT = torch.arange(8)

KINKED: dict[str, tuple[Function, str]] = {
    "relu": (functional.relu, "relu"),
    "in place": (lambda x: (2 * x).relu_(), "relu"),
    "relu6": (functional.relu6, "hardtanh"),
    "leaky_relu": (functional.leaky_relu, "leaky_relu"),
    "prelu": (lambda x: functional.prelu(x, torch.full((1,), 0.2)), "prelu"),
    "elu of other slopes": (lambda x: functional.elu(x, 2.0), "elu"),
    "selu": (functional.selu, "elu"),
    "hardswish": (functional.hardswish, "hardswish"),
    "hardsigmoid": (functional.hardsigmoid, "hardsigmoid"),
    "softshrink": (functional.softshrink, "softshrink"),
    "clamp": (lambda x: x.clamp(0.2, 0.8), "clamp"),
    "clamp from below": (lambda x: x.clamp(min=0.2), "clamp"),
    "clamp from above": (lambda x: x.clamp(max=0.8), "clamp"),
    "clamp with a guard and from above": (lambda x: (x + 1).clamp(1e-9, 1.5), "clamp"),
    "clamp_min": (lambda x: x.clamp_min(0.2), "clamp_min"),
    "clamp_min of zero": (lambda x: (x - 0.5).clamp_min(0), "clamp_min"),
    "maximum": (lambda x: torch.maximum(x, 1 - x), "maximum"),
    "abs": (torch.abs, "abs"),
    "max_pool2d": (lambda x: functional.max_pool2d(x, 2).repeat(1, 1, 2, 2), "max_pool2d"),
    "amax": (lambda x: x - x.amax((2, 3), keepdim=True), "amax"),
    "max along": (lambda x: x - x.max(1, keepdim=True).values, "max"),
    "norm of order 1": (lambda x: x / x.norm(p=1, dim=1, keepdim=True), "linalg_vector_norm"),
    "sort": (lambda x: x.sort(3).values, "sort"),
    "where": (lambda x: torch.where(x > 0.5, x, 0.1 * x), "where with a mask"),
    "masked_fill": (lambda x: x.masked_fill(x > 0.5, 0.0), "masked_fill with a mask"),
    "multiplied by a comparison": (lambda x: x * (x > 0.5), "mul with a mask"),
    "chosen by the image": (lambda x: x.gather(3, x.argsort(3)), "gather with a mask"),
    "rounded": (lambda x: x + x.round(), "round"),
    "rounded quotient": (lambda x: x + torch.div(x, 0.2, rounding_mode="floor"), "div"),
    "assignment to a part": (slice_assigned, "copy_slices"),
    "a function of its own": (Squared.apply, "squared"),
    "branches": (lambda x: 2 * x if x[0, 0, 0, 0] > 0.8 else x + 1, "branches"),
}

SMOOTH: dict[str, tuple[Function, set[str]]] = {
    "gelu": (functional.gelu, {"gelu"}),
    "silu": (functional.silu, {"silu"}),
    "mish": (functional.mish, {"mish"}),
    "tanh": (torch.tanh, {"tanh"}),
    "softplus": (functional.softplus, {"softplus"}),
    "elu": (functional.elu, {"elu"}),
    "celu": (lambda x: functional.celu(x, 2.0), {"celu"}),
    "softmax": (lambda x: x.softmax(1), {"softmax"}),
    "square": (lambda x: x * x, {"mul"}),
    "layer norm": (lambda x: functional.layer_norm(x, (8, 8)), {"native_layer_norm"}),
    "normalised, with a guard": (functional.normalize, {"linalg_vector_norm", "div"}),
    "attention": (lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True), {"bmm", "safe_softmax"}),
}

AFFINE: dict[str, Function] = {
    "identity": lambda x: x,
    "guards far below": lambda x: ((x + 1).clamp(min=1e-9) + 1).clamp_min(1e-9),
    "arithmetic": lambda x: 1 - (2 * x + x / 3 - x.mean((2, 3), keepdim=True)),
    "convolution": lambda x: functional.conv2d(x, torch.ones(3, 3, 3, 3), torch.ones(3), padding=1),
    "batch norm": lambda x: functional.batch_norm(x, torch.zeros(3), torch.ones(3), torch.ones(3), torch.ones(3)),
    "parameters that require grad": lambda x: x * nn.Parameter(torch.ones(8)) + nn.Parameter(torch.ones(8)),
    "means over patches": lambda x: functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2.0),
    "resampled": lambda x: functional.interpolate(x, size=(8, 8), mode="bilinear", antialias=True),
    "padded": lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    "a constant mask": lambda x: torch.where(EIGHT > 3, x, 0.1 * x).masked_fill(EIGHT == 1, 0.0),
    "constant places": lambda x: x[:, :, EIGHT.flip(0)].index_select(1, torch.tensor([2, 1, 0])),
    "rearranged": lambda x: functional.pixel_shuffle(x.roll(1, 2).flip(3).reshape(2, 12, 4, 4), 2),
    "cut and joined": lambda x: torch.cat((x[:, :1], *x[:, 1:].split(1, 1)), 1).transpose(2, 3),
    "spectrum": lambda x: torch.fft.fft2(x).real,
    "interpolated": lambda x: torch.lerp(x, 1 - x, 0.3),
    "constant": lambda x: torch.ones_like(x),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks(name: str) -> None:
    function, expected = KINKED[name]
    result = found(function)
    assert result.kinks == (expected,)
    assert result.derivatives == "differences"
    assert result.piecewise_linear == (not result.bends)


@pytest.mark.parametrize("name", SMOOTH)
def test_bends(name: str) -> None:
    function, expected = SMOOTH[name]
    result = found(function, torch.float64)
    assert (result.kinks, set(result.bends)) == ((), expected)
    assert result.derivatives == "exact"
    assert not result.piecewise_linear


@pytest.mark.parametrize("name", AFFINE)
def test_affine_functions_have_neither(name: str) -> None:
    assert found(AFFINE[name]) == Smoothness((), (), True)


def test_kinks_and_bends_together() -> None:
    result = found(lambda x: functional.relu(x - 0.5).tanh())
    assert (result.kinks, result.bends) == (("relu",), ("tanh",))
    assert (result.derivatives, result.piecewise_linear) == ("differences", False)


def test_an_attention_kernel_that_cannot_be_differentiated_twice() -> None:
    result = found(lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0])
    assert (result.kinks, result.twice, result.derivatives) == ((), False, "differences")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x[:, 0])
        attended, _ = self.attention(rows, rows, rows, need_weights=False)
        return self.last(attended.flatten(1))


def test_modules_and_exported_programs_are_seen_alike() -> None:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    images = torch.rand(2, 3, 8, 8)
    for module, kinks in ((nn.Sequential(*layers, nn.Linear(36, 3)), ("max_pool2d", "relu")), (Attention(), ())):
        module.eval().requires_grad_(False)
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for model in (module, ExportedModel(program), ExportedModel(program.run_decompositions())):
            result = smoothness(model, images)
            assert result.kinks == kinks
            assert result.piecewise_linear == bool(kinks)
            assert any("softmax" in name for name in result.bends) == (not kinks)
