"""Compaction: rows stay the same whatever happens, readers and scans go on, and nothing is removed too early."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from plugin_scans import NumbersScan
from processes import finish, rows, start_driver, wait_for
from stored import read_table

import raysense
from raysense.cli import main
from raysense.errors import RaysenseError, UsageError
from raysense.query.connection import open_results
from raysense.query.export import export_tables
from raysense.scans._results import UNIT_COLUMN, ScanResults
from raysense.store import compaction, parts
from raysense.store.cleaning import LITTER_SECONDS
from raysense.store.compaction import compact
from raysense.store.files import Directory
from raysense.store.lock import DriverLock
from raysense.store.manifests import Manifest, Part, manifest_schema
from raysense.store.naming import ManifestName, PartName, commit_file, new_token, table_file
from raysense.store.snapshot import Snapshot
from raysense.store.store import Store, encode_schemas

SCHEMAS = {
    "squares": pa.schema([pa.field("number", pa.int64(), metadata={"doc": "a number"}), ("square", pa.int64())]),
    "words": pa.schema([("number", pa.int64()), ("word", pa.dictionary(pa.int32(), pa.string()))]),
    "nothing": pa.schema([("number", pa.int64())]),
}
UNITS = 40
LONG_AGO = 7200.0


def unit_id(index: int) -> str:
    return f"{index:010d}-{index + 1:010d}"


def unit_tables(index: int) -> dict[str, pa.Table]:
    """Rows of a unit: 0 to 6 numbers, and twice as many words, of which every unit has others."""
    count = index % 7
    numbers = np.arange(100 * index, 100 * index + count)
    words = pa.array([f"w{number % (index + 3)}" for number in numbers.repeat(2)], pa.string())
    return {
        "squares": pa.table({"number": numbers, "square": numbers**2}, schema=SCHEMAS["squares"]),
        "words": pa.table({"number": numbers.repeat(2), "word": words.dictionary_encode()}, schema=SCHEMAS["words"]),
        "nothing": SCHEMAS["nothing"].empty_table(),
    }


def new_store(location: Path | str, units: Iterable[int] = range(UNITS)) -> Store:
    document = {
        "kind": "test", "spec": {}, "facts": {}, "unit_size": 1, "units": UNITS, "items": UNITS,
        "schemas": encode_schemas(SCHEMAS),
    }  # fmt: skip
    store = Store.create(location, document, None)
    commit(store, units)
    return store


def commit(store: Store, units: Iterable[int]) -> None:
    for index in units:
        store.commit(unit_id(index), unit_tables(index), {"items": 1, "bad_items": index % 2})


def check(location: Path | str, units: Iterable[int] = range(UNITS), sql: bool = True) -> None:
    """All readers see exactly the rows of the units, in the order of the units where there is one."""
    store, units = Store.open(location), sorted(units)
    assert list(store.committed()) == [unit_id(index) for index in units]
    for table, schema in SCHEMAS.items():
        expected = pa.concat_tables([schema.empty_table(), *(unit_tables(index)[table] for index in units)])
        assert read_table(store, table).to_pylist() == expected.to_pylist()
    status = raysense.status(location)
    done = status.committed, status.samples_done, status.bad_samples
    assert done == (len(units), len(units), sum(index % 2 for index in units))
    if not sql:
        return
    with open_results(location) as database:
        (found,) = database.query("SELECT count(*) AS n, sum(square)::BIGINT AS total FROM squares").rows()
        words = database.query("SELECT number, word FROM words").table()
    numbers = [number for index in units for number in range(100 * index, 100 * index + index % 7)]
    assert found == {"n": len(numbers), "total": sum(number**2 for number in numbers) if numbers else None}
    assert sorted(words["number"].to_pylist()) == sorted(2 * numbers)


def age(location: Path | str, pattern: str, seconds: float = LONG_AGO) -> None:
    """Have files been changed earlier."""
    for path in Path(location).glob(pattern):
        os.utime(path, (time.time() - seconds,) * 2)


def files(location: Path | str, *folders: str) -> list[str]:
    root = Path(location)
    return sorted(
        str(path.relative_to(root)) for folder in folders for path in (root / folder).rglob("*") if path.is_file()
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts, record batches and rounds of a few units, as a scan of millions has them."""
    monkeypatch.setattr(compaction, "PART_BYTES", 3000)
    monkeypatch.setattr(compaction, "_CHUNK_UNITS", 3)
    monkeypatch.setattr(compaction, "_ROUND_UNITS", 17)
    monkeypatch.setattr(parts, "_BATCH_ROWS", 8)
    monkeypatch.setattr(parts, "_TINY", 2)


