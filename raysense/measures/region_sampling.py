"""Points in and around boxes: stratified random ones, space-filling ones, and seeds that depend on a box alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from raysense.measures.surrogate import distances

POOL = 6
"""Random points among which each of ``around`` is chosen."""


def seeded(seed: int, *identity: Tensor) -> torch.Generator:
    """A generator whose numbers depend on the seed and on the values of the tensors, nothing else."""
    digest = hashlib.sha256(str(seed).encode())
    for part in identity:
        digest.update((part.detach().cpu().double() + 0.0).numpy().tobytes())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "little") >> 1)


def strata(lower: Tensor, upper: Tensor, count: int, sides: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cuts boxes into parts of equal volume, halving the longest side again and again.

    Args:
        lower: [B, n] float64.
        upper: [B, n].
        count: Parts of each box.
        sides: [B, n] lengths by which the longest side is chosen; by default those of the box.

    Returns:
        Lower and upper bounds of the parts, [B, count, n] each.
    """
    lows, highs = lower[:, None], upper[:, None]
    longs = (upper - lower if sides is None else sides)[:, None]
    counts = torch.tensor([count])
    while int(counts.max()) > 1:
        splits = counts > 1
        left = torch.where(splits, (counts + 1) // 2, counts)
        share = torch.where(splits, left / counts, 1.0).to(lower.dtype)[None, :, None]
        along = torch.nn.functional.one_hot(longs.argmax(-1), longs.shape[-1]).bool()
        cut = torch.where(along, lows + share * (highs - lows), highs)
        rest = torch.where(along & splits[None, :, None], cut, lows)
        shorter = torch.where(along, longs * share, longs)
        other = torch.where(along & splits[None, :, None], longs * (1 - share), longs)
        # A part that is not cut stays one part; its second half is dropped.
        lows, highs = torch.stack((lows, rest), 2).flatten(1, 2), torch.stack((cut, highs), 2).flatten(1, 2)
        longs = torch.stack((shorter, other), 2).flatten(1, 2)
        counts = torch.stack((left, counts - left), 1).flatten()
        kept = counts > 0
        lows, highs, longs, counts = lows[:, kept], highs[:, kept], longs[:, kept], counts[kept]
    return lows, highs


def stratified(lower: Tensor, upper: Tensor, strata_count: int, each: int, generators: list[torch.Generator]) -> Tensor:
    """Uniform random points, ``each`` in every one of ``strata_count`` parts of equal volume.

    Args:
        lower: [B, n] float64.
        upper: [B, n].
        strata_count: Parts of each box.
        each: Points in each part.
        generators: One a box.

    Returns:
        [B, strata_count, each, n] float64.
    """
    lows, highs = strata(lower, upper, strata_count)
    shape = (strata_count, each, lower.shape[1])
    random = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators]
    uniform = torch.stack(random) if random else lower.new_zeros(0, *shape)
    return lows[:, :, None] + uniform * (highs - lows)[:, :, None]


def spread(start: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """First points [count, n] of a growth: the start [n], and a stratified sample of the unit cube.

    Of more than two axes, half of the points lie on lines through the start, one line an axis: the cube is too large to be
    filled, and these lines show how far the start's surroundings reach.
    """
    dimensions = len(start)
    on_lines = 0 if dimensions <= 2 else count // 2 // dimensions
    cube = start.new_zeros(1, dimensions), start.new_ones(1, dimensions)
    parts = [start[None], stratified(*cube, count - 1 - on_lines * dimensions, 1, [generator])[0, :, 0]]
    for axis in range(dimensions if on_lines else 0):
        line = start.repeat(on_lines, 1)
        jitter = torch.rand(on_lines, generator=generator, dtype=torch.float64)
        line[:, axis] = (torch.arange(on_lines) + jitter) / on_lines
        parts.append(line)
    return torch.cat(parts)


def around(
    box: tuple[Tensor, Tensor],
    reach: Tensor,
    known: Tensor,
    periodic: Tensor,
    lengths: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """New points in and around a box, each as far from all others as possible.

    Args:
        box: Bounds [n] each, as shares of the axes.
        reach: [n], how far around it points may lie; of more than two axes beyond one face at a time, since otherwise the
            corners would take them all.
        known: [N, n] points already there.
        periodic: [n] bool.
        lengths: [n], what distances along the axes are measured in.
        count: How many.
        generator: Of the random points among which they are chosen.

    Returns:
        [count, n] float64; periodic coordinates lie in [0, 1).
    """
    low = torch.where(periodic, box[0] - reach, (box[0] - reach).clamp(min=0))
    high = torch.where(periodic, box[1] + reach, (box[1] + reach).clamp(max=1))
    excess = torch.where(periodic, (high - low - 1).clamp(min=0) / 2, 0.0)  # at most a whole turn
    low, high = low + excess, high - excess
    if len(reach) <= 2:
        pool = stratified(low[None], high[None], POOL * count, 1, [generator])[0, :, 0]
    else:
        pool = stratified(box[0][None], box[1][None], POOL * count, 1, [generator])[0, :, 0]
        axis = torch.randint(len(reach), (len(pool),), generator=generator)
        place = torch.rand(len(pool), generator=generator, dtype=torch.float64)
        pool[torch.arange(len(pool)), axis] = low[axis] + place * (high - low)[axis]
    pool = torch.where(periodic, torch.remainder(pool, 1.0), pool)
    nearest = distances(pool, known, lengths, periodic).amin(1)
    between = distances(pool, pool, lengths, periodic)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, between[chosen[-1]])
    return pool[chosen]
