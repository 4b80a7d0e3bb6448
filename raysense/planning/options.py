"""What a plan is asked for, and what it assumes of the cluster."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysense.options import RunOptions

_MOST_GPUS = 10_000


class PlanOptions(BaseModel):
    """How a plan is made. What is assumed of the cluster is printed with the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: tuple[int, ...] = Field(
        description="numbers of GPUs (of workers, on a CPU) to plan for, separated by commas; the unit size is chosen for "
        "the first"
    )
    price: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="money for an hour of one GPU (of one worker, on a CPU)"
    )
    units: int = Field(12, ge=2, description="units, or smaller pieces of the listing, to calibrate on")
    seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="time that computing them may take, s; then it is done with fewer"
    )
    address: str | None = Field(
        None, description="address of a running Ray cluster whose workers are calibrated; none starts Ray locally"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device that is calibrated; auto takes a GPU where there is one"
    )
    batch_size: int | Literal["auto"] = Field("auto", description="samples per batch; auto measures itself")
    worker_cpus: int | Literal["auto"] = Field(
        "auto", description="CPU cores of each worker, as of a scan; auto: a fair share of its machine"
    )
    startup: float = Field(
        180.0, ge=0, allow_inf_nan=False, description="time that a machine takes to come up, s; 0 if all are there"
    )
    loss_rate: float = Field(
        0.02, ge=0, allow_inf_nan=False, description="spot machines that are taken away, per machine and hour"
    )
    notice: float = Field(
        120.0, ge=0, allow_inf_nan=False, description="warning before a machine is taken away, s; 0 for none"
    )
    gpus_per_node: int = Field(1, ge=1, description="GPUs of one machine, which come and go together")
    straggler: str = Field(
        "0.02:2", description="share of the machines that are slow, and the factor by which, as SHARE:FACTOR"
    )
    idle: float = Field(
        300.0,
        ge=0,
        allow_inf_nan=False,
        description="time that the autoscaler keeps an idle machine, s; it is paid for",
    )
    latency: float = Field(
        0.05, ge=0, allow_inf_nan=False, description="time to publish one file, s: an object store's; 0.002 on a disk"
    )
    seed: int = Field(0, ge=0, description="seed of the simulated cluster, and of the places calibrated at")

    @field_validator("gpus", mode="before")
    @classmethod
    def _split_gpus(cls, value: Any) -> Any:
        if isinstance(value, int):
            return (value,)
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("gpus")
    @classmethod
    def _positive_gpus(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1 or max(value) > _MOST_GPUS:
            raise ValueError(f"one or several whole numbers from 1 to {_MOST_GPUS}, separated by commas")
        return tuple(dict.fromkeys(value))

    @field_validator("batch_size", "worker_cpus")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1, or auto")
        return value

    @field_validator("straggler")
    @classmethod
    def _share_and_factor(cls, value: str) -> str:
        share_and_factor(value)
        return value

    @property
    def run_options(self) -> RunOptions:
        """How a worker is placed for the calibration: as a scan would place it."""
        # A cluster whose autoscaler has no GPU up yet gives one only to those who ask for as many as there will be.
        workers: Literal["auto", "max"] = "max" if self.device == "cuda" and self.address else "auto"
        return RunOptions(
            workers=workers,
            device=self.device,
            batch_size=self.batch_size,
            worker_cpus=self.worker_cpus,
            address=self.address,
        )


def share_and_factor(text: str) -> tuple[float, float]:
    """The numbers of ``SHARE:FACTOR``.

    Raises:
        ValueError: they are none, or out of range.
    """
    share, _, factor = text.partition(":")
    try:
        numbers = float(share), float(factor)
    except ValueError:
        numbers = -1.0, 0.0
    if not 0 <= numbers[0] <= 1 or not 1 <= numbers[1] < float("inf"):
        raise ValueError("SHARE:FACTOR with a share from 0 to 1 and a factor of at least 1, such as 0.02:2")
    return numbers
