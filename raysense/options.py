"""How a scan runs: everything that does not change its numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ComputeOptions(BaseModel):
    """How one process computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the workers; auto takes a GPU where there is one"
    )
    batch_size: int | Literal["auto"] = Field("auto", description="samples per batch; auto measures itself")
    threads: int | None = Field(None, ge=1, description="CPU threads of this process; none leaves torch's own choice")
    loaders: int = Field(0, ge=0, description="processes that decode images beside the computation")

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1, or auto")
        return value


class RunOptions(BaseModel):
    """How the engine runs a scan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int | Literal["auto", "max"] = Field(
        "auto",
        description="workers; auto: one a GPU, else one a CPU core; max: as many as an autoscaler "
        "gives (with --device cuda where it has no GPU up yet)",
    )
    batch_size: int | Literal["auto"] = Field("auto", description="samples per batch; auto measures itself")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the workers; auto takes a GPU where there is one"
    )
    worker_cpus: int | Literal["auto"] = Field(
        "auto",
        description="CPU cores of each worker, of which all but one decode images; auto: a fair share of its machine, "
        "or 1 with --workers max, where the machines are not known yet",
    )
    address: str | None = Field(None, description="address of a running Ray cluster, or auto; none starts Ray locally")
    unit_timeout: float | Literal["auto"] = Field(
        "auto",
        description="seconds after which a unit counts as hung; auto: 50 times the median, at least 10 minutes "
        "(before ten units are done 200 times the slowest, at least an hour; before the first, never)",
    )
    max_attempts: int = Field(3, ge=1, description="attempts of a unit that raises, before it is given up on")
    max_losses: int = Field(5, ge=1, description="worker processes a unit may take down before it is given up on")

    duplicates: bool = Field(
        True, description="give slow units to idle workers too once nothing else is left; the first commit counts"
    )
    log: str | None = Field(
        None, description="file for a JSON line per event (unit committed, worker lost, ...); - for standard error"
    )

    @field_validator("workers", "batch_size", "worker_cpus")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1")
        return value

    @field_validator("unit_timeout")
    @classmethod
    def _positive_seconds(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not value > 0:
            raise ValueError("positive")
        return value
