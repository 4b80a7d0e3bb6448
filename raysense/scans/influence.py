"""The influence scan: how much an infinitesimal perturbation can move each prediction (Shu & Zhu 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.sampled import SampledSpec, split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions

_TARGETS = "input, parameters, parameters:GLOB,..., layer, layer:GLOB,..., input+parameters, pixels, semantic"


class InfluenceSpec(SampledSpec):
    """What an influence scan computes."""

    target: tuple[str, ...] = Field(
        ("input",), description=f"what is perturbed: one of {_TARGETS}; several are joined by ; and share the passes"
    )
    objective: Literal["label", "predicted"] = Field(
        "label", description="the objective f = -log p: p of the true label, or of the predicted class"
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
    cook: bool = Field(False, description="Cook's local influence as well, by Lanczos on Hessian-vector products")
    scales: tuple[int, ...] = Field((1, 3, 5, 7), description="pixels: sides of the squares centred at each pixel")
    channels: bool = Field(False, description="pixels: a map for each channel as well as for all jointly")
    attack: bool = Field(False, description="pixels: a one-pixel attack at the largest FI of scale 1")

    axes: tuple[str, ...] = Field(
        ("rotation", "scale"),
        description="semantic: axes of image transforms, perturbed jointly from the image as it is",
    )

    @field_validator("target", mode="before")
    @classmethod
    def _targets(cls, value: Any) -> Any:
        return split_text(value, ";")

    @field_validator("scales", "axes", mode="before")
    @classmethod
    def _split_commas_too(cls, value: Any) -> Any:
        return split_text(value, ",")

    @model_validator(mode="after")
    def _consistent(self) -> InfluenceSpec:
        self._check_targets()
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

    def _check_targets(self) -> None:
        for target in self.target:
            name, colon, globs = target.partition(":")
            if colon and (name not in ("parameters", "layer") or not split_text(globs, ",")):
                raise ValueError(f"target {target!r} is unknown; choose from {_TARGETS}")
            if name not in ("input", "parameters", "layer", "input+parameters", "pixels", "semantic"):
                raise ValueError(f"target {target!r} is unknown; choose from {_TARGETS}")
        if not self.target or len(set(self.target)) < len(self.target):
            raise ValueError(f"target {';'.join(self.target)!r} must name at least one target, and each once")
        if len([target for target in self.target if target.partition(":")[0] == "layer"]) > 1:
            raise ValueError("target names layers twice; give one list of patterns, as in layer:conv*,fc")
        pixels = "pixels" in self.target
        if pixels and self.method != "exact":
            raise ValueError(f"target 'pixels' has no {self.method} method; use --method exact")
        if self.cook and (self.method == "bound" or set(self.target) <= {"pixels", "semantic"}):
            raise ValueError("cook needs gradients of a target other than pixels and semantic; leave out --cook")
        for scale in self.scales:
            if scale < 1 or scale % 2 == 0:
                raise ValueError(
                    f"scales: {scale} must be odd and positive, so that squares have a centre; use 1,3,5,7"
                )
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {self.scales} must name at least one scale, and each once; use 1,3,5,7")
        if self.attack and not (pixels and 1 in self.scales):
            raise ValueError("attack needs the map of single pixels; use --target pixels with 1 among --scales")


class InfluenceScan(Scan):
    """FI of every sample and target, with its closed-form upper bound and the Jacobian norm; pixel maps."""

    kind = "influence"
    spec_type = InfluenceSpec
    summary = "how much an infinitesimal perturbation can move each prediction (FI)"
    spec: InfluenceSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables samples, influence, influence_maps, pixel_attacks and units."""
        from raysense.scans._influence_tables import influence_schemas

        return influence_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without the maps and attacks, unless they are asked for."""
        left_out = set()
        if "pixels" not in self.spec.target:
            left_out.add("influence_maps")
        if not self.spec.attack:
            left_out.add("pixel_attacks")
        return {name: schema for name, schema in self.schemas().items() if name not in left_out}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the data and check it against the model, and the targets against its layers."""
        from raysense.scans._influence_targets import examined
        from raysense.scans._sampled import prepare_samples

        return prepare_samples(
            self.spec,
            self._passes,
            gradients=self.spec.method != "bound",
            examine=lambda model, images: examined(self.spec, model, images),
            mend="use --method bound",
        )

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
        passes = {"exact": classes - 1, "certified": min(classes, 16), "bound": 1}[self.spec.method]
        # Gradients of parameters cost about as much again, Cook's influence tens of double passes.
        factor = 1 if self.spec.target == ("input",) else 4
        return factor * passes + (100 if self.spec.cook else 0)
