"""The ablations scan: other distances between classes than that of their paths (Khaitan & Banerjee 2026, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan, ScanSpec
from raysense.working_directory import kept_path

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class AblationsSpec(ScanSpec):
    """What an ablations scan computes."""

    of: str = Field(description="directory or URI of a significance scan that was run with --activations")
    unit_size: int | None = Field(None, ge=1, description="classes per unit of work, each against all; none chooses")

    @field_validator("of")
    @classmethod
    def _absolute_directory(cls, value: str) -> str:
        from raysense.store.files import Directory

        return kept_path(Directory(value, argument="of").location)


class AblationsScan(Scan):
    """Distances between classes by their mean interactions, their outputs and their activations."""

    kind = "ablations"
    spec_type = AblationsSpec
    noun = "classes"
    summary = "distances between classes without paths, from a significance scan"
    spec: AblationsSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables class_distances and units."""
        from raysense.scans._ablations_tables import ablations_schemas

        return ablations_schemas()

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the classes of the significance scan, and check that its model is as it was."""
        from raysense.scans._ablations_base import prepare_ablations

        return prepare_ablations(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of the model, and of what the significance scan holds, as they are now."""
        from raysense.scans._ablations_base import SignificanceResults

        return SignificanceResults(self.spec.of).current_fingerprints()

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The layers' weights on this process's device, ready to compare classes."""
        from raysense.scans._ablations import AblationsComputer

        return AblationsComputer(self.spec, prepared, options)
