"""Pixel maps: FI of every k x k square of an image, all scales from one Jacobian (Shu & Zhu 2019, Setup 4).

The Gram matrix of a square is the sum of those of its pixels, so that sums over boxes of per-pixel Gram matrices give
every scale. A square of fewer than K - 1 values is solved from the gradients themselves, which is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from raysense.measures.fisher import (
    gram_matrix,
    influence,
    influence_of_rows,
    odds_against,
    published_influence,
    published_influence_of_rows,
)
from raysense.measures.gradients import Model, forward, forward_with_graph, input_gradients
from raysense.measures.merged import MergedClasses, by_probability

_RANK_RULES = ("invariant", "published")

_COPIES = 8  # what the matrix of a square goes through until it is solved takes about this many times its bytes
_DOUBLE = 8  # bytes of a float64


@dataclass(frozen=True)
class PixelMaps:
    """FI of the squares of N images of H x W pixels and C channels.

    Attributes:
        maps: For every scale k, and None or a channel, [N, H, W] float64: FI of the k x k square centred at each pixel,
            clipped at the borders; of all channels jointly (None) or of one alone. NaN in all maps of a sample whose
            logits or gradients are not finite, or whose gradients' squares are not.
        bound: [N] float64, (1 - p_y) / p_y, which no FI of the invariant rule exceeds; NaN where the maps are.
        n_backward: [N] int64, backward passes spent on the sample.
        logits: [N, K] float64.
    """

    maps: dict[tuple[int, int | None], Tensor]
    bound: Tensor
    n_backward: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Strip:
    """Rows of an image: maps are made of ``start`` to ``stop``, from gradients of ``first`` to ``last``."""

    start: int
    stop: int
    first: int
    last: int


def pixel_maps(
    model: Model,
    images: Tensor,
    classes: Tensor | None = None,
    scales: Sequence[int] = (1, 3, 5, 7),
    channels: bool = False,
    rank_rule: str = "invariant",
    memory_bytes: int = 2**29,
) -> PixelMaps:
    """Exact FI of f = -log p_y for every k x k square, from K - 1 backward passes.

    Args:
        model: Maps images to logits [N, K], sample by sample, with no randomness.
        images: [N, C, H, W].
        classes: [N] int64, the class y of each sample; None takes the predicted one.
        scales: Odd k of at least 1. A square that covers the image has the FI of the whole input.
        channels: Whether there are maps of single channels besides those of all channels jointly.
        rank_rule: ``invariant`` (relative threshold) or ``published`` (the authors' absolute thresholds).
        memory_bytes: Bound on the gradients held at once, and on the matrices made from them. Samples are taken in
            groups that keep it; an image whose own gradients exceed it is done in strips of rows, with K - 1 passes for
            each. A strip has at least the rows of one square, and one square is solved at once, whatever the bound.

    Raises:
        ValueError: A scale or the rank rule is not valid.
    """
    wrong = [scale for scale in scales if scale < 1 or scale % 2 == 0]
    if wrong or not scales:
        raise ValueError(
            f"scales are odd and at least 1, such as (1, 3, 5, 7), not {wrong[0] if wrong else tuple(scales)}"
        )
    if rank_rule not in _RANK_RULES:
        raise ValueError(f"rank_rule is one of {', '.join(_RANK_RULES)}, not {rank_rule!r}")
    logits = forward(model, images).double()
    classes = logits.argmax(1) if classes is None else classes
    finite = torch.isfinite(logits).all(1)
    safe = torch.where(finite[:, None], logits, 0.0)
    (_, depth, height, width), count = images.shape, logits.shape[1]
    keys: list[tuple[int, int | None]] = [(scale, None) for scale in scales]
    keys += [(scale, channel) for scale in scales for channel in range(depth) if channels]
    maps = {key: logits.new_full((len(images), height, width), torch.nan) for key in keys}
    n_backward = torch.zeros_like(classes)
    row_bytes = count * depth * width * images.element_size()
    strips = _strips(height, max(scales) // 2, memory_bytes // row_bytes)
    size = max(1, memory_bytes // (height * row_bytes + _DOUBLE * count**2))
    for group in torch.split(torch.arange(len(images), device=images.device), size):
        problem = MergedClasses(safe[group], by_probability(safe[group], classes[group]))
        for strip in strips:
            squares = _Squares(model, images[group], problem, strip, rank_rule, memory_bytes)
            finite[group] &= squares.finite
            n_backward[group] += count - 1
            for (scale, channel), result in maps.items():
                for samples, rows, columns, fi in squares.solved(scale, channel):
                    result[group[samples], rows, columns] = fi
    for result in maps.values():
        result[~finite] = torch.nan
    bound = torch.where(finite, odds_against(safe, classes), torch.nan)
    return PixelMaps(maps, bound, n_backward, logits)


def _strips(height: int, reach: int, held: int) -> list[_Strip]:
    """Strips of about equal height, with the rows within reach on both sides.

    Args:
        height: Of the image.
        reach: Half the largest square.
        held: How many rows' gradients may be held.
    """
    count = 1 if held >= height else -(-height // max(1, held - 2 * reach))
    edges = [height * index // count for index in range(count + 1)]
    return [_Strip(start, stop, max(0, start - reach), min(height, stop + reach)) for start, stop in pairwise(edges)]


class _Squares:
    """The squares centred in a strip of n images.

    Classes are in the order reference, which has no row since its difference to itself is zero, and then the others.

    Attributes:
        finite: [n] bool; what is solved of the other samples means nothing.
    """

    def __init__(
        self, model: Model, images: Tensor, problem: MergedClasses, strip: _Strip, rank_rule: str, memory_bytes: int
    ) -> None:
        positions, weights = problem.scalars()
        order = torch.stack((problem.reference, *positions), dim=1)
        self._logits = problem.logits.gather(1, order)
        self._class = problem.reference  # y is first but for the reference, unless it is that itself
        self._strip, self._published, self._memory = strip, rank_rule == "published", memory_bytes
        self._height = images.shape[2]
        above, below = images[:, :, : strip.first], images[:, :, strip.last :]
        raw, inputs = forward_with_graph(
            lambda held: model(torch.cat((above, held, below), dim=2)), images[:, :, strip.first : strip.last]
        )
        self._rows = input_gradients(raw, inputs, weights).unflatten(2, inputs.shape[1:])
        # Extrema, since isfinite would take as much memory as the gradients.
        low, high = torch.aminmax(self._rows.flatten(1), dim=1)
        largest = torch.maximum(low.abs(), high.abs()).double()
        self.finite = torch.isfinite(largest**2 * self._rows[0].numel())
        self._rows[~self.finite] = 0.0

    def solved(self, scale: int, channel: int | None) -> Iterator[tuple[slice, slice, slice, Tensor]]:
        """FI of the squares of one scale, in tiles: which samples, rows and columns of the maps, and FI [s, t, u]."""
        rows = self._rows if channel is None else self._rows[:, :, channel : channel + 1]
        samples, others, depth, _, width = rows.shape
        reach = (min(scale // 2, self._height - 1), min(scale // 2, width - 1))
        sides = (2 * reach[0] + 1, 2 * reach[1] + 1)
        values = depth * min(sides[0], self._height) * min(sides[1], width)
        by_boxes = values >= others and self._box_bytes(1, 1, sides) <= self._memory
        cost = self._box_bytes if by_boxes else partial(self._row_bytes, depth=depth)
        solve = self._from_boxes if by_boxes else self._from_rows
        top, bottom = self._strip.start - self._strip.first, self._strip.stop - self._strip.first
        together, tall, wide = _tile(lambda t, u: cost(t, u, sides) / self._memory, samples, bottom - top, width)
        for sample in range(0, samples, together):
            chosen = slice(sample, min(sample + together, samples))
            for row in range(top, bottom, tall):
                for column in range(0, width, wide):
                    until = (min(row + tall, bottom), min(column + wide, width))
                    tile = _window(rows[chosen], (row, column), until, reach)
                    yield (
                        chosen,
                        slice(row + self._strip.first, until[0] + self._strip.first),
                        slice(column, until[1]),
                        solve(tile, chosen, sides),
                    )

    def _box_bytes(self, tall: int, wide: int, sides: tuple[int, int]) -> int:
        """Bytes for a tile by box sums: Gram matrices of the pixels, their sums along rows, and the solution's."""
        pixels = (tall + sides[0] - 1) * (wide + sides[1] - 1)
        return _DOUBLE * self._logits.shape[1] ** 2 * (2 * pixels + _COPIES * tall * wide)

    def _row_bytes(self, tall: int, wide: int, sides: tuple[int, int], depth: int) -> int:
        """Bytes for a tile from the gradients of every square."""
        count = self._logits.shape[1]
        return _DOUBLE * tall * wide * _COPIES * count * depth * sides[0] * sides[1]

    def _from_boxes(self, tile: Tensor, chosen: slice, sides: tuple[int, int]) -> Tensor:
        tile = tile.permute(0, 3, 4, 1, 2)
        pixels = gram_matrix(tile.flatten(0, 2)).unflatten(0, tile.shape[:3])
        gram = _sliding_sum(_sliding_sum(pixels, 2, sides[1]), 1, sides[0])
        shape = gram.shape[:3]
        gram = pad(gram.flatten(0, 2), (1, 0, 1, 0))
        logits, classes, reference = self._repeated(chosen, shape)
        if self._published:
            return published_influence(logits, gram, classes)[0].view(shape)
        return influence(logits, gram, classes, reference).fi.view(shape)

    def _from_rows(self, tile: Tensor, chosen: slice, sides: tuple[int, int]) -> Tensor:
        squares = tile.unfold(3, sides[0], 1).unfold(4, sides[1], 1).permute(0, 3, 4, 1, 2, 5, 6)
        shape = squares.shape[:3]
        rows = pad(squares.flatten(4).flatten(0, 2).double(), (0, 0, 1, 0))
        logits, classes, reference = self._repeated(chosen, shape)
        if self._published:
            return published_influence_of_rows(logits, rows, classes)[0].view(shape)
        return influence_of_rows(logits, rows, classes, reference).fi.view(shape)

    def _repeated(self, chosen: slice, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, classes and references of every square of a tile."""
        times = shape[1] * shape[2]
        classes = self._class[chosen].repeat_interleave(times)
        return self._logits[chosen].repeat_interleave(times, dim=0), classes, torch.zeros_like(classes)


def _tile(share: Callable[[int, int], float], samples: int, tall: int, wide: int) -> tuple[int, int, int]:
    """How many samples, rows and columns to solve at once.

    Args:
        share: The part of the memory that so many rows and columns of one sample take.
        samples: How many samples there are.
        tall: How many rows.
        wide: How many columns.
    """
    together = max(1, min(samples, int(1 / share(tall, wide))))
    while share(tall, wide) > 1 and (tall, wide) != (1, 1):
        tall, wide = (-(-tall // 2), wide) if tall >= wide else (tall, -(-wide // 2))
    return together, tall, wide


def _window(rows: Tensor, start: tuple[int, int], stop: tuple[int, int], reach: tuple[int, int]) -> Tensor:
    """Gradients [n, M, C, H, W] of the pixels within reach of a tile, with zeros for those outside the image."""
    edges: list[int] = []
    for axis in (0, 1):
        first, last = start[axis] - reach[axis], stop[axis] + reach[axis]
        length = rows.shape[3 + axis]
        rows = rows.narrow(3 + axis, max(0, first), min(last, length) - max(0, first))
        edges = [max(0, -first), max(0, last - length), *edges]
    return pad(rows, edges)


def _sliding_sum(values: Tensor, axis: int, side: int) -> Tensor:
    """Sums of ``side`` neighbours; each is added by itself, since differences of running sums would lose small ones."""
    length = values.shape[axis] - side + 1
    total = values.narrow(axis, 0, length).clone()
    for offset in range(1, side):
        total += values.narrow(axis, offset, length)
    return total
