"""The significance scan: which weight x activation paths each class uses (Khaitan & Banerjee 2026)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from raysense.scans.base import Computer, Prepared, Scan, Unit
from raysense.scans.sampled import SampledSpec, split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions


class SignificanceSpec(SampledSpec):
    """What a significance scan computes."""

    layers: tuple[str, ...] = Field(
        (),
        description="names or patterns of linear layers, convolutions and attention projections; none takes the last two "
        "linear layers, or convolutions where there are no linear layers",
    )
    threshold: Literal["sum", "mean", "mean_abs"] = Field(
        "sum",
        description="a path is significant where |N_ij| exceeds: sum: n times the row's sum, as published; mean: the row's "
        "mean; mean_abs: the mean of the row's |N_ik|",
    )
    positions: Literal["each", "any", "first"] = Field(
        "each",
        description="tokens and patches: each is an observation of its own; any: a path counts once for a sample, if "
        "significant at any position; first: only the first, a transformer's class token",
    )
    per_class: int | None = Field(None, ge=1, description="only N samples of every class and split, evenly spaced")
    activations: int = Field(
        0,
        ge=0,
        description="also keep what `raysense scan ablations` needs: class sums, and activations of N samples a class",
    )
    pass_size: int = Field(
        32,
        ge=1,
        description="images of a forward pass; fixed by the scan, since the last digits of activations depend on it",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _split_layers(cls, value: Any) -> Any:
        return split_text(value, ",")


class SignificanceScan(Scan):
    """Counts of significant paths by class: whole rows, and their exceptions."""

    kind = "significance"
    spec_type = SignificanceSpec
    summary = "which weight x activation paths each class uses"
    spec: SignificanceSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, significance, class_activations, class_outputs, activations and units."""
        from raysense.scans._significance_tables import significance_schemas

        return significance_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without what only the ablations need, unless it is asked for."""
        left_out = set() if self.spec.activations else {"class_activations", "class_outputs", "activations"}
        return {name: schema for name, schema in self.schemas().items() if name not in left_out}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data class by class, and find the layers in the model."""
        from raysense.scans._significance_prepare import prepare_significance

        return prepare_significance(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of model and data as they are now."""
        from raysense.scans._sampled import current_fingerprints

        return current_fingerprints(self.spec)

    def units(self, prepared: Prepared) -> Sequence[Unit]:
        """Runs of at most ``unit_size`` samples of one class and split."""
        from raysense.scans._significance_prepare import class_units

        return class_units(prepared)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """The model on this process's device, ready to count."""
        from raysense.scans._significance import SignificanceComputer

        return SignificanceComputer(self.spec, prepared, options)
