"""Where raysense keeps files between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return where raysense caches files: $RAYSENSE_CACHE, $XDG_CACHE_HOME/raysense or ~/.cache/raysense."""
    own = os.environ.get("RAYSENSE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "raysense"
