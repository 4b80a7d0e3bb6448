"""A Ray cluster of several raylets on this machine, whose nodes come, are drained, and die. Also a script: rounds of chaos.

python tests/raylets.py '{"kind": ..., "out": ..., "seeds": [1, 2], "events": 6, "spec": {...}}'
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from processes import ROOT, committed, finish, start_driver, wait_for

_QUICK_HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 300,
    "health_check_failure_threshold": 3,
}
"""So that a dead node is noticed within a second, not fourteen."""


class Raylets:
    """A head that takes no work, and nodes of one CPU each."""

    def __init__(self, nodes: int = 0, **system: Any) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "_system_config": {**_QUICK_HEALTH, **system}}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """One more node."""
        node = self._cluster.add_node(wait=False, num_cpus=1)
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> int:
        """SIGKILL every process of a node at once, as when a machine is taken away; returns how many there were."""
        self.nodes.remove(node)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        family = [*raylet.children(recursive=True), raylet]
        for others in node.all_processes.values():
            family += [psutil.Process(other.process.pid) for other in others if other.process.poll() is None]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return len(family)

    def drain(self, node: Any, seconds: float) -> None:
        """Tell Ray that a node will be gone in so many seconds, as an interruption notice does."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        accepted, reason = GcsClient(address=self.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "taken away",
            int(1000 * (time.time() + seconds)),
        )
        assert accepted, reason

    def shutdown(self) -> None:
        """End all of it."""
        self._cluster.shutdown()


class AutoscaledHead:
    """A head without work whose autoscaler starts raylets on this machine, as cluster.yaml's starts spot machines.

    Args:
        folder: For the configuration and Ray's files; short, since sockets are below it.
        node_types: Resources of each kind of worker node, and how many there may be.
    """

    def __init__(self, folder: Path, node_types: dict[str, tuple[dict[str, int], int]]) -> None:
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        port, *_ = self._ports = free_ports(4)
        self.address = f"127.0.0.1:{port}"
        types = {
            name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}
            for name, (resources, most) in node_types.items()
        }
        config = {
            "cluster_name": "fake",
            "max_workers": sum(most for _, most in node_types.values()),
            "idle_timeout_minutes": 0.05,
            "provider": {
                "type": "fake_multinode", "gcs_address": self.address, "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True, "disable_node_updaters": True, "disable_launch_config_check": True,
                "use_node_id_as_ip": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **types
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 100, "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [],
            "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
            "worker_start_ray_commands": [], "file_mounts": {}, "cluster_synced_files": [],
            "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        environment = {
            **os.environ,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_AUTH_MODE": "disabled",  # else it asks for a token where the home directory has one
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
        }
        self._head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0",
                "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false",
                f"--dashboard-agent-listen-port={self._ports[1]}", f"--metrics-export-port={self._ports[2]}",
                f"--ray-client-server-port={self._ports[3]}", "--disable-usage-stats",
                f"--autoscaling-config={folder / 'config.json'}",
            ],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for(lambda: answers(port))

    def nodes(self) -> list[dict[str, float]]:
        """Resources of the worker nodes that are up."""
        from ray._raylet import GcsClient

        nodes = GcsClient(address=self.address).get_all_node_info(timeout=10).values()
        return [dict(node.resources_total) for node in nodes if node.state == 0 and not node.is_head_node]

    def shutdown(self) -> None:
        """End the head and every node."""
        end_session(self._head.pid)
        self._head.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def chaos_rounds(call: dict[str, Any]) -> list[dict[str, Any]]:
    """Scans one after the other on a cluster whose nodes come and die at random moments; how each ended."""
    raylets = Raylets(nodes=2)
    return [_chaos_round(raylets, call, seed) for seed in call["seeds"]]


def _chaos_round(raylets: Raylets, call: dict[str, Any], seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    began = time.monotonic()
    out = f"{call['out']}/{seed}"
    run = {"workers": 3, "address": raylets.address, **call.get("run", {})}
    driver = start_driver("scan", kind=call["kind"], out=out, run=run, **call["spec"])
    added = killed = 0
    wait_for(lambda: committed(out) >= 2)
    while driver.poll() is None and added + killed < call["events"]:
        time.sleep(chance.uniform(0.1, 1.2))
        # A machine that is killed is followed by one that comes: the scan is to end.
        if len(raylets.nodes) > 1 and (killed == added or len(raylets.nodes) > 3):
            raylets.kill(chance.choice(raylets.nodes))
            killed += 1
        else:
            raylets.add()
            added += 1
    before = committed(out)
    outcome = finish(driver, timeout=200)
    return {**outcome, "seconds": time.monotonic() - began, "added": added, "killed": killed, "before": before}


def run_chaos(timeout: float = 200, **call: Any) -> list[dict[str, Any]]:
    """Rounds of chaos in a process group of its own, of which nothing is left afterwards.

    Args:
        timeout: Of all rounds, s.
        **call: kind, out (a folder; each round's scan is below it), seeds (one a round), events (machines that come and
            die in a round), spec, and perhaps run.
    """
    driver = subprocess.Popen(
        [sys.executable, __file__, json.dumps(call)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = driver.communicate(timeout=timeout)
        assert driver.returncode == 0, errors
        result: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
        return result
    finally:
        end_session(driver.pid)


def end_session(leader: int) -> None:
    """Kill whatever is left of the session that a process led."""
    for process in psutil.process_iter(["pid"]):
        try:
            if os.getsid(process.pid) == leader:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue


if __name__ == "__main__":
    print(json.dumps(chaos_rounds(json.loads(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # dead nodes make a clean end of the test cluster slow; the caller sweeps the session
