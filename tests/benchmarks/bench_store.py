"""The store of a scan with very many units: listing, opening and compacting it.

Units are as small as they can be, so that what is measured is what every unit costs whatever is in it. Files are written
without the store's own synchronisation to disk, which alone would take minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from faulty_s3 import Endpoint, faulty_s3
from harness import Memory, Verdict, interleaved, print_ratio, print_sides, print_title, print_verdict
from plugin_scans import NumbersScan

from raysense import status
from raysense.query.connection import ResultDatabase, open_results
from raysense.store.compaction import compact
from raysense.store.manifests import Manifest, Part, manifest_schema
from raysense.store.naming import ManifestName, PartName, commit_file, table_file
from raysense.store.store import Store, encode_schemas

TABLES = NumbersScan.schemas()
OPENING_TARGET = 30.0
MANIFEST_TARGET = 5.0
MANIFEST_MEMORY = 1024
COMPACT_MEMORY = 1024
MEGABYTE = 2**20


def new_scan(location: Path | str, units: int) -> Store:
    """A scan directory without a unit."""
    document = {
        "kind": "numbers", "spec": {}, "facts": {}, "unit_size": 1, "units": units, "items": units,
        "schemas": encode_schemas(TABLES),
    }  # fmt: skip
    return Store.create(location, document, None)


def unit_id(index: int) -> str:
    return f"{index:010d}-{index + 1:010d}"


def token(index: int) -> str:
    return f"{index * 2654435761 % 2**48:012x}"


def write_units(store: Store, units: int) -> None:
    """Committed units of one row in each table, on a local disk."""
    root = Path(store.location)
    for folder in ("commits", *(f"tables/{table}" for table in TABLES)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(units):
        unit, mark = unit_id(index), token(index)
        size = 0
        for table, content in unit_files(index).items():
            (root / table_file(table, unit, mark)).write_bytes(content)
            size += content.size
        record = {"unit": unit, "token": mark, "bytes": size, "items": 1, "bad_items": 0, "attempt": 1, "worker": "w"}
        (root / commit_file(unit, mark)).write_text(json.dumps(record))


def unit_files(index: int) -> dict[str, pa.Buffer]:
    """Content of the files of one unit."""
    values = {
        "squares": {"number": index, "square": index * index},
        "units": dict.fromkeys(TABLES["units"].names) | {"unit": unit_id(index), "rows": 1, "seconds": 0.5},
    }
    files = {}
    for table, row in values.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, TABLES[table]) as writer:
            writer.write_table(pa.Table.from_pylist([row], schema=TABLES[table]))
        files[table] = sink.getvalue()
    return files


def write_manifest(store: Store, units: int, parts: int) -> None:
    """A manifest of units that were never computed, as after the compaction of a very large scan."""
    index = np.arange(units)
    schema = manifest_schema(list(TABLES))
    counts = np.bincount(index * parts // units)
    columns = {
        "unit": pa.array([unit_id(number) for number in range(units)]),
        "token": pa.array([token(number) for number in range(units)]),
        "committed": pa.array(1_700_000_000_000_000 + 1000 * index, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "part": pa.array(index * parts // units, pa.int32()),
        "items": pa.array(np.full(units, 8)),
        "bad_items": pa.array(np.zeros(units, np.int64)),
        "bytes": pa.array(np.full(units, 5000)),
        "rows:squares": pa.array(np.full(units, 8)),
        "rows:units": pa.array(np.ones(units, np.int64)),
    }
    held = tuple(
        Part(PartName(1, part, token(1)), 2**27, {"squares": (8 * int(count),), "units": (int(count),)})
        for part, count in enumerate(counts)
    )
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    Manifest(ManifestName(1, token(1)), held, table).write(store.directory)


def listing(loose: Store, units: int, rounds: int) -> None:
    """What everything begins with: which units there are."""
    print_title(f"Which units are committed, of {units:,}: {rounds} interleaved rounds")
    seconds = interleaved(
        {"snapshot (SQL, report)": loose.snapshot, "committed (resume)": lambda: list(loose.committed())}, rounds
    )
    print_sides(seconds)


def opening(loose: Store, compacted: Store, units: int, rounds: int) -> list[Verdict]:
    """SQL over many units before and after their compaction."""
    before, after = "single files", "compacted"
    stores = {before: loose, after: compacted}
    print_title(f"SQL over {units:,} units: {rounds} interleaved rounds")
    print("  opening:")
    opened = interleaved(
        {name: lambda store=store: open_results(store.location).close() for name, store in stores.items()}, rounds
    )  # type: ignore[misc]
    print_sides(opened)
    print_ratio(opened, before, after)
    databases = {name: open_results(store.location) for name, store in stores.items()}
    print("  refresh() where nothing is new:")
    print_sides(interleaved({name: database.refresh for name, database in databases.items()}, rounds))
    print("  a query over all rows:")
    asked = interleaved(
        {name: lambda database=database: total(database) for name, database in databases.items()}, rounds
    )  # type: ignore[misc]
    print_sides(asked)
    print_ratio(asked, before, after)
    if len({total(database) for database in databases.values()}) != 1:
        raise AssertionError("both sides must give the same rows")
    for database in databases.values():
        database.close()
    slowest = max(opened[before])
    return [
        print_verdict(
            f"opening {units:,} units that are not compacted", f"{slowest:.1f} s", f"< {OPENING_TARGET:g} s",
            slowest < OPENING_TARGET,
        )
    ]  # fmt: skip


def total(database: ResultDatabase) -> tuple[int, int]:
    """Rows, and the sum of their squares."""
    (row,) = database.query("SELECT count(*) AS n, sum(square)::BIGINT AS total FROM squares").rows()
    return row["n"], row["total"]


def compacting(store: Store, units: int) -> list[Verdict]:
    """Time and memory of one compaction of all units, and of the removal of their files."""
    print_title(f"Compacting {units:,} units of {len(TABLES)} tables")
    memory = Memory()
    before = memory.peak
    began = time.perf_counter()
    with memory.watched():
        done = compact(store.location)
    gathered = time.perf_counter() - began
    began = time.perf_counter()
    with memory.watched():
        removed = compact(store.location, 0).removed
    cleaned = time.perf_counter() - began
    grown = (memory.peak - before) / MEGABYTE
    print(f"  gathered in {gathered:.1f} s ({units / gathered:,.0f} units/s): {done.files_before:,} files of "
          f"{done.bytes_before / 1e6:.0f} MB -> {done.files_after} files of {done.bytes_after / 1e6:.1f} MB")  # fmt: skip
    print(f"  removed {removed:,} files in {cleaned:.1f} s")
    if status(store.location).committed != units:
        raise AssertionError("units were lost")
    return [
        print_verdict("memory of a compaction", f"+{grown:.0f} MB", f"< {COMPACT_MEMORY} MB", grown < COMPACT_MEMORY)
    ]


def manifest(folder: Path, units: int, rounds: int) -> list[Verdict]:
    """Opening a scan of very many units, all compacted."""
    print_title(f"Opening {units:,} compacted units: {rounds} rounds")
    location = folder / "manifest"
    write_manifest(new_scan(location, units), units, 800)
    (file,) = (location / "manifests").iterdir()
    print(f"  the manifest has {file.stat().st_size / 1e6:.1f} MB")
    memory = Memory()
    before = memory.peak
    with memory.watched():
        seconds = interleaved({"open_results": lambda: open_results(location).close()}, rounds)
    print_sides(seconds)
    opened = max(seconds["open_results"])
    grown = (memory.peak - before) / MEGABYTE
    with memory.watched():
        print_sides(
            interleaved(
                {"status": lambda: status(location), "committed (resume)": lambda: Store.open(location).committed()},
                rounds,
            )
        )
    print(f"  memory with the latter: +{(memory.peak - before) / MEGABYTE:.0f} MB")
    met = opened < MANIFEST_TARGET
    return [
        print_verdict(f"opening {units:,} compacted units", f"{opened:.1f} s", f"< {MANIFEST_TARGET:g} s", met),
        print_verdict("memory it takes", f"+{grown:.0f} MB", f"< {MANIFEST_MEMORY} MB", grown < MANIFEST_MEMORY),
    ]  # fmt: skip


def requests(units: int) -> list[Verdict]:
    """Requests to S3 for listing units, before and after their compaction (moto's server)."""
    print_title(f"Requests to S3 for opening {units:,} units")
    with faulty_s3() as endpoint:
        store = new_scan("s3://runs/bench", units)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda index: put_unit(store, index), range(units)))
        before = counted(endpoint, lambda: open_results(store.location).close())
        print(f"  single files: {before}")
        began = time.perf_counter()
        asked = counted(endpoint, lambda: compact(store.location))
        print(f"  compact, {time.perf_counter() - began:.1f} s: {asked}")
        print(f"  compact --grace 0: {counted(endpoint, lambda: compact(store.location, 0))}")
        after = counted(endpoint, lambda: open_results(store.location).close())
        print(f"  compacted: {after}")
        if status(store.location).committed != units:
            raise AssertionError("units were lost")
    asked_after = sum(after.values())
    return [print_verdict("requests for opening compacted units", str(asked_after), "<= 12", asked_after <= 12)]


