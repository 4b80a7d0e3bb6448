"""The parts of a spec that several scans share: a model, and the samples of a data set."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from raysense.references import absolute_reference
from raysense.scans.base import ScanSpec


class ModelSpec(ScanSpec):
    """A model."""

    model: str = Field(
        description="model reference, e.g. digits, torchvision:resnet50?weights=DEFAULT, file.py:factory"
    )

    @field_validator("model")
    @classmethod
    def _absolute_model(cls, value: str) -> str:
        return absolute_reference(value, "model")


class SampledSpec(ModelSpec):
    """A model, and the samples of a data set."""

    data: str = Field(description="data reference, e.g. digits, folder:/path, npz:file.npz?x=x&y=y, parquet:/path")
    split: tuple[str, ...] = Field((), description="splits to scan, separated by commas; none takes the data's default")
    limit: int | None = Field(None, ge=1, description="only N samples of every split, evenly spaced")
    samples: tuple[str, ...] = Field((), description="only the samples of these ids, separated by commas")
    unit_size: int | None = Field(None, ge=1, description="samples per unit of work; none chooses by size and cost")
    seed: int = Field(0, ge=0, description="seed of everything random")

    @field_validator("data")
    @classmethod
    def _absolute_data(cls, value: str) -> str:
        return absolute_reference(value, "data")

    @field_validator("split", "samples", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return split_text(value, ",")


def split_text(value: Any, separator: str) -> Any:
    """The parts of a text from the command line; what is not text stays as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return value


def none_or_some(value: Any) -> Any:
    """The parts of a text between commas, at least one; no parts for ``none``. What is not text stays as it is."""
    if value == "none":
        return ()
    parts = split_text(value, ",")
    if isinstance(value, str) and not parts:
        raise ValueError("at least one name or number, or none")
    return parts
