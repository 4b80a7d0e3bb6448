"""The parts of a spec that the scans of decision boundaries share: how boundaries are found, and their derivatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raysense.scans.sampled import SampledSpec


class SearchSpec(SampledSpec):
    """Samples of a data set, and how the boundary near them is found (DeepFool)."""

    candidates: int = Field(
        10, ge=1, description="classes that a step looks at: those of largest logit; more are exact for more classes"
    )
    max_iterations: int = Field(50, ge=1, description="steps to cross the boundary, at the most")
    box: bool = Field(False, description="stay within [0, 1]: the nearest boundary point that is an image")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Values that boundary points may have; None for any."""
        return (0.0, 1.0) if self.box else None


class CurvedSpec(SearchSpec):
    """And how the boundary's curvature is found."""

    derivatives: Literal["auto", "exact", "differences"] = Field(
        "auto",
        description="exact: second derivatives; differences: of gradients, with a step, for networks with kinks such as "
        "ReLU, whose second derivatives are zero; auto finds out which",
    )
    step: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="differences: h, in the Euclidean norm of the image: the scale at which curvature is measured",
    )
    directions: int = Field(32, ge=2, description="random directions that means over directions are taken of")
