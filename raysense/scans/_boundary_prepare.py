"""What the boundary scan finds out before it computes anything."""

from __future__ import annotations

import torch

from raysense.errors import UsageError
from raysense.models import LoadedModel
from raysense.scans._sampled import Examined, prepare_samples
from raysense.scans._second_order import examined_derivatives
from raysense.scans.base import Prepared
from raysense.scans.boundary import BoundarySpec

_MATRICES, _MOST_BYTES = 6, 2**32
"""Matrices of P^2 float64 that a spectrum holds at its peak, as measured, and the bytes that they may take."""

_STEPS = 4
_LANCZOS_PRODUCTS = 60


def prepare_boundary(spec: BoundarySpec) -> Prepared:
    """List the samples, open the model, and find out which derivatives it has.

    Raises:
        UsageError: one sentence on what does not fit.
    """

    def examine(model: LoadedModel, images: torch.Tensor) -> Examined:
        _check_size(spec, images)
        curved = spec.curvature or spec.step_study
        return examined_derivatives(spec, model, images) if curved else Examined({})

    return prepare_samples(spec, lambda classes: _passes(spec, classes), gradients=True, examine=examine)


def _check_size(spec: BoundarySpec, images: torch.Tensor) -> None:
    size = images[0].numel()
    needed = _MATRICES * 8 * size**2
    if "spectrum" in spec.curvature and needed > _MOST_BYTES:
        raise UsageError(
            f"curvature 'spectrum' of images of {size:,} values needs {needed / 2**30:.0f} GiB; use "
            "--curvature mean,extremes"
        )
    if "extremes" in spec.curvature and 2 * spec.extremes > size - 1:
        raise UsageError(
            f"extremes {spec.extremes}: images of {size} values have {size - 1} principal curvatures; "
            "use --curvature spectrum"
        )
    if spec.keep_directions > size - 1:
        raise UsageError(
            f"keep_directions {spec.keep_directions}: images of {size} values have {size - 1} principal directions; "
            f"use at most {size - 1}"
        )


def _passes(spec: BoundarySpec, classes: int) -> int:
    """Rough number of passes per sample, which sizes the units."""
    passes = _STEPS * min(classes, spec.candidates)
    passes += 2 * spec.directions * (("mean" in spec.curvature) + len(spec.step_study))
    if "extremes" in spec.curvature:
        passes += 2 * _LANCZOS_PRODUCTS
    return passes + (4096 if "spectrum" in spec.curvature else 0)
