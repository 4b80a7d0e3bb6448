"""Devices by name."""

from __future__ import annotations

import torch

from raysense.errors import UsageError


def resolve_device(device: str) -> str:
    """``auto`` as what this process has; ``cpu`` and ``cuda`` as they are.

    Raises:
        UsageError: ``cuda`` is asked for where there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda' is asked for, but PyTorch sees no CUDA device here; use --device cpu or auto")
    return device
