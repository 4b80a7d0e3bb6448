"""The SQL views, result formats and the prompt."""

from __future__ import annotations

import csv
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as papq
import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from stored import loose_file
from synthetic import Truth, unit_id, unit_tables, write_scan

from raysense.errors import RaysenseError, UsageError
from raysense.query.connection import ResultDatabase, open_results
from raysense.query.formats import write_result
from raysense.query.prompt import is_complete, run_prompt, run_script
from raysense.scans import get_scan
from raysense.store.naming import table_file
from raysense.store.store import Store, encode_schemas


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    return write_scan(tmp_path / "run", failed={7: "corrupt JPEG"}, class_names=[f"class {i}" for i in range(10)])


@pytest.fixture
def database(truth: Truth) -> Iterator[ResultDatabase]:
    with open_results([truth.store.location]) as database:
        yield database


def scalar(database: ResultDatabase, sql: str) -> object:
    (row,) = database.query(sql).rows()
    (value,) = row.values()
    return value


def test_views_hold_exactly_what_was_committed(database: ResultDatabase, truth: Truth) -> None:
    table = database.query("SELECT * FROM influence ORDER BY sample_id").table()
    order = np.argsort(truth.ids[truth.scored])
    assert table.column_names[:2] == ["scan", "sample_id"]
    assert set(table["scan"].to_pylist()) == {"run"}
    assert table["sample_id"].to_pylist() == truth.ids[truth.scored][order].tolist()
    np.testing.assert_array_equal(table["fi"].to_numpy(), truth.fi[truth.scored][order])
    assert scalar(database, "SELECT error FROM samples WHERE error IS NOT NULL") == "corrupt JPEG"
    assert scalar(database, "SELECT count(*) FROM samples") == len(truth.ids)
    assert scalar(database, "SELECT sum(rows)::INT FROM units") == len(truth.ids)


def test_scans_and_classes(database: ResultDatabase) -> None:
    (row,) = database.query(
        "SELECT scan, kind, model, data, spec->>'method' AS method, units, units_done FROM scans"
    ).rows()
    assert row == {
        "scan": "run", "kind": "influence", "model": "digits", "data": "digits", "method": "exact", "units": 9,
        "units_done": 9,
    }  # fmt: skip
    assert scalar(database, "SELECT name FROM classes WHERE class = 3") == "class 3"


def explain(database: ResultDatabase, sql: str) -> str:
    return str(database.query("EXPLAIN " + sql).rows()[0]["explain_value"])


def test_projection_and_filter_reach_the_files(tmp_path: Path) -> None:
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", seed=1)
    with open_results([tmp_path / "a", tmp_path / "b"]) as database:
        plan = explain(database, "SELECT fi FROM influence WHERE sample_id = 'train/000003' AND rank > 5")
        assert plan.count("ARROW_SCAN") == 2
        for part in ("\"sample_id\" = 'train/000003'", '"rank" > 5', "Projections: fi"):
            assert plan.count(part) == 2, plan
        assert "jacobian_norm" not in plan
        assert "target" not in plan
        one_scan = explain(database, "SELECT fi FROM influence WHERE scan = 'b'")
        assert one_scan.count("ARROW_SCAN") == 1, "the other scan's files must not be read"