@pytest.mark.usefixtures("tiny")
def test_rows_and_their_order_stay_whatever_was_compacted_when(tmp_path: Path) -> None:
    order = random.Random(0).sample(range(UNITS), UNITS)
    store = new_store(tmp_path / "run", ())
    seen: list[tuple[int, int]] = []
    for start in range(0, UNITS, 8):
        commit(store, order[start : start + 8])
        check(store.location, order[: start + 8])
        done = compact(store.location, progress=lambda done, total: seen.append((done, total)))
        assert (done.added, done.units) == (8, start + 8)
        check(store.location, order[: start + 8])
    assert all(done <= total for done, total in seen)
    rows = export_tables(store.location, tmp_path / "out", "arrow")
    with pa.ipc.open_file(tmp_path / "out" / "squares.arrow") as exported:
        assert exported.read_all().to_pylist() == read_table(store, "squares").to_pylist()
    assert rows == {"squares": 115, "words": 230, "nothing": 0}
    again = compact(store.location, 0)
    assert (again.added, again.units, again.superseded) == (0, UNITS, 0)
    assert files(store.location, "tables", "commits") == []
    check(store.location)
    assert all(store.is_committed(unit_id(index)) for index in range(UNITS))
    assert not store.is_committed("other")
    schema = pa.ipc.open_file(store.snapshot().paths("squares")[0]).schema
    assert schema.equals(SCHEMAS["squares"], check_metadata=True)


def test_small_parts_are_merged_when_there_are_many(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", ())
    for index in range(12):
        commit(store, [index])
        compact(store.location)
    assert len(store.snapshot().manifest.parts) <= 12 - 8
    check(store.location, range(12))
    age(store.location, "manifests/*")
    compact(store.location)
    assert len(files(store.location, "compacted")) == len(store.snapshot().files("squares") * 2)
    check(store.location, range(12))


def test_full_parts_that_compress_well_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "PART_BYTES", 30_000)
    monkeypatch.setattr(compaction, "_CHUNK_UNITS", 1)
    store = new_store(tmp_path / "run", ())
    same = pa.table({"number": np.zeros(3000, int), "word": pa.array(["x"] * 3000).dictionary_encode()})
    rest = {name: SCHEMAS[name].empty_table() for name in ("squares", "nothing")}
    for index in range(12):
        store.commit(unit_id(index), {"words": same, **rest}, {"items": 1, "bad_items": 0})
    compact(store.location)
    before = store.snapshot().manifest
    assert len(before.parts) > 8
    compact(store.location)
    assert store.manifest() is before


