"""Export of whole tables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as papq
import pytest
from stored import loose_file
from synthetic import unit_id, write_scan

from raysense.errors import RaysenseError, UsageError
from raysense.query.export import export_tables
from raysense.scans import get_scan

TABLES = {"samples", "influence", "units"}


@pytest.mark.parametrize("format", ["parquet", "csv", "arrow"])
def test_every_committed_row_is_exported_in_order(tmp_path: Path, format: str) -> None:
    truth = write_scan(tmp_path / "run", commit=5, failed={7: "corrupt"})
    (tmp_path / "run/tables/samples" / f"{unit_id(250, 300)}.arrow").write_bytes(b"half")
    rows = export_tables(tmp_path / "run", tmp_path / "out", format)
    assert rows == {"samples": 250, "influence": 249, "units": 5}
    assert set(os.listdir(tmp_path / "out")) == {f"{table}.{format}" for table in TABLES}
    path = tmp_path / "out" / f"influence.{format}"
    if format == "parquet":
        table = papq.read_table(path)
    elif format == "csv":
        table = pacsv.read_csv(path)
    else:
        table = pa.ipc.open_file(path).read_all()
    assert table["sample_id"].to_pylist() == truth.ids[truth.scored].tolist()
    assert table["fi"].to_pylist() == truth.fi[truth.scored].tolist()


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_documentation_units_and_spec_stay_in_the_schema(tmp_path: Path, format: str) -> None:
    write_scan(tmp_path / "run", commit=1)
    export_tables(tmp_path / "run", tmp_path / "out", format)
    path = tmp_path / "out" / f"influence.{format}"
    schema = papq.read_schema(path) if format == "parquet" else pa.ipc.open_file(path).schema
    declared = get_scan("influence").schemas()["influence"]
    for field in declared:
        assert schema.field(field.name).type == field.type
        for key, value in field.metadata.items():
            assert schema.field(field.name).metadata[key] == value
    assert schema.metadata[b"doc"] == declared.metadata[b"doc"]
    assert json.loads(schema.metadata[b"raysense"])["spec"]["method"] == "exact"


def test_small_units_become_large_row_groups(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", splits={"train": 400}, unit_size=4)
    export_tables(tmp_path / "run", tmp_path / "out")
    assert papq.ParquetFile(tmp_path / "out/samples.parquet").num_row_groups == 1


def test_a_scan_without_rows_is_exported_with_its_columns(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=0)
    assert set(export_tables(tmp_path / "run", tmp_path / "out").values()) == {0}
    assert papq.read_table(tmp_path / "out/influence.parquet").column_names[0] == "sample_id"


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=4)
    seen: list[tuple[int, int]] = []
    export_tables(tmp_path / "run", tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"out .* is not empty; name a new or empty directory"):
        export_tables(tmp_path / "run", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=1)
    with pytest.raises(UsageError, match=r"format 'xlsx' is unknown; choose one of parquet, csv, arrow"):
        export_tables(tmp_path / "run", tmp_path / "out", "xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"out .*file/out' cannot be"):
        export_tables(tmp_path / "run", tmp_path / "file/out")


def test_a_failed_export_leaves_no_torn_file(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", commit=3)
    (tmp_path / "run" / loose_file(truth.store, "influence", unit_id(100, 150))).write_bytes(b"broken")
    with pytest.raises(RaysenseError, match=r"table influence of .* cannot be read"):
        export_tables(tmp_path / "run", tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) == {"samples.parquet"}
