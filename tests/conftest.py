"""Fixtures shared by the tests: an isolated cache, single-threaded torch, scans run in real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_LONGEST = (
    "test_cluster", "test_jobs", "test_engine", "test_influence_scan", "test_cli", "test_object_store", "test_conditions",
    "test_significance_scan", "test_boundary_studies", "test_studies", "test_semantic_scan", "test_ablations", "test_plan",
    "test_compaction", "test_preemption",
)  # fmt: skip
"""Files that take longest. Where tests run in several processes, each file in one, these begin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is left for the end."""
    place = {stem: number for number, stem in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two test machines' cores are shared with Ray workers; more threads only make timings and sums vary."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trained networks go to a cache of this test run, which all its processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    earlier = os.environ.get("RAYSENSE_CACHE")
    os.environ["RAYSENSE_CACHE"] = str(folder)
    yield
    if earlier is None:
        del os.environ["RAYSENSE_CACHE"]
    else:
        os.environ["RAYSENSE_CACHE"] = earlier


_LOCAL_RAY = ExitStack()
"""A Ray that is kept from one file of tests to the next, since starting one takes seconds."""


@pytest.fixture(scope="session", autouse=True)
def _end_of_ray() -> Iterator[None]:
    with _LOCAL_RAY:
        yield


@pytest.fixture
def local_ray() -> None:
    """A local Ray for tests that do not harm it."""
    from ray import is_initialized

    from raysense.engine.runtime import cluster
    from raysense.options import RunOptions

    if not is_initialized():
        _LOCAL_RAY.enter_context(cluster(RunOptions()))


@pytest.fixture
def no_ray() -> None:
    """None in this process, for tests that start or join one of their own."""
    _LOCAL_RAY.close()


@pytest.fixture(scope="module", autouse=True)
def _no_ray_left(request: pytest.FixtureRequest) -> None:
    """Files that do not ask for the local Ray find none of an earlier file."""
    tests = [item for item in request.session.items if item.path == request.path]
    if not any("local_ray" in getattr(item, "fixturenames", ()) for item in tests):
        _LOCAL_RAY.close()


@pytest.fixture(scope="session")
def command() -> str:
    """Path of the installed `raysense` command."""
    path = Path(sys.executable).parent / "raysense"
    assert path.exists(), "the package is not installed; run make test"
    return str(path)


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
