"""Where raysense keeps files between runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

if TYPE_CHECKING:
    from torch import Tensor, nn

N = TypeVar("N", bound="nn.Module")


def cache_directory() -> Path:
    """Return where raysense caches files: $RAYSENSE_CACHE, $XDG_CACHE_HOME/raysense or ~/.cache/raysense."""
    own = os.environ.get("RAYSENSE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "raysense"


def cached_network(name: str, network: N, train: Callable[[], N]) -> N:
    """Return a trained network in evaluation mode, from the cache where it has been trained before.

    The cache is a file in `cache_directory`. A damaged one is replaced; several processes may train at once, and
    readers never see half a file. Where it cannot be written, the network is trained each time, with a warning.

    Args:
        name: Name of the file, without suffix; it must tell apart all that determines the weights.
        network: An untrained network of the same architecture, which takes the cached weights.
        train: Trains one.
    """
    import torch

    path = cache_directory() / f"{name}.pt"
    if path.exists():
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return network.eval()
        except Exception as error:  # a damaged file can raise anything
            warnings.warn(f"{path} is damaged ({type(error).__name__}) and is made anew", stacklevel=3)
    trained = train()
    try:
        _publish(trained.state_dict(), path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        warnings.warn(f"the trained network {name} cannot be cached ({error}); set RAYSENSE_CACHE", stacklevel=3)
    return trained


def _publish(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict under a temporary name, then give it its own."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}-{uuid4().hex}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
