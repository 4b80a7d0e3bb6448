"""The semantic scan opened in one process: pictures of shapes or images, scores, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from raysense.batching import BatchSizer, memory_gauge
from raysense.errors import RaysenseError, SampleError, first_line
from raysense.loading import SampleDecoder, as_float
from raysense.options import ComputeOptions
from raysense.scans._model import opened_model
from raysense.scans._sampled import sample_decoder
from raysense.scans._semantic_prepare import layout_of, opened_renderer
from raysense.scans._semantic_regions import RegionRows
from raysense.scans._semantic_tables import SEMANTIC_MAPS, SUBJECTS
from raysense.scans.base import Computer, Prepared, Unit
from raysense.scans.semantic import SemanticSpec
from raysense.semantics.meshes import Mesh
from raysense.semantics.renderers import PreparedMesh
from raysense.semantics.score import SemanticScore
from raysense.semantics.shapes import open_shapes
from raysense.semantics.subjects import RenderedShapes, Subjects, TransformedImages

_MESHES_KEPT = 8


@dataclass(frozen=True)
class _Opened:
    """The subjects of a unit that could be used.

    Attributes:
        subjects: They, as pictures over the space; None where there are none.
        index: Place among them by id.
        labels: [S] int64, their classes.
        meshes: Of shapes, by id.
        errors: Why the others could not be used, by id.
    """

    subjects: Subjects | None
    index: dict[str, int]
    labels: Tensor
    meshes: dict[str, Mesh]
    errors: dict[str, str]


class SemanticComputer(Computer):
    """The semantic scan opened in one process."""

    def __init__(self, spec: SemanticSpec, prepared: Prepared, options: ComputeOptions) -> None:
        self._spec = spec
        self._listing = prepared.listing
        self._layout = layout_of(spec)
        self._model, self.device = opened_model(spec.model, prepared, options)
        self._sizer = BatchSizer(options.batch_size, memory_gauge(self.device, options.threads))
        self._decoder: SampleDecoder | None = None
        self._meshes: dict[str, tuple[Mesh, PreparedMesh]] = {}
        if spec.data is not None:
            self._decoder = sample_decoder(spec.sampled, prepared)
        else:
            assert spec.shapes is not None
            self._source = open_shapes(spec.shapes)
            self._renderer = opened_renderer(spec, prepared.facts["renderer"]["size"])

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Pictures per batch, as chosen so far."""
        return self._sizer.size

    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        """The tables of one unit."""
        rows = self._listing.slice(unit.start, unit.size).to_pylist()
        opened = self._shapes(rows) if self._decoder is None else self._images(unit, rows)
        tables = {"subjects": self._subjects_table(rows, opened)}
        usable = [row for row in rows if row["sample_id"] in opened.index]
        maps = [row for row in usable if row["task"] == "map"]
        grown = [row for row in usable if row["task"] == "regions"]
        score = None
        if opened.subjects is not None:
            score = SemanticScore(self._model.module, opened.subjects, opened.labels, self._sizer, self.device)
        if self._spec.maps:
            parts = [] if score is None else [self._map_rows(row, opened, score) for row in maps]
            tables["semantic_maps"] = pa.concat_tables(parts) if parts else SEMANTIC_MAPS.empty_table()
        if self._spec.growing:
            regions = RegionRows(self._spec, self._layout)
            if score is not None and grown:
                regions.grow(grown, [opened.index[row["sample_id"]] for row in grown], score)
            tables |= regions.tables()
        return tables

    def _shapes(self, rows: Sequence[dict[str, object]]) -> _Opened:
        """The shapes of a unit, prepared for rendering; the latest ones are kept for the next unit."""
        prepared: list[PreparedMesh] = []
        meshes: dict[str, Mesh] = {}
        errors: dict[str, str] = {}
        labels = []
        for shape_id, label in dict.fromkeys((str(row["sample_id"]), row["label"]) for row in rows):
            try:
                mesh, ready = self._mesh(shape_id)
            except RaysenseError as error:
                errors[shape_id] = first_line(error)
                continue
            meshes[shape_id] = mesh
            prepared.append(ready)
            labels.append(label)
        subjects = RenderedShapes(self._layout.space, self._renderer, prepared) if prepared else None
        return _Opened(
            subjects,
            {shape_id: index for index, shape_id in enumerate(meshes)},
            torch.tensor(labels, dtype=torch.int64),
            meshes,
            errors,
        )

    def _mesh(self, shape_id: str) -> tuple[Mesh, PreparedMesh]:
        if shape_id not in self._meshes:
            mesh = self._source.mesh(shape_id)
            while len(self._meshes) >= _MESHES_KEPT:
                del self._meshes[next(iter(self._meshes))]
            self._meshes[shape_id] = (mesh, self._renderer.prepare(mesh, self.device))
        return self._meshes[shape_id]

    def _images(self, unit: Unit, rows: Sequence[dict[str, object]]) -> _Opened:
        """The images of a unit; one that has several rows is read once."""
        assert self._decoder is not None
        first: dict[str, int] = {}
        for offset, row in enumerate(rows):
            first.setdefault(str(row["sample_id"]), unit.start + offset)
        images: list[Tensor] = []
        index: dict[str, int] = {}
        errors: dict[str, str] = {}
        labels = []
        for sample_id, row_number in first.items():
            try:
                image = self._decoder.decode(row_number)
            except SampleError as error:
                errors[sample_id] = str(error)
                continue
            index[sample_id] = len(images)
            images.append(as_float(image[None], self.device))
            labels.append(rows[row_number - unit.start]["label"])
        subjects = TransformedImages(self._layout.space, torch.cat(images)) if images else None
        return _Opened(subjects, index, torch.tensor(labels, dtype=torch.int64), {}, errors)

    def _subjects_table(self, rows: Sequence[dict[str, object]], opened: _Opened) -> pa.Table:
        found = []
        for row in rows:
            if not row["first"]:
                continue
            shape_id = str(row["sample_id"])
            mesh = opened.meshes.get(shape_id)
            found.append(
                {
                    "shape_id": shape_id,
                    "label": row["label"],
                    "class_name": row["class_name"],
                    "source": "shape" if self._decoder is None else "image",
                    "vertices": None if mesh is None else len(mesh.vertices),
                    "faces": None if mesh is None else len(mesh.faces),
                    "duplicates": None if mesh is None else mesh.duplicates,
                    "degenerate": None if mesh is None else mesh.degenerate,
                    "error": opened.errors.get(shape_id),
                }
            )
        return pa.Table.from_pylist(found, schema=SUBJECTS)

    def _map_rows(self, row: dict[str, object], opened: _Opened, score: SemanticScore) -> pa.Table:
        """Rows of one block of one map."""
        start, stop, number = (int(str(row[name])) for name in ("start", "stop", "map"))
        grid = self._layout.grids[number]
        cells = grid.cells(start, stop)
        points = grid.points(cells)
        subjects = torch.full((len(points),), opened.index[str(row["sample_id"])])
        scored, influence = score.measured(points, subjects, self._spec.influence)
        count = len(points)
        unknown = pa.nulls(count, pa.float64())
        columns = {
            "shape_id": pa.array([row["sample_id"]] * count, pa.string()),
            "label": pa.array([row["label"]] * count, pa.int32()),
            "axes": pa.array([grid.axes] * count, pa.string()),
            "steps": pa.array([list(grid.counts)] * count, pa.list_(pa.int32())),
            "cell": pa.array(cells.tolist(), pa.list_(pa.int32())),
            "u": pa.array(grid.coordinates(cells).tolist(), pa.list_(pa.float64())),
            "score": known(scored.score),
            "predicted": pa.array(scored.predicted.numpy(), mask=scored.score.isnan().numpy()).cast(pa.int32()),
            "p_predicted": known(scored.p_predicted),
            "fi": unknown if influence is None else known(influence.fi),
            "fi_bound": unknown if influence is None else known(influence.bound),
            "jacobian_norm": unknown if influence is None else known(influence.jacobian_norm),
        }
        return pa.table([columns[field.name] for field in SEMANTIC_MAPS], schema=SEMANTIC_MAPS)


def known(values: Tensor) -> pa.Array:
    """Numbers as an Arrow array, null where they are not known (NaN)."""
    return pa.array(values.numpy(), mask=values.isnan().numpy())
