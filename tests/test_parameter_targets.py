"""FI of parameters: Gram matrices of every kind of layer against brute force, and what follows from their definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from networks import dense_influence
from shared_data import shared_data
from torch import Tensor, nn
from torch.nn import functional

from raysense.measures.contraction import uses_by_piece
from raysense.measures.differences import Differences
from raysense.measures.influence import bound_influence, certified_influence, exact_influence
from raysense.measures.merged import MergedClasses, by_probability
from raysense.measures.perturbed import Perturbed
from raysense.measures.targets import INPUT, Pixels, Tangents, Target, layer_parameters, matching
from raysense.models import load_model

CLASSES = 5


class Wrapped(nn.Module):
    """A function of a network's parts, to write forward passes of any shape."""

    def __init__(self, call: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def tokens_of(x: Tensor, size: int = 6) -> Tensor:
    """Images [n, 3, 4, 4] as tokens [n, 8, 6]."""
    return x.reshape(len(x), -1, size)


def conv_net(layer: nn.Module, flatten: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A layer on images [n, 3, 4, 4] (or what ``flatten`` makes of them), then a fixed smooth readout."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        z = net.layer(x if flatten is None else flatten(x)).flatten(1)
        mixing = torch.sin(torch.arange(CLASSES * z.shape[1], dtype=z.dtype)).view(CLASSES, -1)
        return torch.tanh(z) @ mixing.T + 0.1 * z.square() @ mixing.cos().T

    return Wrapped(call, layer=layer)


def normalised(layer: nn.Module) -> nn.Module:
    """A norm layer with weights and statistics that are not the identity."""
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.is_floating_point():
            value.data = torch.rand_like(value) + (0.5 if "weight" in name or "var" in name else -0.3)
    return layer


def attention_net(**options: object) -> nn.Module:
    batch_first = bool(options.get("batch_first", False))
    cross = bool(options.pop("cross", False))
    sizes = {"kdim": 3, "vdim": 2} if options.pop("other_sizes", False) else {}

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = tokens_of(x)
        query = t if batch_first else t.transpose(0, 1)
        key, value = (query[..., : sizes["kdim"]], query[..., : sizes["vdim"]]) if sizes else (query, query)
        if cross:
            key = value = query.flip(-1) * 0.5
        out, weights = net.attention(query, key, value)
        out = out if batch_first else out.transpose(0, 1)
        return net.head(torch.tanh(out).sum(1)) + weights.square().sum((1, 2))[:, None]

    return Wrapped(
        call, attention=nn.MultiheadAttention(6, 2, add_bias_kv=bool(options.pop("bias_kv", False)), **sizes, **options),
        head=nn.Linear(6, CLASSES),
    )  # fmt: skip


def shared_linear() -> nn.Module:
    """One weight used three times: on tokens, again on the result, and by hand with another bias."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = torch.tanh(net.layer(tokens_of(x)))
        t = torch.tanh(net.layer(t)) + functional.linear(t[:, :2].sum(1, keepdim=True), net.layer.weight)
        return net.head(t.mean(1))

    return Wrapped(call, layer=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))


def shared_conv() -> nn.Module:
    def call(net: nn.Module, x: Tensor) -> Tensor:
        z = net.layer(torch.tanh(net.layer(x)))
        return net.head(torch.tanh(z).flatten(1))

    return Wrapped(call, layer=nn.Conv2d(3, 3, 3, padding=1), head=nn.Linear(48, CLASSES))


def tied_embedding() -> nn.Module:
    """An embedding whose table is also the weight of a linear layer."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        rows = (x.flatten(1)[:, :6] * 7).long()
        return functional.linear(torch.tanh(net.table(rows).sum(1)), net.table.weight)[:, :CLASSES]

    return Wrapped(call, table=nn.Embedding(7, 4, padding_idx=2))


def broadcast_parameters() -> nn.Module:
    """A class token, positions and a layer scale, as in transformers."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = torch.cat([net.token.expand(len(x), -1, -1), tokens_of(x)], 1) + net.positions
        t = t + net.scale * torch.tanh(net.mix(t))
        return net.head(t[:, 0] + t.square().mean(1))

    return Wrapped(
        call, token=nn.Parameter(torch.randn(1, 1, 6)), positions=nn.Parameter(torch.randn(1, 9, 6)),
        scale=nn.Parameter(torch.randn(6)), mix=nn.Linear(6, 6), head=nn.Linear(6, CLASSES),
    )  # fmt: skip


def residual_in_place() -> nn.Module:
    def call(net: nn.Module, x: Tensor) -> Tensor:
        z = functional.relu_(net.norm(net.first(x)))
        y = net.second(z)
        y += z
        z = functional.gelu(y).mul_(2)
        out = net.third(z)
        z.zero_()  # what the third layer saw is gone
        return net.head(out.flatten(1))

    class Forgetful(nn.Conv2d):
        """Its input may be overwritten afterwards: it keeps a copy for its own backward pass."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clone())

    return Wrapped(
        call, first=nn.Conv2d(3, 4, 3, padding=1), norm=normalised(nn.BatchNorm2d(4)),
        second=nn.Conv2d(4, 4, 1, bias=False), third=Forgetful(4, 2, 3), head=nn.Linear(8, CLASSES),
    )  # fmt: skip


def generic_modules() -> nn.Module:
    """A recurrent layer, a bilinear one, a PReLU, a weight norm and a weight used by hand, besides ordinary layers."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t, _ = net.recurrent(tokens_of(x))
        t = net.slope(net.pair(t, t.flip(1)))
        return net.head(t.mean(1)) + t.sum(1)[:, :3] @ net.byhand.softmax(0)

    return Wrapped(
        call, recurrent=nn.GRU(6, 4, batch_first=True), pair=nn.Bilinear(4, 4, 3), slope=nn.PReLU(8),
        byhand=nn.Parameter(torch.randn(3, CLASSES)),
        head=nn.utils.parametrizations.weight_norm(nn.Linear(3, CLASSES)),
    )  # fmt: skip


def generic_beside_ordinary() -> nn.Module:
    """Parameters of ordinary layers that also enter the logits by themselves."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        z = torch.tanh(net.norm(net.conv(torch.tanh(net.first(x)))))
        own = net.norm.weight.sum() * net.norm.bias.prod() + net.head.bias.sin().sum()
        return net.head(z.flatten(1)) * own

    return Wrapped(
        call, first=nn.Conv2d(3, 3, 1), conv=nn.Conv2d(3, 4, 3), norm=normalised(nn.BatchNorm2d(4)),
        head=nn.Linear(16, CLASSES),
    )  # fmt: skip


def attention_twice() -> nn.Module:
    """One attention first across three tensors, then of one with itself: by parts of its weight and by all of it."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = tokens_of(x)
        z = net.attention(t.clone(), t.clone(), t.clone())[0]
        return net.head(torch.tanh(net.attention(z, z, z)[0]).sum(1))

    return Wrapped(call, attention=nn.MultiheadAttention(6, 2, batch_first=True), head=nn.Linear(6, CLASSES))


def odd_linears() -> nn.Module:
    """Biases that broadcast, a weight of one dimension, and layers whose output is dropped."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = tokens_of(x)
        z = functional.linear(t, net.first, net.scalar) + functional.linear(t, net.first, net.matrix)
        net.dropped(t)
        z = z + t @ net.dropped.weight.T + functional.linear(t, net.row)[..., None]
        return net.head(torch.tanh(z).mean(1))

    return Wrapped(
        call, first=nn.Parameter(torch.randn(6, 6)), scalar=nn.Parameter(torch.randn(1)), dropped=nn.Linear(6, 6),
        matrix=nn.Parameter(torch.randn(8, 6)), row=nn.Parameter(torch.randn(6)), head=nn.Linear(6, CLASSES),
    )  # fmt: skip


def reached_directly() -> nn.Module:
    """A parameter that the forward pass reaches by a reference of its own, in an operator that is not recognised."""
    weight = nn.Parameter(torch.randn(6, CLASSES))
    reference = [weight]
    return Wrapped(lambda net, x: torch.tanh(tokens_of(x)).sum(1) @ reference[0], weight=weight)


def partly_constant() -> nn.Module:
    """A branch for which the model itself turns gradients off, before a layer whose samples are interleaved."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = tokens_of(x)
        with torch.no_grad():
            gate = torch.tanh(net.layer(net.gate(t)))
        z = torch.tanh(net.layer((t * gate).transpose(0, 1).reshape(-1, 6)))
        return net.head(z.reshape(8, len(x), 6).sum(0))

    return Wrapped(call, gate=nn.Linear(6, 6), layer=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))


class NoForwardRule(torch.autograd.Function):
    """An operator without a rule for forward mode."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient * 2


def without_forward_rule() -> nn.Module:
    def call(net: nn.Module, x: Tensor) -> Tensor:
        t = tokens_of(x)
        z = net.attention(t, t, t, need_weights=False)[0]
        return net.head(NoForwardRule.apply(torch.tanh(z)).sum(1))

    return Wrapped(call, attention=nn.MultiheadAttention(6, 2, batch_first=True), head=nn.Linear(6, CLASSES))


def viewed() -> nn.Module:
    """Views that channels-last memory does not bear, and a layer without any outputs."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        net.empty(x.view(len(x), -1))
        return net.head(torch.tanh(net.conv(x)).view(len(x), -1))

    return Wrapped(call, empty=nn.Linear(48, 0), conv=nn.Conv2d(3, 4, 3), head=nn.Linear(16, CLASSES))


def windows() -> nn.Module:
    """Windows of a batch as samples of their own, as in Swin: rows of one sample are consecutive."""

    def call(net: nn.Module, x: Tensor) -> Tensor:
        w = x.reshape(len(x) * 2, 4, 6)
        z = torch.tanh(net.norm(net.mix(w)))
        z = torch.tanh(net.conv(z.reshape(len(x) * 2, 4, 6)))
        return net.head(z.reshape(len(x), -1))

    return Wrapped(
        call, mix=nn.Linear(6, 6), norm=normalised(nn.LayerNorm(6)), conv=nn.Conv1d(4, 2, 3, groups=2),
        head=nn.Linear(16, CLASSES),
    )  # fmt: skip


CASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: conv_net(nn.Linear(48, 7), lambda x: x.flatten(1)),
    "linear, no bias, tokens": lambda: conv_net(nn.Linear(6, 3, bias=False), tokens_of),
    "linear, tokens first": lambda: Wrapped(
        lambda net, x: net.head(torch.tanh(net.layer(tokens_of(x).transpose(0, 1))).sum(0)),
        layer=nn.Linear(6, 8), head=nn.Linear(8, CLASSES),
    ),
    "conv1d": lambda: conv_net(nn.Conv1d(3, 4, 3, stride=2, padding=1), lambda x: x.flatten(2)),
    "conv1d, circular, dilated": lambda: conv_net(
        nn.Conv1d(3, 4, 3, padding=2, dilation=2, padding_mode="circular"), lambda x: x.flatten(2)
    ),
    "conv2d": lambda: conv_net(nn.Conv2d(3, 4, 3)),
    "conv2d, 1 x 1, no bias": lambda: conv_net(nn.Conv2d(3, 4, 1, bias=False)),
    "conv2d, stride, padding, dilation": lambda: conv_net(nn.Conv2d(3, 4, (3, 2), (2, 1), (2, 1), (1, 2))),
    "conv2d, groups": lambda: conv_net(nn.Conv2d(3, 6, 3, groups=3, padding=1)),
    "conv2d, grouped pairs": lambda: conv_net(
        nn.Conv2d(6, 4, 2, groups=2), lambda x: torch.cat([x, x.flip(-1)], 1)
    ),
    "conv2d, depthwise": lambda: conv_net(nn.Conv2d(3, 3, 3, groups=3, padding=1, bias=False)),
    "conv2d, same, even kernel": lambda: conv_net(nn.Conv2d(3, 2, (2, 3), padding="same")),
    "conv2d, reflect": lambda: conv_net(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect")),
    "conv2d, replicate, valid": lambda: conv_net(nn.Conv2d(3, 2, 3, padding=2, padding_mode="replicate")),
    "conv3d": lambda: conv_net(
        nn.Conv3d(3, 4, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1)), lambda x: x.reshape(len(x), 3, 2, 2, 4)
    ),
    "conv3d, groups, dilated": lambda: conv_net(
        nn.Conv3d(3, 3, 2, groups=3, dilation=(1, 1, 2)), lambda x: x.reshape(len(x), 3, 2, 2, 4)
    ),
    "batch norm 1d": lambda: conv_net(normalised(nn.BatchNorm1d(48)), lambda x: x.flatten(1)),
    "batch norm 2d": lambda: conv_net(normalised(nn.BatchNorm2d(3))),
    "batch norm 3d": lambda: conv_net(normalised(nn.BatchNorm3d(3)), lambda x: x.reshape(len(x), 3, 2, 2, 4)),
    "layer norm": lambda: conv_net(normalised(nn.LayerNorm(6)), tokens_of),
    "layer norm, two dimensions": lambda: conv_net(normalised(nn.LayerNorm((4, 4)))),
    "rms norm": lambda: conv_net(normalised(nn.RMSNorm(6)), tokens_of),
    "group norm": lambda: conv_net(normalised(nn.GroupNorm(2, 6)), lambda x: torch.cat([x, x.flip(-1).square()], 1)),
    "instance norm": lambda: conv_net(normalised(nn.InstanceNorm2d(3, affine=True))),
    "instance norm, statistics": lambda: conv_net(
        normalised(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))
    ),
    "embedding, tied": tied_embedding,
    "self-attention": lambda: attention_net(),
    "self-attention, batch first": lambda: attention_net(batch_first=True),
    "self-attention, no bias": lambda: attention_net(bias=False, batch_first=True),
    "cross-attention": lambda: attention_net(cross=True, batch_first=True),
    "attention, other sizes": lambda: attention_net(other_sizes=True),
    "attention, bias of keys": lambda: attention_net(bias_kv=True),
    "transformer layer": lambda: Wrapped(
        lambda net, x: net.head(net.layer(tokens_of(x)).mean(1)),
        layer=nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), head=nn.Linear(6, CLASSES),
    ),
    "shared linear": shared_linear,
    "shared conv": shared_conv,
    "broadcast": broadcast_parameters,
    "in place, residual": residual_in_place,
    "windows": windows,
    "attention twice": attention_twice,
    "odd linears": odd_linears,
    "reached directly": reached_directly,
    "partly constant": partly_constant,
    "no forward rule": without_forward_rule,
    "viewed": viewed,
    "generic": generic_modules,
    "generic beside ordinary": generic_beside_ordinary,
    "transposed conv": lambda: conv_net(nn.ConvTranspose2d(3, 2, 2, stride=2)),
}  # fmt: skip


def build(case: str) -> nn.Module:
    torch.manual_seed(sum(case.encode()))
    return CASES[case]().double().eval().requires_grad_(False)


def some_images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def dense_rows(network: nn.Module, image: Tensor, target: Target) -> Tensor:
    """[K, P]: the Jacobian of one image by autograd."""
    own = dict(network.named_parameters())
    wanted = [own[name] for name in sorted(target.parameters)]
    x = image[None].clone()
    if target.input is not None:
        wanted.append(x)
    for value in wanted:
        value.requires_grad_(True)
    try:
        logits = network(x)[0]
        if not logits.requires_grad:
            return torch.zeros(len(logits), sum(value.numel() for value in wanted), dtype=x.dtype)
        rows = []
        for logit in logits:
            found = torch.autograd.grad(logit, wanted, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([
                    torch.zeros_like(value).flatten() if gradient is None else gradient.flatten()
                    for gradient, value in zip(found, wanted, strict=True)
                ])
            )  # fmt: skip
        return torch.stack(rows)
    finally:
        for value in own.values():
            value.requires_grad_(False)


def all_targets(network: nn.Module) -> list[Target]:
    names = [name for name, value in network.named_parameters() if value.numel()]
    layers = layer_parameters(network, names)
    return [
        Target("parameters", parameters=frozenset(names)),
        Target("input+parameters", input=Pixels(), parameters=frozenset(names)),
        INPUT,
        *(Target("layer", layer, parameters=frozenset(own)) for layer, own in layers.items()),
    ]


def grams(
    perturbed: Perturbed, x: Tensor, classes: Tensor, held_bytes: int = 2**29
) -> tuple[list[Tensor], list[MergedClasses], list[Differences]]:
    """Gram matrices by target over all images, in the order of the images."""
    logits = perturbed.forward(x)
    count = len(perturbed.targets)
    found: list[list[Tensor]] = [[] for _ in range(count)]
    problems, kept = [], []
    for chunk in torch.arange(len(x)).split(1 if perturbed.one_by_one else len(x)):
        problem = MergedClasses(logits[chunk], by_probability(logits[chunk], classes[chunk]))
        differences = Differences(perturbed, x[chunk], range(count), held_bytes)
        for index, gram in differences.grams(problem):
            found[index].append(gram)
        problems.append(problem)
        kept.append(differences)
    return [torch.cat(parts) for parts in found], problems, kept


@pytest.mark.parametrize("case", CASES)
def test_gram_matrices_products_and_influence_equal_brute_force(case: str) -> None:
    network, x = build(case), some_images()
    targets = all_targets(network)
    perturbed = Perturbed(network, targets)
    classes = torch.arange(len(x)) % CLASSES
    found, problems, kept = grams(perturbed, x, classes)
    exact = exact_influence(perturbed, x, classes)
    logits = perturbed.forward(x)
    order = torch.cat([problem.kept for problem in problems])
    reference = torch.cat([problem.reference for problem in problems])
    for index, target in enumerate(targets):
        for i, image in enumerate(x):
            jacobian = dense_rows(network, image, target)
            rows = jacobian[order[i]] - jacobian[order[i, reference[i]]]
            expected = rows @ rows.T
            scale = expected.abs().max().clamp_min(1e-300)
            assert float((found[index][i] - expected).abs().max() / scale) < 1e-9, (target, i)
            if jacobian.abs().max() > 0:
                value = dense_influence(jacobian, logits[i], int(classes[i]), rtol=1e-11)
                assert exact.fi[i, index].item() == pytest.approx(value, rel=1e-6), (target, i)
    # J h along a combination of the differences, in forward mode.
    coefficients = torch.cos(torch.arange(CLASSES, dtype=torch.float64)).repeat(len(x), 1)
    start = 0
    for problem, differences in zip(problems, kept, strict=True):
        count = len(problem.kept)
        for index, target in enumerate(targets):
            moves = differences.moves(index, coefficients[:count])
            for i in range(count):
                jacobian = dense_rows(network, x[start + i], target)
                rows = jacobian[problem.kept[i]] - jacobian[problem.kept[i, problem.reference[i]]]
                direction = coefficients[i] @ rows
                expected = jacobian @ direction / direction.norm().clamp_min(1e-300)
                torch.testing.assert_close(moves[i], expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
        start += count


@pytest.mark.parametrize("case", ["conv2d, stride, padding, dilation", "shared linear", "transformer layer", "generic"])
def test_parts_add_up_and_nest(case: str) -> None:
    """Layers' Gram matrices sum to that of all parameters; with the input's, to the joint one; FI grows with the set."""
    network, x = build(case), some_images()
    targets = all_targets(network)
    perturbed = Perturbed(network, targets)
    classes = torch.arange(len(x)) % CLASSES
    found, _, _ = grams(perturbed, x, classes)
    torch.testing.assert_close(sum(found[3:]), found[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0] + found[2], found[1], rtol=1e-10, atol=1e-12)
    exact = exact_influence(perturbed, x, classes)
    slack = 1 + 1e-9
    assert (exact.fi[:, 3:] <= exact.fi[:, :1] * slack).all()
    assert (exact.fi[:, [0, 2]] <= exact.fi[:, 1:2] * slack).all()
    assert (exact.fi <= exact.bound[:, None] * slack).all()


def test_samples_are_told_apart_whatever_the_first_image_looks_like() -> None:
    """In attention the samples of a batch are interleaved; an empty image, the first seen, does not show how."""
    network, x = build("self-attention, batch first"), some_images()
    perturbed = Perturbed(network, all_targets(network))
    perturbed.forward(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    classes = torch.arange(len(x))
    expected = [
        exact_influence(Perturbed(network, perturbed.targets), x[i : i + 1], classes[i : i + 1]) for i in range(3)
    ]
    found = exact_influence(perturbed, x, classes)
    norms = torch.cat([part.jacobian_norm for part in expected])
    torch.testing.assert_close(found.jacobian_norm, norms, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.fi, torch.cat([part.fi for part in expected]), rtol=1e-7, atol=0)


class Routed(nn.Module):
    """Images take one of two branches; in the second the first branch's weight enters an operator not recognised."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(48, 6), nn.Linear(48, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        bright = flat.mean(1) > 0.5
        z = flat.new_zeros((len(x), 6))
        if bright.any():
            z[bright] = torch.tanh(self.one(flat[bright]))
        if not bright.all():
            z[~bright] = torch.tanh(self.two(flat[~bright]) + flat[~bright] @ self.one.weight.T)
        logits: Tensor = self.head(z)
        return logits


@pytest.mark.parametrize("first", [0, 1])
def test_operators_may_differ_from_image_to_image(first: int) -> None:
    torch.manual_seed(4)
    network = Routed().double().eval().requires_grad_(False)
    x = torch.stack([torch.full((3, 4, 4), level).double() for level in (0.2, 0.8, 0.3, 0.9)]) + 0.1 * some_images(4)
    perturbed = Perturbed(network, all_targets(network))
    perturbed.forward(x[first : first + 1])
    classes = torch.arange(4)
    for measure in (exact_influence, certified_influence):
        found = measure(perturbed, x, classes)
        logits = network(x)
        for i, image in enumerate(x):
            for index, target in enumerate(perturbed.targets):
                jacobian = dense_rows(network, image, target)
                slope = logits[i].softmax(0) @ jacobian - jacobian[classes[i]]
                assert found.jacobian_norm[i, index].item() == pytest.approx(slope.norm().item(), rel=1e-8, abs=1e-12)


def test_certified_intervals_hold_where_a_model_turns_gradients_off() -> None:
    torch.manual_seed(22)
    body, head = nn.Linear(48, 24), nn.Linear(24, 300)

    def call(net: nn.Module, x: Tensor) -> Tensor:
        z = torch.tanh(net.body(x.flatten(1)))
        with torch.no_grad():
            scale = z.square().mean(1, keepdim=True)
        return net.head(z / scale) * 3

    network = Wrapped(call, body=body, head=head).double().eval().requires_grad_(False)
    x = some_images(4)
    targets = [INPUT, Target("layer", "body", parameters=frozenset({"body.weight", "body.bias"}))]
    exact = exact_influence(Perturbed(network, targets), x)
    certified = certified_influence(Perturbed(network, targets), x, None, 0.5)
    assert certified.n_backward.min() < 24
    assert (certified.lower <= exact.fi * (1 + 1e-9)).all()
    assert (exact.fi <= certified.upper * (1 + 1e-9)).all()


def test_autocast_inside_the_model() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits: Tensor = self.head(torch.tanh(self.conv(x)).flatten(1))
            return logits.float()

    network = Mixed().eval().requires_grad_(False)
    perturbed = Perturbed(network, all_targets(network))
    x = some_images().float()
    exact, certified = exact_influence(perturbed, x), certified_influence(perturbed, x)
    torch.testing.assert_close(exact.fi[:, 0], exact.bound, rtol=1e-9, atol=0)
    torch.testing.assert_close(certified.fi[:, 0], exact.fi[:, 0], rtol=1e-6, atol=0)


def test_memory_bound_repeats_passes_without_changing_a_value() -> None:
    network, x = build("transformer layer"), some_images(1)
    perturbed = Perturbed(network, all_targets(network))
    classes = torch.zeros(1, dtype=torch.int64)
    whole, narrow = (exact_influence(perturbed, x, classes, gradient_bytes=size) for size in (2**29, 2000))
    torch.testing.assert_close(narrow.fi, whole.fi, rtol=1e-10, atol=0)
    assert whole.n_backward.item() == CLASSES - 1
    assert narrow.n_backward.item() > 3 * (CLASSES - 1)


def test_both_forms_of_the_contraction_are_used() -> None:
    """Many tokens materialise the gradients, few keep those of the outputs."""
    network, x = build("in place, residual"), some_images(1)
    perturbed = Perturbed(network, all_targets(network))
    perturbed.forward(x)
    assert perturbed.capture is not None
    forms = {uses.piece.parameter: uses.ghost_pays(4) for uses in uses_by_piece(perturbed.capture.uses).values()}
    assert forms["head.weight"]
    assert not forms["first.weight"]


class Rescaled(nn.Module):
    """A convolution with its weights times c, followed by division by c: the same function."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3)
        self.head = nn.Linear(8, 12, bias=False)
        with torch.no_grad():
            self.first.weight.mul_(factor)
            self.first.bias.mul_(factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x) / self.factor)
        logits: Tensor = self.head(torch.tanh(self.second(z)).flatten(1)[:, :8])
        return logits


def test_influence_is_invariant_when_a_layer_is_rescaled_and_the_comparators_are_not() -> None:
    from raysense.measures.cook import cook_of_parameters

    x, classes = some_images(), torch.tensor([0, 3, 7])
    results, cooks = [], []
    for factor in (1.0, 50.0):
        network = Rescaled(factor).double().eval().requires_grad_(False)
        names = frozenset({"first.bias"})  # 4 directions, 12 classes: FI is not its bound
        perturbed = Perturbed(network, [Target("parameters", parameters=names), *all_targets(network)[:1]])
        results.append(exact_influence(perturbed, x, classes))
        cooks.append([cook_of_parameters(network, sorted(names), x[i], int(classes[i])).value for i in range(3)])
    torch.testing.assert_close(results[1].fi, results[0].fi, rtol=1e-6, atol=0)
    assert (results[0].fi[:, 0] < 0.999 * results[0].bound).all()
    assert (results[0].rank[:, 0] == 4).all()
    torch.testing.assert_close(results[1].jacobian_norm[:, 0], results[0].jacobian_norm[:, 0] / 50, rtol=1e-6, atol=0)
    for before, after in zip(*cooks, strict=True):
        assert abs(float(after) / float(before) - 1) > 0.5


def test_generic_parameters_are_named_and_recognised_ones_are_not() -> None:
    perturbed = Perturbed(build("generic"), all_targets(build("generic")))
    perturbed.forward(some_images())
    assert perturbed.capture is not None
    assert perturbed.capture.one_by_one
    named = set(perturbed.capture.generic)
    assert {"byhand", "pair.weight", "slope.weight", "recurrent.weight_ih_l0"} <= named
    assert "head.bias" not in named
    for case in ("in place, residual", "transformer layer", "broadcast", "windows", "self-attention", "shared conv"):
        perturbed = Perturbed(build(case), all_targets(build(case)))
        perturbed.forward(some_images())
        assert perturbed.capture is not None
        assert not perturbed.capture.one_by_one, case


@pytest.mark.parametrize("tolerance", [0.3, 1e-2])
def test_certified_intervals_of_layers_contain_the_exact_value(tolerance: float) -> None:
    torch.manual_seed(2)
    classes, count = 300, 6
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(128, 24), nn.Tanh(),
        nn.Linear(24, classes, bias=False),
    ).double().eval().requires_grad_(False)  # fmt: skip
    network[6].weight.mul_(25)
    x, labels = some_images(count), torch.arange(count)
    perturbed = Perturbed(network, all_targets(network))
    for chosen in (None, labels):
        exact = exact_influence(perturbed, x, chosen)
        certified = certified_influence(perturbed, x, chosen, tolerance)
        assert (certified.lower <= exact.fi * (1 + 1e-9)).all()
        assert (exact.fi <= certified.upper * (1 + 1e-9)).all()
        assert (certified.upper - certified.lower <= tolerance * certified.upper * (1 + 1e-9)).all()
        torch.testing.assert_close(certified.jacobian_norm, exact.jacobian_norm, rtol=1e-7, atol=0)
        if chosen is None:
            assert (certified.n_backward < classes - 1).any()
    spanning = [perturbed.targets[index].layer for index in range(len(perturbed.targets)) if index > 2]
    assert spanning == ["0", "1", "4", "6"]
    one = certified_influence(Perturbed(network, perturbed.targets[:2]), x, labels, 1e-5)
    torch.testing.assert_close(one.fi, exact.fi[:, :2], rtol=1e-9, atol=0)
    assert one.n_backward.tolist() == [1] * count, "the last layer spans all moves: the bound is exact"
    torch.testing.assert_close(one.jacobian_norm, exact.jacobian_norm[:, :2], rtol=1e-7, atol=0)


def test_an_infinite_bound_is_certified_at_once() -> None:
    network = Wrapped(lambda net, x: net.head(x.flatten(1)), head=nn.Linear(48, 40)).double().requires_grad_(False)
    network.head.weight.mul_(1e4)
    targets = all_targets(network)[:1]
    x = some_images()
    result = certified_influence(Perturbed(network, targets), x, network(x).argmin(1))
    assert result.bound.isinf().all()
    assert result.lower.isinf().all()
    assert result.n_backward.tolist() == [1] * 3


def test_directions_in_the_input_are_a_target_of_their_own() -> None:
    """As a semantic scan adds them: brightness and contrast of an image, two parameters."""
    network, x = build("conv2d, 1 x 1, no bias"), some_images()

    def tangents(images: Tensor) -> Tensor:
        return torch.stack((torch.ones_like(images), images - 0.5), dim=1)

    target = Target("brightness, contrast", input=Tangents(tangents))
    classes = torch.arange(len(x))
    perturbed = Perturbed(network, [target, INPUT])
    exact, certified = (measure(perturbed, x, classes) for measure in (exact_influence, certified_influence))
    for i, image in enumerate(x):
        jacobian = dense_rows(network, image, INPUT) @ tangents(image[None])[0].flatten(1).T
        expected = dense_influence(jacobian, network(x)[i], i)
        assert exact.fi[i, 0].item() == pytest.approx(expected, rel=1e-8)
    assert (exact.rank[:, 0] == 2).all()
    assert (certified.lower <= exact.fi * (1 + 1e-9)).all()
    assert (exact.fi <= certified.upper * (1 + 1e-9)).all()


def test_unused_parameters_have_no_influence() -> None:
    network = Wrapped(
        lambda net, x: net.head(x.flatten(1)), head=nn.Linear(48, CLASSES), unused=nn.Linear(3, 3)
    ).double().eval().requires_grad_(False)  # fmt: skip
    perturbed = Perturbed(network, all_targets(network))
    result = exact_influence(perturbed, some_images())
    assert [target.layer for target in perturbed.targets[3:]] == ["head", "unused"]
    assert result.fi[:, 4].tolist() == [0.0] * 3
    assert result.rank[:, 4].tolist() == [0] * 3
    bound = bound_influence(perturbed, some_images())
    torch.testing.assert_close(bound.upper, bound.bound[:, None].expand(-1, 5))


def test_layers_and_patterns() -> None:
    network = build("transformer layer")
    names = [name for name, _ in network.named_parameters()]
    layers = layer_parameters(network, names)
    assert list(layers) == [
        "layer.self_attn", "layer.self_attn.out_proj", "layer.linear1", "layer.linear2", "layer.norm1", "layer.norm2",
        "head",
    ]  # fmt: skip
    assert layers["layer.self_attn"] == ("layer.self_attn.in_proj_weight", "layer.self_attn.in_proj_bias")
    assert matching(list(layers), ["*linear?", "head"]) == ["layer.linear1", "layer.linear2", "head"]
    with pytest.raises(ValueError, match=r"'fc' matches none of layer\.self_attn"):
        matching(list(layers), ["fc"])
    assert "head" not in layer_parameters(network, [name for name in names if not name.startswith("head")])


def test_resnet20_layers_agree_with_brute_force_on_cifar10() -> None:
    checkpoint, data = shared_data("cifar10", "resnet20.pt"), np.load(shared_data("cifar10", "test.npz"))
    network = load_model(f"tests/zoo/cifar_resnet.py:resnet?depth=20&checkpoint={checkpoint}").module.double()
    x = torch.tensor(data["x"][:2]).permute(0, 3, 1, 2).double() / 255
    targets: Sequence[Target] = all_targets(network)
    classes = torch.tensor(data["y"][:2])
    exact = exact_influence(Perturbed(network, targets), x, classes)
    logits = network(x)
    for i in range(2):
        for index in (0, 3, 4, 20, len(targets) - 1):
            jacobian = dense_rows(network, x[i], targets[index])
            q = torch.linalg.qr(jacobian.T, mode="r").R.T  # the same Gram matrix in K dimensions
            expected = dense_influence(q, logits[i], int(classes[i]))
            assert exact.fi[i, index].item() == pytest.approx(expected, rel=1e-6)
