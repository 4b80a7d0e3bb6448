"""Tells Ray that this spot machine is about to be taken away, so that its units are finished or handed back in time.

``python -m raysense.engine.preemption`` watches the metadata service of AWS or GCP for the notice (two minutes on AWS, half
a minute on GCP), and then has Ray drain this node, once: nothing new is placed on it, and drivers see its deadline.
``--now SECONDS`` drains at once, for a hook that runs before a machine or pod ends, and waits until the node is idle.
"""

from __future__ import annotations

import fcntl
import json
import logging
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import IO
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import click
import ray
from ray._common.network_utils import parse_address
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RpcError
from ray.util import get_node_ip_address

ENDPOINT = "http://169.254.169.254"
GCP_SECONDS = 30.0
_LOG = logging.getLogger("raysense.preemption")
_HTTP_SECONDS = _CONNECT_SECONDS = 2.0
_TOKEN_SECONDS = 21600
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0
_HOOK_SECONDS = 10.0
_HTTP = build_opener(ProxyHandler({}))  # the metadata service is never behind a proxy


@dataclass(frozen=True)
class Notice:
    """This machine will be taken away.

    Attributes:
        reason: What the cloud says, in words.
        deadline: When, s since 1970; None where it does not say.
    """

    reason: str
    deadline: float | None


class Metadata(ABC):
    """The metadata service of a cloud. Its methods raise OSError where it cannot be reached."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")

    @abstractmethod
    def notice(self) -> Notice | None:
        """The notice that this machine will be taken away; None while there is none."""

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> str | None:
        """Text of an answer; None where the service says that there is no such thing (yet)."""
        request = Request(f"{self._endpoint}{path}", headers=headers, method=method)
        try:
            with _HTTP.open(request, timeout=_HTTP_SECONDS) as answer:
                text: str = answer.read().decode()
                return text
        except HTTPError as error:
            with error:
                if error.code == 404:
                    return None
                raise


class Aws(Metadata):
    """EC2, by version 2 of its service. ``rebalance`` also heeds a recommendation, which comes earlier, without a time."""

    def __init__(self, endpoint: str, rebalance: bool = False) -> None:
        super().__init__(endpoint)
        self._rebalance = rebalance
        self._token, self._until = "", 0.0

    def notice(self) -> Notice | None:
        """The interruption notice, or the recommendation."""
        text = self._read("/latest/meta-data/spot/instance-action")
        if text is not None:
            action = json.loads(text)
            return Notice(f"AWS will {action['action']} this spot machine", _seconds(action["time"]))
        if self._rebalance and self._read("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice("AWS recommends to leave this spot machine", None)
        return None

    def _read(self, path: str) -> str | None:
        if time.monotonic() > self._until:
            wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            self._token = self._get("/latest/api/token", wanted, "PUT") or ""
            self._until = time.monotonic() + _TOKEN_SECONDS / 2
        try:
            return self._get(path, {"X-aws-ec2-metadata-token": self._token})
        except HTTPError as error:
            if error.code == 401:
                self._until = 0.0  # the next call asks for another token
            raise


class Gcp(Metadata):
    """Compute Engine."""

    def notice(self) -> Notice | None:
        """The preemption, which ends the machine half a minute later."""
        text = self._get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        if text is None or text.strip().upper() != "TRUE":
            return None
        return Notice("GCP preempts this machine", time.time() + GCP_SECONDS)


def watch(metadata: Metadata, interval: float) -> Notice:
    """Ask every ``interval`` seconds until there is a notice. A service that fails is asked on, less and less often."""
    pause, failed = interval, False
    while True:
        try:
            notice = metadata.notice()
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            pause = min(_LONGEST_PAUSE, 2 * pause)
            if not failed:
                _LOG.warning("the metadata service does not answer (%s: %s); asking on", type(error).__name__, error)
            failed = True
        else:
            if notice is not None:
                return notice
            if failed:
                _LOG.info("the metadata service answers")
            pause, failed = interval, False
        time.sleep(pause)


class Node:
    """This machine as a node of a Ray cluster.

    Args:
        address: Of the cluster's head, host:port; None finds the one that this machine belongs to.
        node_id: Of the node, hexadecimal; None takes the one with this machine's address.
    """

    def __init__(self, address: str | None, node_id: str | None) -> None:
        self._address = address
        self._node_id = node_id

    def drain(self, notice: Notice, until: float | None = None) -> None:
        """Have Ray drain the node, trying again until it accepts.

        Args:
            notice: Why, and until when the node is there.
            until: When to give up, s since 1970; None takes the deadline.
        """
        pause, until = _FIRST_PAUSE, until or notice.deadline
        while True:
            try:
                problem = self._ask(notice)
            except (RpcError, OSError, LookupError, RuntimeError) as error:
                problem = f"{type(error).__name__}: {error}"
            if not problem:
                _LOG.info("%s: Ray drains this node", notice.reason)
                return
            if until is not None and time.time() + pause > until:
                _LOG.error("%s, but Ray did not drain this node: %s", notice.reason, problem)
                return
            _LOG.warning("Ray does not drain this node yet: %s", problem)
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def idle(self) -> bool:
        """Whether the node has nothing left to do, or is gone."""
        try:
            client, node_id = self._joined()
            states = get_cluster_resource_state(client).node_states
        except (RpcError, OSError, LookupError, RuntimeError):
            return True
        ours = (state for state in states if state.node_id.hex() == node_id)
        return all(state.status == autoscaler_pb2.DEAD or state.idle_duration_ms > 0 for state in ours)

    def _ask(self, notice: Notice) -> str:
        """One request; returns why it was rejected, or nothing."""
        client, node_id = self._joined()
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        deadline = 0 if notice.deadline is None else round(notice.deadline * 1e3)
        accepted, problem = client.drain_node(node_id, reason, notice.reason, deadline)
        return "" if accepted else problem or "the request was rejected"

    def _joined(self) -> tuple[GcsClient, str]:
        """A client of the cluster's head, and the id of the node."""
        address = canonicalize_bootstrap_address_or_die(self._address)
        # Ray's own client would wait 40 s for a head that is gone.
        socket.create_connection(parse_address(address), timeout=_CONNECT_SECONDS).close()
        client = GcsClient(address=address)
        if self._node_id is not None:
            return client, self._node_id
        here = get_node_ip_address(address)
        alive = (autoscaler_pb2.RUNNING, autoscaler_pb2.IDLE, autoscaler_pb2.DRAINING)
        found = [
            state.node_id.hex()
            for state in get_cluster_resource_state(client).node_states
            if state.node_ip_address == here and state.status in alive
        ]
        if len(found) != 1:
            raise LookupError(f"{len(found)} nodes of the cluster at {address} have the address {here}; give --node-id")
        return client, found[0]


