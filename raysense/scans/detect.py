"""The detection scan: whether curvature tells perturbed inputs, and their labels (Fawzi et al. 2018, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.bounded import CurvedSpec
from raysense.scans.sampled import split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class DetectSpec(CurvedSpec):
    """What a detection scan computes."""

    scales: tuple[float, ...] = Field(
        (1.02, 1.5, 2.0, 3.0),
        description="what r(x), which ends on the boundary, is multiplied by to perturb an image, separated by commas",
    )
    top: int = Field(
        9, ge=0, description="other classes whose boundaries are measured, those of largest logit; 0 takes all"
    )
    noise: bool = Field(True, description="also random perturbations of the same norms, which no attacker chose")

    @field_validator("scales", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return split_text(value, ",")

    @field_validator("scales")
    @classmethod
    def _beyond(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) < len(value) or not all(1 < scale < float("inf") for scale in value):
            raise ValueError(
                "one or more numbers above 1, at which r(x) ends on the boundary, each once, such as 1.02,2"
            )
        return value


class DetectScan(Scan):
    """Mean curvature at samples as they are, perturbed and noisy, and the label that it recovers."""

    kind = "detect"
    spec_type = DetectSpec
    summary = "whether curvature tells perturbed inputs from others, and their true labels"
    spec: DetectSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, detections and units."""
        from raysense.scans._detect_tables import detect_schemas

        return detect_schemas()

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data, check it against the model, and find out which derivatives the model has."""
        from raysense.scans._detect import prepare_detect

        return prepare_detect(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to detect."""
        from raysense.scans._detect import DetectComputer

        return DetectComputer(self.spec, prepared, options)
