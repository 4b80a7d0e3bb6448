"""Ray clusters of several nodes on this machine: they die, are drained, and come and go with an autoscaler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_scans import NumbersScan
from processes import committed, finish, kill, rows, start_driver, wait_for, worker_processes
from raylets import AutoscaledHead, Raylets, free_ports, run_chaos

import raysense
from raysense.engine.runtime import cluster
from raysense.errors import UsageError
from raysense.options import RunOptions
from raysense.store.store import Store

KIND = NumbersScan.kind


def squares(location: Path | str, items: int) -> None:
    found = rows(location, "squares", "number")
    assert {number: row["square"] for number, row in found.items()} == {n: n * n for n in range(items)}


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def named(log: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in events(log) if event["event"] == name]


def test_machines_come_and_die(tmp_path: Path) -> None:
    """Every process of a node dies at once; nothing is charged to the units, nothing is lost or done twice."""
    (round_,) = run_chaos(
        kind=KIND, out=str(tmp_path), seeds=[1], events=4, spec={"items": 240, "seconds": 0.15}, timeout=180
    )
    assert (round_["committed"], round_["units"], round_["failed"]) == (60, 60, [])
    assert round_["killed"] >= 1
    assert round_["before"] < 60
    squares(tmp_path / "1", 240)
    assert Store.open(tmp_path / "1").failures.attempts() == {}


@pytest.fixture(scope="class")
def raylets() -> Iterator[Raylets]:
    nodes = Raylets(nodes=2)
    yield nodes
    nodes.shutdown()


class TestTwoNodes:
    """Scans by drivers of their own, on nodes of this process."""

    def test_one_worker_fits_on_one_of_several_small_nodes(self, tmp_path: Path, raylets: Raylets) -> None:
        """What a worker asks for must fit on one of them, though there are two CPUs."""
        run = {"workers": 1, "address": raylets.address}
        assert raysense.scan(KIND, tmp_path / "s", run=run, items=40).complete

    def test_a_machine_that_will_be_taken_away_finishes_its_unit_and_gets_no_other(
        self, tmp_path: Path, raylets: Raylets, command: str
    ) -> None:
        log = tmp_path / "log"
        run = {"workers": 2, "address": raylets.address, "log": str(log)}
        driver = start_driver("scan", kind=KIND, out=str(tmp_path / "s"), run=run, items=80, seconds=0.5)
        wait_for(lambda: len(named(log, "worker_opened")) == 2 and len(named(log, "unit_committed")) >= 4)
        watch = subprocess.Popen(
            [command, "status", str(tmp_path / "s"), "--watch", "--interval", "0.5"], stdout=subprocess.PIPE, text=True
        )
        node = raylets.nodes[0]
        raylets.drain(node, 60)
        wait_for(lambda: named(log, "node_draining"))
        (notice,) = named(log, "node_draining")
        assert notice["node"] == node.node_id
        assert 30 < notice["seconds_left"] <= 60
        assert finish(driver) == {"committed": 20, "units": 20, "failed": []}
        told = next(place for place, event in enumerate(events(log)) if event["event"] == "node_draining")
        after = [event for event in events(log)[told:] if event.get("worker") == notice["worker"]]
        assert [event["event"] for event in after if event["event"] == "unit_committed"] == ["unit_committed"]
        assert named(log, "attempt_failed") == named(log, "worker_lost") == []
        squares(tmp_path / "s", 80)
        watched, _ = watch.communicate(timeout=30)
        assert watch.returncode == 0
        assert re.search(r"^units \d+/20, samples \d+/80, .* samples/s, about 0:\d\d left$", watched, re.MULTILINE)
        assert "scan, complete\nunits    20 of 20 done, 0 failed, 0 left" in watched


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets are below its folder, and their paths limited to 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="r_", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_an_autoscaler_brings_machines_and_takes_them_back(tmp_path: Path, short_folder: Path) -> None:
    head = AutoscaledHead(short_folder, {"gpu": ({"CPU": 2, "GPU": 1}, 2), "cpu": ({"CPU": 1}, 2)})
    try:
        assert head.nodes() == []
        with pytest.raises(UsageError, match=r"no machine of the cluster has a CPU or GPU to give.*--workers max"):
            raysense.scan(KIND, tmp_path / "auto", run={"address": head.address}, items=8)
        for device, resource in (("cuda", "GPU"), ("cpu", "CPU")):
            run = {"workers": "max", "device": device, "address": head.address}
            out = tmp_path / device
            driver = start_driver("scan", kind=KIND, out=str(out), run=run, items=160, seconds=0.2)
            wait_for(lambda resource=resource: len([node for node in head.nodes() if node.get(resource)]) == 2)
            assert committed(out) < 40
            assert finish(driver) == {"committed": 40, "units": 40, "failed": []}
            wait_for(lambda: not head.nodes())
            squares(out, 160)
            devices = {row["device"] for row in rows(out, "units", "unit").values()}
            assert devices <= ({"gpu 0"} if device == "cuda" else {"gpu -", "gpu "})
    finally:
        head.shutdown()


def test_prometheus_scrapes_a_live_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it leaves a token in the home directory, and in this process
    (port,) = free_ports(1)
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
        _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 300},
    )  # fmt: skip

    def scraped() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("ray_raysense") and 'scan="watched"' in line:
                name = line.partition("{")[0].removeprefix("ray_raysense_")
                found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
        return found

    outcome = []
    marks, log = tmp_path / "marks", tmp_path / "log"
    marks.mkdir()
    spec = {"items": 160, "seconds": 0.15, "raising_once": (3,), "marks": str(marks)}
    run = {"workers": 2, "log": str(log)}
    scan = threading.Thread(target=lambda: outcome.append(raysense.scan(KIND, tmp_path / "watched", run=run, **spec)))
    scan.start()
    try:
        wait_for(lambda: scraped().get("units_total", 0) >= 2)
        wait_for(lambda: 0 < scraped().get("queue", 0) < 40)
        now = scraped()
        assert now["workers_ready"] == now["workers_requested"] == 2
        before = len(named(log, "unit_committed"))
        wait_for(lambda: len(named(log, "unit_committed")) >= before + 2)
        kill(worker_processes(os.getpid())[0])  # what it counted since Ray last asked must not be lost
        scan.join()
        wait_for(lambda: scraped()["units_total"] == 40)
        last = scraped()
        assert (last["samples_total"], last["failures_total"], last["workers_lost_total"]) == (160, 1, 1)
        heard = named(log, "unit_committed")  # all, unless one died between its commit and its reply
        assert last["bytes_total"] == sum(event["bytes"] for event in heard)
        assert last["unit_seconds_count"] == len(heard) >= 39
    finally:
        scan.join()
        ray.shutdown()
    assert outcome[0].complete


def test_a_slow_unit_is_computed_twice_near_the_end(tmp_path: Path) -> None:
    """A unit that hangs on its first worker is done by an idle one, long before it counts as hung."""
    marks = tmp_path / "marks"
    marks.mkdir()
    log = tmp_path / "log"
    spec = {"items": 80, "seconds": 0.05, "hanging_once": (9,), "marks": str(marks)}
    began = time.monotonic()
    outcome = raysense.scan(KIND, tmp_path / "s", run={"workers": 2, "log": str(log)}, **spec)
    assert outcome.complete
    assert time.monotonic() - began < 60
    twice = [event["unit"] for event in named(log, "unit_duplicated")]
    assert twice[-1] == "0000000036-0000000040"
    assert len(twice) <= 2  # one may have been queued behind it
    assert named(log, "attempt_failed") == []
    squares(tmp_path / "s", 80)


def test_strangers_cannot_use_a_local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray listens on all interfaces; without the token of this process nobody gets in, and none is left in the home."""
    import ray
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationMode,
        AuthenticationTokenLoader,
        get_authentication_mode,
    )

    for name in ("MODE", "TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_AUTH_{name}", raising=False)
    with tempfile.TemporaryDirectory() as home:
        monkeypatch.setenv("HOME", home)
        with cluster(RunOptions()):
            address = ray.get_runtime_context().gcs_address
            code = f"from ray._raylet import GcsClient; print(GcsClient(address={address!r}).get_all_node_info())"
            stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            tried = subprocess.run(
                [sys.executable, "-c", code], env=stranger, capture_output=True, text=True, check=False
            )
            assert tried.returncode != 0
            assert "AuthenticationError" in tried.stderr
            assert tried.stdout == ""
            assert ray.get_runtime_context().get_node_id()
        # Else no cluster without a token, or with one of its own, would let this process in afterwards.
        assert not [name for name in os.environ if name.startswith("RAY_AUTH")]
        assert get_authentication_mode() != AuthenticationMode.TOKEN
        assert not AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
        assert not list(Path(home).rglob("*token*"))
