"""The watcher of spot machines: a fake metadata service, a real Ray of several nodes, and the real process."""

from __future__ import annotations

import http.client
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for

from raysense.engine.preemption import Aws, Gcp, Node, Notice, watch

ray = pytest.importorskip("ray")


class _Service(BaseHTTPRequestHandler):
    """Answers like the metadata services of EC2 (version 2 only) and Compute Engine."""

    server: Fake

    def do_PUT(self) -> None:
        asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if asked else 400, self.server.token)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.broken:
            self.server.broken -= 1
            self._answer(503, "busy")
        elif self.path.startswith("/latest/"):
            known = self.headers["X-aws-ec2-metadata-token"] == self.server.token
            there = self.path in self.server.answers
            self._answer((200 if there else 404) if known else 401, self.server.answers.get(self.path, ""))
        else:
            right = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if right else 403, self.server.answers.get(self.path, "FALSE"))

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Fake(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Service)
        self.answers: dict[str, str] = {}
        self.asked: list[str] = []
        self.token = "first"
        self.broken = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Nodes:
    """Ids of the workers, and the actors on them, by name."""

    address: str
    ids: dict[str, str]
    holders: dict[str, Any]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head without work, and two workers at work: an idle one leaves as soon as it is drained."""

    class Holder:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for name in ("a", "b"):
            cluster.add_node(num_cpus=1, resources={name: 1}, wait=False)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        remote = ray.remote(Holder)
        holders = {name: remote.options(num_cpus=1, resources={name: 1}).remote() for name in ("a", "b")}
        yield Nodes(cluster.address, {name: ray.get(holder.node.remote()) for name, holder in holders.items()}, holders)
    finally:
        ray.shutdown()
        cluster.shutdown()


def draining() -> dict[str, float]:
    """Deadlines of draining nodes, s since 1970."""
    found = ray._private.worker.global_worker.gcs_client.get_draining_nodes()
    return {key: milliseconds / 1e3 for key, milliseconds in found.items()}


def start(nodes: Nodes, name: str, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raysense.engine.preemption", "--address", nodes.address]
    own = ["--node-id", nodes.ids[name], "--lock", str(tmp_path / "lock"), *arguments]
    return subprocess.Popen([*command, *own], stderr=subprocess.PIPE, text=True)


def in_two_minutes() -> datetime:
    return (datetime.now(UTC) + timedelta(minutes=2)).replace(microsecond=0)


def test_a_notice_of_aws_drains_the_node(nodes: Nodes, fake: Fake, tmp_path: Path) -> None:
    fake.broken = 1
    watcher = start(nodes, "a", tmp_path, "--endpoint", fake.url, "--interval", "0.1")
    wait_for(lambda: len(fake.asked) > 3)
    assert nodes.ids["a"] not in draining()
    second = start(nodes, "a", tmp_path, "--endpoint", fake.url)
    assert second.wait(timeout=30) == 0, "one watcher a machine"
    assert second.stderr is not None
    assert "another watcher holds" in second.stderr.read()
    end = in_two_minutes()
    fake.answers[ACTION] = json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})
    _, log = watcher.communicate(timeout=30)
    assert watcher.returncode == 0
    assert draining()[nodes.ids["a"]] == end.timestamp()
    lines = log.splitlines()
    assert [part for part in ("does not answer", "answers", "will terminate") if part in log] == [
        "does not answer", "answers", "will terminate"
    ]  # fmt: skip
    assert len(lines) == 4, "quiet"


def test_a_preemption_of_gcp(fake: Fake) -> None:
    metadata = Gcp(fake.url)
    assert metadata.notice() is None
    fake.answers[PREEMPTED] = "TRUE"
    notice = watch(metadata, 0.01)
    assert notice.reason == "GCP preempts this machine"
    assert notice.deadline is not None
    assert 0 < notice.deadline - time.time() <= 30


def test_a_pod_that_is_told_to_end_waits_for_its_work(nodes: Nodes, tmp_path: Path) -> None:
    hook = start(nodes, "b", tmp_path, "--now", "60")
    wait_for(lambda: nodes.ids["b"] in draining())
    time.sleep(0.5)
    assert hook.poll() is None, "an actor still works there"
    ray.kill(nodes.holders["b"])
    assert hook.wait(timeout=30) == 0


def test_a_pod_of_a_cluster_that_is_gone_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    before = time.monotonic()
    Node("127.0.0.1:9", "00").drain(Notice("it ends", time.time() + 60), time.time() + 2)
    assert time.monotonic() - before < 10
    assert "Ray did not drain this node" in caplog.text
    assert Node("127.0.0.1:9", "00").idle()


def test_recommendations_are_heeded_where_asked_for(fake: Fake) -> None:
    fake.answers[REBALANCE] = '{"noticeTime": "2026-01-01T08:22:00Z"}'
    assert Aws(fake.url).notice() is None
    assert Aws(fake.url, rebalance=True).notice() == Notice("AWS recommends to leave this spot machine", None)


def test_a_token_that_ran_out_is_asked_for_again(fake: Fake) -> None:
    metadata = Aws(fake.url)
    assert metadata.notice() is None
    fake.token = "second"
    fake.answers[ACTION] = '{"action": "stop", "time": "2026-01-01T08:22:00Z"}'
    assert watch(metadata, 0.01) == Notice("AWS will stop this spot machine", 1767255720.0)


def test_a_service_that_is_not_there_is_asked_on(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    fake.answers[PREEMPTED] = "TRUE"
    metadata = Gcp("http://127.0.0.1:9")
    threading.Timer(0.3, lambda: setattr(metadata, "_endpoint", fake.url)).start()
    assert watch(metadata, 0.02).reason == "GCP preempts this machine"
    assert len(caplog.records) == 1, "said once"


def test_what_is_no_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["[]", '{"action": 3}', '{"action": "stop", "time": 7}', "no", http.client.BadStatusLine("?")])
    good = '{"action": "stop", "time": "2026-01-01T08:22:00Z"}'

    def answer(self: Aws, path: str) -> str:
        found = next(answers, good)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Aws, "_read", answer)
    monkeypatch.setattr("raysense.engine.preemption._LONGEST_PAUSE", 0.01)
    assert watch(Aws("http://127.0.0.1:9"), 0.01).deadline == 1767255720.0
