"""Scans straight to an object store: a real local S3 endpoint in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pyarrow.fs as pafs
import pytest
from plugin_scans import NumbersScan
from processes import finish, kill, rows, start_driver, wait_for

import raysense
from raysense.engine.lock import LOCK_FILE
from raysense.engine.store import Store
from raysense.errors import UsageError
from raysense.query.connection import open_results

KIND = NumbersScan.kind


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    patch = pytest.MonkeyPatch()
    for name, value in settings.items():
        patch.setenv(name, value)
    try:
        wait_for(lambda: _answers(port))
        options = "scheme=http&allow_bucket_creation=true&allow_bucket_deletion=true"
        filesystem, _ = pafs.FileSystem.from_uri(f"s3://runs?endpoint_override=127.0.0.1:{port}&{options}")
        filesystem.create_dir("runs")
        yield "s3://runs"
    finally:
        patch.undo()
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_scan_kill_resume_and_query_on_s3(bucket: str) -> None:
    out = f"{bucket}/first"
    driver = start_driver("scan", kind=KIND, out=out, run={"workers": 2}, items=200, seconds=0.05)
    wait_for(lambda: _committed(out) >= 5)
    # Through another process of this machine: the owner lives, so the prefix is taken.
    with pytest.raises(UsageError, match="another driver"):
        raysense.resume(out)
    kill(driver)
    driver.wait()
    assert 5 <= _committed(out) < 50
    assert finish(start_driver("resume", out=out, run={"workers": 1}))["committed"] == 50
    assert {n: row["square"] for n, row in rows(out, "squares", "number").items()} == {n: n * n for n in range(200)}
    assert not Store.open(out).directory.exists(LOCK_FILE)
    with open_results([out]) as database:
        assert database.query("SELECT sum(square) AS total FROM squares").rows()[0]["total"] == sum(
            n * n for n in range(200)
        )
    with pytest.raises(UsageError, match="already holds a scan"):
        raysense.scan(KIND, out)
    assert raysense.status(out).committed == 50


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    assert os.environ["AWS_ENDPOINT_URL"]
    with pytest.raises(UsageError, match="cannot be"):
        raysense.scan(KIND, "s3://nowhere/run")


def _committed(out: str) -> int:
    try:
        return len(Store.open(out).committed())
    except UsageError:
        return 0
