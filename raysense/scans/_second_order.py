"""Which second derivatives a scan of boundaries uses: found out once, on the first image, and kept with the scan."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from raysense.errors import UsageError, first_line
from raysense.measures.boundary.kinks import smoothness
from raysense.measures.boundary.margins import largest_margin
from raysense.measures.boundary.shape_operator import ShapeOperator
from raysense.measures.gradients import forward
from raysense.models import LoadedModel
from raysense.scans._sampled import Examined
from raysense.scans.base import Prepared
from raysense.scans.bounded import CurvedSpec


class SecondOrder(NamedTuple):
    """How curvature is computed.

    Attributes:
        derivatives: Exact second derivatives, or differences of gradients.
        step: h of the differences; None for exact.
    """

    derivatives: Literal["exact", "differences"]
    step: float | None


def examined_derivatives(spec: CurvedSpec, model: LoadedModel, images: torch.Tensor) -> Examined:
    """Decide which derivatives a model needs, and try them on the first image.

    Args:
        spec: Asks for them.
        model: The model.
        images: The first images, [n, C, H, W].

    Raises:
        UsageError: exact derivatives are asked for and are zero, or the model has none.
    """
    found = smoothness(model.module, images[:1])
    derivatives = found.derivatives if spec.derivatives == "auto" else spec.derivatives
    notes = []
    kinks = ", ".join(found.kinks)
    if derivatives == "exact" and found.piecewise_linear:
        raise UsageError(
            f"derivatives 'exact': second derivatives of model {spec.model!r} are zero almost everywhere, since it bends "
            f"at kinks only ({kinks}); use --derivatives differences"
        )
    if derivatives == "exact" and found.kinks:
        notes.append(
            f"derivatives 'exact' of model {spec.model!r} leave out what its kinks ({kinks}) add to the curvature; "
            "--derivatives differences measures both at the scale of --step"
        )
    if derivatives == "exact" and (failure := _failure(model, images[:1])) is not None:
        if spec.derivatives == "exact":
            raise UsageError(
                f"derivatives 'exact': model {spec.model!r} has no second derivatives ({failure}); "
                "use --derivatives differences"
            )
        notes.append(f"model {spec.model!r} has no second derivatives ({failure}); differences of gradients are used")
        derivatives = "differences"
    step = spec.step if derivatives == "differences" else None
    facts = {"derivatives": derivatives, "step": step, "kinks": list(found.kinks), "bends": list(found.bends)}
    return Examined({"second_order": facts}, tuple(notes))


def second_order_of(prepared: Prepared) -> SecondOrder:
    """What :func:`examined_derivatives` decided when the scan was started."""
    facts = prepared.facts["model"]["second_order"]
    return SecondOrder(facts["derivatives"], facts["step"])


def _failure(model: LoadedModel, image: torch.Tensor) -> str | None:
    """Why an exact product with the Hessian cannot be computed; None where it can."""
    logits = forward(model.module, image)
    from_class = logits.argmax(1)
    _, to_class = largest_margin(logits, from_class)
    try:
        operator = ShapeOperator(model.module, image, from_class, to_class, "exact", None)
        operator.product(torch.ones_like(image).flatten(1))
    except (RuntimeError, NotImplementedError) as error:
        return first_line(error)
    return None
