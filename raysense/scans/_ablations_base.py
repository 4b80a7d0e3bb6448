"""The significance scan that an ablations scan works on: its committed tables, read through its store."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysense.errors import UsageError
from raysense.models import load_model
from raysense.scans._results import UNIT_COLUMN, ScanResults, matrix
from raysense.scans.ablations import AblationsSpec
from raysense.scans.base import Prepared

_UNITS_WANTED = 32
_LARGEST_UNIT = 32
_SUMS = {
    "class_activations": ("n_observations", "activation_sum"),
    "class_outputs": ("n_samples", "p_sum", "log_p_sum", "p_log_p_sum"),
}


@dataclass(frozen=True)
class ClassEntry:
    """A class of a split, as the listing has it.

    Attributes:
        split: The split.
        label: The class.
        samples: Samples of it that the significance scan has counted.
        units: Its committed units that hold them.
    """

    split: str
    label: int
    samples: int
    units: tuple[str, ...]


class SignificanceResults(ScanResults):
    """A significance scan with its activations.

    Args:
        location: Directory or URI.

    Raises:
        UsageError: it is not such a scan.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location, "significance")
        if "activations" not in self.schemas:
            raise UsageError(
                f"of {location!r} was run without --activations, which the ablations need; run a significance scan with "
                "--activations 50, say, in another directory"
            )

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return [layer["name"] for layer in self.facts["significance"]["layers"]]

    def current_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the model, and of the committed units, as they are now."""
        return {"model": load_model(self.model).fingerprint, "data": self.data_fingerprint(self._snapshot.units)}

    def class_sums(self, table: str, classes: Sequence[ClassEntry], layer: str | None = None) -> list[np.ndarray]:
        """Sums over the units of classes of one split, one row a class, float64.

        Args:
            table: class_activations, which gives n_observations [C] and activation_sum [C, inputs]; or class_outputs, which
                gives n_samples [C], p_sum [C, K], log_p_sum [C, K] and p_log_p_sum [C].
            classes: The classes.
            layer: The layer, for activations.
        """
        place = {entry.label: index for index, entry in enumerate(classes)}
        units = sorted({unit for entry in classes for unit in entry.units})
        condition = None if layer is None else pc.field("layer") == layer
        rows = self.rows(table, units, ("class", "split", *_SUMS[table]), condition)
        rows = rows.filter(pc.equal(rows["split"], classes[0].split))
        places = np.array([place[label] for label in rows["class"].to_pylist()])
        sums = []
        for name in _SUMS[table]:
            values = matrix(rows[name])
            total = np.zeros((len(classes), *values.shape[1:]))
            np.add.at(total, places, values)
            sums.append(total)
        return sums

    def activations(self, entry: ClassEntry, layer: str) -> np.ndarray:
        """Activations that were kept of a class, [n, inputs] float32; n may be 0."""
        condition = (
            (pc.field("layer") == layer) & (pc.field("class") == entry.label) & (pc.field("split") == entry.split)
        )
        return matrix(self.rows("activations", entry.units, ("activation",), condition)["activation"])


def prepare_ablations(spec: AblationsSpec) -> Prepared:
    """List the classes, and check everything before anything is computed.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    base = SignificanceResults(spec.of)
    units = base.committed_units()
    fingerprint = base.check_model()
    classes = _classes(base, units)
    if not classes:
        raise UsageError(
            f"of {spec.of!r} has no sample that could be scored; see `raysense status {shlex.quote(spec.of)}`"
        )
    listing = pa.table(
        {
            "split": pa.array([entry.split for entry in classes], pa.string()),
            "class": pa.array([entry.label for entry in classes], pa.int32()),
            "n_samples": pa.array([entry.samples for entry in classes], pa.int64()),
            "units": pa.array([entry.units for entry in classes], pa.list_(pa.string())),
        }
    )
    facts = {name: base.facts.get(name) for name in ("model", "data", "preprocessing", "significance")}
    return Prepared(
        listing=listing,
        facts={
            **facts,
            "of": base.progress(units),
            "fingerprints": {"model": fingerprint, "data": base.data_fingerprint(units)},
        },
        unit_size=spec.unit_size or max(1, min(_LARGEST_UNIT, len(classes) // _UNITS_WANTED)),
        notes=(*base.note_unfinished(units), *_notes(base, classes)),
    )


def listed_classes(prepared: Prepared) -> list[ClassEntry]:
    """The classes of a listing, those of a split together."""
    return [
        ClassEntry(row["split"], row["class"], row["n_samples"], tuple(row["units"]))
        for row in prepared.listing.to_pylist()
    ]


def _classes(base: SignificanceResults, units: Sequence[str]) -> list[ClassEntry]:
    """Every split and class that has samples, sorted, splits in their order in the significance scan."""
    samples: dict[tuple[str, int], int] = {}
    holding: dict[tuple[str, int], list[str]] = {}
    for row in base.rows("class_outputs", units, ("split", "class", "n_samples", UNIT_COLUMN)).to_pylist():
        if row["n_samples"]:
            key = row["split"], row["class"]
            samples[key] = samples.get(key, 0) + row["n_samples"]
            holding.setdefault(key, []).append(row[UNIT_COLUMN])
    places = {split: place for place, split in enumerate(dict.fromkeys(split for split, _ in samples))}
    ordered = sorted(samples, key=lambda key: (places[key[0]], key[1]))
    return [ClassEntry(*key, samples[key], tuple(dict.fromkeys(holding[key]))) for key in ordered]


def _notes(base: SignificanceResults, classes: Sequence[ClassEntry]) -> list[str]:
    """What the numbers leave out."""
    notes = []
    kept, most = int(base.document["spec"]["activations"]), max(entry.samples for entry in classes)
    if kept < most:
        notes.append(
            f"activations of at most {kept} of up to {most} samples of a class were kept: distances between activations "
            "are estimates, with standard errors in column stderr"
        )
    return notes
