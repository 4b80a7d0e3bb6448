"""The same values by other means: torch.func, nngeometry and curvlinops give the Jacobian, our algebra does the rest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from raysense.measures.fisher import gradient_norm, gram_matrix, influence
from raysense.measures.influence import TargetInfluence
from raysense.measures.targets import layer_parameters

CG_TOLERANCE = 1e-6
"""Residual of conjugate gradients, relative to the gradient."""


def missing(package: str) -> str | None:
    """Why a rival is left out, and how to have it; None where it is installed."""
    if find_spec(package) is not None:
        return None
    name = {"curvlinops": "curvlinops-for-pytorch"}.get(package, package)
    return f"{package} is not installed; python -m pip install {name}"


def with_plain_weights(model: nn.Module) -> nn.Module:
    """A copy whose weights are laid out as PyTorch makes them: ours are arranged for our passes, not for others."""
    plain = deepcopy(model)
    for value in plain.parameters():
        value.data = value.data.contiguous()
    return plain


def values_of(result: TargetInfluence) -> Tensor:
    """FI and Jacobian norms of all targets, [N, 2 T]."""
    return torch.cat((result.fi, result.jacobian_norm), dim=1)


def difference_gram(rows: Tensor, reference: Tensor, double: bool = True) -> Tensor:
    """Gram matrix [N, K, K] of logit differences to a class of each sample, without a copy of the gradients.

    Args:
        rows: [N, K, P], gradients of the logits.
        reference: [N] int64.
        double: Whether it is accumulated in float64.
    """
    gram = gram_matrix(rows) if double else torch.bmm(rows, rows.transpose(1, 2)).double()
    row = gram.gather(1, reference[:, None, None].expand(-1, 1, gram.shape[2]))
    corner = row.gather(2, reference[:, None, None])
    return gram - row - row.transpose(1, 2) + corner


def input_by_torch_func(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """FI [N] from vmap(jacrev) of one sample's logits, which come out beside their Jacobian."""

    def logits_twice(image: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(image[None])[0]
        return logits, logits

    jacobian, logits = vmap(jacrev(logits_twice, has_aux=True))(images)
    logits, reference = logits.double(), logits.argmax(1)
    return influence(logits, difference_gram(jacobian.flatten(2), reference), classes, reference).fi


def layers_by_torch_func(model: nn.Module, images: Tensor, classes: Tensor, double: bool) -> Tensor:
    """Values of every layer [N, 2 L] from vmap(jacrev) of all parameters at once.

    Args:
        model: The network.
        images: [N, C, H, W].
        classes: [N] int64.
        double: As for :func:`layer_values`.
    """
    parameters = dict(model.named_parameters())

    def logits_twice(values: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, values, (image[None],))[0]
        return logits, logits

    jacobian, logits = vmap(jacrev(logits_twice, has_aux=True), in_dims=(None, 0))(parameters, images)
    return layer_values(model, {name: rows.flatten(2) for name, rows in jacobian.items()}, logits, classes, double)


def layers_by_nngeometry(model: nn.Module, images: Tensor, classes: Tensor, double: bool) -> Tensor:
    """Values of every layer [N, 2 L] from nngeometry's Jacobian, by hooks and a loop over the classes."""
    from nngeometry.jacobian import Jacobian
    from nngeometry.layercollection import LayerCollection

    seen: list[Tensor] = []

    def logits_kept(*batch: Tensor) -> Tensor:
        logits: Tensor = model(batch[0])
        seen.append(logits.detach())
        return logits

    loader = DataLoader(TensorDataset(images.clone()), batch_size=len(images))
    found = Jacobian(model, loader, logits_kept, layer_collection=LayerCollection.from_model(model))
    rows = {
        f"{layer}.{name}": part.flatten(2).transpose(0, 1)
        for layer, parts in found.iter_by_module()
        for name, part in zip(("weight", "bias"), parts, strict=False)
    }
    return layer_values(model, rows, torch.cat(seen), classes, double)


def layers_by_curvlinops(model: nn.Module, images: Tensor, classes: Tensor, double: bool) -> Tensor:
    """Values of every layer [N, 2 L] from curvlinops' transposed Jacobian times the identity, one image at a time."""
    from curvlinops import TransposedJacobianLinearOperator

    names, parameters = zip(*model.named_parameters(), strict=True)
    values = []
    for image, label in zip(images.split(1), classes.split(1), strict=True):
        logits = model(image)
        operator = TransposedJacobianLinearOperator(
            model, list(parameters), [(image, label)], check_deterministic=False
        )
        columns = operator @ torch.eye(logits.shape[1])
        parts = columns.split([value.numel() for value in parameters])
        rows = {name: part.T[None] for name, part in zip(names, parts, strict=True)}
        values.append(layer_values(model, rows, logits, label, double))
    return torch.cat(values)


def layer_values(model: nn.Module, rows: Mapping[str, Tensor], logits: Tensor, classes: Tensor, double: bool) -> Tensor:
    """FI and Jacobian norm of every layer [N, 2 L], FI of all layers first.

    Args:
        model: The network.
        rows: [N, K, size] by parameter, the gradients of the logits.
        logits: [N, K].
        classes: [N] int64.
        double: Whether the Gram matrices are accumulated in float64, as ours are. In float32 they are faster, but the
            rounding hides from a layer of few parameters that it cannot move the logits in every direction.
    """
    logits, reference = logits.detach().double(), logits.argmax(1)
    fi, norms = [], []
    for own in layer_parameters(model, list(rows)).values():
        grams = [difference_gram(rows[name], reference, double) for name in own]
        gram = sum(grams[1:], grams[0])
        fi.append(influence(logits, gram, classes, reference).fi)
        norms.append(gradient_norm(logits, gram, classes))
    return torch.stack(fi + norms, dim=1)


def parameters_by_curvlinops(model: nn.Module, images: Tensor, classes: Tensor, iterations: int) -> Tensor:
    """FI of all parameters [N] by conjugate gradients: F h = grad f with curvlinops' Fisher-vector products, one at a time.

    The Fisher matrix of one sample has at most K - 1 eigenvalues besides zero, so that many iterations would do but for
    rounding.
    """
    from curvlinops import CGInverseLinearOperator, GGNLinearOperator

    parameters = list(model.parameters())
    required = [value.requires_grad for value in parameters]
    values = []
    try:
        for value in parameters:
            value.requires_grad_(True)
        for image, label in zip(images.split(1), classes.split(1), strict=True):
            loss = nn.CrossEntropyLoss(reduction="sum")
            fisher = GGNLinearOperator(model, loss, parameters, [(image, label)], check_deterministic=False)
            slope = _flat(torch.autograd.grad(cross_entropy(model(image), label), parameters))
            inverse = CGInverseLinearOperator(
                fisher, max_iter=iterations, max_tridiag_iter=iterations, tolerance=CG_TOLERANCE, eps=1e-30
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the residual is above the tolerance: the error is printed
                values.append(torch.dot(slope.double(), (inverse @ slope).double()))
    finally:
        for value, before in zip(parameters, required, strict=True):
            value.requires_grad_(before)
    return torch.stack(values)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
