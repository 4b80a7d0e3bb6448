"""Which triangle is seen at each sample of a raster: scan conversion and z-buffer, in PyTorch operations alone.

Triangles are cut into spans, the samples of one row between two edges (found exactly, not by testing a bounding box), and
spans into fragments, one for each sample. A fragment's inverse depth, as a fixed-point number, and its triangle's number
are one 64-bit integer, which is linear in x along the span: the fragments of a span are an arithmetic progression, and the
z-buffer is a scatter with maximum. Nothing here is differentiable; see `antialias` for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from raysense.semantics.camera import NEAR

_KEY_BITS = 62
_SPAN_BYTES = 400  # of intermediates, for each row of a triangle
_FRAGMENT_BYTES = 64
_TRIANGLE_BYTES = 400
_TINY = 1e-30


class Spans(NamedTuple):
    """Samples in one row of the raster that one triangle covers, for each of S spans.

    Attributes:
        samples: [S] int64, how many; 0 where the triangle passes between two samples.
        first: [S] int64, place of the leftmost one in the flattened z-buffer.
        inverse_depth: [S], at it.
        slope: [S], difference of the inverse depths of neighbours.
        number: [S] int64, what identifies the triangle.
    """

    samples: Tensor
    first: Tensor
    inverse_depth: Tensor
    slope: Tensor
    number: Tensor


class Keyed(NamedTuple):
    """The same with z-buffer keys: inverse depth as a fixed-point number above, the triangle's number below.

    Attributes:
        samples: [S] int64.
        first: [S] int64.
        key: [S] int64, at the leftmost sample.
        step: [S] int64, difference of the keys of neighbours.
    """

    samples: Tensor
    first: Tensor
    key: Tensor
    step: Tensor


class Seen(NamedTuple):
    """What a raster shows.

    Attributes:
        triangle: [B, size, size] int64, the nearest triangle at each sample; T, the number of triangles, for none.
        key: [B, size, size] int64, z-buffer.
        id_bits: Bits of a key that hold the triangle's number.
        scale: Of the inverse depth in the bits above.
    """

    triangle: Tensor
    key: Tensor
    id_bits: int
    scale: float

    @property
    def inverse_depth(self) -> Tensor:
        """1 / z at each sample, [B, size, size] float64, in inverse model units; 0 where no triangle is."""
        return (self.key >> self.id_bits).double() / self.scale


def rasterize(
    points: Tensor,
    corners: Tensor,
    pose: Tensor,
    poses: int,
    size: int,
    memory_bytes: int = 2**28,
    most: int | None = None,
) -> Seen:
    """The nearest triangle at every sample.

    A sample is covered by a triangle if it lies in it or on its edge; edges that triangles share leave no gaps. Of
    triangles at the same depth the first is shown.

    Args:
        points: [N, 3] float64 (or float32, which rounds the edges), x and y in samples and inverse depth above 0.
        corners: [3, T] int64, rows of ``points``, in any orientation.
        pose: [T] int64, which raster each triangle is drawn on.
        poses: Number B of rasters.
        size: Samples along a side.
        memory_bytes: About how much memory the intermediates may take, besides arguments and result.
        most: At least the number of triangles on any raster; None counts. The resolution of depths depends on it, and so
            does what is shown of faces at equal depths: give the same for results that do not depend on the other rasters.
    """
    count = corners.shape[1]
    rank, first, order = _ranked(pose, poses)
    most = max(1, most or (int(rank.max()) + 1 if count else 1))
    id_bits = most.bit_length()
    buffer = torch.zeros(poses * size * size, dtype=torch.int64, device=points.device)
    x, y, w = points.T.contiguous()
    scale = 2.0 ** (_KEY_BITS - id_bits) / (1.0001 * max(1 / NEAR, float(w.max()) if count else 0.0))
    for part in _parts(count, memory_bytes // _TRIANGLE_BYTES):
        seen = _holding_samples(x, y, corners[:, part], size) + part.start
        ordered = _by_height(y, corners.index_select(1, seen))
        raster = pose.index_select(0, seen) * (size * size)
        number = most - rank.index_select(0, seen)
        for spans in _spans(x, y, w, ordered, raster, number, size, memory_bytes // _SPAN_BYTES):
            keyed = _keyed(spans, scale, id_bits)
            ends = keyed.samples.cumsum(0)
            for piece in _balanced(ends, memory_bytes // _FRAGMENT_BYTES):
                _draw(Keyed(*(field[piece] for field in keyed)), buffer)
    # The first triangle of a raster has the largest number, nothing has 0.
    key = buffer.view(poses, size, size)
    shown = (key & (2**id_bits - 1)).neg_().add_((first + most)[:, None, None])
    if order is not None:
        shown = order.index_select(0, shown.clamp_(max=count - 1).view(-1)).view(key.shape)
    return Seen(shown.masked_fill_(key == 0, count), key, id_bits, scale)


def _ranked(pose: Tensor, poses: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Place of every triangle among those of its raster, [T]; triangles before each raster's, [B]; the order of both.

    The order is that of the triangles by raster, [T]; None where they are in it already.
    """
    places = torch.arange(len(pose), device=pose.device)
    rasters = torch.arange(poses, device=pose.device)
    if bool((pose[1:] >= pose[:-1]).all()):
        first = torch.searchsorted(pose, rasters)
        return places - first.index_select(0, pose), first, None
    ordered, order = pose.sort(stable=True)
    first = torch.searchsorted(ordered, rasters)
    return torch.empty_like(places).scatter_(0, order, places - first.index_select(0, ordered)), first, order


def _parts(count: int, length: int) -> Iterator[slice]:
    """0 .. count in parts of a length, or of one if that is less."""
    length = max(1, length)
    return (slice(start, min(start + length, count)) for start in range(0, count, length))