def put_unit(store: Store, index: int) -> None:
    """Commit a unit, on any store."""
    for table, content in unit_files(index).items():
        store.directory.write(table_file(table, unit_id(index), token(index)), content)
    record = {"unit": unit_id(index), "bytes": 1, "items": 1, "bad_items": 0}
    store.directory.write_json(commit_file(unit_id(index), token(index)), record)


def counted(endpoint: Endpoint, work: Callable[[], object]) -> dict[str, int]:
    """Requests of some work, by method; LIST for listings."""
    endpoint.inject()
    work()
    return dict(sorted(endpoint.counts()["requests"].items()))


def main(arguments: Sequence[str] = ()) -> list[Verdict]:
    """Print all figures; returns those that have targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000, help="units on the local disk")
    parser.add_argument("--manifest", type=int, default=1_000_000, help="units of the manifest that is opened")
    parser.add_argument("--objects", type=int, default=5_000, help="units on S3")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--folder", help="where to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        # First, while this process is small, so that its memory can be told.
        verdicts = manifest(Path(name), options.manifest, options.rounds)
        loose, compacted = (new_scan(Path(name) / which, options.units) for which in ("loose", "compacted"))
        for store in (loose, compacted):
            write_units(store, options.units)
        listing(loose, options.units, options.rounds)
        verdicts += compacting(compacted, options.units)
        verdicts += opening(loose, compacted, options.units, options.rounds)
    return verdicts + requests(options.objects)


if __name__ == "__main__":
    main(sys.argv[1:])
