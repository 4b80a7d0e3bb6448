"""The worker of a calibration: it computes and commits pieces as in a scan, into a folder that goes when it does.

Imports as little as it can, as the actors of a scan do.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from raysense.engine.crew import Reply
from raysense.engine.worker import Worker
from raysense.errors import RaysenseError
from raysense.options import ComputeOptions
from raysense.scans import Unit
from raysense.store.store import Store


@dataclass(frozen=True)
class Request:
    """A scan on its way to another machine.

    Attributes:
        document: Its scan.json.
        listing: Its listing as an Arrow IPC file.
    """

    document: dict[str, Any]
    listing: bytes

    @classmethod
    def of(cls, document: dict[str, Any], listing: pa.Table) -> Request:
        """Pack a scan."""
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, listing.schema, options=options) as writer:
            writer.write_table(listing)
        return cls(document, sink.getvalue().to_pybytes())

    def written(self, location: Path) -> None:
        """Write it into a new folder."""
        Store.create(location, self.document, pa.ipc.open_file(pa.BufferReader(self.listing)).read_all())


@dataclass(frozen=True)
class ProbeOpened:
    """A probe has opened the scan, or says why it cannot.

    Attributes:
        problem: Why it cannot open the scan; empty where it can.
        device: What it computes on, in words.
        on_gpu: Whether that is a GPU.
        host: Name of its machine.
        folder: Where it writes until it is closed.
        process_seconds: Since when its process has been there, s.
        seconds: Time to load the model and the listing.
    """

    problem: str
    device: str
    on_gpu: bool
    host: str
    folder: str
    process_seconds: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What computing a piece took.

    Attributes:
        unit: The piece.
        reply: What a worker of a scan would have replied.
        table_bytes: Bytes of the file of each table.
        files: Files that were written, commit included.
        batch_size: Items per batch at the end.
        memory: Largest memory of the device so far, in bytes: of the GPU where there is one, else of the process.
    """

    unit: Unit
    reply: Reply
    table_bytes: dict[str, int]
    files: int
    batch_size: int
    memory: int


class Probe(Worker):
    """A worker whose store is a temporary folder of its machine."""

    def __init__(self) -> None:
        super().__init__("calibration")
        self._folder = tempfile.TemporaryDirectory(prefix="raysense-plan-")
        self._opened = False

    def load(self, request: Request, options: ComputeOptions) -> ProbeOpened:
        """Open the scan as a worker does."""
        process = time.time() - psutil.Process().create_time()
        location = Path(self._folder.name) / "scan"
        request.written(location)
        began = time.perf_counter()
        try:
            problem = self.open(str(location), options)
        except RaysenseError as error:
            problem = str(error)
        seconds = time.perf_counter() - began
        self._opened = not problem
        kind = "" if problem else self._computer.device
        device = _device_name(kind, options.threads)
        return ProbeOpened(
            problem, device, kind.startswith("cuda"), socket.gethostname(), self._folder.name, process, seconds
        )

    def measure(self, unit: Unit, upcoming: Unit | None) -> Measured:
        """Compute and commit a piece, then remove what was written."""
        reply = replace(self.compute(unit, 1, upcoming), traceback="")
        sizes: dict[str, int] = {}
        files = 0
        root = Path(self.store.location)
        for path in [*root.glob("tables/*/*"), *root.glob("commits/*")]:
            files += 1
            if path.parent.parent.name == "tables":
                sizes[path.parent.name] = path.stat().st_size
            path.unlink()
        return Measured(unit, reply, sizes, files, self._computer.batch_size, _peak_memory(self._computer.device))

    def end(self) -> None:
        """Release what the scan holds, and remove the folder."""
        if self._opened:
            self.close()
        self._folder.cleanup()


def _device_name(device: str, threads: int | None) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name())
    count = threads or os.cpu_count() or 1
    return f"{device}, {count} {'thread' if count == 1 else 'threads'} of {os.cpu_count()}"


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
