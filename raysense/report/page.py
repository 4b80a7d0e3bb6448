"""The HTML page: one file, no network, figures inside it and beside it."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike, fspath
from types import ModuleType

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pyarrow.fs import FileType

import raysense
from raysense.errors import UsageError
from raysense.query.connection import ResultDatabase, open_results
from raysense.query.tables import Locations, ScanTables
from raysense.report.blocks import Plot, Section
from raysense.report.facts import facts_section, is_unfinished
from raysense.report.style import figure_bytes
from raysense.store.files import Directory

FIGURE_FORMATS = ("png", "pdf", "svg")
Progress = Callable[[int, int], None]
"""Called with how many steps of the report are done, and how many there are."""


@dataclass(frozen=True)
class Chapter:
    """All sections on one scan, or on all scans together, under one heading."""

    title: str
    anchor: str
    prefix: str
    sections: list[Section]


def write_report(
    locations: Locations,
    output: str | PathLike[str],
    formats: Sequence[str] = ("png", "pdf"),
    progress: Progress | None = None,
    run_code: bool = False,
) -> list[str]:
    """Write a report on one or several scans, finished or not.

    The page is one self-contained HTML file that loads nothing from anywhere. Its figures are also written as files to
    the folder ``<stem>_figures`` next to it.

    Args:
        locations: One scan directory or several.
        output: The HTML file, local or a URI; one that is there is replaced.
        formats: Formats of the figure files, of `FIGURE_FORMATS`; empty writes none.
        progress: Called with (steps done, steps in all).
        run_code: Whether pictures may be read through a Python factory that the scan's data reference names, which
            runs its code; do so with scans of your own.

    Returns:
        Paths of the files written, the page first.

    Raises:
        UsageError: a directory holds no scan, a format is unknown, or the page cannot be written.
    """
    for format in formats:
        if format not in FIGURE_FORMATS:
            raise UsageError(f"format {format!r} of the figures is unknown; choose from {', '.join(FIGURE_FORMATS)}")
    folder, name = _target(output)
    tell = progress or _no_progress
    with open_results(locations) as database:
        steps = len(database.scans) + 2
        chapters = _joint_chapters(database)
        tell(1, steps)
        for index, scan in enumerate(database.scans):
            scan.run_code = run_code
            chapters.append(_chapter(database, scan, index))
            tell(index + 2, steps)
        unfinished = [f"scan {scan.name}" for scan in database.scans if is_unfinished(database, scan)]
    files, images = _render_figures(chapters, formats)
    page = _template().render(
        chapters=chapters, images=images, unfinished=unfinished, made=_now(), version=raysense.__version__
    )
    stem = name.rsplit(".", 1)[0]
    written = {name: page.encode(), **{f"{stem}_figures/{file}": data for file, data in files.items()}}
    try:
        for path, data in written.items():
            folder.write(path, data)
    except OSError as error:
        raise UsageError(f"output {fspath(output)!r} cannot be written ({error}); name a file you may write") from error
    tell(steps, steps)
    return [folder.path(path) if folder.is_local else f"{folder.location}/{path}" for path in written]


def _chapter(database: ResultDatabase, scan: ScanTables, index: int) -> Chapter:
    module = _kind_module(scan.kind)
    own: list[Section] = module.sections(database, scan) if module is not None else []
    slug = re.sub(r"[^A-Za-z0-9]+", "-", scan.name).strip("-")
    prefix = f"{index + 1}-{slug}_" if len(database.scans) > 1 else ""
    return Chapter(f"Scan {scan.name}", f"scan-{index + 1}", prefix, [facts_section(database, scan), *own])


def _joint_chapters(database: ResultDatabase) -> list[Chapter]:
    sections = []
    for kind in sorted({scan.kind for scan in database.scans}):
        scans = [scan for scan in database.scans if scan.kind == kind]
        module = _kind_module(kind)
        if len(scans) > 1 and module is not None and hasattr(module, "joint"):
            sections.extend(module.joint(database, scans))
    return [Chapter("All scans", "all-scans", "all_", sections)] if sections else []


def _kind_module(kind: str) -> ModuleType | None:
    """The module that contributes the sections of a kind; None where there is none yet."""
    name = f"raysense.report.{kind}"
    found = kind.isidentifier() and importlib.util.find_spec(name)
    return importlib.import_module(name) if found else None


def _render_figures(chapters: Sequence[Chapter], formats: Sequence[str]) -> tuple[dict[str, bytes], dict[Plot, str]]:
    """Figure files by name, and the data URI of every plot."""
    files: dict[str, bytes] = {}
    images: dict[Plot, str] = {}
    for chapter in chapters:
        for plot in (block for section in chapter.sections for block in section.blocks if isinstance(block, Plot)):
            png = figure_bytes(plot.figure, "png")
            images[plot] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            for format in formats:
                data = png if format == "png" else figure_bytes(plot.figure, format)
                files[f"{chapter.prefix}{plot.name}.{format}"] = data
    return files, images


def _target(output: str | PathLike[str]) -> tuple[Directory, str]:
    text = fspath(output)
    parent, slash, name = text.rpartition("/")
    if not name.strip() or name in (".", ".."):
        raise UsageError(f"output {text!r} names no file; give a path such as report.html")
    folder = Directory((parent or "/") if slash else ".", argument="output")
    if folder.filesystem.get_file_info(folder.path(name)).type == FileType.Directory:
        raise UsageError(f"output {text!r} is a directory; give the path of a file, such as {text}/report.html")
    return folder, name


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("raysense.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _no_progress(done: int, total: int) -> None:
    """Report to nobody."""