@pytest.mark.usefixtures("tiny")
def test_rows_of_certain_units_in_their_order(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    compact(store.location)
    chosen = [unit_id(index) for index in (3, 4, 5, 20, 6, 39, 1, 0)]
    results = ScanResults(store.location, "test")
    found = results.rows("squares", chosen, ("number", UNIT_COLUMN))
    expected = [(row["number"], unit_id(row["number"] // 100)) for index in (3, 4, 5, 20, 6, 39, 1) for row in
                unit_tables(index)["squares"].to_pylist()]  # fmt: skip
    assert list(zip(found["number"].to_pylist(), found[UNIT_COLUMN].to_pylist(), strict=True)) == expected
    with pytest.raises(RaysenseError, match="has no committed unit 'other'"):
        results.rows("squares", ["other"], ("number",))


def test_results_that_are_compacted_and_cleaned_up_meanwhile_are_found_again(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    results = ScanResults(store.location, "test")
    before = results.rows("squares", results.committed_units(), ("number",))
    compact(store.location, 0)
    assert results.rows("squares", results.committed_units(), ("number",)).equals(before)


def test_an_export_goes_on_where_its_files_are_removed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    steps: list[int] = []

    def progress(done: int, total: int) -> None:
        steps.append(done)
        if done in (1, UNITS + 1):
            commit(store, [UNITS + len(steps)])  # one more, which it does not take in
            compact(store.location, 0)

    rows = export_tables(store.location, tmp_path / "out", "arrow", progress)
    assert rows == {"squares": 115, "words": 230, "nothing": 0}
    assert steps == sorted(steps)
    with pa.ipc.open_file(tmp_path / "out" / "squares.arrow") as exported:
        expected = [row for index in range(UNITS) for row in unit_tables(index)["squares"].to_pylist()]
        assert exported.read_all().to_pylist() == expected


STATEMENTS = (
    "SELECT count(*) AS n FROM squares",
    "SELECT square FROM squares WHERE number > 700 AND number <> 1103 ORDER BY 1",
    "SELECT scan, number FROM squares WHERE number IN (301, 302, 303, 3) ORDER BY ALL",
    "SELECT word, count(*) AS n FROM words WHERE word >= 'w2' AND number IS NOT NULL GROUP BY ALL ORDER BY ALL",
    "SELECT w.* FROM words w JOIN squares s USING (number) WHERE square < 90000 ORDER BY ALL",
    "SELECT * FROM nothing",
)


@pytest.mark.usefixtures("tiny")
def test_sql_reads_the_same_through_any_filesystem(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(12))
    for _ in range(2):
        with open_results(store.location) as here, open_results(f"dir::file://{tmp_path}/run") as there:
            for statement in STATEMENTS:
                assert there.query(statement).rows() == here.query(statement).rows(), statement
        compact(store.location, 0)
        commit(store, range(12, 15))


def test_sql_elsewhere_ends_where_files_are_gone_and_where_a_statement_stops_early(tmp_path: Path) -> None:
    """Threads of pyarrow's scanner and the interpreter would wait for each other for ever, or end the process."""
    store = new_store(f"dir::file://{tmp_path}/run")
    assert len(open_results(store.location).query("SELECT number FROM squares LIMIT 1").rows()) == 1
    with open_results(store.location) as database:
        compact(store.location, 0)
        for _ in range(10):
            with pytest.raises(
                RaysenseError, match=r"cannot be read: [^\n]*no such file[^\n]*, so ask again[^\n]*lost$"
            ):
                database.query("SELECT count(*) AS n FROM squares").rows()
        database.refresh()
        assert database.query("SELECT count(*) AS n FROM squares").rows() == [{"n": 115}]


# -- when files are removed --------------------------------------------------------------------------------------------


def test_what_is_superseded_stays_for_the_grace_of_a_later_compaction(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(10))
    loose = files(store.location, "tables", "commits")
    early = open_results(store.location)
    assert compact(store.location).superseded == len(loose) == 40
    commit(store, range(10, 20))
    middle = open_results(store.location)
    age(store.location, "manifests/*")
    done = compact(store.location)
    # The readers that opened before the first manifest have had their time, the others have not.
    assert done.removed == len(loose)
    with middle:
        assert middle.query("SELECT count(DISTINCT number // 100) AS n FROM squares").rows()[0]["n"] == 17
    early.refresh()
    with early:
        assert early.query("SELECT count(DISTINCT number // 100) AS n FROM squares").rows()[0]["n"] == 17
    check(store.location, range(20))
    age(store.location, "manifests/*")
    last = compact(store.location)
    assert (last.removed, last.superseded) == (41, 0)
    assert len(files(store.location, "manifests")) == 1
    check(store.location, range(20))


def test_nothing_that_it_superseded_itself_is_removed_at_once_while_a_driver_is_at_work(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(10))
    dead = table_file("squares", unit_id(30), new_token())
    store.directory.write_table(dead, unit_tables(30)["squares"])
    age(store.location, "tables/squares/*")
    with DriverLock(store.directory):
        assert compact(store.location, 0).removed == 0
        assert compact(store.location, 0).removed == 40
        assert store.directory.exists(dead)
    assert compact(store.location, 0).removed == 1
    assert not store.directory.exists(dead)


def test_a_driver_is_alive_by_the_clock_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path / "run", range(3))
    claim = {"host": "elsewhere", "pid": 1, "process_started": 0.0, "taken": 7.0, "holding": True}
    store.directory.write_json(f"drivers/scan-{'0' * 32}.json", claim)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LONG_AGO)  # this machine's clock is wrong
    assert compact(store.location, 0).removed == 0


def test_what_dead_attempts_left_goes_when_it_is_old(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(3))
    fresh, old, late = (table_file("squares", unit_id(30), new_token()) for _ in range(3))
    for file in (fresh, old):
        store.directory.write_table(file, unit_tables(30)["squares"])
    age(store.location, old, LITTER_SECONDS + 10)
    compact(store.location, 0)
    # The worker of the fresh one lived on.
    assert files(store.location, "tables") == [fresh]
    # An attempt that ends when its unit is compacted is litter, committed or not.
    store.directory.write_table(late.replace(unit_id(30), unit_id(1)), unit_tables(1)["squares"])
    commit(store, [2])
    check(store.location, range(3))
    compact(store.location, 0)
    assert files(store.location, "tables", "commits") == [fresh]
    check(store.location, range(3))


# -- killed and failing ------------------------------------------------------------------------------------------------


def _compact_slowly(location: str, pause: float) -> None:
    """In a process of its own: a compaction whose every operation on the disk takes a while."""
    compaction.PART_BYTES, compaction._CHUNK_UNITS = 3000, 3
    for name in ("write", "delete", "read"):
        original = getattr(Directory, name)
        setattr(Directory, name, lambda *values, original=original: (time.sleep(pause), original(*values))[1])
    compact(location, 0)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(1)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["raysense.store.compaction", "raysense.query.connection"])
    store = new_store(tmp_path / "run", range(5))
    killed = 0
    for round_ in range(1, 7):
        commit(store, range(5 * round_, 5 * round_ + 5))
        process = processes.Process(target=_compact_slowly, args=(store.location, 0.004))
        process.start()
        claims = tmp_path / "run" / "drivers"
        wait_for(lambda claims=claims, process=process: not process.is_alive() or any(claims.glob("compact-*")))
        process.join(chance.uniform(0.0, 0.5))
        if process.is_alive():
            process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        check(store.location, range(5 * round_ + 5))
    assert killed >= 3
    assert compact(store.location, 0).superseded == 0
    check(store.location, range(35))
    assert len(files(store.location, "compacted")) == len(store.snapshot().files("squares") * 2)


class Failing:
    """Has the operations of `Directory` fail from the n-th on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        for name in ("write", "delete", "read", "list", "exists"):
            patch.setattr(Directory, name, self._counted(getattr(Directory, name)))

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*values: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
            return original(*values)

        return operation


@pytest.mark.usefixtures("tiny")
def test_failing_at_every_operation_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = new_store(tmp_path / "base", range(1, 4))
    compact(base.location)
    commit(base, range(4, 6))
    base.directory.write_table(table_file("squares", unit_id(30), new_token()), unit_tables(30)["squares"])
    age(base.location, "manifests/*")
    age(base.location, "tables/squares/*")
    failing = Failing(monkeypatch)
    operations = 0
    for operations in range(10**6):
        out = tmp_path / str(operations)
        shutil.copytree(base.location, out)
        failing.left = operations
        try:
            compact(out, 0)
        except (OSError, RaysenseError):
            ended = False
            shutil.rmtree(out / "drivers", ignore_errors=True)  # of a process that would be dead by now
        else:
            ended = True
        failing.left = 10**9
        check(out, range(1, 6), sql=operations % 10 == 0 or ended)
        if ended:
            break
        compact(out, 0)
        assert files(out, "tables", "commits") == []
        assert len(files(out, "manifests")) == 1
        assert len(files(out, "compacted")) == len(Store.open(out).snapshot().files("squares")) * 2
        check(out, range(1, 6), sql=False)
        shutil.rmtree(out)
    assert operations > 50


def test_drivers_that_sweep_temporary_files_do_not_disturb_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path / "run", range(3))
    swept: set[str] = set()

    def sweep_first(self: Directory, file: str, data: bytes) -> None:
        if file not in swept and file.startswith(("compacted", "manifests")):
            swept.add(file)
            raise FileNotFoundError(file)
        write(self, file, data)

    write = Directory.write
    monkeypatch.setattr(Directory, "write", sweep_first)
    compact(store.location, 0)
    assert len(swept) == 4
    check(store.location, range(3))


def test_a_real_scan_is_compacted_all_the_time_while_it_runs(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    driver = start_driver("scan", kind=NumbersScan.kind, out=out, run={"workers": 2}, items=400, seconds=0.03)
    wait_for(lambda: (tmp_path / "run" / "commits").is_dir())
    removed = 0
    with open_results(out) as database:
        while driver.poll() is None:
            removed += compact(out, 0).removed
            database.refresh()
            found = database.query("SELECT count(*) AS n, count(DISTINCT number) AS distinct FROM squares").rows()[0]
            assert found["n"] == found["distinct"] == 4 * len(database.committed(database.scans[0]))
            time.sleep(0.2)
    assert finish(driver)["committed"] == 100
    assert removed > 20
    compact(out, 0)
    assert {n: row["square"] for n, row in rows(out, "squares", "number").items()} == {n: n * n for n in range(400)}
    status = raysense.status(out)
    assert (status.committed, status.samples_done, status.bad_samples) == (100, 400, 0)
    assert raysense.resume(out).complete


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_one_compaction_at_a_time(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(2))
    with (
        DriverLock(store.directory, purpose="compact"),
        pytest.raises(UsageError, match="is being compacted by another driver"),
    ):
        compact(store.location)


def test_a_damaged_file_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(3))
    path = Path(store.snapshot().paths("squares")[1])
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    mend = rf"squares/{unit_id(1)}~\w+\.arrow is damaged: .*; remove commits/{unit_id(1)}~\w+\.json, and"
    with pytest.raises(RaysenseError, match=rf"cannot be compacted .*{mend} .*nothing of it was removed"):
        compact(store.location)
    with pytest.raises(RaysenseError, match=mend):
        export_tables(store.location, tmp_path / "out")
    path.write_bytes(content)
    compact(store.location)
    check(store.location, range(3))


@pytest.mark.parametrize("name", ["~000000000000.json", "u\n1.json", "u~zzz.json", "a~0~1.json", "-x.json"])
def test_names_of_commits_that_no_scan_gives(tmp_path: Path, name: str) -> None:
    store = new_store(tmp_path / "run", range(1))
    (tmp_path / "run" / "commits" / name).write_text("{}")
    with pytest.raises(RaysenseError, match="is no name of a unit; remove it"):
        store.committed()


@pytest.mark.parametrize("content", ["[]", "{", "\udcff"])
def test_commits_that_say_nothing(tmp_path: Path, content: str) -> None:
    store = new_store(tmp_path / "run", range(1))
    (path,) = (tmp_path / "run" / "commits").iterdir()
    path.write_text(content, errors="surrogateescape")
    for read in (raysense.status, compact):
        with pytest.raises(RaysenseError, match="; remove it"):
            read(store.location)


def test_names_of_manifests_that_no_compaction_gives(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(1))
    (tmp_path / "run" / "manifests").mkdir()
    (tmp_path / "run" / "manifests" / "9~..arrow").write_text("")
    with pytest.raises(RaysenseError, match="is no name of a manifest; remove it"):
        store.committed()


def hostile(store: Store, units: pa.Table, document: dict[str, Any] | None = None) -> None:
    name = ManifestName(5, "0" * 12)
    if document is None:
        part = Part(PartName(1, 0, "0" * 12), 10, {"squares": (3,)})
        Manifest(name, (part,), units).write(store.directory)
    else:
        stored = units.replace_schema_metadata({b"raysense": json.dumps(document)})
        store.directory.write_table(name.file, stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": ["../../secret", "b"]}, "not a plain file name"),
        ({"unit": ["a\n", "b"]}, "not a plain file name"),
        ({"unit": ["b", "a"]}, "not sorted"),
        ({"unit": ["a", "a"]}, "not sorted"),
        ({"unit": ["a", None]}, "has nulls"),
        ({"token": ["../../x", ""]}, "not 12 hexadecimal digits"),
        ({"part": [0, 1]}, "a part that is not there"),
        ({"part": [0, -1]}, "a part that is not there"),
        ({"rows:squares": [1, 1]}, "do not add up"),
        ({"rows:squares": [4, -1]}, "do not add up"),
        ({"rows:../x": [0, 0]}, "table name '../x'"),
        ({"other": [1, 2]}, "its columns are"),
    ],
)
def test_manifests_that_say_what_cannot_be(tmp_path: Path, changes: dict[str, list[Any]], message: str) -> None:
    store = new_store(tmp_path / "run", ())
    schema = manifest_schema(["squares"])
    columns: dict[str, Any] = {
        "unit": ["a", "b"], "token": ["0" * 12, ""], "committed": [None, None], "part": [0, 0], "items": [1, 1],
        "bad_items": [None, 0], "bytes": [1, 1], "rows:squares": [1, 2],
    }  # fmt: skip
    hostile(store, pa.table(columns, schema=schema))
    assert len(store.snapshot()) == 2
    for name in changes:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.int64()))
    hostile(Store.open(store.location), pa.table(columns | changes, schema=schema))
    with pytest.raises(RaysenseError, match=f"is not a manifest that can be read .*{message}"):
        Store.open(store.location).snapshot()


@pytest.mark.parametrize(
    "part",
    [
        {"number": 1, "index": 0, "token": "../../secret", "bytes": 1, "batches": {}},
        {"number": -1, "index": 0, "token": "0" * 12, "bytes": 1, "batches": {}},
        {"number": 1, "index": "../x", "token": "0" * 12, "bytes": 1, "batches": {}},
        {"number": 1, "index": 0, "token": "0" * 12, "bytes": 1, "batches": {"../squares": [1]}},
        {"number": 1, "index": 0, "token": "0" * 12, "bytes": 1, "batches": {"squares": [-1]}},
        {"number": 1, "index": 0, "token": "0" * 12, "bytes": 1, "batches": {"squares": [2**70]}},
        {"number": 1},
        7,
    ],
)
def test_parts_that_cannot_be(tmp_path: Path, part: object) -> None:
    store = new_store(tmp_path / "run", ())
    hostile(store, manifest_schema(["squares"]).empty_table(), {"format": 1, "parts": [part]})
    with pytest.raises(RaysenseError, match="is not a manifest that can be read"):
        store.snapshot()


def test_names_of_tables_that_lead_out_of_the_directory(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(1))
    document = store.document()
    store.directory.write_json("scan.json", {**document, "schemas": encode_schemas({"../../x": SCHEMAS["squares"]})})
    for read in (open_results, compact):
        with pytest.raises(RaysenseError, match=r"table name '\.\./\.\./x' is not a plain file name"):
            read(store.location)


# -- formats and the command -------------------------------------------------------------------------------------------


def test_a_store_of_format_1_is_read_resumed_and_compacted(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(4))
    for unit, one in store.snapshot().loose.items():
        (tmp_path / "run" / commit_file(unit, one.token)).rename(tmp_path / "run" / commit_file(unit, ""))
        for table in SCHEMAS:
            renamed = tmp_path / "run" / table_file(table, unit, "")
            (tmp_path / "run" / table_file(table, unit, one.token)).rename(renamed)
    store.directory.write_json("scan.json", {**store.document(), "format": 1})
    check(store.location, range(4))
    commit(store, range(4, 8))
    check(store.location, range(8))
    compact(store.location, 0)
    check(store.location, range(8))
    # A version that knows only format 1 would find no unit any more.
    assert store.document()["format"] == 2


def test_the_latest_times_wherever_the_commits_are(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(6))
    for index in range(6):
        age(store.location, f"commits/{unit_id(index)}*", 100.0 * (index + 1))
    loose = store.snapshot()
    expected = [loose.times()[unit_id(index)] for index in (2, 1, 0)]
    since = loose.times()[unit_id(4)]
    assert since is not None
    compact(store.location, 0)
    commit(store, [6])
    after = store.snapshot()
    assert loose.latest_times(since, 3) == expected
    assert after.latest_times(since, 3) == [*expected[1:], after.times()[unit_id(6)]]
    assert len(after.latest_times(since, 100)) == 5
    assert after.latest_times(after.times()[unit_id(6)] or since, 3) == []


def test_a_manifest_counts_against_a_lower_one_and_against_later_commits(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(4))
    before: Snapshot = store.snapshot()
    compact(store.location)
    after = store.snapshot()
    commit(store, [1])
    age(store.location, "commits/*")
    assert store.snapshot() == after != before
    assert store.is_committed(unit_id(1), new_token())


def test_the_command(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run", range(6))
    first = CliRunner().invoke(main, ["compact", store.location])
    lines = first.output.splitlines()
    assert lines[0] == f"{store.location}: 6 units are compacted, 6 of them now"
    assert lines[1] == "files    24 -> 3"
    assert lines[-1] == "24 superseded files stay for readers; remove them after 1h with the same command"
    second = CliRunner().invoke(main, ["compact", store.location, "--grace", "0"])
    assert "removed  24 files that nobody reads any more" in second.output
    assert second.exit_code == 0
    for grace in ("soon", "-1h", "1w", ""):
        refused = CliRunner().invoke(main, ["compact", store.location, "--grace", grace])
        assert refused.exit_code == 2
    check(store.location, range(6))
