"""A cluster of several raylets on this machine whose nodes come and are killed while it scans; an autoscaler's timing.

Rows are compared with those of the same scan, undisturbed, bit by bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Verdict, print_title, print_verdict
from plugin_scans import NumbersScan
from processes import committed, finish, start_driver, wait_for
from raylets import AutoscaledHead, run_chaos
from stored import read_table

from raysense.api import scan
from raysense.store.store import Store

SECONDS_A_ROUND = 240.0


def rows(location: Path) -> dict[str, pa.Table]:
    """Every table of a scan but the one that says who computed what, in the order of the units."""
    store = Store.open(location)
    return {name: read_table(store, name).combine_chunks() for name in store.schemas() if name != "units"}


def chaos(
    folder: Path, name: str, kind: str, spec: dict[str, Any], run: dict[str, Any], rounds: int, events: int
) -> Verdict:
    """Rounds of a scan on a cluster whose nodes come and are killed, against the undisturbed scan."""
    print_title(f"{name}: {rounds} rounds, {events} machines come or are killed (SIGKILL) in each")
    scan(kind, folder / "undisturbed", run={"workers": 2, **run}, **spec)
    expected = rows(folder / "undisturbed")
    seeds = list(range(1, rounds + 1))
    results = run_chaos(
        kind=kind, out=str(folder), seeds=seeds, events=events, spec=spec, run=run, timeout=SECONDS_A_ROUND * rounds
    )
    equal = 0
    for seed, result in zip(seeds, results, strict=True):
        same = rows(folder / str(seed)) == expected
        equal += same
        print(
            f"  round {seed:2d}: {result['killed']} killed, {result['added']} added, the last when {result['before']} of "
            f"{result['units']} units were done; {result['committed']} committed, {len(result['failed'])} failed, "
            f"{result['seconds']:.0f} s; rows {'identical' if same else 'DIFFER'}"
        )
    print(
        f"  killed {sum(result['killed'] for result in results)}, added {sum(result['added'] for result in results)}; "
        f"median round {median(result['seconds'] for result in results):.0f} s"
    )
    return print_verdict(f"{name}: rounds with identical rows", f"{equal} of {rounds}", "all", equal == rounds)


def autoscaled(folder: Path, units: int) -> list[Verdict]:
    """How long an autoscaler with machines that start at once takes from none to two workers, and back to none."""
    print_title(f"Autoscaler, fake machines with a GPU each, {units} units of 0.2 s")
    with tempfile.TemporaryDirectory(prefix="r_", dir="/tmp") as short:
        head = AutoscaledHead(Path(short), {"gpu": ({"CPU": 1, "GPU": 1}, 2)})
        try:
            run = {"workers": "max", "device": "cuda", "address": head.address}
            began = time.monotonic()
            out = folder / "autoscaled"
            driver = start_driver("scan", kind=NumbersScan.kind, out=str(out), run=run, items=4 * units, seconds=0.2)
            wait_for(lambda: len(head.nodes()) == 2)
            up = time.monotonic() - began
            wait_for(lambda: committed(out) >= 1)
            first = time.monotonic() - began
            outcome = finish(driver)
            over = time.monotonic()
            wait_for(lambda: not head.nodes())
            down = time.monotonic() - over
        finally:
            head.shutdown()
    print(f"  two machines after {up:.1f} s, first unit after {first:.1f} s, none left {down:.1f} s after the scan")
    whole = outcome["committed"] == outcome["units"]
    return [print_verdict("autoscaled 0 to 2 and back, units", f"{outcome['committed']}", f"{units}", whole)]


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Run all; returns the figures against their targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the scan of numbers")
    parser.add_argument("--influence-rounds", type=int, default=2, help="rounds of an influence scan")
    parser.add_argument("--events", type=int, default=6, help="machines that come or die in a round")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = {"items": 400, "seconds": 0.15}
        verdicts = [chaos(folder / "numbers", "numbers", NumbersScan.kind, numbers, {}, options.rounds, options.events)]
        spec = {"model": "digits", "data": "digits", "limit": 600, "unit_size": 4, "target": "input;layer"}
        run = {"batch_size": 4, "device": "cpu"}
        rounds = options.influence_rounds
        verdicts.append(chaos(folder / "influence", "influence", "influence", spec, run, rounds, options.events))
        verdicts += autoscaled(folder, 60)
    return verdicts


if __name__ == "__main__":
    main(sys.argv[1:])