def wait_until(condition: Callable[[], bool], deadline: float, interval: float) -> None:
    """Sleep until the condition holds, or the deadline (s since 1970) has passed."""
    while time.time() < deadline and not condition():
        time.sleep(interval)


def _seconds(text: str) -> float:
    """A time such as 2026-01-01T08:22:00Z in s since 1970."""
    return datetime.fromisoformat(text).timestamp()


def _alone(file: str) -> IO[str] | None:
    """Hold a lock of this machine while the process lives; None where another watcher holds it."""
    lock = open(file, "w")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--cloud", type=click.Choice(["aws", "gcp"]), default="aws", help="Whose metadata service is asked.")
@click.option("--address", metavar="HOST:PORT", help="Ray's head; without it the cluster that this machine belongs to.")
@click.option("--endpoint", default=ENDPOINT, metavar="URL", help="The metadata service.")
@click.option("--interval", default=2.0, type=click.FloatRange(0.05), help="Seconds between two questions.")
@click.option("--rebalance", is_flag=True, help="AWS: also heed recommendations to leave, which come earlier.")
@click.option("--node-id", metavar="HEX", help="Ray's id of this node, where several have this machine's address.")
@click.option("--lock", default="/tmp/raysense-preemption.lock", metavar="FILE", help="One watcher runs a FILE.")
@click.option("--now", type=click.FloatRange(0), metavar="SECONDS", help="Drain at once; wait at most so long.")
def main(
    cloud: str,
    address: str | None,
    endpoint: str,
    interval: float,
    rebalance: bool,
    node_id: str | None,
    lock: str,
    now: float | None,
) -> None:
    """Watch for the notice that this spot machine will be taken away, and have Ray drain it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    node = Node(address, node_id)
    if now is not None:
        deadline = time.time() + now
        # Where the whole cluster ends there is soon nobody to ask, and nothing to wait for.
        node.drain(Notice(f"{socket.gethostname()} is about to end", deadline), time.time() + min(now, _HOOK_SECONDS))
        wait_until(node.idle, deadline, interval)
        return
    held = _alone(lock)
    if held is None:
        _LOG.info("another watcher holds %s", lock)
        return
    metadata = Gcp(endpoint) if cloud == "gcp" else Aws(endpoint, rebalance)
    _LOG.info("watching %s for the end of this machine (Ray %s)", endpoint, ray.__version__)
    node.drain(watch(metadata, interval))


if __name__ == "__main__":
    main()
