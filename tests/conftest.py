"""Fixtures shared by the tests: an isolated cache, single-threaded torch, scans run in real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_KILLING = (
    ("test_cli", "test_cluster", "test_engine", "test_preemption"),
    ("test_conditions", "test_jobs", "test_object_store"),
)
"""Files whose tests start Ray and kill its processes: never two of a group at once, so that they are not starved."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those of a file run in one, and all that kill in one."""
    for item in items:
        stem = item.path.stem
        group = next((f"killing {number}" for number, files in enumerate(_KILLING) if stem in files), stem)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two test machines' cores are shared with Ray workers; more threads only make timings and sums vary."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trained digits go to a cache of this test run, which the processes it starts share."""
    earlier = os.environ.get("RAYSENSE_CACHE")
    os.environ["RAYSENSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if earlier is None:
        del os.environ["RAYSENSE_CACHE"]
    else:
        os.environ["RAYSENSE_CACHE"] = earlier


@pytest.fixture(scope="session")
def command() -> str:
    """Path of the installed `raysense` command."""
    path = Path(sys.executable).parent / "raysense"
    assert path.exists(), "the package is not installed; run make test"
    return str(path)


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
