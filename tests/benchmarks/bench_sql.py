"""`fi_percentiles()` over ten million rows of 40 units, against NumPy over the same files."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic import scan_document, unit_id

from raysense.query.connection import ResultDatabase, open_results
from raysense.scans import get_scan
from raysense.store.reading import read_pieces
from raysense.store.store import Store

ROWS = 10_000_000
UNITS = 40
SPLITS = {"train": 30, "test": 10}
PERCENTILES = [75, 80, 85, 90, 95, 98, 99, 100]
RUNS = 5
Result = dict[str, tuple[list[float], list[float]]]
"""Percentiles of fi and of fi_upper, by split."""


def write(location: Path) -> Store:
    """A scan of `ROWS` rows; ids as the digits source makes them."""
    rng = np.random.default_rng(0)
    schemas = get_scan("influence").schemas()
    per_unit = ROWS // UNITS
    counts = {name: units * per_unit for name, units in SPLITS.items()}
    document = scan_document("digits", counts, 10, None, "exact", "label", UNITS, per_unit)
    store = Store.create(location, document, None)
    splits = [name for name, units in SPLITS.items() for _ in range(units)]
    for index, split in enumerate(splits):
        start = index * per_unit
        ids = pa.array([f"{split}/{row:08d}" for row in range(start, start + per_unit)])
        upper = np.exp(-rng.normal(6, 4, per_unit))
        values = {
            "sample_id": ids,
            "split": [split] * per_unit,
            "label": rng.integers(0, 10, per_unit),
            "predicted": rng.integers(0, 10, per_unit),
            "p_label": 1 / (1 + upper),
            "p_predicted": 1 / (1 + upper),
            "error": pa.nulls(per_unit),
            "target": ["input"] * per_unit,
            "layer": pa.nulls(per_unit),
            "objective": ["label"] * per_unit,
            "method": ["exact"] * per_unit,
            "fi": upper * rng.uniform(0.5, 1, per_unit),
            "fi_lower": upper * 0.5,
            "fi_upper": upper,
            "rank": np.full(per_unit, 9),
            "n_backward": np.full(per_unit, 10),
            "jacobian_norm": np.sqrt(upper),
            "cook": pa.nulls(per_unit),
        }
        tables = {
            name: pa.table(
                [pa.array(values[field.name]).cast(field.type) for field in schemas[name]], schema=schemas[name]
            )
            for name in ("samples", "influence")
        }
        store.commit(unit_id(start, start + per_unit), {**tables, "units": schemas["units"].empty_table()}, {})
    return store


def with_sql(database: ResultDatabase) -> Result:
    """Percentiles by the macro, which joins by sample id."""
    found: Result = {}
    for row in database.query("FROM fi_percentiles()").rows():
        fi, upper = found.setdefault(row["split"], ([], []))
        fi.append(row["fi"])
        upper.append(row["fi_upper"])
    return found


def with_numpy(store: Store) -> Result:
    """Percentiles by NumPy, which here may take rows of the two tables to be in the same order (no join)."""
    columns: dict[str, list[np.ndarray]] = {"split": [], "fi": [], "fi_upper": []}
    for table, names in (("samples", ("split",)), ("influence", ("fi", "fi_upper"))):
        pieces = store.snapshot().select().pieces(table)
        for _, rows in read_pieces(store.directory, pieces, store.schemas()[table]):
            for name in names:
                columns[name].append(rows[name].to_numpy())
    split, fi, upper = (np.concatenate(columns[name]) for name in ("split", "fi", "fi_upper"))
    found: Result = {}
    for name in SPLITS:
        chosen = split == name
        found[name] = tuple(np.percentile(values[chosen], PERCENTILES).tolist() for values in (fi, upper))  # type: ignore[assignment]
    return found


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds and result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def main() -> None:
    """Print both times, interleaved, medians of `RUNS` runs; check that both say the same."""
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "run")
        seconds: dict[str, list[float]] = {"sql": [], "numpy": []}
        with open_results([store.location]) as database:
            for _ in range(RUNS):
                sql_seconds, sql = timed(lambda: with_sql(database))
                numpy_seconds, numpy = timed(lambda: with_numpy(store))
                seconds["sql"].append(sql_seconds)
                seconds["numpy"].append(numpy_seconds)
                for name in SPLITS:
                    np.testing.assert_allclose(sql[name], numpy[name], rtol=1e-12)
            outliers = [timed(lambda: database.query("FROM fi_outliers()").rows())[0] for _ in range(RUNS)]  # type: ignore
    print(f"percentiles of {ROWS:,} rows in {UNITS} units, {RUNS} interleaved runs, seconds (median, all)")
    for name, what in (("sql", "fi_percentiles(), joined by id"), ("numpy", "numpy.percentile, rows aligned")):
        print(f"  {what:32s} {statistics.median(seconds[name]):6.2f}   {' '.join(f'{s:.2f}' for s in seconds[name])}")
    print(f"  {'fi_outliers()':32s} {statistics.median(outliers):6.2f}   {' '.join(f'{s:.2f}' for s in outliers)}")


if __name__ == "__main__":
    main()
