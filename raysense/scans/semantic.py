"""The semantic scan: maps, robust regions and FI over poses, lights and image transforms (Hamdi & Ghanem 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysense.references import absolute_reference
from raysense.scans.base import Computer, Prepared, Scan
from raysense.scans.sampled import ModelSpec, SampledSpec, split_text

if TYPE_CHECKING:
    import pyarrow as pa

    from raysense.options import ComputeOptions

PUBLISHED = ("naive", "oir_b", "oir_w")
"""The methods whose volumes the paper's Table 2 averages."""
WHITE_BOX = ("oir_w", "trapezoid")
"""Methods that need gradients of the score."""
_METHODS = ("constrained", *PUBLISHED, "trapezoid")
_KINDS = ("robust", "adversarial")


class SemanticSpec(ModelSpec):
    """What a semantic scan computes."""

    shapes: str | None = Field(
        None, description="shapes to render: procedural, or a folder of OBJ, PLY or GLB files, one folder a class"
    )
    data: str | None = Field(None, description="images to transform instead of shapes: a data reference, e.g. digits")
    classes: tuple[str, ...] = Field(
        (),
        description="only these classes of the shapes or images; NAME=CLASS says which class of the model (index, name or "
        "WordNet id) the shapes in folder NAME are",
    )
    axes: tuple[str, ...] = Field(
        (),
        description="axes of the space, NAME or NAME=LOW:HIGH; none takes azimuth,elevation for shapes and rotation,scale "
        "for images",
    )
    fixed: tuple[str, ...] = Field((), description="NAME=VALUE of other axes, where not their defaults")
    maps: tuple[str, ...] = Field(
        (), description="maps of the score over one or two axes, AXIS:STEP,AXIS:STEP; several are joined by ;"
    )
    methods: tuple[str, ...] = Field(
        ("constrained",),
        description="how regions are grown: constrained, naive, oir_b, oir_w, trapezoid, published (the three of the "
        "paper's Table 2), or none",
    )
    kinds: tuple[str, ...] = Field(("robust",), description="regions: robust, adversarial")
    initial: str = Field(
        "auto",
        description="initial points: a number, default, or points such as 130:30;50:20; auto: the paper's four for "
        "azimuth,elevation, the image itself for images",
    )
    influence: bool = Field(False, description="FI of the semantic parameters at every cell and initial point")
    black_box: bool = Field(False, description="use the network's outputs only, no gradients")
    eps_mean: float = Field(
        0.5, gt=0, lt=1, description="Eq. (2): the mean score over a region is at least 1 - eps_mean"
    )
    eps_variance: float = Field(0.05, gt=0, description="Eq. (2): the variance of the score is at most this")
    evaluations: int | None = Field(
        None,
        ge=50,
        le=5000,
        description="constrained: scores that one region may cost; none takes 400, in n > 2 dimensions 400 n",
    )
    evidence: int = Field(128, ge=16, description="scores that show whether a published region holds Eq. (2)")
    iterations: int = Field(800, ge=1, description="published: at most T updates")
    eta: float = Field(0.1, gt=0, description="published: learning rate")
    alpha: float = Field(0.05, gt=0, description="published oir_b: boundary factor")
    beta: float = Field(0.0009, ge=0, description="published oir_w: emphasis on the gradient")
    penalty: float = Field(0.1, ge=0, description="published naive: penalty lambda on the size")
    half_width: float = Field(1e-5, gt=0, description="published: half width of the first box, in the axes' units")
    settled: float = Field(
        1e-9,
        ge=0,
        description="published: stop once updates change no side by more than this fraction; 0 never stops early",
    )
    traces: bool = Field(False, description="keep the bounds and the loss of every iteration")
    renderer: Literal["auto", "torch", "pytorch3d"] = Field("auto", description="renderer of the shapes; auto: torch")
    size: int | None = Field(
        None, ge=8, le=4096, description="pixels a side of a render; none takes the model's own, else 224"
    )
    antialias: bool = Field(True, description="smooth edges in renders, which gradients by the camera need")
    split: tuple[str, ...] = Field((), description=str(SampledSpec.model_fields["split"].description))
    limit: int | None = Field(None, ge=1, description="only N images of every split, or N shapes of every class")
    samples: tuple[str, ...] = Field((), description="only the images or shapes of these ids, separated by commas")
    unit_size: int | None = Field(None, ge=1, description="maps' blocks, or shapes or images, per unit of work")
    seed: int = Field(0, ge=0, description="seed of everything random")

    @field_validator("data")
    @classmethod
    def _absolute_data(cls, value: str | None) -> str | None:
        return None if value is None else absolute_reference(value, "data")

    @field_validator("shapes")
    @classmethod
    def _absolute_shapes(cls, value: str | None) -> str | None:
        from raysense.semantics.shapes import absolute_shapes

        return None if value is None else absolute_shapes(value)

    @field_validator("classes", "axes", "fixed", "methods", "kinds", "split", "samples", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return split_text(value, ",")

    @field_validator("maps", mode="before")
    @classmethod
    def _split_semicolons(cls, value: Any) -> Any:
        return split_text(value, ";")

    @model_validator(mode="after")
    def _consistent(self) -> SemanticSpec:
        if (self.shapes is None) == (self.data is None):
            raise ValueError(
                "either shapes or data must be given: --shapes procedural or a folder of meshes, or --data for images"
            )
        if self.data is not None and (self.size is not None or self.renderer != "auto" or not self.antialias):
            raise ValueError("size, renderer and antialias are of shapes; leave them out where data names images")
        for name, known in (("methods", (*_METHODS, "published", "none")), ("kinds", _KINDS)):
            values = getattr(self, name)
            for value in values:
                if value not in known:
                    raise ValueError(f"{name} {value!r} is unknown; choose from {', '.join(known)}")
            if not values or len(set(values)) < len(values) or ("none" in values and len(values) > 1):
                raise ValueError(
                    f"{name} {','.join(values)!r} must name at least one, each once; choose {', '.join(known)}"
                )
        if not self.growing and not self.maps:
            raise ValueError("methods none leaves nothing to compute without maps; give --maps AXIS:STEP,AXIS:STEP")
        needing = [method for method in self.growing if method in WHITE_BOX]
        if self.black_box and (needing or self.influence):
            what = f"methods {', '.join(needing)}" if needing else "influence"
            raise ValueError(f"black_box allows no gradients, which {what} needs; use constrained, naive or oir_b")
        if not self.antialias and self.shapes and (needing or self.influence):
            raise ValueError("without antialias edges have no gradients by the camera; leave out --no-antialias")
        return self

    @property
    def growing(self) -> tuple[str, ...]:
        """The single methods that grow regions, in a fixed order."""
        asked = {name for method in self.methods for name in (PUBLISHED if method == "published" else (method,))}
        return tuple(method for method in _METHODS if method in asked)

    @property
    def sampled(self) -> SampledSpec:
        """The part of the spec that names a model and images."""
        return SampledSpec(
            model=self.model,
            data=self.data or "",
            split=self.split,
            limit=self.limit,
            samples=self.samples,
            unit_size=self.unit_size,
            seed=self.seed,
        )


class SemanticScan(Scan):
    """Maps of the score over semantic axes, regions grown in them with the evidence for Eq. (2), and FI of the axes."""

    kind = "semantic"
    spec_type = SemanticSpec
    noun = "tasks"
    summary = "in which poses, lights or image transforms the network keeps seeing a class (SRVR)"
    spec: SemanticSpec

    @classmethod
    def schemas(cls) -> Mapping[str, pa.Schema]:
        """Tables subjects, semantic_maps, regions, region_traces and units."""
        from raysense.scans._semantic_tables import semantic_schemas

        return semantic_schemas()

    def tables(self) -> Mapping[str, pa.Schema]:
        """Without the tables that nothing is written to."""
        left_out = set()
        if not self.spec.maps:
            left_out.add("semantic_maps")
        if not self.spec.growing:
            left_out.add("regions")
        if not self.spec.traces or not self.spec.growing:
            left_out.add("region_traces")
        return {name: schema for name, schema in self.schemas().items() if name not in left_out}

    def prepare(self, options: ComputeOptions) -> Prepared:
        """List the shapes or images and their tasks, and check them against the model."""
        from raysense.scans._semantic_prepare import prepare

        return prepare(self.spec)

    def fingerprints(self, options: ComputeOptions) -> dict[str, str]:
        """Fingerprints of the model and of the shapes or images as they are now."""
        from raysense.scans._semantic_prepare import current_fingerprints

        return current_fingerprints(self.spec)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        """Model and renderer on this process's device, ready to compute units."""
        from raysense.scans._semantic import SemanticComputer

        return SemanticComputer(self.spec, prepared, options)
