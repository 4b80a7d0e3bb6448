"""Preparing a semantic scan: what it is about, which tasks it has, and whether the model takes the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from raysense.classes import class_index
from raysense.errors import RaysenseError, UsageError
from raysense.models import LoadedModel, load_model
from raysense.scans._model import check_gradients, checked_classes, model_facts
from raysense.scans._sampled import Examined, limited, prepare_samples
from raysense.scans._sampled import current_fingerprints as sampled_fingerprints
from raysense.scans.base import Prepared
from raysense.scans.semantic import SemanticSpec
from raysense.semantics.grids import Grid, initial_points, parse_grid
from raysense.semantics.renderers import Renderer, open_renderer
from raysense.semantics.shapes import ShapeEntry, ShapeSource, open_shapes
from raysense.semantics.space import SemanticSpace, parse_space
from raysense.semantics.subjects import RenderedShapes, TransformedImages

_BLOCK = 1024
"""Cells of a map that one row of the listing stands for."""
_UNITS_WANTED = 64
_LARGEST_UNIT = 64
_COSTLY_CORNERS = 2**6
_SMALL_WIDTH = 0.1
_SIZE = 224
_BLACK_BOX = "use --black-box with methods constrained, naive or oir_b"
_MANY_CELLS = 20_000


class Layout(NamedTuple):
    """What the spec says of the space.

    Attributes:
        space: The space.
        grids: The maps.
        initial: Initial points of regions, [I, n] float64.
    """

    space: SemanticSpace
    grids: tuple[Grid, ...]
    initial: torch.Tensor


def layout_of(spec: SemanticSpec) -> Layout:
    """The space, its maps and its initial points.

    Raises:
        UsageError: an axis, a range, a map or a point is wrong.
    """
    axes = spec.axes or (("rotation", "scale") if spec.data is not None else ("azimuth", "elevation"))
    space = parse_space(axes, spec.fixed)
    if space.of_images != (spec.data is not None):
        what, mend = ("images", "--data") if space.of_images else ("rendered shapes", "--shapes")
        raise UsageError(f"axes {', '.join(space.names)}: these are axes of {what}; give {mend}, or other axes")
    grids = tuple(parse_grid(text, space) for text in spec.maps)
    for grid in grids:
        if [sorted(other.names) for other in grids].count(sorted(grid.names)) > 1:
            raise UsageError(f"maps: {grid.axes} is asked for twice; ask once")
    return Layout(space, grids, initial_points(spec.initial, space, spec.seed))


def prepare(spec: SemanticSpec) -> Prepared:
    """List the tasks and check everything, before anything is computed.

    Raises:
        UsageError: one sentence on what does not fit.
    """
    layout = layout_of(spec)
    subjects = _images(spec, layout) if spec.data is not None else _shapes(spec, layout)
    table = subjects.listing
    listing = _tasks(table, layout, bool(spec.growing))
    facts = subjects.facts | {"space": _space_facts(layout.space)}
    default = 1 if spec.shapes is not None else max(1, min(_LARGEST_UNIT, listing.num_rows // _UNITS_WANTED))
    return Prepared(
        listing=listing,
        facts=facts,
        unit_size=spec.unit_size or default,
        notes=(*subjects.notes, *_cost_notes(spec, layout)),
    )


def current_fingerprints(spec: SemanticSpec) -> dict[str, str]:
    """Fingerprints of the model and of the shapes or images as they are now."""
    if spec.shapes is None:
        return sampled_fingerprints(spec.sampled)
    source = open_shapes(spec.shapes)
    chosen = [entry.shape_id for entry in _chosen(spec, source.entries())]
    return {"model": load_model(spec.model).fingerprint, "data": source.fingerprint(chosen)}


def opened_renderer(spec: SemanticSpec, size: int) -> Renderer:
    """The renderer that the spec names, for pictures of ``size`` pixels a side."""
    return open_renderer(spec.renderer, size=size, antialias=spec.antialias)


def _images(spec: SemanticSpec, layout: Layout) -> Prepared:
    """Images of a data set, those of the classes asked for."""

    def examine(model: LoadedModel, images: torch.Tensor) -> Examined:
        points = layout.initial[:1].repeat(len(images), 1)
        TransformedImages(layout.space, images).images(points, torch.arange(len(images)))
        return Examined({})

    # Classes are chosen before the limit counts.
    every = spec.sampled.model_copy(update={"limit": None}) if spec.classes else spec.sampled
    prepared = prepare_samples(
        every, lambda classes: 1, gradients=_needs_gradients(spec), examine=examine, mend=_BLACK_BOX
    )
    names = prepared.facts["data"]["classes"] or prepared.facts["model"]["classes"]
    table = prepared.listing
    if spec.classes:
        count = prepared.facts["model"]["n_classes"]
        for text in spec.classes:
            if "=" in text:
                raise UsageError(f"classes {text!r}: images have labels already; name classes only, without =")
        wanted = [class_index(text, count, names) for text in spec.classes]
        table = table.filter(pa.array(np.isin(table["label"].to_numpy(), wanted)))
        if not table.num_rows:
            raise UsageError(
                f"classes {', '.join(spec.classes)}: no image of data {spec.data!r} has such a label; name other classes"
            )
        table = limited(table, spec.limit)
    named = [names[label] if names and label < len(names) else str(label) for label in table["label"].to_pylist()]
    facts = prepared.facts | {"data": prepared.facts["data"] | {"n_samples": table.num_rows}}
    return Prepared(table.append_column("class_name", pa.array(named, pa.string())), facts, 1, prepared.notes)


def _shapes(spec: SemanticSpec, layout: Layout) -> Prepared:
    """Shapes, those of the classes asked for."""
    assert spec.shapes is not None
    if spec.split:
        raise UsageError(f"split {', '.join(spec.split)}: shapes have no splits; leave it out")
    model = load_model(spec.model)
    source = open_shapes(spec.shapes)
    entries = _chosen(spec, source.entries())
    size = spec.size or _model_size(model)
    renderer = opened_renderer(spec, size)
    batch = _first_renders(source, entries, renderer, layout)
    count = checked_classes(spec.model, model.module, batch, ["the first shape"] * len(batch), "renders of the shapes")
    if _needs_gradients(spec):
        check_gradients(spec.model, model.module, batch[:1], f"scan a differentiable model, or {_BLACK_BOX}")
    labels = _labels(spec, entries, count, model)
    table = pa.table(
        {
            "sample_id": pa.array([entry.shape_id for entry in entries], pa.string()),
            "label": pa.array([labels[entry.class_name] for entry in entries], pa.int32()),
            "split": pa.array(["all"] * len(entries), pa.string()),
            "class_name": pa.array([entry.class_name for entry in entries], pa.string()),
        }
    )
    facts: dict[str, Any] = {
        "model": model_facts(model, count, batch),
        "data": {
            "reference": spec.shapes,
            "n_samples": len(entries),
            "splits": {},
            "classes": None,
        },
        "preprocessing": None,
        "renderer": {"name": renderer.name, "size": size, "antialias": spec.antialias},
        "fingerprints": {"model": model.fingerprint, "data": source.fingerprint([entry.shape_id for entry in entries])},
    }
    return Prepared(table, facts, 1)


def _chosen(spec: SemanticSpec, entries: Sequence[ShapeEntry]) -> list[ShapeEntry]:
    """The shapes that the spec asks for."""
    ids = {entry.shape_id for entry in entries}
    for sample in spec.samples:
        if sample not in ids:
            raise UsageError(
                f"samples {sample!r}: {spec.shapes!r} has no such shape; its ids are like {entries[0].shape_id!r}"
            )
    known = sorted({entry.class_name for entry in entries})
    wanted = {text.partition("=")[0] for text in spec.classes}
    for name in wanted:
        if name not in known:
            raise UsageError(f"classes {name!r}: {spec.shapes!r} has no such folder; it has {', '.join(known)}")
    found: list[ShapeEntry] = []
    counts: dict[str, int] = {}
    for entry in entries:
        if (wanted and entry.class_name not in wanted) or (spec.samples and entry.shape_id not in spec.samples):
            continue
        counts[entry.class_name] = counts.get(entry.class_name, 0) + 1
        if spec.limit is None or counts[entry.class_name] <= spec.limit:
            found.append(entry)
    if not found:
        raise UsageError(f"samples {', '.join(spec.samples)}: none is of the classes {', '.join(spec.classes)}")
    return found


def _labels(spec: SemanticSpec, entries: Sequence[ShapeEntry], count: int, model: LoadedModel) -> dict[str, int]:
    """Class of the model by folder."""
    given: dict[str, str] = {}
    for text in spec.classes:
        name, equals, target = text.partition("=")
        if name in given:
            raise UsageError(f"classes: {name!r} is named twice; name it once")
        if equals:
            given[name] = target
    labels = {}
    for name in dict.fromkeys(entry.class_name for entry in entries):
        if name in given:
            labels[name] = class_index(given[name], count, model.classes)
            continue
        if not name:
            raise UsageError(
                "classes: the shapes lie in no folders that name their class; move them into one folder a class, and say "
                "which class of the model each is: --classes NAME=CLASS"
            )
        try:
            labels[name] = class_index(name, count, model.classes)
        except UsageError as error:
            raise UsageError(f"{error}; say which it is: --classes {name}=CLASS") from error
    return labels


def _first_renders(
    source: ShapeSource, entries: Sequence[ShapeEntry], renderer: Renderer, layout: Layout
) -> torch.Tensor:
    """Two poses of the first shape that can be read, [2, 3, H, W]."""
    first: RaysenseError | None = None
    for entry in entries:
        try:
            mesh = source.mesh(entry.shape_id)
        except RaysenseError as error:
            first = first or error
            continue
        points = layout.initial[:1].repeat(2, 1)
        points[1, 0] = layout.space.domain.lower[0] + 0.3 * layout.space.domain.extent[0]
        with torch.no_grad():
            shapes = RenderedShapes(layout.space, renderer, [renderer.prepare(mesh)])
            return shapes.images(points, torch.zeros(2, dtype=torch.int64))
    assert first is not None
    raise UsageError(f"none of the shapes can be used; the first: {first}") from first


def _model_size(model: LoadedModel) -> int:
    crop = None if model.preprocessing is None else model.preprocessing.crop
    if crop is not None and crop[0] != crop[1]:
        raise UsageError(
            f"model {model.reference!r} wants images of {crop[0]} x {crop[1]}, and renders are square; if it takes square "
            "ones too, say their --size"
        )
    return _SIZE if crop is None else crop[0]


def _needs_gradients(spec: SemanticSpec) -> bool:
    return not spec.black_box and (spec.influence or any(method in ("oir_w", "trapezoid") for method in spec.growing))


def _tasks(subjects: pa.Table, layout: Layout, regions: bool) -> pa.Table:
    """The listing: for every subject its maps in blocks, then its regions."""
    tasks: list[tuple[str, int | None, int, int]] = []
    for number, grid in enumerate(layout.grids):
        tasks += [("map", number, start, min(start + _BLOCK, grid.size)) for start in range(0, grid.size, _BLOCK)]
    if regions:
        tasks.append(("regions", None, 0, len(layout.initial)))
    listing = subjects.take(pa.array(np.repeat(np.arange(subjects.num_rows), len(tasks)))).combine_chunks()
    columns: Mapping[str, pa.Array] = {
        "task": pa.array([task[0] for task in tasks] * subjects.num_rows, pa.string()),
        "map": pa.array([task[1] for task in tasks] * subjects.num_rows, pa.int32()),
        "start": pa.array([task[2] for task in tasks] * subjects.num_rows, pa.int32()),
        "stop": pa.array([task[3] for task in tasks] * subjects.num_rows, pa.int32()),
        "first": pa.array(([True] + [False] * (len(tasks) - 1)) * subjects.num_rows, pa.bool_()),
    }
    for name, values in columns.items():
        listing = listing.append_column(name, values)
    return listing


def _space_facts(space: SemanticSpace) -> dict[str, Any]:
    return {
        "axes": [
            {
                "name": axis.name,
                "unit": axis.unit,
                "low": axis.low,
                "high": axis.high,
                "periodic": axis.periodic,
            }
            for axis in space.axes
        ],
        "fixed": dict(space.fixed),
        "volume": space.volume,
    }


def _cost_notes(spec: SemanticSpec, layout: Layout) -> list[str]:
    """What published growth costs where its corners are many."""
    dimensions = layout.space.dimensions
    cells = sum(grid.size for grid in layout.grids)
    notes = []
    if cells > _MANY_CELLS:
        notes.append(f"the maps have {cells:,} cells, each a picture to score for every shape or image")
    published = [method for method in spec.growing if method != "constrained"]
    if published and dimensions > 2 and spec.half_width < _SMALL_WIDTH:
        notes.append(
            f"published regions in {dimensions} dimensions hardly grow from half a width of {spec.half_width:g}: their "
            f"relative growth goes as the width to the power {dimensions - 2}; a --half-width of about 1 lets them"
        )
    corners = sum(2**dimensions * (2 if method == "oir_b" else 1) for method in published)
    if corners < _COSTLY_CORNERS:
        return notes
    regions = len(layout.initial) * len(spec.kinds)
    return [
        *notes,
        f"published regions in {dimensions} dimensions score up to {corners * regions:,} corners of every "
        f"shape or image in each of up to {spec.iterations:,} iterations; constrained takes some hundred a region and axis",
    ]
