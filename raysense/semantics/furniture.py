"""Procedural furniture: chairs, tables, benches, lamps, bathtubs."""

from __future__ import annotations

from random import Random

import numpy as np

from raysense.semantics.solids import Solid, box, joined, lofted, outline, revolved, smooth, tube


def chair(draw: Random) -> Solid:
    """A chair that faces +z: seat, four legs, a leaning back of slats, in some variants arm rests."""
    width, depth, seat = draw.uniform(0.8, 1.0), draw.uniform(0.75, 0.95), draw.uniform(0.75, 0.95)
    back, leg, lean = draw.uniform(0.8, 1.2), draw.uniform(0.07, 0.11), draw.uniform(4, 14)
    parts = [box((width, 0.09, depth), (0, seat, 0)), *_legs(width, depth, seat, leg, draw.uniform(0.6, 1.0))]
    slats = draw.choice((3, 4, 5))
    frame = [_post((side * (width - leg) / 2, back / 2, 0), (leg, back, leg)) for side in (-1, 1)]
    frame += [box((width, 0.14, 0.06), (0, back - 0.07, 0))]
    frame += [
        _post(((place + 0.5) / slats * (width - 2 * leg) - width / 2 + leg, back / 2, 0), (0.08, back, 0.04))
        for place in range(slats)
    ]
    parts += [part.turned("x", -lean).moved((0, seat, -(depth - leg) / 2)) for part in frame]
    if draw.random() < 0.5:
        for side in (-1, 1):
            x = side * (width - leg) / 2
            parts += [
                box((leg, 0.06, 0.85 * depth), (x, seat + 0.38, 0)),
                _post((x, seat + 0.2, 0.3 * depth), (leg, 0.36, leg)),
            ]
    return joined(parts)


def table(draw: Random) -> Solid:
    """A long table: a rounded top, four legs, an apron, a drawer's knobs on the side of +z."""
    width, depth, height = draw.uniform(1.5, 2.1), draw.uniform(0.75, 1.1), draw.uniform(0.75, 1.05)
    thick, leg = draw.uniform(0.05, 0.1), draw.uniform(0.07, 0.14)
    profile = [(0.985, height - thick), (1, height - 0.7 * thick), (1, height - 0.3 * thick), (0.985, height)]
    top = revolved(profile, outline(40, width / 2, depth / 2, draw.uniform(4, 14)))
    inner_width, inner_depth = 0.84 * width, 0.78 * depth
    parts = [top, *_legs(inner_width, inner_depth, height - thick / 2, leg, draw.uniform(0.5, 0.9))]
    parts.append(box((inner_width - leg, 0.14, inner_depth - leg), (0, height - thick - 0.06, 0)))
    for side in (-1, 1):
        at = (side * 0.2 * width, height - thick - 0.07, inner_depth / 2)
        parts.append(revolved([(0.03, -0.03), (0.05, 0.02), (0.02, 0.06)], outline(12)).turned("x", 90).moved(at))
    return joined(parts)


def bench(draw: Random) -> Solid:
    """A park bench that faces +z: planks along x on two side frames, a back of planks."""
    length, depth, seat = draw.uniform(1.8, 2.5), draw.uniform(0.6, 0.75), draw.uniform(0.5, 0.65)
    planks, rows, lean = draw.choice((3, 4)), draw.choice((2, 3)), draw.uniform(8, 18)
    plank = depth / planks
    parts = [box((length, 0.06, 0.8 * plank), (0, seat, (place + 0.5) * plank - depth / 2)) for place in range(planks)]
    parts += [
        box((length, 0.75 * 0.22, 0.06), (0, 0.18 + 0.22 * row, 0)).turned("x", -lean).moved((0, seat, -depth / 2))
        for row in range(rows)
    ]
    for side in (-1, 1):
        x = side * 0.4 * length
        parts.append(
            _post((0, 0.1 * rows + 0.05, 0), (0.07, 0.24 * rows + 0.2, 0.05))
            .turned("x", -lean)
            .moved((x, seat, -depth / 2 - 0.05))
        )
        parts += [_post((x, seat / 2, z), (0.08, seat, 0.08)) for z in (-0.4 * depth, 0.4 * depth)]
        arm = smooth([(x, seat, 0.42 * depth), (x, seat + 0.3, 0.3 * depth), (x, seat + 0.26, -0.6 * depth)], 10)
        parts.append(tube(arm, 0.035))
    return joined(parts)


