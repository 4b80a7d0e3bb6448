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
        for scale in value:
            if not 1 < scale < float("inf"):
                raise ValueError(
                    f"scales: {scale:g} does not leave the class, r(x) ends on the boundary; use 1.02,2, say"
                )
        if not value or len(set(value)) < len(value):
            raise ValueError(f"scales {value} must name at least one scale, and each once; use 1.02,2, say")
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
