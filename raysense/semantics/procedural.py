"""A small library of procedural shapes, by class and variant: what the semantic scan runs on without any data."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch

from raysense.semantics.furniture import bathtub, bench, chair, lamp, table
from raysense.semantics.meshes import Mesh
from raysense.semantics.solids import Solid
from raysense.semantics.vehicles import aeroplane, car
from raysense.semantics.vessels import bottle, cup, pan, teapot, vase

PROCEDURAL_CLASSES: dict[str, Callable[[Random], Solid]] = {
    "aeroplane": aeroplane,
    "bathtub": bathtub,
    "bench": bench,
    "bottle": bottle,
    "car": car,
    "chair": chair,
    "cup": cup,
    "lamp": lamp,
    "pan": pan,
    "table": table,
    "teapot": teapot,
    "vase": vase,
}
"""Makers by class: each draws its proportions from the given numbers. y is up, a model unit about a metre or a span."""


def procedural_mesh(class_name: str, variant: int, seed: int = 0) -> Mesh:
    """A shape of a class, neither cleaned nor normalised: 300 to 3,000 faces in closed parts, which may overlap.

    Equal arguments give the same shape for good: proportions come from Python's own generator, whose numbers for a
    text seed do not change between versions.

    Args:
        class_name: One of `PROCEDURAL_CLASSES`.
        variant: Which one of the class, from 0 on; proportions and parts vary.
        seed: Another seed gives another family of variants.
    """
    solid = PROCEDURAL_CLASSES[class_name](Random(f"{class_name}/{seed}/{variant}"))
    return Mesh(torch.from_numpy(solid.vertices), torch.from_numpy(solid.faces), f"{class_name}/{variant}")
