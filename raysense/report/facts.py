"""What every report says first about a scan, whatever its kind: what was scanned, how, and how much of it is done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Facts, Notice, Section, Table

_LISTED = 50
_HASH = 12
_SPEC_ELSEWHERE = ("model", "data")


def facts_section(database: ResultDatabase, scan: ScanTables) -> Section:
    """Facts of a scan, its failed samples and failed units by name; an unfinished scan says so first."""
    blocks: list[Block] = []
    failures = scan.store.failures.given_up(database.committed(scan))
    done = len(database.committed(scan))
    planned: int | None = scan.document.get("units")
    if planned is not None and is_unfinished(database, scan):
        blocks.append(Notice(_unfinished(scan, planned, done, len(failures))))
    blocks.append(Facts(_pairs(scan, planned, done, len(failures))))
    blocks.extend(_failed_units(failures))
    if "samples" in scan.schemas:
        blocks.extend(_failed_samples(database, scan))
    return Section("What was scanned", blocks)


def is_unfinished(database: ResultDatabase, scan: ScanTables) -> bool:
    """Whether the scan has units that are not committed."""
    return len(database.committed(scan)) < (scan.document.get("units") or 0)


def _unfinished(scan: ScanTables, planned: int, done: int, failed: int) -> str:
    return (
        f"This scan is unfinished: {done:,} of {planned:,} units are done, {failed:,} failed, "
        f"{planned - done - failed:,} are left. Everything below covers the units done. "
        f"Finish it with: raysense resume {shlex.quote(scan.store.location)}"
    )


def _pairs(scan: ScanTables, planned: int | None, done: int, failed: int) -> list[tuple[str, str]]:
    spec: Mapping[str, Any] = scan.document.get("spec") or {}
    model: Mapping[str, Any] = scan.facts.get("model") or {}
    data: Mapping[str, Any] = scan.facts.get("data") or {}
    prints: Mapping[str, Any] = scan.facts.get("fingerprints") or {}
    pairs = [
        ("Kind", scan.kind),
        ("Directory", scan.store.location),
        ("Started", str(scan.document.get("created") or "")),
        ("Model", str(spec.get("model") or model.get("reference") or "")),
        ("Parameters", _count(model.get("parameters"))),
        ("Classes", _count(model.get("n_classes"))),
        ("Input", _shape(model.get("input_shape"))),
        ("Normalisation", _settings(model.get("normalisation"), "none")),
        ("Data", str(spec.get("data") or data.get("reference") or "")),
        ("Samples", _samples(data)),
        ("Preprocessing", _preprocessing(scan.facts.get("preprocessing"))),
        ("Settings", _settings({key: value for key, value in spec.items() if key not in _SPEC_ELSEWHERE}, "")),
        (
            "Units",
            f"{done:,} done, {failed:,} failed, {max(0, planned - done - failed):,} left"
            if planned is not None
            else "",
        ),
        ("Fingerprints", ", ".join(f"{name} {str(value)[:_HASH]}" for name, value in prints.items())),
        ("Versions", _settings(scan.document.get("versions"), "")),
    ]
    return [(name, value) for name, value in pairs if value]


def _failed_units(failures: list[dict[str, Any]]) -> list[Block]:
    if not failures:
        return []
    rows = []
    for failure in failures[:_LISTED]:
        attempts = failure.get("attempts") or [{}]
        error = str(attempts[-1].get("error") or "").strip().splitlines()
        rows.append([str(failure["unit"]), str(len(attempts)), error[-1] if error else "unknown"])
    return [
        Table(_caption("Units given up on", len(failures)), ["unit", "attempts", "last error"], rows, frozenset({1}))
    ]


def _failed_samples(database: ResultDatabase, scan: ScanTables) -> list[Block]:
    condition = f"FROM samples WHERE scan = {quoted_text(scan.name)} AND error IS NOT NULL"
    (total,) = database.query(f"SELECT count(*) AS n {condition}").rows()
    if not total["n"]:
        return []
    rows = database.query(f"SELECT sample_id, split, error {condition} ORDER BY sample_id LIMIT {_LISTED}").rows()
    cells = [[row["sample_id"], row["split"], row["error"]] for row in rows]
    return [Table(_caption("Samples that failed", total["n"]), ["sample", "split", "why"], cells)]


def _caption(what: str, total: int) -> str:
    return f"{what}: {total:,}" + (f" (the first {_LISTED} are listed)" if total > _LISTED else "")


def _samples(data: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {_count(count)}" for name, count in (data.get("splits") or {}).items())
    total = _count(data.get("n_samples"))
    return f"{total} ({splits})" if splits else total


def _preprocessing(values: Mapping[str, Any] | None) -> str:
    if not values:
        return "none"
    steps = []
    if values.get("resize") is not None:
        smooth = ", antialiased" if values.get("antialias") else ""
        steps.append(f"shorter side to {values['resize']} px ({values.get('interpolation', '')}{smooth})")
    if values.get("crop") is not None:
        crop = values["crop"]
        size = " x ".join(map(str, crop)) if isinstance(crop, list) else str(crop)
        steps.append(f"centre crop {size} px")
    source = f" [from: {values['source']}]" if steps and values.get("source") else ""
    return (", then ".join(steps) or "none") + source


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) + " (channels x height x width), values 0 to 1" if shape else ""


def _settings(values: Mapping[str, Any] | None, missing: str) -> str:
    if not values:
        return missing
    return ", ".join(f"{key} {_setting(value)}" for key, value in values.items() if value is not None)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else ""
