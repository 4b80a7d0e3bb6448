"""Report of the semantic scan (Hamdi & Ghanem 2020): maps, robust regions and SRVR, traps, and FI of the axes."""

from __future__ import annotations

from collections.abc import Sequence

from raysense.query.connection import ResultDatabase, quoted_text
from raysense.query.tables import ScanTables
from raysense.report.blocks import Block, Notice, Section, Table
from raysense.report.semantic_maps import joint_map_sections, map_sections
from raysense.report.semantic_profiles import joint_profile_sections, profile_sections
from raysense.report.semantic_regions import joint_region_sections, region_sections
from raysense.report.semantic_traps import foretelling_sections, joint_trap_sections, trap_sections

_LISTED = 50


def sections(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Sections on one scan; one notice where there are no rows yet."""
    found = [
        *region_sections(database, scan),
        *map_sections(database, scan),
        *profile_sections(database, scan),
        *trap_sections(database, scan),
        *foretelling_sections(database, scan),
        *_failures(database, scan),
    ]
    return found or [Section("Semantic space", [Notice("Nothing has been scored yet.")])]


def joint(database: ResultDatabase, scans: Sequence[ScanTables]) -> list[Section]:
    """Scans side by side: SRVR as in Table 2, the same shapes as in Figure 3, means as in Figures 4 and 5."""
    return [
        *joint_region_sections(database, scans),
        *joint_map_sections(database, scans),
        *joint_profile_sections(database, scans),
        *joint_trap_sections(database, scans),
    ]


def _failures(database: ResultDatabase, scan: ScanTables) -> list[Section]:
    """Shapes or images that could not be used."""
    condition = f"FROM subjects WHERE scan = {quoted_text(scan.name)} AND error IS NOT NULL"
    rows = database.query(
        f"SELECT shape_id, class_name, error, count(*) OVER () AS total {condition} ORDER BY shape_id LIMIT {_LISTED}"
    ).rows()
    if not rows:
        return []
    total = rows[0]["total"]
    caption = f"Shapes or images that failed: {total:,}" + (
        f" (the first {_LISTED} are listed)" if total > _LISTED else ""
    )
    cells = [[row["shape_id"], row["class_name"] or "–", row["error"]] for row in rows]
    blocks: list[Block] = [Table(caption, ["shape or image", "class", "why"], cells)]
    return [Section("Failures", blocks)]
