"""What a report is made of: sections of paragraphs, notices, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from matplotlib.figure import Figure

from raysense.report.style import WIDTH


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Notice:
    """Text that must not be overlooked, such as that a scan is unfinished."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair a line."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under column heads; columns in ``numeric`` (by position) are aligned right, ``compact`` is small print."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    compact: bool = False


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure; ``name`` becomes its file name, ``alt`` describes it to those who cannot see it."""

    kind: ClassVar[str] = "plot"
    name: str
    alt: str
    caption: str
    figure: Figure

    @property
    def width_percent(self) -> int:
        """Width on the page, so that text has the same size in all figures."""
        return min(100, round(100 * self.figure.get_figwidth() / WIDTH))


Block = Paragraph | Notice | Facts | Table | Plot


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
