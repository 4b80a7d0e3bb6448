"""Many points on a logarithmic axis: clamping what cannot be drawn, thinning what cannot be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOWEST = 1e-16
HIGHEST = 1e16
THIN_ABOVE = 100_000


@dataclass(frozen=True)
class LogValues:
    """log10 of non-negative values, and how many of them are too small or too large for the scale.

    Attributes:
        logs: Shape ``[N]``; values outside `LOWEST` .. `HIGHEST` stand at the edges of the scale.
        below: How many lie below `LOWEST`, zeros included.
        zeros: How many are exactly 0.
        above: How many lie above `HIGHEST`, infinite ones included.
    """

    logs: NDArray[np.float64]
    below: int
    zeros: int
    above: int

    @classmethod
    def of(cls, values: NDArray[np.float64], edges: tuple[float, float]) -> LogValues:
        """Clamp ``values``, shape ``[N]``, to ``edges`` (see `scale_edges`), and take logarithms."""
        return cls(
            logs=np.log10(np.clip(values, *edges)),
            below=int((values < LOWEST).sum()),
            zeros=int((values == 0).sum()),
            above=int((values > HIGHEST).sum()),
        )

    def says(self, what: str) -> str:
        """A sentence on what was clamped, empty where nothing was."""
        parts = []
        if self.below:
            zeros = f" ({self.zeros:,} of them exactly 0)" if self.zeros else ""
            parts.append(f"{self.below:,} {what} below 1e-16{zeros} at the lower edge")
        if self.above:
            parts.append(f"{self.above:,} {what} above 1e16 at the upper edge")
        return f" Drawn at the edges of the scale: {', '.join(parts)}." if parts else ""


def scale_edges(values: NDArray[np.float64]) -> tuple[float, float]:
    """Where values that are off the scale are drawn: a decade beyond those between `LOWEST` and `HIGHEST`."""
    inside = values[(values >= LOWEST) & (values <= HIGHEST)]
    if not len(inside):
        return LOWEST, HIGHEST
    low, high = float(inside.min()), float(inside.max())
    return (low / 10 if (values < LOWEST).any() else low), (high * 10 if (values > HIGHEST).any() else high)


def visible(x: NDArray[np.float64], y: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.int64]:
    """Positions of the points to draw: all, or of more than `THIN_ABOVE` one for every pixel that is hit.

    No point is further than a pixel from one that is drawn, so extremes are never lost.

    Args:
        x: Shape ``[N]``.
        y: Shape ``[N]``.
        columns: Width of the plot in pixels.
        rows: Height of the plot in pixels.
    """
    if len(x) <= THIN_ABOVE:
        return np.arange(len(x))
    cell = _pixels(x, columns) * rows + _pixels(y, rows)
    first: NDArray[np.int64] = np.unique(cell, return_index=True)[1]
    return first


def says_thinned(drawn: int, total: int, what: str) -> str:
    """A sentence on thinning, empty where everything is drawn."""
    if drawn == total:
        return ""
    return f" Of {total:,} {what} {drawn:,} are drawn, one for every pixel that any of them falls on."


def _pixels(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    low, high = float(values.min()), float(values.max())
    scaled: NDArray[np.float64] = np.minimum((values - low) * (count / ((high - low) or 1.0)), count - 1)
    return scaled.astype(np.int64)
