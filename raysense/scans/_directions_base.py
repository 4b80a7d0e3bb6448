"""The boundary scan whose principal directions a scan of shared directions takes, and what it finds out beforehand."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysense.errors import UsageError
from raysense.measures.boundary.shared import shared_directions
from raysense.scans import _sampled
from raysense.scans._results import ScanResults, matrix
from raysense.scans._sampled import prepare_samples
from raysense.scans._second_order import examined_derivatives
from raysense.scans.base import Prepared
from raysense.scans.directions import DirectionsSpec

_SHARED, _OF_VALUES = 200, 3072
"""The slides' S, spanned by 200 directions of CIFAR-10 images."""


_RANK_RTOL = 1e-4  # of singular values: smaller ones are errors of directions that are the same otherwise


class CurvedDirections(ScanResults):
    """A boundary scan with the principal directions of its samples.

    Args:
        location: Directory or URI.

    Raises:
        UsageError: it is not such a scan.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location, "boundary")
        if "principal_directions" not in self.schemas:
            raise UsageError(
                f"of {location!r} was run without --keep-directions; run a boundary scan with --curvature extremes "
                "--keep-directions 10, say, in another directory"
            )
        if self.document["spec"]["norm"] != "l2":
            raise UsageError(
                f"of {location!r} was run with --norm {self.document['spec']['norm']}, and noise is measured in l2; run a "
                "boundary scan with --norm l2 in another directory"
            )

    def fingerprint(self) -> str:
        """Of what was scanned, finished or not."""
        what = [self.facts["fingerprints"], self.document["spec"]]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def directions(self, units: list[str]) -> np.ndarray:
        """Principal directions of all samples of some units, one below the other, [M, P] float32."""
        return matrix(self.rows("principal_directions", units, ("direction",))["direction"])

    def image_norm(self, units: list[str]) -> float:
        """Mean norm of the images of some units."""
        return float(pc.mean(self.rows("boundary", units, ("image_norm",))["image_norm"]).as_py() or math.nan)


def content_hash(directions: np.ndarray) -> str:
    """Hash of directions, by which every worker tells that it has the same ones."""
    return hashlib.sha256(pa.py_buffer(np.ascontiguousarray(directions))).hexdigest()


def prepare_directions(spec: DirectionsSpec) -> Prepared:
    """List the samples, open the model, and check that the directions fit it.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    base = CurvedDirections(spec.of)
    units = base.committed_units()
    base.check_model()
    directions = base.directions(units)
    if not len(directions):
        raise UsageError(f"of {spec.of!r} has no principal direction; see `raysense status {shlex.quote(spec.of)}`")
    prepared = prepare_samples(
        spec,
        lambda classes: _passes(spec, classes),
        gradients=True,
        examine=lambda model, images: examined_derivatives(spec, model, images),
    )
    size = math.prod(prepared.facts["model"]["input_shape"])
    if directions.shape[1] != size:
        raise UsageError(
            f"of {spec.of!r} has directions of {directions.shape[1]} values, and model {spec.model!r} takes images of "
            f"{size}; name a boundary scan of such images"
        )
    own = {
        "of": base.progress(units),
        "units": units,
        "image_norm": base.image_norm(units),
        "directions": len(directions),
        "content": content_hash(directions),
        "values": size,
        "shared": _shared(spec, directions),
    }
    prints = {**prepared.facts["fingerprints"], "directions": base.fingerprint()}
    return replace(
        prepared,
        facts={**prepared.facts, "fingerprints": prints, "directions": own},
        notes=(*base.note_unfinished(units), *prepared.notes, *_notes(spec, base, prepared)),
    )


def current_fingerprints(spec: DirectionsSpec) -> dict[str, str]:
    """Fingerprints of the model, the data, and the boundary scan, as they are now."""
    base = CurvedDirections(spec.of)
    return {**_sampled.current_fingerprints(spec), "directions": base.fingerprint()}


def _shared(spec: DirectionsSpec, directions: np.ndarray) -> int:
    """m, the number of shared directions.

    Raises:
        UsageError: there are not so many.
    """
    size: int = directions.shape[1]
    values = shared_directions(torch.tensor(directions), size).singular_values
    rank = int((values > _RANK_RTOL * values[0]).sum())
    most = min(rank, size - 1)  # of all directions the complement would be empty
    if spec.shared is None:
        return max(1, min(_SHARED, size * _SHARED // _OF_VALUES, most))
    if spec.shared > most:
        raise UsageError(
            f"shared {spec.shared}: the directions that {spec.of!r} kept span {rank} of {size} dimensions; "
            f"use at most {most}, or keep directions of more samples"
        )
    return spec.shared


def _notes(spec: DirectionsSpec, base: CurvedDirections, prepared: Prepared) -> list[str]:
    """What the user should know of the directions."""
    notes = []
    same = base.facts["fingerprints"]
    if same["model"] != prepared.facts["fingerprints"]["model"]:
        notes.append(f"the directions are those of another model, {base.model!r}")
    if same["data"] == prepared.facts["fingerprints"]["data"] and not _disjoint(spec, base):
        notes.append(
            "the directions may be those of the very samples that are scanned; scan other ones, or another split"
        )
    return notes


def _disjoint(spec: DirectionsSpec, base: CurvedDirections) -> bool:
    """Whether splits are named, and none of them twice."""
    theirs = set(base.document["spec"]["split"])
    return bool(theirs and spec.split and not theirs & set(spec.split))


def _passes(spec: DirectionsSpec, classes: int) -> int:
    """Rough number of passes per sample, which sizes the units."""
    passes = 4 * min(classes, spec.candidates) + 2 * (spec.directions + (spec.shared or _SHARED))
    return passes + len(spec.noise) * spec.draws
