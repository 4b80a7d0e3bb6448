"""The operators of autograd's graph: which have kinks, which are smooth, and which are linear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["linear", "bend", "kink"]
"""What an operator is as a function of its inputs: affine; smooth but not affine; not differentiable somewhere."""

# Names are those of PyTorch's derivatives.yaml, without variants.
_KINKED = """
    abs adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax angle ceil clamp_max copysign cummax cummin
    fake_quantize_learnable_per_channel_affine fake_quantize_learnable_per_tensor_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask_tensor_qparams floor fmax fmin fmod frac fractional_max_pool2d
    fractional_max_pool3d frexp fused_moving_avg_obs_fq_helper hardshrink hardsigmoid hardswish hardtanh index_reduce
    kthvalue leaky_relu max max_pool2d max_pool3d maximum median min minimum mkldnn_max_pool2d mkldnn_max_pool3d mode
    multi_margin_loss multilabel_margin_loss nan_to_num nanmedian prelu relu remainder renorm round rrelu_with_noise
    rrelu_with_noise_functional segment_reduce sgn sign softshrink sort sparse_mm_reduce_impl threshold topk trunc
"""
# Linear, but they keep their input for the backward pass, for its shape.
_LINEAR = """
    adaptive_avg_pool2d adaptive_avg_pool3d avg_pool2d avg_pool3d batch_norm_no_update clamp clamp_min gather masked_select
    mkldnn_adaptive_avg_pool2d nansum native_batch_norm_legit_no_training reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d take unsafe_masked_index
"""
# Linear in either of the first two inputs.
_PRODUCT = """
    bmm conv_depthwise2d conv_depthwise3d conv_tbc convolution convolution_overrideable cudnn_convolution
    cudnn_convolution_transpose dot grouped_mm linalg_cross linear matmul mkldnn_convolution mkldnn_linear mm
    mps_convolution mul mv vdot
"""
# The same, but for a summand before them.
_ADDED_PRODUCT = "addbmm addcmul addmm addmv addr baddbmm"
# Linear in the first input, with kinks in the second, the places of the samples.
_INTERPOLATION = "cudnn_grid_sampler grid_sampler2d grid_sampler2d_cpu_fallback grid_sampler3d"

_KINKED_NAMES, _LINEAR_NAMES, _INTERPOLATIONS = (
    frozenset(names.split()) for names in (_KINKED, _LINEAR, _INTERPOLATION)
)
# Operators that are linear in each of these groups of inputs: nonlinear where two of the groups depend on the image.
_PRODUCTS: Mapping[str, tuple[tuple[int, ...], ...]] = {
    **dict.fromkeys(f"{_PRODUCT} {_INTERPOLATION}".split(), ((0,), (1,))),
    **dict.fromkeys(_ADDED_PRODUCT.split(), ((1,), (2,))),
    "lerp": ((0, 1), (2,)),
    "trilinear": ((0,), (1,), (2,)),
}
# Operators that are linear in the inputs before this one.
_QUOTIENTS = {"div": 1, "addcdiv": 2}


def _norm(node: Any) -> bool:
    """Whether a norm has kinks beside its zero: of order 1 or below, and the largest magnitude."""
    order = float(getattr(node, "_saved_ord", getattr(node, "_saved_p", 2.0)))
    return order <= 1 or order == float("inf")


def _elu(node: Any) -> bool:
    """Whether the slopes at 0 differ: those of ELU with alpha = 1 and of CELU do not, those of SELU do."""
    return abs(float(node._saved_alpha) * float(node._saved_input_scale) - 1) > 1e-6


def _lower_bound(node: Any) -> bool:
    """Whether it can be reached: a guard against division by zero, as in a normalisation, is far away."""
    least = getattr(node, "_saved_min", None)
    return isinstance(least, Tensor) or not 0 < float(least or 0) < 1e-6 * node._saved_self.detach().min().item()


def _clamped(node: Any) -> bool:
    """Whether there is an upper bound, or a lower one that can be reached."""
    return node._saved_max is not None or _lower_bound(node)


# Operators that have kinks or not, by their arguments.
_SOMETIMES: Mapping[str, Callable[[Any], bool]] = {
    "cdist": _norm,
    "dist": _norm,
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "pdist": _norm,
    "clamp": _clamped,
    "clamp_min": _lower_bound,
    "elu": _elu,
    "div": lambda node: getattr(node, "_saved_rounding_mode", None) is not None,
    "scatter_reduce": lambda node: node._saved_reduce in ("amax", "amin"),
    "cudnn_rnn": lambda node: node._saved_mode == 0,  # with ReLU
}


def operator_name(node: Any) -> str:
    """The name of a node's operator as in PyTorch: max_pool2d for MaxPool2DWithIndicesBackward0."""
    name = re.sub(r"Backward\d*$", "", type(node).__name__ if _built_in(node) else node.name().rpartition("::")[2])
    name = re.sub(r"(\d)D", r"\1d", name)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return name.removesuffix("_with_indices").removesuffix("_kernel")


def kind_of(node: Any, dependent: Sequence[bool]) -> Kind:
    """What a node is as a function of those of its inputs that depend on the image.

    Args:
        node: A node of autograd's graph.
        dependent: For each of its inputs whether it depends on the image; at least one does.

    Returns:
        ``kink`` also for functions with a gradient of their own, and for assignments to a part of a tensor: what they do is
        not known.
    """
    name = operator_name(node)
    forward = name.removesuffix("_backward")  # of a gradient that the network itself takes
    if not _built_in(node) or name == "copy_slices" or forward in _KINKED_NAMES:
        return "kink"
    if (name in _SOMETIMES and _SOMETIMES[name](node)) or (name in _INTERPOLATIONS and dependent[1]):
        return "kink"
    if name in _PRODUCTS:
        groups = [any(dependent[place] for place in group if place < len(dependent)) for group in _PRODUCTS[name]]
        return "bend" if sum(groups) > 1 else "linear"
    if name in _QUOTIENTS:
        return "bend" if any(dependent[_QUOTIENTS[name] :]) else "linear"
    if name in _LINEAR_NAMES or getattr(node, "_saved_training", None) is False:  # batch norm
        return "linear"
    # The backward pass of a linear operator needs nothing that depends on the image.
    return "bend" if any(value.requires_grad for value in _saved(node)) else "linear"


def constants(node: Any) -> list[Tensor]:
    """The tensors that a node keeps for its backward pass and that autograd takes to be constant."""
    return [value for value in _saved(node) if not value.requires_grad]


def _built_in(node: Any) -> bool:
    """Whether it is one of PyTorch's own operators."""
    return hasattr(torch._C._functions, type(node).__name__)


def _saved(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            yield from (part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Tensor))
