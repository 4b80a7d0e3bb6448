"""Starting and joining Ray: quiet, on loopback, with no usage statistics sent anywhere."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from raysense.devices import resolve_device
from raysense.errors import UsageError, first_line
from raysense.options import RunOptions

_OBJECT_STORE_BYTES = 80 * 2**20  # the smallest Ray takes: rows never travel through it
_BYTES_PER_CPU_WORKER = 2**30
_MOST_REQUESTED = 1024
_CONNECT_SECONDS = 5.0
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


@dataclass(frozen=True)
class Placement:
    """How many workers to ask Ray for, and what each needs.

    Attributes:
        workers: Number of actors to request.
        num_cpus: CPUs of one actor; may be a fraction.
        num_gpus: GPUs of one actor, 0 or 1.
        threads: CPU threads of one worker; None leaves torch's choice.
    """

    workers: int
    num_cpus: float
    num_gpus: int
    threads: int | None


def check_reachable(options: RunOptions) -> None:
    """Raise UsageError where the asked for cluster or device is plainly not there; quick, and before anything starts."""
    address = _address(options)
    if address == "local":
        if options.device == "cuda":
            resolve_device("cuda")
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


@contextmanager
def cluster(options: RunOptions) -> Iterator[None]:
    """Ray, started locally or joined at ``address`` (or RAY_ADDRESS); left as it was found.

    Raises:
        UsageError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    with _started() if _address(options) == "local" else _joined(options):
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _started() -> Iterator[None]:
    with _own_token():
        ray.init(
            address="local",
            num_cpus=local_cpus(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **_QUIET,
        )
        yield


@contextmanager
def _joined(options: RunOptions) -> Iterator[None]:
    check_reachable(options)
    address = _address(options)
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    yield


@contextmanager
def _own_token() -> Iterator[None]:
    """Have a local Ray ask for a token that only this process and its children know, unless the user has set one.

    Ray listens on all interfaces, and whoever reaches it may run code. Given a token it turns authentication on by itself
    and writes none to the home directory. Afterwards it is forgotten: another cluster would refuse it.
    """
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it warns that authentication is on
    if any(os.environ.get(f"RAY_AUTH_{name}") for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    _reread_authentication()
    try:
        yield
    finally:
        for name in ("MODE", "TOKEN"):  # Ray sets the mode itself
            os.environ.pop(f"RAY_AUTH_{name}", None)
        _reread_authentication()


def _reread_authentication() -> None:
    """Ray reads the environment once in a process; no public interface has it read again."""
    Config.initialize("")  # first, since a thread that still runs would ask for a token in the earlier mode
    AuthenticationTokenLoader.instance().reset_cache()


def _address(options: RunOptions) -> str:
    return options.address or os.environ.get("RAY_ADDRESS") or "local"


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"address {address!r}: no Ray cluster answers there ({first_line(error)}); "
        "start one with `ray start --head`, set RAY_AUTH_MODE=token if it asks for a token, or leave --address out to run "
        "locally"
    )


def local_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place(options: RunOptions, units: int) -> Placement:
    """Workers to request from the joined cluster: one a GPU where there are GPUs, else one a CPU core.

    What one worker asks for fits on the smallest node that has a GPU, or on the largest that has CPUs.

    Args:
        options: ``workers`` and ``device``.
        units: Units left; more workers than that would idle.

    Raises:
        UsageError: CUDA is asked for on a fixed cluster without GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if options.workers != "max" and not any(node.get("CPU", 0) or node.get("GPU", 0) for node in nodes):
        raise UsageError(
            f"workers {options.workers!r}: no machine of the cluster has a CPU or GPU to give now; with an autoscaler use "
            "--workers max, and --device cuda or cpu to say which machines it is to bring"
        )
    if options.device == "cuda" and not gpus and options.workers != "max":
        raise UsageError(
            "device 'cuda' asked for, but Ray sees no GPU; use --device cpu, or --workers max with an autoscaler"
        )
    largest = max(1, int(max((node.get("CPU", 0) for node in nodes), default=1)))
    asked = None if options.worker_cpus == "auto" else options.worker_cpus
    if asked is not None and asked > largest and options.workers != "max":
        raise UsageError(f"worker_cpus {asked}: no machine of the cluster has more than {largest} CPUs; ask for fewer")
    if options.device == "cuda" or (options.device == "auto" and gpus > 0):
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
        wanted = gpus if options.workers == "auto" else options.workers
        return Placement(_bounded(wanted, units), asked or max(1, min(shares, default=1)), 1, None)
    cpus = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    if options.workers == "auto":
        memory = psutil.virtual_memory().available // _BYTES_PER_CPU_WORKER if len(nodes) == 1 else cpus
        wanted = max(1, min(cpus // (asked or 1), int(memory)))
    else:
        wanted = options.workers
    workers = _bounded(wanted, units)
    if asked is not None or options.workers == "max":
        return Placement(workers, asked or 1, 0, asked or 1)
    threads = max(1, min(cpus // workers, largest))
    return Placement(workers, threads if workers <= cpus else math.floor(1e4 * cpus / workers) / 1e4, 0, threads)


def _bounded(wanted: int | str, units: int) -> int:
    most = _MOST_REQUESTED if wanted == "max" else int(wanted)
    return max(1, min(most, units))
