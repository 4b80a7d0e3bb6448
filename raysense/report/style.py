"""Looks shared by all figures, and how figures become bytes and labels stay readable."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE = "#0072B2"
ORANGE = "#E69F00"
RED = "#D55E00"
GREY = "#6B6B6B"
"""Okabe and Ito's colours, told apart with any colour vision; blue and orange also in greyscale print."""

LINES = (BLUE, RED, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "black")
"""Okabe and Ito's colours for lines that are told apart by colour; more than seven lines repeat them."""

WIDTH = 9.0
"""Width of a full-width figure in inches."""

DPI = 150
"""Pixels per inch of PNG files and of the rasterised parts of PDF files."""

_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,
    "svg.hashsalt": "raysense",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style; matplotlib's global settings are restored afterwards."""
    with mpl.rc_context(_RC):
        yield


def figure_bytes(figure: Figure, format: str) -> bytes:
    """A figure as a ``png``, ``pdf`` or ``svg`` file, the same bytes each time."""
    stream = io.BytesIO()
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(format)
    with styled(), warnings.catch_warnings():
        # Class names may be in scripts that the bundled font lacks; their boxes are drawn, the page has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format=format, metadata=undated)
    return stream.getvalue()


def number(value: float | None) -> str:
    """Three significant digits, as in the paper's tables: 0.0310, 2.16, 2.87e-3, 1.47e4; a dash where unknown."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 0.00995 <= abs(value) < 999.5:
        return f"{value:#.3g}".rstrip(".")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def abbreviated(text: str, length: int) -> str:
    """Text cut in the middle to at most ``length`` characters, on one line, without control characters."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    if len(clean) <= length:
        return clean
    head = length // 2
    tail = length - 1 - head
    return f"{clean[:head]}…{clean[-tail:]}"
