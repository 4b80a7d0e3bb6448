"""The boundary scan: how far the decision boundary is, and how curved (Fawzi et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.bounded import CurvedSpec
from raysense.scans.sampled import none_or_some, split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class BoundarySpec(CurvedSpec):
    """What a boundary scan computes."""

    norm: Literal["l2", "linf"] = Field("l2", description="norm of the distance to the boundary")
    region: Literal["predicted", "label"] = Field(
        "predicted",
        description="whose boundary: that of the predicted class's region; or of the true class's, at distance 0 for "
        "misclassified images",
    )
    tolerance: float = Field(
        1e-4, gt=0, lt=1, description="how near to the boundary z is to lie, as a share of the distance"
    )
    polish: int = Field(
        5, ge=0, description="steps along the boundary, at the most, towards the point nearest to the image"
    )
    curvature: tuple[Literal["mean", "extremes", "spectrum"], ...] = Field(
        ("mean",),
        description="what is computed of the curvature, separated by commas: mean, over random directions; extremes, the "
        "largest and smallest; spectrum, all of them, for small images; none computes distances only",
    )
    extremes: int = Field(5, ge=1, description="how many curvatures extremes finds at either end")
    step_study: tuple[float, ...] = Field(
        (), description="also the mean curvature by differences at these steps, separated by commas"
    )
    keep_directions: int = Field(
        0,
        ge=0,
        description="keep the N most curved principal directions of each sample, for `raysense scan directions`",
    )
    keep_points: bool = Field(False, description="keep the boundary points z")

    @field_validator("curvature", mode="before")
    @classmethod
    def _curvature_list(cls, value: Any) -> Any:
        return none_or_some(value)

    @field_validator("step_study", mode="before")
    @classmethod
    def _steps(cls, value: Any) -> Any:
        return split_text(value, ",")

    @model_validator(mode="after")
    def _consistent(self) -> BoundarySpec:
        for step in self.step_study:
            if not 0 < step < float("inf"):
                raise ValueError(f"step_study: step {step:g} must be positive; use 0.01,0.1,1, say")
        if len(set(self.step_study)) < len(self.step_study):
            raise ValueError(f"step_study {self.step_study} must name each step once")
        if len(set(self.curvature)) < len(self.curvature):
            raise ValueError(f"curvature {','.join(self.curvature)!r} must name each once; use mean,extremes, say")
        if {"extremes", "spectrum"} <= set(self.curvature):
            raise ValueError("curvature: the spectrum holds the extremes; name one of them")
        if self.keep_directions and not {"extremes", "spectrum"} & set(self.curvature):
            raise ValueError("keep_directions needs principal directions; add --curvature extremes, or spectrum")
        if "extremes" in self.curvature and self.keep_directions > 2 * self.extremes:
            raise ValueError(
                f"keep_directions {self.keep_directions} exceeds the {2 * self.extremes} that extremes finds; "
                f"use --extremes {-(-self.keep_directions // 2)}"
            )
        return self


class BoundaryScan(Scan):
    """Distance to the decision boundary of every sample, and the curvature there."""

    kind = "boundary"
    spec_type = BoundarySpec
    summary = "how far the decision boundary is, and how curved"
    spec: BoundarySpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, boundary, curvatures, principal_directions, curvature_steps, boundary_points and units."""
        from raysense.scans._boundary_tables import boundary_schemas

        return boundary_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without what is not asked for."""
        asked = {
            "curvatures": bool({"extremes", "spectrum"} & set(self.spec.curvature)),
            "principal_directions": self.spec.keep_directions > 0,
            "curvature_steps": bool(self.spec.step_study),
            "boundary_points": self.spec.keep_points,
        }
        return {name: schema for name, schema in self.schemas().items() if asked.get(name, True)}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data, check it against the model, and find out which derivatives the model has."""
        from raysense.scans._boundary_prepare import prepare_boundary

        return prepare_boundary(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to compute units."""
        from raysense.scans._boundary import BoundaryComputer

        return BoundaryComputer(self.spec, prepared, options)
