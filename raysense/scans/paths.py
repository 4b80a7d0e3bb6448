"""The paths scan: whether classification regions are connected (Fawzi et al. 2018, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan, Unit
from raysense.scans.bounded import SearchSpec
from raysense.scans.sampled import split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class PathsSpec(SearchSpec):
    """What a paths scan computes."""

    scenarios: tuple[Literal["data", "adversarial", "noise"], ...] = Field(
        ("data", "adversarial", "noise"),
        description="what is connected to an image, separated by commas: data: another image of its predicted class; "
        "adversarial: an image of another class, perturbed into this one; noise: noise, perturbed into this class",
    )
    pairs: int = Field(100, ge=1, description="pairs of each scenario")
    spacing: float = Field(
        1e-4, ge=1e-6, le=0.5, description="distance of the images checked on a path, over that of its ends"
    )
    max_depth: int = Field(12, ge=0, description="recursions, at the most; what is not connected then is reported so")
    pictures: int = Field(0, ge=0, description="cross-sections of the regions for the first N pairs of each scenario")
    resolution: int = Field(64, ge=8, le=1024, description="columns of a cross-section")

    @field_validator("scenarios", mode="before")
    @classmethod
    def _scenario_list(cls, value: Any) -> Any:
        return split_text(value, ",")

    @field_validator("scenarios")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("one or more of data, adversarial and noise, each once")
        return value


class PathsScan(Scan):
    """Piecewise linear paths between pairs of points of one class, within the class."""

    kind = "paths"
    spec_type = PathsSpec
    noun = "pairs"
    summary = "whether points of one predicted class are connected within it"
    spec: PathsSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables paths, cross_sections and units."""
        from raysense.scans._topology_tables import paths_schemas

        return paths_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without the cross-sections, unless they are asked for."""
        left_out = set() if self.spec.pictures else {"cross_sections"}
        return {name: schema for name, schema in self.schemas().items() if name not in left_out}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data and check it against the model; pairs are drawn where they are computed."""
        from raysense.scans._paths import prepare_paths

        return prepare_paths(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def units(self, prepared: Prepared) -> Sequence[Unit]:
        """Runs of at most ``unit_size`` pairs of one scenario."""
        from raysense.scans._draws import units_of_draws

        return units_of_draws(self.spec.scenarios, self.spec.pairs, prepared.unit_size)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to connect pairs."""
        from raysense.scans._paths import PathsComputer

        return PathsComputer(self.spec, prepared, options)