def test_uncommitted_and_half_written_files_are_never_read(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", commit=3)
    directory = truth.store.directory
    # A whole unit whose commit is missing, a torn file under its final name, and a temporary file of a killed writer.
    tables = unit_tables(truth, 150, 200, "exact", "label", {}, worker="w", index=3)
    for name, table in tables.items():
        directory.write_table(table_file(name, unit_id(150, 200), "0" * 12), table)
    (tmp_path / "run/tables/samples" / f"{unit_id(200, 250)}.arrow").write_bytes(b"ARROW1\0\0half")
    (tmp_path / "run/tables/samples" / f".{unit_id(0, 50)}.arrow.123.tmp").write_bytes(b"ARROW1")
    (tmp_path / "run/commits" / f".{unit_id(250, 300)}.json.123.tmp").write_bytes(b"{}")
    with open_results([tmp_path / "run"]) as database:
        assert scalar(database, "SELECT count(DISTINCT sample_id) FROM samples") == 150
        assert scalar(database, "SELECT count(*) FROM influence") == 150
        assert scalar(database, "SELECT units_done FROM scans") == 3
        truth.store.commit(unit_id(150, 200), tables, {})
        assert scalar(database, "SELECT count(*) FROM samples") == 150
        database.refresh()
        assert scalar(database, "SELECT count(*) FROM samples") == 200
        assert scalar(database, "SELECT units_done FROM scans") == 4


def test_a_scan_without_a_commit_has_empty_views(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=0)
    with open_results([tmp_path / "run"]) as database:
        table = database.query("FROM influence").table()
        assert table.num_rows == 0
        assert table.schema.field("fi").type == pa.float64()
        for macro in ("fi_percentiles()", "fi_outliers()", "throughput()"):
            assert database.query(f"FROM {macro}").rows() == []


def test_scans_of_one_name_are_told_apart(tmp_path: Path) -> None:
    write_scan(tmp_path / "first/run", commit=1)
    write_scan(tmp_path / "second/run", commit=2)
    with open_results([tmp_path / "first/run", tmp_path / "second/run"]) as database:
        rows = database.query("SELECT scan, count(*) AS n FROM samples GROUP BY scan ORDER BY scan").rows()
    assert rows == [{"scan": "first/run", "n": 50}, {"scan": "second/run", "n": 100}]
    with pytest.raises(UsageError, match=r"given twice; name every scan once"):
        open_results([tmp_path / "first/run", str(tmp_path / "first/../first/run")])


SCHEMAS = get_scan("influence").schemas()
CURVATURES = pa.schema([("sample_id", pa.string()), ("curvature", pa.float64())])


def test_scans_of_different_kinds_are_united_by_column_name(tmp_path: Path) -> None:
    write_scan(tmp_path / "a", commit=2)
    document = {**json.loads((tmp_path / "a/scan.json").read_text()), "kind": "other", "units": 1}
    schemas = {"units": SCHEMAS["units"].append(pa.field("gpu", pa.string())), "bends": CURVATURES}
    other = Store.create(tmp_path / "b", {**document, "schemas": encode_schemas(schemas)}, None)
    bends = pa.table({"sample_id": ["train/000000"], "curvature": [2.5]}, schema=schemas["bends"])
    other.commit("u", {"units": schemas["units"].empty_table(), "bends": bends}, {})
    with open_results([tmp_path / "a", tmp_path / "b"]) as database:
        assert scalar(database, "SELECT count(*) FROM units WHERE gpu IS NULL") == 2
        assert database.query("SELECT * FROM bends").rows() == [
            {"scan": "b", "sample_id": "train/000000", "curvature": 2.5}
        ]
        assert scalar(database, "SELECT c.curvature FROM samples JOIN bends AS c USING (sample_id)") == 2.5
        assert {row["kind"] for row in database.query("FROM scans").rows()} == {"influence", "other"}


def test_a_missing_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no scan"):
        open_results([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="name at least one"):
        open_results([])


def test_users_join_their_own_files(database: ResultDatabase, tmp_path: Path) -> None:
    papq.write_table(pa.table({"sample_id": ["train/000000"], "note": ["odd"]}), tmp_path / "notes.parquet")
    sql = f"SELECT note FROM samples JOIN '{tmp_path}/notes.parquet' USING (sample_id)"
    assert scalar(database, sql) == "odd"


def test_python_variables_are_out_of_reach(database: ResultDatabase) -> None:
    secret = pa.table({"q": [1]})  # noqa: F841 - DuckDB would find it by its name
    with pytest.raises(UsageError, match="secret does not exist"):
        database.query("SELECT * FROM secret")


@pytest.mark.parametrize(
    ("sql", "sentence", "part"),
    [
        ("SELECT nope FROM samples", "nope", "at 'nope' in line 1"),
        ("SELECT 1;\nSELECT label,\n  nope\nFROM samples", "nope", "at 'nope' in line 2"),
        ("FROM nowhere", "nowhere does not exist", "at 'nowhere' in line 1"),
        ("SELEC 1", "syntax error", "at 'SELEC' in line 1"),
        ("SELECT CAST(split AS INT) FROM samples", "Could not convert", "at 'CAST(split AS INT)' in line 1"),
    ],
)
def test_sql_errors_quote_the_offending_part(database: ResultDatabase, sql: str, sentence: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        database.query(sql).table()
    first, line, carets = str(caught.value).splitlines()
    assert first.startswith("SQL error: ")
    assert sentence in first
    assert first.endswith(part)
    assert line.startswith("LINE ")
    start, stop = carets.index("^"), carets.rindex("^") + 1
    assert line[start:stop] in part


def test_an_unreadable_file_is_not_called_an_sql_error(database: ResultDatabase, truth: Truth) -> None:
    truth.store.directory.write(loose_file(truth.store, "samples", unit_id(0, 50)), b"broken")
    with pytest.raises(RaysenseError, match=f"results cannot be read.*{unit_id(0, 50)}") as caught:
        database.query("SELECT max(label) FROM samples").table()
    assert not isinstance(caught.value, UsageError)


AWKWARD = """
SELECT * FROM (VALUES
    (1, 1e-30, 'plain', [1.5, NULL]), (2, 'inf'::DOUBLE, 'a,"b"\n', []), (3, 'nan'::DOUBLE, '', NULL),
    (4, NULL, NULL, NULL)
) AS t(id, fi, text, list) ORDER BY id
"""


def written(database: ResultDatabase, sql: str, format: str, max_rows: int | None = None) -> bytes:
    stream = io.BytesIO()
    write_result(database.query(sql), format, stream, max_rows)
    assert not stream.closed
    return stream.getvalue()


def test_json_keeps_infinities_apart_from_null(database: ResultDatabase) -> None:
    records = json.loads(written(database, AWKWARD, "json"), parse_constant=pytest.fail)
    assert [record["fi"] for record in records] == [1e-30, "Infinity", "NaN", None]
    assert float(records[1]["fi"]) == np.inf
    assert records[0]["list"] == [1.5, None]
    assert json.loads(written(database, "FROM samples WHERE false", "json")) == []
    assert json.loads(written(database, "SELECT sum(label) AS s FROM samples", "json"))[0]["s"] > 0


def test_csv_reads_back(database: ResultDatabase, truth: Truth) -> None:
    rows = list(csv.DictReader(io.StringIO(written(database, AWKWARD, "csv").decode())))
    assert [row["fi"] for row in rows] == ["1e-30", "inf", "nan", ""]
    assert rows[1]["text"] == 'a,"b"\n'
    assert rows[0]["list"] == "[1.5, null]"
    read = csv.DictReader(io.StringIO(written(database, "FROM influence ORDER BY sample_id", "csv").decode()))
    order = np.argsort(truth.ids[truth.scored])
    assert [float(row["fi"]) for row in read] == truth.fi[truth.scored][order].tolist()


def test_parquet_reads_back_in_large_row_groups(database: ResultDatabase) -> None:
    data = written(database, "SELECT range AS i FROM range(300_000)", "parquet")
    file = papq.ParquetFile(io.BytesIO(data))
    assert file.read()["i"].to_pylist() == list(range(300_000))
    assert file.num_row_groups <= 3


def test_table_keeps_exponents_and_marks_null(database: ResultDatabase) -> None:
    text = written(database, AWKWARD, "table").decode()
    assert "1e-30" in text
    assert "NULL" in text
    assert "inf" in text
    wide = written(database, "FROM influence LIMIT 3", "table").decode()
    assert len({len(line) for line in wide.splitlines()}) == 1, "columns line up"


def test_table_says_how_many_rows_are_left_out(database: ResultDatabase) -> None:
    assert written(database, "FROM range(50)", "table", max_rows=10).decode().endswith("\n40 more rows\n")
    assert "more" not in written(database, "FROM range(10)", "table", max_rows=10).decode()
    assert "over 1,000,000 more rows" in written(database, "FROM range(5_000_000)", "table", max_rows=1).decode()


def test_table_shows_control_characters_and_markup_as_they_are(database: ResultDatabase) -> None:
    text = written(database, "SELECT chr(27) || '[31m[bold]x' AS name", "table").decode()
    assert "\\x1b[31m[bold]x" in text
    assert "\x1b" not in text


def test_a_narrow_console_gets_blocks_instead_of_cut_numbers(database: ResultDatabase) -> None:
    from rich.console import Console

    from raysense.query.display import print_result

    out = io.StringIO()
    result = database.query("FROM influence WHERE sample_id = 'train/000000'")
    print_result(result.schema, result, Console(file=out, width=60))
    value = scalar(database, "SELECT fi FROM influence WHERE sample_id = 'train/000000'")
    assert f"{value:.6g}" in out.getvalue()
    assert "…" not in out.getvalue()


def test_a_result_that_is_not_read_to_its_end_does_not_block_the_next(database: ResultDatabase) -> None:
    abandoned = database.query("FROM range(1_000_000)")
    next(iter(abandoned))
    database.refresh()
    assert scalar(database, "SELECT 1; SELECT 2 AS two") == 2
    assert abandoned.rows() == []


def test_earlier_statements_run_to_their_end(database: ResultDatabase) -> None:
    with pytest.raises(UsageError, match="SQL error: early"):
        database.query("SELECT error('early') FROM range(10); SELECT 2")


def test_statements_without_rows_write_nothing(database: ResultDatabase) -> None:
    assert written(database, "-- nothing", "table") == b""


def test_unknown_format_is_named(database: ResultDatabase) -> None:
    with pytest.raises(UsageError, match=r"'xml' is unknown; choose one of table, csv, json, parquet"):
        written(database, "SELECT 1", "xml")


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("", True),
        (".tables", True),
        ("SELECT 1;", True),
        ("SELECT 1", False),
        ("SELECT ';", False),
        ("SELECT\n1 ;\n", True),
        ("SELEC;", True),
    ],
)
def test_is_complete(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


def test_prompt_runs_statements_survives_errors_and_keeps_history(
    database: ResultDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    with create_pipe_input() as keys:
        keys.send_text(
            "SELECT count(*)\rAS total FROM samples;\rSELECT nope FROM samples;\r"
            ".tables\r.schema influence\r.bogus\r.quit\r"
        )
        run_prompt(database, stream, tmp_path / "cache/history", input=keys, output=DummyOutput())
    shown = stream.getvalue().decode()
    assert "420" in shown
    assert "fi_upper" in shown
    assert "upper bound of the influence measure" in shown
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("error: SQL error: ")
    assert errors[0].endswith("at 'nope' in line 1")
    assert "'.bogus'" in errors[1]
    assert "SELECT count(*)" in (tmp_path / "cache/history").read_text()


def test_prompt_follows_a_running_scan(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", commit=1)
    stream = io.BytesIO()
    with open_results([tmp_path / "run"]) as database:
        truth.store.commit(unit_id(50, 100), unit_tables(truth, 50, 100, "exact", "label", {}, "w", 1), {})
        run_script(database, ["SELECT count(*) AS n\n", "FROM samples;\n", ".quit\n", "FROM nowhere;\n"], stream, "csv")
    assert stream.getvalue().decode() == '"n"\n100\n'


def test_script_stops_at_an_error(database: ResultDatabase) -> None:
    stream = io.BytesIO()
    with pytest.raises(UsageError, match="nowhere"):
        run_script(database, ["SELECT 1 AS a;\n", "FROM nowhere;\n", "SELECT 2 AS b"], stream, "csv")
    assert stream.getvalue() == b'"a"\n1\n'


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    boto3 = pytest.importorskip("boto3")
    botocore = pytest.importorskip("botocore.config")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    # A process of its own: DuckDB holds the interpreter lock while it opens a data set, a server thread would starve.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        config = botocore.Config(retries={"total_max_attempts": 20, "mode": "standard"})
        boto3.client("s3", endpoint_url=url, config=config).create_bucket(Bucket="bucket")
        yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()


def test_object_store(bucket: str) -> None:
    truth = write_scan(f"{bucket}/run", commit=2, splits={"train": 60, "test": 60})
    truth.store.directory.write("tables/samples/junk.arrow", b"half")
    with open_results([f"{bucket}/run"]) as database:
        assert scalar(database, "SELECT count(*) FROM influence JOIN samples USING (scan, sample_id)") == 100
        assert scalar(database, "SELECT max(fi) FROM influence") == truth.fi[truth.scored].max()


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys; import raysense.query.catalogue as c; c.describe_macros(); "
        "sys.exit(any(m in sys.modules for m in ('duckdb', 'pyarrow', 'numpy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
