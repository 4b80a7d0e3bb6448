"""The influence scan: how much an infinitesimal perturbation can move each prediction (Shu & Zhu 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.sampled import SampledSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class InfluenceSpec(SampledSpec):
    """What an influence scan computes."""

    target: Literal["input"] = Field("input", description="what is perturbed: the input image")
    objective: Literal["label", "predicted"] = Field(
        "label", description="f = -log p of the true label, or of the predicted class"
    )
    method: Literal["exact", "certified", "bound"] = Field(
        "exact",
        description="exact: K - 1 backward passes; certified: an interval of the asked width; bound: an upper bound only",
    )
    tolerance: float = Field(
        1e-3, gt=0, lt=1, description="certified: relative width (upper - lower) / upper of the interval"
    )
    rank_rule: Literal["invariant", "published"] = Field(
        "invariant", description="invariant: relative rank threshold; published: the authors' absolute thresholds"
    )

    @model_validator(mode="after")
    def _consistent(self) -> InfluenceSpec:
        if self.rank_rule == "published" and self.method != "exact":
            raise ValueError(
                f"rank_rule 'published' has no {self.method} method, its thresholds break the bounds; use --method exact"
            )
        if self.method == "certified" and self.tolerance < 1e-5:
            raise ValueError(
                f"tolerance {self.tolerance:g} is below what single-precision passes can certify; "
                "use at least 1e-5, or --method exact"
            )
        return self


class InfluenceScan(Scan):
    """FI of every sample, with its closed-form upper bound and the Jacobian norm."""

    kind = "influence"
    spec_type = InfluenceSpec
    summary = "how much an infinitesimal perturbation can move each prediction (FI)"
    spec: InfluenceSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, influence and units."""
        import pyarrow as pa

        from raysense.scans.tables import SAMPLES, UNITS, column

        influence = pa.schema(
            [
                column("sample_id", pa.string(), "stable id of the sample; the key that joins scans", "id"),
                column("target", pa.string(), "what is perturbed", "name"),
                column(
                    "layer",
                    pa.string(),
                    "the layer whose parameters are perturbed; null for other targets",
                    "name",
                    True,
                ),
                column("objective", pa.string(), "f = -log p of this class: label (true) or predicted", "name"),
                column(
                    "method", pa.string(), "exact, certified (an interval) or bound (only fi_upper is known)", "name"
                ),
                column("fi", pa.float64(), "influence measure, Eq. (3); certified: middle of the interval", "1", True),
                column("fi_lower", pa.float64(), "certified lower bound of the influence measure", "1"),
                column("fi_upper", pa.float64(), "upper bound of the influence measure, at most (1 - p) / p", "1"),
                column("rank", pa.int32(), "rank of the Fisher metric; null where not computed", "count", True),
                column("n_backward", pa.int32(), "backward passes spent on the sample", "count"),
                column(
                    "jacobian_norm",
                    pa.float64(),
                    "norm of df/dw, Eq. (4); null for method bound",
                    "1/pixel value",
                    True,
                ),
                column(
                    "cook",
                    pa.float64(),
                    "Cook's local influence, Eq. (5), maximised; null where not asked for",
                    "1",
                    True,
                ),
            ],
            metadata={"doc": "one row a sample and target: the influence measure FI of Shu & Zhu 2019"},
        )
        return {"samples": SAMPLES, "influence": influence, "units": UNITS}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data and check it against the model."""
        from raysense.scans._sampled import prepare_samples

        return prepare_samples(self.spec, self._passes, gradients=self.spec.method != "bound")

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to compute units."""
        from raysense.scans._influence import InfluenceComputer

        return InfluenceComputer(self.spec, prepared, options)

    def _passes(self, classes: int) -> int:
        """Rough number of passes per sample, which sizes the units."""
        return {"exact": classes - 1, "certified": min(classes, 16), "bound": 1}[self.spec.method]