def lamp(draw: Random) -> Solid:
    """A desk lamp: a round foot, a bent arm towards +x, a conical shade that looks down."""
    foot, lower, upper = draw.uniform(0.3, 0.42), draw.uniform(0.7, 1.0), draw.uniform(0.6, 0.9)
    reach, lean = draw.uniform(0.5, 0.8), draw.uniform(0.1, 0.3)
    base = revolved([(foot, 0), (foot, 0.05), (0.6 * foot, 0.1), (0.06, 0.13)], outline(28))
    elbow, head = (-lean, lower, 0.0), (reach, lower + 0.6 * upper, 0.0)
    arms = [
        tube(np.linspace((0, 0.1, 0), elbow, 4), 0.035), tube(np.linspace(elbow, head, 4), 0.03),
        revolved([(0.03, -0.06), (0.06, -0.03), (0.06, 0.03), (0.03, 0.06)], outline(14)).turned("x", 90).moved(elbow),
    ]  # fmt: skip
    size, length = draw.uniform(0.26, 0.38), draw.uniform(0.34, 0.5)
    outside = smooth([(0.08, 0), (0.55 * size, -0.35 * length), (size, -length)], 8)
    shade = revolved([*outside, *(outside[::-1] - (0.025, 0.02))], outline(28))
    bulb = revolved(smooth([(0.02, 0), (0.1, -0.2), (0.02, -0.3)], 8), outline(14))
    tilt = draw.uniform(10, 40)
    return joined((base, *arms, *(part.turned("z", tilt).moved(head) for part in (shade, bulb))))


def bathtub(draw: Random) -> Solid:
    """A free-standing tub along x, one end higher, with four feet and a tap at the end of +x."""
    length, width, height = draw.uniform(0.85, 1.05), draw.uniform(0.4, 0.52), draw.uniform(0.5, 0.65)
    slope, square, wall = draw.uniform(0.1, 0.25), draw.uniform(2.3, 3.2), 0.07
    outside = smooth([(0.72, 0.0), (0.86, 0.3 * height), (0.95, 0.7 * height), (1.0, height)], 9)
    inside = outside[::-1] - (wall, 0)
    inside[:, 1] = np.maximum(inside[:, 1], 1.2 * wall + 0.02 * np.arange(len(inside))[::-1])
    section = outline(36, length, width, square)
    rings = []
    for size, level in [*outside, (1.02 - wall / 2, height + 0.03), *inside]:
        ring = size * section
        lift = level * (1 + slope * np.maximum(-ring[:, 0] / length, 0) ** 2)
        rings.append(np.stack((ring[:, 0], lift, ring[:, 1]), axis=1))
    feet = [
        revolved([(0.05, -0.14), (0.07, -0.08), (0.05, 0.08)], outline(12)).moved((x * length, 0, z * width))
        for x in (-0.5, 0.5) for z in (-0.45, 0.45)
    ]  # fmt: skip
    spot = 0.93 * length
    tap = smooth(
        [
            (spot, height - 0.02, 0),
            (spot, height + 0.22, 0),
            (spot - 0.1, height + 0.3, 0),
            (spot - 0.22, height + 0.2, 0),
        ],
        12,
    )
    return joined((lofted(rings), *feet, tube(tap, 0.035)))


def _legs(width: float, depth: float, height: float, leg: float, taper: float) -> list[Solid]:
    """Four legs under the corners of a rectangle, thinner at the floor by ``taper``."""
    return [
        box((leg * taper, height, leg * taper), (x * (width - leg) / 2, height / 2, z * (depth - leg) / 2), 1 / taper)
        for x in (-1, 1) for z in (-1, 1)
    ]  # fmt: skip


def _post(at: tuple[float, float, float], size: tuple[float, float, float]) -> Solid:
    """A vertical bar with rounded edges."""
    half = size[1] / 2
    return revolved([(1, -half), (1, 0), (1, half)], outline(8, size[0] / 2, size[2] / 2, 4)).moved(at)
