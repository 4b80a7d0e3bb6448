"""What the studies of large data sets share: one scan of each network, on a cluster, and what it has cost."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from raysense.scans.sampled import SampledSpec
from raysense.studies.study import Workspace

DEFAULT_MODEL = "torchvision:resnet50?weights=DEFAULT"

_SPEC = SampledSpec.model_fields
_COST = """
WITH machines AS (
    SELECT scan, count(DISTINCT worker) AS workers, count(DISTINCT node) AS nodes,
        coalesce(sum(seconds) FILTER (device <> 'cpu'), 0) AS gpu_seconds
    FROM units GROUP BY scan
)
SELECT scan, t.units, t.rows AS items, workers, nodes, rows_per_second AS "items/s", wall_seconds AS "wall s",
    busy_seconds AS "busy s", gpu_seconds AS "of these GPU s", gpu_seconds / 3600 AS "GPU h", efficiency
FROM throughput() AS t JOIN machines USING (scan) WHERE t.worker IS NULL ORDER BY scan
"""


class ImagenetOptions(BaseModel):
    """What every study of a large data set takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: tuple[str, ...] = Field((DEFAULT_MODEL,), min_length=1, description="model reference")
    data: str = Field(description=str(_SPEC["data"].description))
    split: str | None = Field(None, description=str(_SPEC["split"].description))
    limit: int | None = Field(None, ge=1, description=str(_SPEC["limit"].description))
    top: int = Field(10, ge=1, description="rows of the tables of extremes")
    unit_size: int | None = Field(None, ge=1, description=str(_SPEC["unit_size"].description))
    seed: int = Field(0, ge=0, description=str(_SPEC["seed"].description))

    def sampled(self) -> dict[str, object]:
        """The fields of a scan's spec that say what is scanned."""
        names = ("data", "limit", "unit_size", "seed")
        return {"split": self.split or (), **{name: getattr(self, name) for name in names}}


def show_cost(workspace: Workspace, directories: list[str]) -> None:
    """Print the throughput of scans, and the GPU time that their committed units took."""
    workspace.show("Throughput, and time on the devices", _COST, directories)
