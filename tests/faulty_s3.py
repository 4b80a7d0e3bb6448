"""A local S3 server (moto's) that misbehaves on demand, to be run as a process of its own.

    python tests/faulty_s3.py PORT

Faults are switched at run time: POST a JSON document to /_faults, such as ``{"share": 0.2, "kinds": ["error"]}``. GET
/_faults answers how often each kind of request was asked and which faults were injected.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CONTROL = "/_faults"
KINDS = ("error", "slow_down", "hang", "cut", "lost")
"""500; 503 SlowDown; no answer for a while; connection cut before the request is carried out, and after it."""
DENIED = "denied"
"""403 AccessDenied, as without credentials; only where it is asked for."""

_ANSWERS = {
    "error": ("500 Internal Server Error", "InternalError"),
    "slow_down": ("503 Slow Down", "SlowDown"),
    DENIED: ("403 Forbidden", "AccessDenied"),
}


@dataclass
class Faults:
    """Which requests go wrong.

    Attributes:
        share: Share of the requests that do.
        seed: Of the random choice.
        kinds: What happens to them.
        methods: Only requests of these methods; empty: all.
        containing: Only requests whose path or query has this text.
        limit: How many at most; negative: any number.
        hangs: How many of them may hang; further ones are cut off. A client waits some 8 s for the answer to an upload.
        hang: How long a hanging request stays without an answer, s.
        delay: How long every request takes longer, s.
    """

    share: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    methods: tuple[str, ...] = ()
    containing: str = ""
    limit: int = -1
    hangs: int = -1
    hang: float = 5.0
    delay: float = 0.0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - {*KINDS, DENIED}
        if unknown:
            raise ValueError(f"no faults are called {', '.join(sorted(unknown))}")
        self.random = random.Random(self.seed)

    def draw(self, method: str, target: str) -> str | None:
        """The fault of a request, or None."""
        concerned = (not self.methods or method in self.methods) and self.containing in target
        if not concerned or self.limit == 0 or self.random.random() >= self.share:
            return None
        self.limit -= 1
        fault = self.random.choice(self.kinds)
        if fault == "hang" and self.hangs == 0:
            return "cut"
        if fault == "hang":
            self.hangs -= 1
        return fault


class FaultyServer:
    """A WSGI application around another one."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._faults = Faults()
        self._requests: Counter[str] = Counter()
        self._injected: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or fail to."""
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == CONTROL:
            return self._control(environ, start_response)
        with self._lock:
            self._requests[_operation(method, path, query)] += 1
            faults = self._faults
            fault = faults.draw(method, f"{path}?{query}")
            if fault:
                self._injected[fault] += 1
        time.sleep(faults.delay)
        if fault is None:
            return self._application(environ, start_response)
        # Unread request bodies would be taken for the next request of the connection.
        if fault != "lost":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault in _ANSWERS:
            status, code = _ANSWERS[fault]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body]
        if fault == "lost":
            b"".join(self._application(environ, lambda *_: None))
        if fault == "hang":
            time.sleep(faults.hang)
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response("500 Internal Server Error", [])
        return []

    def _control(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            if environ["REQUEST_METHOD"] == "POST":
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
                self._faults = Faults(**json.loads(body))
                self._requests.clear()
                self._injected.clear()
            answer = json.dumps({"requests": self._requests, "injected": self._injected}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def _operation(method: str, path: str, query: str) -> str:
    """Name of a request: its method, or LIST for listings."""
    return "LIST" if method == "GET" and ("list-type" in query or path.strip("/").count("/") == 0) else method


@contextmanager
def faulty_s3() -> Iterator[Endpoint]:
    """A server in a process of its own, with one bucket ``runs``; the environment leads every S3 client to it."""
    endpoint = Endpoint(free_port())
    settings = {
        "AWS_ENDPOINT_URL": f"http://{endpoint.address}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server = subprocess.Popen(
        [sys.executable, __file__, str(endpoint.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    earlier = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        wait_for_port(endpoint.port)
        request = urllib.request.Request(f"http://{endpoint.address}/runs", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield endpoint
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.kill()
        server.wait()


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_port(port: int, timeout: float = 60) -> None:
    """Wait until a server listens to a port of this machine."""
    deadline = time.monotonic() + timeout
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, f"nothing listens to port {port}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Endpoint:
    """A running server, from a client's side."""

    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def inject(self, **faults: Any) -> None:
        """Set the faults (see `Faults`) and begin to count anew; without arguments, no faults."""
        self._ask(json.dumps(faults).encode())

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of ``requests`` by method (LIST for listings) and of faults ``injected`` by kind."""
        return self._ask(None)

    def _ask(self, body: bytes | None) -> dict[str, dict[str, int]]:
        with urllib.request.urlopen(f"http://{self.address}{CONTROL}", body, timeout=30) as answer:
            counts: dict[str, dict[str, int]] = json.loads(answer.read())
        return counts


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    # Kept-alive connections, as those of S3 are.
    MotoRequestHandler.protocol_version = "HTTP/1.1"
    application = FaultyServer(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
