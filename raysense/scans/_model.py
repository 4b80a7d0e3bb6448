"""What every scan does with its model: try it before anything is computed, describe it, open it in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raysense.devices import resolve_device
from raysense.errors import UsageError, first_line
from raysense.measures.gradients import forward_with_graph
from raysense.models import LoadedModel, load_model
from raysense.networks import ExportedModel, Normalize
from raysense.options import ComputeOptions
from raysense.scans._passes import count_passes
from raysense.scans.base import Prepared


def checked_classes(reference: str, module: nn.Module, batch: Tensor, names: Sequence[str], what: str) -> int:
    """The number K of a model's classes, once it has shown that it can be scanned.

    Args:
        reference: The model reference, for messages.
        module: The network.
        batch: The first images, [n, C, H, W].
        names: What to call each of them.
        what: What they are, for messages: "images of data 'digits'".

    Raises:
        UsageError: the model does not take them, returns no finite logits, or returns other logits for the same image.
    """
    try:
        with torch.no_grad():
            output = module(batch)
            again = module(batch)
            alone = module(batch[:1])
    except Exception as error:  # a model may raise anything
        raise UsageError(
            f"model {reference!r} does not take the {what}, {list(batch.shape)}: {first_line(error)}"
        ) from error
    _check_output(reference, output, again, alone, names)
    return int(output.shape[1])


def check_gradients(reference: str, module: nn.Module, image: Tensor, mend: str) -> None:
    """Try a backward pass to an image [1, C, H, W].

    Raises:
        UsageError: the model has no gradient with respect to its input; the message ends with ``mend``.
    """
    logits, inputs = forward_with_graph(module, image)
    try:
        torch.autograd.grad(logits.sum(), inputs)
    except RuntimeError as error:
        raise UsageError(
            f"model {reference!r} has no gradient with respect to its input ({first_line(error)}); {mend}"
        ) from error


def model_facts(model: LoadedModel, classes: int, batch: Tensor) -> dict[str, Any]:
    """What scan.json says of a model with ``classes`` classes that takes images like ``batch``, [n, C, H, W]."""
    return {
        "reference": model.reference,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "n_classes": classes,
        "classes": None if model.classes is None else list(model.classes),
        "input_shape": list(batch.shape[1:]),
        "normalisation": model.normalisation,
    }


def opened_model(reference: str, prepared: Prepared, options: ComputeOptions) -> tuple[LoadedModel, str]:
    """The model on the device of this process, and the device.

    Raises:
        UsageError: it is not the model that the scan was started with.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    model = load_model(reference, device)
    expected = prepared.facts["fingerprints"]["model"]
    if model.fingerprint != expected:
        raise UsageError(
            f"model {reference!r} has fingerprint {model.fingerprint[:12]} here, the scan was started with "
            f"{expected[:12]}; make the same weights visible on every machine"
        )
    count_passes(model.module)
    return model, device


def shown_name(model: LoadedModel, name: str) -> str:
    """A name as the user knows it, without the normalisation in front and the exported program around it."""
    module = model.module
    if isinstance(module, Normalize):
        module, name = module.module, name.removeprefix("module").removeprefix(".")
    return name.removeprefix("program").removeprefix(".") if isinstance(module, ExportedModel) else name


def _check_output(reference: str, output: Any, again: Tensor, alone: Tensor, names: Sequence[str]) -> None:
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(names) or output.shape[1] < 2:
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"model {reference!r} returns {what} for {len(names)} images; it must return logits [N, K] with K of at least 2"
        )
    for name, row in zip(names, output, strict=True):
        if not torch.isfinite(row).all():
            raise UsageError(
                f"model {reference!r} gives logits that are not finite for sample {name!r}; "
                "check its weights and the pixel range"
            )
    scale = float(output.abs().max()) or 1.0
    for other, why in (
        (
            float((output - again).abs().max()),
            "gives different logits for the same images (is a random layer left on?)",
        ),
        (float((output[:1] - alone).abs().max()), "gives logits that depend on the other images of the batch"),
    ):
        if other > 1e-3 * scale:
            raise UsageError(f"model {reference!r} {why}; results would depend on chance or batch size")
