"""Procedural vessels: solids of revolution with handles and spouts."""

from __future__ import annotations

from random import Random

import numpy as np

from raysense.semantics.solids import Floats, Solid, joined, outline, revolved, smooth, tube

_SIDES = 32


def cup(draw: Random) -> Solid:
    """A mug with one handle towards +x."""
    radius, height, wall = draw.uniform(0.36, 0.5), draw.uniform(0.75, 1.15), draw.uniform(0.035, 0.05)
    foot = radius * draw.uniform(0.7, 1.0)
    body = _hollow([(foot, 0), (0.5 * (foot + radius), 0.45 * height), (radius, height)], wall)
    low, high = draw.uniform(0.15, 0.25) * height, draw.uniform(0.75, 0.88) * height
    ends = [foot + (radius - foot) * place / height - wall / 2 for place in (low, high)]
    handle = _handle(ends, (low, high), draw.uniform(0.28, 0.4), draw.uniform(0.045, 0.065))
    return joined((body, handle))


def teapot(draw: Random) -> Solid:
    """A pot with a lid, a spout towards -x and a handle towards +x."""
    radius, height = draw.uniform(0.5, 0.62), draw.uniform(0.65, 0.9)
    neck = draw.uniform(0.26, 0.34)
    body = revolved(
        smooth([(0.7 * radius, 0), (radius, 0.4 * height), (0.85 * radius, 0.8 * height), (neck, height)], 14),
        outline(_SIDES),
    )
    knob = draw.uniform(0.06, 0.09)
    lid_profile = [(neck + 0.03, 0), (neck + 0.02, 0.04), (0.5 * neck, 0.1), (0.4 * knob, 0.13), (knob, 0.13 + knob)]
    lid = revolved([*lid_profile, (0.6 * knob, 0.13 + 1.8 * knob)], outline(20)).moved((0, height, 0))
    reach, rise = draw.uniform(0.42, 0.6), draw.uniform(0.85, 1.05) * height
    start = -0.75 * radius
    line = smooth(
        [(start, 0.25 * height, 0), (-radius - 0.4 * reach, 0.45 * height, 0), (-radius - reach, rise, 0)], 10
    )
    spout = tube(line, np.linspace(0.15, 0.055, 10), sides=14)
    handle = _handle((0.85 * radius, 0.78 * radius), (0.22 * height, 0.82 * height), draw.uniform(0.36, 0.5), 0.055)
    return joined((body, lid, spout, handle))


def vase(draw: Random) -> Solid:
    """A tall hollow vase, fluted, with a large and a small handle."""
    height, belly = draw.uniform(1.3, 1.8), draw.uniform(0.38, 0.52)
    neck, mouth = draw.uniform(0.15, 0.22), draw.uniform(0.24, 0.36)
    place = draw.uniform(0.35, 0.5)
    shape = [(0.55 * belly, 0), (belly, place * height), (neck, 0.8 * height), (mouth, height)]
    body = _hollow(shape, 0.03, rings=14)
    flutes = 1 + draw.uniform(0.02, 0.05) * np.cos(
        draw.choice((6, 8)) * np.arctan2(body.vertices[:, 2], body.vertices[:, 0])
    )
    body = Solid(body.vertices * np.stack((flutes, np.ones_like(flutes), flutes), axis=1), body.faces)
    tops = 0.84 * height, draw.uniform(0.6, 0.75) * height
    handles = []
    for side, top in zip((0, 180), tops, strict=True):
        bottom = (place + 0.04) * height
        ends = [_size(shape, at) - 0.02 for at in (bottom, top)]
        handles.append(_handle(ends, (bottom, top), belly * draw.uniform(0.35, 0.55), 0.045).turned("y", side))
    return joined((body, *handles))


def bottle(draw: Random) -> Solid:
    """A flat bottle with a shoulder, a neck, a cap with a nozzle towards +x."""
    height, width = draw.uniform(1.5, 2.0), draw.uniform(0.34, 0.48)
    flat, square = draw.uniform(0.5, 0.7), draw.uniform(2.2, 4.0)
    shoulder, neck = draw.uniform(0.55, 0.7), draw.uniform(0.1, 0.14)
    profile = [(0.94 * width, 0), (width, 0.03), (width, shoulder * height * 0.5), (width, shoulder * height)]
    top = smooth([(width, shoulder * height), (0.75 * width, (shoulder + 0.08) * height), (neck, 0.86 * height)], 8)
    body = revolved([*profile, *top[1:], (neck, 0.92 * height)], outline(_SIDES, 1, flat, square))
    cap = revolved([(neck * 1.25, 0.9 * height), (neck * 1.25, height), (neck * 0.5, height + 0.05)], outline(20))
    line = smooth([(0, height + 0.02, 0), (0.6 * width, height + 0.03, 0), (0.9 * width, height - 0.04, 0)], 8)
    return joined((body, cap, tube(line, 0.045)))


def pan(draw: Random) -> Solid:
    """A pan with a long straight handle towards +x."""
    radius, depth = draw.uniform(0.5, 0.65), draw.uniform(0.14, 0.42)
    body = _hollow([(0.85 * radius, 0), (0.97 * radius, 0.6 * depth), (radius, depth)], 0.035)
    length, lift = draw.uniform(0.7, 1.1), draw.uniform(0.0, 0.25)
    line = smooth(
        [(radius - 0.03, 0.8 * depth, 0), (radius + 0.4 * length, 0.8 * depth + 0.6 * lift, 0),
         (radius + length, 0.8 * depth + lift, 0)], 9,
    )  # fmt: skip
    sizes = smooth([(0.05,), (0.045,), (0.075,)], 9)[:, 0]
    return joined((body, tube(line, sizes, sides=12, flatness=0.55)))


def _hollow(shape: list[tuple[float, float]], wall: float, rings: int = 10) -> Solid:
    """A vessel open at the top: up outside along a smooth (radius, height) shape, over the rim, down inside."""
    outside = smooth(shape, rings)
    inside = outside[::-1] - (wall, 0)
    inside[:, 1] = np.maximum(inside[:, 1], 1.5 * wall)
    rim = outside[-1] + (-wall / 2, 0.6 * wall)
    kept = [point for index, point in enumerate(inside) if index == 0 or point[1] < inside[index - 1][1]]
    return revolved([*outside, rim, *kept], outline(_SIDES))


def _handle(
    ends: list[float] | tuple[float, float], heights: tuple[float, float], reach: float, radius: float
) -> Solid:
    """A handle towards +x, from (x, y) at its lower end to its upper one, bulging by ``reach``."""
    (low_x, high_x), (low_y, high_y) = ends, heights
    outer = max(low_x, high_x) + reach
    span = high_y - low_y
    line: Floats = smooth(
        [(low_x, low_y, 0), (low_x + 0.6 * (outer - low_x), low_y - 0.04 * span, 0), (outer, low_y + 0.4 * span, 0),
         (high_x + 0.75 * (outer - high_x), high_y + 0.02 * span, 0), (high_x, high_y, 0)], 18,
    )  # fmt: skip
    return tube(line, radius, flatness=1.3)


def _size(shape: list[tuple[float, float]], height: float) -> float:
    """Radius of a smooth (radius, height) shape at a height."""
    curve = smooth(shape, 200)
    return float(np.interp(height, curve[:, 1], curve[:, 0]))
