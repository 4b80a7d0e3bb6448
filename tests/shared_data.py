"""Real data that is not part of the repository: found beside it, or the test is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(*parts: str) -> Path:
    """Return a path below ``$RAYSENSE_TEST_DATA`` or ``../shared/data``; skips the test where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("RAYSENSE_TEST_DATA", beside)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; set RAYSENSE_TEST_DATA to the folder of the shared test data")
    return path
