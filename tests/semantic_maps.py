"""The semantic maps that Hamdi & Ghanem (2020) recorded, as a function of the pose, and what they grew on it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from shared_data import shared_data
from torch import Tensor

from raysense.measures.boxes import Domain

AZIMUTHS, ELEVATIONS = 120, 34
STEP = 3.0
"""Degrees between neighbours of the grid."""
LOWEST, HIGHEST = -10.0, 89.0
"""Elevations of the grid's first and last row."""
SPACE = Domain(torch.tensor([0.0, -10.0]).double(), torch.tensor([360.0, 90.0]).double(), torch.tensor([True, False]))
"""[azimuth, elevation] in degrees, as in section 4.2."""
STARTS = torch.tensor([[130.0, 30.0], [50.0, 20.0], [200.0, 15.0], [310.0, 50.0]]).double()


class SemanticMaps:
    """Maps [M, 120, 34] as the :class:`RegionFunction` of M subjects: bilinear in [azimuth, elevation], in degrees.

    The azimuth is periodic. Beyond the grid's first and last row the outermost cells go on, limited to [0, 1]: what the
    networks answer to such poses the maps do not know, and of the guesses tried (the last row's score for ever, 0, the
    pose over the pole) this one's boxes are most like the recorded. On a grid line derivatives are those from above.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values.double().contiguous()
        self._flat = self.values.view(-1)

    def __len__(self) -> int:
        return len(self.values)

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        """Scores [P] at points [P, 2] of subjects [P]."""
        across, up, corner = self._cell(points, subjects)
        low, high = self._along_azimuth(corner, across)
        return torch.lerp(low, high, up).clamp_(0, 1)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [P] and exact gradients [P, 2], per degree."""
        across, up, corner = self._cell(points, subjects)
        low, high = self._along_azimuth(corner, across)
        by_azimuth = torch.lerp(corner[1] - corner[0], corner[3] - corner[2], up)
        scores = torch.lerp(low, high, up)
        limited = (scores < 0) | (scores > 1)
        gradients = torch.stack((by_azimuth, high - low), dim=1).div_(STEP)
        return scores.clamp_(0, 1), gradients.masked_fill_(limited[:, None], 0)

    def _cell(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Place in its cell by azimuth, 0 to 1, and by elevation, beyond these outside the grid; its values [4, P]."""
        azimuth = torch.remainder(points[:, 0], 360.0) / STEP
        elevation = (points[:, 1] - LOWEST) / STEP
        column = azimuth.long().clamp(max=AZIMUTHS - 1)
        row = elevation.clamp(0, ELEVATIONS - 2).long()
        corner = subjects * (AZIMUTHS * ELEVATIONS) + column * ELEVATIONS + row
        beside = corner + torch.where(column == AZIMUTHS - 1, ELEVATIONS * (1 - AZIMUTHS), ELEVATIONS)
        values = self._flat[torch.stack((corner, beside, corner + 1, beside + 1))]
        return azimuth - column, elevation - row, values

    @staticmethod
    def _along_azimuth(corner: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
        """The scores at the cell's lower and upper elevation."""
        return torch.lerp(corner[0], corner[1], across), torch.lerp(corner[2], corner[3], across)


class Recording(NamedTuple):
    """Maps of every network and shape, and the boxes recorded on them; row ``i`` of the maps is subject ``i``.

    Attributes:
        maps: The function.
        networks: Network of every map.
        subject: [R] int64, map of every recorded box.
        init: [R] int64, row of its initial point in ``STARTS``.
        method: Of every recorded box, named as in the scan.
        lower: [R, 2] float64, as recorded after 600 updates; NaN where it diverged.
        upper: [R, 2] float64.
    """

    maps: SemanticMaps
    networks: list[str]
    subject: Tensor
    init: Tensor
    method: list[str]
    lower: Tensor
    upper: Tensor


class RecordedTraces(NamedTuple):
    """Traces of ResNet50 and AlexNet.

    Attributes:
        subject: [R] int64, map of every trace.
        init: [R] int64.
        method: Of every trace.
        lower: [R, 600, 2] float64, the state before the update of each iteration; NaN where it was not recorded.
        upper: [R, 600, 2] float64.
        loss: [R, 600] float64.
    """

    subject: Tensor
    init: Tensor
    method: list[str]
    lower: Tensor
    upper: Tensor
    loss: Tensor


@lru_cache
def recording() -> Recording:
    """The recorded maps and boxes; skips the test where they are absent."""
    maps = _table("maps_dev.arrow").sort_by(
        [(name, "ascending") for name in ("network", "class_nb", "object_nb", "azimuth", "elevation")]
    )
    firsts = maps.take(list(range(0, len(maps), AZIMUTHS * ELEVATIONS))).to_pylist()
    values = torch.tensor(maps["score"].to_numpy()).view(-1, AZIMUTHS, ELEVATIONS)
    table = _table("regions_dev.arrow")
    regions = table.select(["network", "class_nb", "object_nb", "init_index", "method"]).to_pylist()
    return Recording(
        SemanticMaps(values),
        [row["network"] for row in firsts],
        _subjects(regions),
        torch.tensor([row["init_index"] for row in regions]),
        [row["method"].lower() for row in regions],
        _bounds(table["a"]),
        _bounds(table["b"]),
    )


@lru_cache
def recorded_traces() -> RecordedTraces:
    """The recorded traces; skips the test where they are absent."""
    table = _table("traces_dev.arrow").sort_by(
        [(name, "ascending") for name in ("network", "class_nb", "object_nb", "init_index", "method", "iteration")]
    )
    firsts = table.take(list(range(0, len(table), 600))).to_pylist()
    return RecordedTraces(
        _subjects(firsts),
        torch.tensor([row["init_index"] for row in firsts]),
        [row["method"].lower() for row in firsts],
        _bounds(table["a"]).view(-1, 600, 2),
        _bounds(table["b"]).view(-1, 600, 2),
        torch.tensor(table["loss"].to_numpy(zero_copy_only=False)).double().view(-1, 600),
    )


@lru_cache
def _maps_by_key() -> dict[tuple[str, int, int], int]:
    """Row of every map by network, class and object."""
    table = _table("maps_dev.arrow").select(["network", "class_nb", "object_nb"])
    distinct = table.group_by(table.column_names).aggregate([]).to_pylist()
    keys = {(row["network"], row["class_nb"], row["object_nb"]) for row in distinct}
    return {key: row for row, key in enumerate(sorted(keys))}


def _subjects(rows: list[dict[str, object]]) -> Tensor:
    """Map of each row."""
    by_key = _maps_by_key()
    return torch.tensor([by_key[row["network"], row["class_nb"], row["object_nb"]] for row in rows])  # type: ignore[index]


def _bounds(pairs: pa.ChunkedArray) -> Tensor:
    """Pairs of bounds [R, 2] float64, NaN where there are none."""
    axes = [pc.list_element(pairs, axis).to_numpy(zero_copy_only=False) for axis in (0, 1)]
    return torch.stack([torch.tensor(values, dtype=torch.float64) for values in axes], dim=1)


def _table(name: str) -> pa.Table:
    """A recorded table, its dictionary columns as text."""
    with pa.memory_map(str(shared_data("semantic", name))) as file:
        table = pa.ipc.open_file(file).read_all()
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(field.type.value_type))
    return table