def _balanced(ends: Tensor, most: int) -> Iterator[slice]:
    """Parts of items with running total ``ends``, each part of about ``most`` in total and at least one item."""
    total = int(ends[-1]) if len(ends) else 0
    if total <= most:
        yield slice(0, len(ends))
        return
    bounds = torch.arange(1, -(-total // max(1, most)), device=ends.device) * max(1, most)
    cuts = torch.searchsorted(ends, bounds).unique().tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(ends)], strict=True):
        yield slice(start, stop)


def _holding_samples(x: Tensor, y: Tensor, corners: Tensor, size: int) -> Tensor:
    """Which triangles have bounding boxes that hold a sample of the raster."""
    holds = []
    for values in (x, y):
        a, b, c = (values.index_select(0, row) for row in corners)
        low = torch.minimum(torch.minimum(a, b), c).ceil_().clamp_(min=0)
        high = torch.maximum(torch.maximum(a, b), c).floor_().clamp_(max=size - 1)
        holds.append(low <= high)
    return (holds[0] & holds[1]).nonzero()[:, 0]


def _by_height(y: Tensor, corners: Tensor) -> Tensor:
    """The corners [3, K] of every triangle from the top of the picture downwards.

    Neighbours so see a shared edge from the same end and compute the same crossings with rows, to the last bit.
    """
    a, b, c = (y.index_select(0, row) for row in corners)
    ab, ac, bc = (a > b).long(), (a > c).long(), (b > c).long()
    return torch.empty_like(corners).scatter_(0, torch.stack((ab + ac, 1 - ab + bc, 2 - ac - bc)), corners)


def _spans(
    x: Tensor, y: Tensor, w: Tensor, ordered: Tensor, raster: Tensor, number: Tensor, size: int, most: int
) -> Iterator[Spans]:
    """Spans of triangles, about ``most`` at a time.

    Args:
        x, y, w: Coordinates and inverse depths of the points, [N].
        ordered: [3, K], as from :func:`_by_height`.
        raster: [K] int64, where each triangle's raster begins in the z-buffer.
        number: [K] int64, what identifies the triangle.
        size: Samples along a side.
        most: Spans that fit the memory.
    """
    count = ordered.shape[1]
    xs, ys, ws = (values.index_select(0, ordered.view(-1)).view(3, count) for values in (x, y, w))
    first = ys[0].ceil().clamp_(min=0).long()
    rows = ys[2].floor().clamp_(max=size - 1).long().sub_(first).add_(1)
    ends = rows.cumsum(0)
    # The edges top to bottom, top to middle and middle to bottom: [3, K] each.
    begin, end = torch.tensor([[0, 0, 1], [2, 1, 2]], device=x.device)
    tops = ys[begin]
    heights = ys[end] - tops
    inverse = heights.reciprocal().masked_fill_(heights <= 0, 0)
    x_starts, w_starts = xs[begin], ws[begin]
    x_slopes, w_slopes = (xs[end] - x_starts).mul_(inverse), (ws[end] - w_starts).mul_(inverse)
    for part in _balanced(ends, most):
        number_of_rows = int(ends[part][-1] - ends[part][0] + rows[part][0]) if part.stop > part.start else 0
        which = torch.repeat_interleave(rows[part], output_size=number_of_rows) + part.start
        start = (first - ends + rows) + (int(ends[part.start - 1]) if part.start else 0)
        row = torch.arange(number_of_rows, device=x.device) + start.index_select(0, which)
        height = row.to(x.dtype)
        below = height >= ys[1].index_select(0, which)
        edges = (which, which + count + count * below)
        sides = []
        for edge in edges:
            down = height - tops.view(-1).index_select(0, edge)
            sides.append(
                [
                    torch.addcmul(starts.view(-1).index_select(0, edge), slopes.view(-1).index_select(0, edge), down)
                    for starts, slopes in ((x_starts, x_slopes), (w_starts, w_slopes))
                ]
            )
        (x_long, w_long), (x_short, w_short) = sides
        left = torch.minimum(x_long, x_short).ceil_().clamp_(min=0)
        right = torch.maximum(x_long, x_short).floor_().clamp_(max=size - 1)
        across = x_short - x_long
        # (dw / dx) without a division by zero: where dx is 0 there is one sample at most and the slope is not needed.
        slope = (w_short - w_long) * across / (across * across + _TINY)
        yield Spans(
            (right - left).add_(1).clamp_(min=0).long(),
            torch.addcmul(raster.index_select(0, which), row, row.new_tensor(size)) + left.long(),
            torch.addcmul(w_long, slope, left - x_long),
            slope,
            number.index_select(0, which),
        )


def _keyed(spans: Spans, scale: float, id_bits: int) -> Keyed:
    """Keys at the beginnings of spans and their steps."""
    key = ((spans.inverse_depth.double() * scale).long() << id_bits) + spans.number
    return Keyed(spans.samples, spans.first, key, (spans.slope.double() * scale).long() << id_bits)


def _draw(spans: Keyed, buffer: Tensor) -> None:
    """Expand spans to fragments, and keep the largest key of every sample."""
    begin = spans.samples.cumsum(0)
    total = int(begin[-1]) if len(begin) else 0
    begin -= spans.samples
    which = torch.repeat_interleave(spans.samples, output_size=total)
    index = torch.arange(total, device=buffer.device)
    # Products may wrap around: sums of 64-bit integers are right all the same.
    key = (spans.key - begin * spans.step).index_select(0, which)
    key += index * spans.step.index_select(0, which)
    index += (spans.first - begin).index_select(0, which)
    buffer.scatter_reduce_(0, index, key, "amax")
