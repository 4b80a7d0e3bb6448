"""The directions scan: whether unseen samples share the directions in which boundaries are curved (Fawzi et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.bounded import CurvedSpec
from raysense.scans.sampled import none_or_some
from raysense.working_directory import kept_path

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class DirectionsSpec(CurvedSpec):
    """What a scan of shared directions computes."""

    of: str = Field(description="directory or URI of a boundary scan of other samples, with --keep-directions")
    shared: int | None = Field(
        None,
        ge=1,
        description="m, shared directions, which span S; none takes 200, or for smaller images as in the slides, 200 "
        "of every 3,072 values",
    )
    noise: tuple[float, ...] = Field(
        (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        description="norms of noise in S and its complement, over the mean norm of the images; none leaves it out",
    )
    draws: int = Field(10, ge=1, description="random perturbations of each sample, space and norm")

    @field_validator("of")
    @classmethod
    def _absolute_directory(cls, value: str) -> str:
        from raysense.store.files import Directory

        return kept_path(Directory(value, argument="of").location)

    @field_validator("noise", mode="before")
    @classmethod
    def _magnitudes(cls, value: Any) -> Any:
        return none_or_some(value)

    @field_validator("noise")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value) or not all(0 < magnitude < float("inf") for magnitude in value):
            raise ValueError("positive numbers, each once, such as 0.1,0.2,0.3, or none")
        return value


class DirectionsScan(Scan):
    """Directions of high curvature shared by samples, and what unseen samples make of them."""

    kind = "directions"
    spec_type = DirectionsSpec
    summary = "whether unseen samples share the directions of high curvature, from a boundary scan"
    spec: DirectionsSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, direction_curvatures, direction_noise, direction_norms and units."""
        from raysense.scans._boundary_tables import directions_schemas

        return directions_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without the noise, where there is none."""
        left_out = set() if self.spec.noise else {"direction_noise"}
        return {name: schema for name, schema in self.schemas().items() if name not in left_out}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data, check it against the model and the directions, find out which derivatives the model has."""
        from raysense.scans._directions_base import prepare_directions

        return prepare_directions(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model, data and directions as they are now."""
        from raysense.scans._directions_base import current_fingerprints

        return current_fingerprints(self.spec)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device and the shared directions, ready to compute units."""
        from raysense.scans._directions import DirectionsComputer

        return DirectionsComputer(self.spec, prepared, options)
