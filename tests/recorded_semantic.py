"""The recorded results of the semantic paper's authors (data/semantic of the shared test data) as semantic scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from shared_data import shared_data
from synthetic_semantic import SCHEMAS, Tables, document, units_table

from raysense.store.store import Store

NETWORKS = ("AlexNet", "VGG", "ResNet50", "Inceptionv3")
STEPS = (120, 34)
_EPS_MEAN, _EPS_VARIANCE = 0.5, 0.05


def recorded(table: str) -> pa.Table:
    """Table ``maps_dev`` or ``regions_dev`` of the recorded results; skips the test where they are absent."""
    return pa.ipc.open_file(shared_data("semantic", f"{table}.arrow")).read_all()


def write_recorded(
    location: str | Path, network: str, objects: Sequence[int] | None = None, maps: bool = True
) -> Store:
    """Write what was recorded for a network as one scan of one unit; the elevation's grid ends at 89 degrees.

    Args:
        location: The scan directory.
        network: One of `NETWORKS`.
        objects: Positions of the shapes among all; all where None.
        maps: Whether to write the maps too, which takes a second for all shapes.
    """
    regions = _of(recorded("regions_dev"), network)
    every = _of(recorded("maps_dev"), network)
    ids = list(dict.fromkeys(every["map_id"].to_pylist()))
    kept = ids if objects is None else [ids[index] for index in objects]
    classes = dict(zip(every["class_nb"].to_pylist(), every["class_name"].to_pylist(), strict=True))
    folder = str(shared_data("semantic", "shapes_dev"))
    tables = Tables(classes=[classes[label] for label in sorted(classes)], model=network, shapes=folder)
    for shape_id in kept:
        part = every.filter(pc.equal(every["map_id"], shape_id))
        label = part["class_nb"][0].as_py()
        tables.add_subject(shape_id, label)
        score = part["score"].to_numpy().reshape(STEPS[::-1]).T
        for row in regions.filter(pc.equal(regions["map_id"], shape_id)).to_pylist():
            _add_box(tables, shape_id, label, row, score)
    store = Store.create(location, document(tables), None)
    empty = SCHEMAS["semantic_maps"].empty_table()
    found = {
        "subjects": pa.Table.from_pylist(tables.subjects, schema=SCHEMAS["subjects"]),
        "regions": pa.Table.from_pylist(tables.regions, schema=SCHEMAS["regions"]),
        "semantic_maps": _maps(every.filter(pc.is_in(every["map_id"], pa.array(kept)))) if maps else empty,
        "units": units_table("0000000000"),
    }
    store.commit("0000000000", found, {"attempt": 1})
    return store


def _of(table: pa.Table, network: str) -> pa.Table:
    """Rows of a network, with ids of the shapes as in the folder of their meshes."""
    plain = pa.table({name: _plain(table[name]) for name in table.column_names})
    part = plain.filter(pc.equal(plain["network"], network))
    shape = "map_shape_id" if "map_shape_id" in part.column_names else "shape_id"
    return part.append_column("map_id", pc.binary_join_element_wise(part["class_name"], part[shape], "/"))


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _maps(part: pa.Table) -> pa.Table:
    azimuth, elevation = (part[name].to_numpy().astype(np.float64) for name in ("azimuth", "elevation"))
    score = part["score"].to_numpy().astype(np.float64)
    rows = len(score)

    def pairs(left: np.ndarray, right: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(
            np.arange(0, 2 * rows + 1, 2, dtype=np.int32), pa.array(np.stack([left, right], 1).ravel(), kind)
        )

    cells = [(azimuth // 3).astype(np.int32), ((elevation + 10) // 3).astype(np.int32)]
    columns = {
        "shape_id": part["map_id"],
        "label": part["class_nb"].cast(pa.int32()),
        "axes": pa.array(["azimuth,elevation"] * rows),
        "steps": pairs(*(np.full(rows, steps, np.int32) for steps in STEPS), pa.int32()),
        "cell": pairs(*cells, pa.int32()),
        "u": pairs(azimuth, elevation, pa.float64()),
        "score": pa.array(score),
        "predicted": part["class_nb"].cast(pa.int32()),
        "p_predicted": pa.array(np.maximum(score, 0.5)),
    }
    schema = SCHEMAS["semantic_maps"]
    return pa.table([columns.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema)


def _add_box(tables: Tables, shape_id: str, label: int, row: dict[str, object], score: np.ndarray) -> None:
    lower, upper, start = (np.array(row[name], np.float64) for name in ("a", "b", "initial_point"))
    given = {
        "init": row["init_index"], "family": "published", "method": str(row["method"]).lower(), "u0": start.tolist(),
        "iterations": row["n_iterations"], "loss": row["final_loss"], "evaluations": 4 * int(str(row["n_iterations"])),
        "u0_score": float(score[tuple(np.round((start + np.array([0, 10])) / 3).astype(int))]), "converged": False,
    }  # fmt: skip
    if np.isnan([*lower, *upper]).any():
        tables.add_region(shape_id, label, **given, contains_u0=False)
        return
    # A box thinner than the grid has its evidence from the nearest point.
    around = np.floor((np.arange(0, 360, 3) - lower[0]) / 360) * 360
    columns = np.arange(0, 360, 3) - around <= upper[0]
    heights = (np.arange(-10, 90, 3) >= lower[1]) & (np.arange(-10, 90, 3) <= upper[1])
    inside = score[np.ix_(columns, heights)]
    values = inside if inside.size else np.array([given["u0_score"]])
    contains = bool(((lower <= start) & (start <= upper)).all())
    mean, variance = float(values.mean()), float(values.var())
    tables.add_region(
        shape_id, label, **given, lower=lower.tolist(), upper=upper.tolist(), mean_score=mean, var_score=variance,
        contains_u0=contains, holds=contains and mean >= 1 - _EPS_MEAN and variance <= _EPS_VARIANCE,
        evidence_points=values.size,
    )  # fmt: skip
