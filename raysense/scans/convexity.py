"""The convexity scan: whether convex combinations of images of one class stay in it (Fawzi et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan, Unit
from raysense.scans.sampled import SampledSpec, split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class ConvexitySpec(SampledSpec):
    """What a convexity scan computes."""

    k: tuple[int, ...] = Field((2, 3, 5, 10, 20), description="images that are combined, separated by commas")
    groups: int = Field(100, ge=1, description="groups of images of each size")
    combinations: int = Field(10, ge=1, description="random convex combinations of each group")

    @field_validator("k", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return split_text(value, ",")

    @field_validator("k")
    @classmethod
    def _at_least_two(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value) or min(value) < 2:
            raise ValueError("one or more sizes of at least 2 images, each once, such as 2,3,5")
        return value


class ConvexityScan(Scan):
    """Shares of the convex combinations of k images of one predicted class that stay in the class."""

    kind = "convexity"
    spec_type = ConvexitySpec
    noun = "groups"
    summary = "whether convex combinations of images of one predicted class stay in it"
    spec: ConvexitySpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables convexity and units."""
        from raysense.scans._topology_tables import convexity_schemas

        return convexity_schemas()

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data and check it against the model; groups are drawn where they are computed."""
        from raysense.scans._convexity import prepare_convexity

        return prepare_convexity(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def units(self, prepared: Prepared) -> Sequence[Unit]:
        """Runs of at most ``unit_size`` groups of one size."""
        from raysense.scans._draws import units_of_draws

        return units_of_draws([f"k{k}" for k in self.spec.k], self.spec.groups, prepared.unit_size)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to combine images."""
        from raysense.scans._convexity import ConvexityComputer

        return ConvexityComputer(self.spec, prepared, options)
