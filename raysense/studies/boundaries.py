"""What the studies of decision boundaries share (Fawzi et al. 2018): their options."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raysense.scans.bounded import CurvedSpec

BUNDLED_MODELS = ("digits", "raysense.studies.networks:smooth_digits")
"""Two networks for the digits that are trained on first use: one with kinks, ReLU, and one that is smooth."""

_SPEC = CurvedSpec.model_fields


class BoundaryStudyOptions(BaseModel):
    """What every study of boundaries takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: tuple[str, ...] = Field(BUNDLED_MODELS, min_length=1, description="model reference")
    data: str = Field("digits", description=str(_SPEC["data"].description))
    split: str | None = Field(None, description=str(_SPEC["split"].description))
    limit: int | None = Field(None, ge=1, description=str(_SPEC["limit"].description))
    candidates: int = Field(10, ge=1, description=str(_SPEC["candidates"].description))
    box: bool = Field(False, description=str(_SPEC["box"].description))
    unit_size: int | None = Field(None, ge=1, description=str(_SPEC["unit_size"].description))
    seed: int = Field(0, ge=0, description=str(_SPEC["seed"].description))

    def sampled(self) -> dict[str, Any]:
        """The fields of a scan's spec that say what is scanned."""
        return {
            "data": self.data,
            "split": self.split or (),
            **{name: getattr(self, name) for name in ("limit", "candidates", "box", "unit_size", "seed")},
        }


class CurvedStudyOptions(BoundaryStudyOptions):
    """And how curvature is found."""

    derivatives: str = Field("auto", description=str(_SPEC["derivatives"].description))
    step: float = Field(0.1, gt=0, description=str(_SPEC["step"].description))
    directions: int = Field(32, ge=2, description=str(_SPEC["directions"].description))

    def sampled(self) -> dict[str, Any]:
        """The fields of a scan's spec that say what is scanned, and how."""
        own = {name: getattr(self, name) for name in ("derivatives", "step", "directions")}
        return {**super().sampled(), **own}
