"""All benchmarks, or those named (``influence``, ``layers``, ``engine``, ``sql``), in one report."""

from __future__ import annotations

import importlib
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
from harness import Verdict

HERE = Path(__file__).resolve().parent
VERSIONED = ("raysense", "torch", "torchvision", "ray", "pyarrow", "duckdb", "numpy")


def machine() -> str:
    """The machine and the versions, as lines of text."""
    cores = f"{psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} threads"
    busy = ", ".join(f"{load:.2f}" for load in psutil.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONED)
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n"
        f"{processor()}, {cores}, {memory:.0f} GiB of memory; load average {busy}\n"
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """Model of the CPU where the system says it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def main(names: Sequence[str] = ()) -> int:
    """Run them one after the other; returns 1 where one broke, and 0 also where targets were missed."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    if unknown := [name for name in names if name not in known]:
        print(f"there is no benchmark {', '.join(unknown)}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(machine())
    verdicts: list[Verdict] = []
    broken = []
    for name in names or known:
        print(f"\n=== {name}", flush=True)
        began = time.perf_counter()
        try:
            verdicts += importlib.import_module(f"bench_{name}").main() or []
        except Exception:
            broken.append(name)
            traceback.print_exc()
        print(f"({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    print("\n=== targets")
    for verdict in verdicts:
        print(f"  {verdict}")
    for name in broken:
        print(f"  {name}: broke, see above")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
