"""Procedural vehicles: aeroplanes and cars."""

from __future__ import annotations

from random import Random

import numpy as np

from raysense.semantics.solids import Floats, Solid, box, joined, lofted, outline, revolved, smooth


def aeroplane(draw: Random) -> Solid:
    """An airliner that flies towards +z: fuselage, swept wings with engines below, tail."""
    length, radius = draw.uniform(1.7, 2.2), draw.uniform(0.13, 0.19)
    sizes = smooth([(0.1, -0.5), (0.55, -0.36), (1.0, -0.1), (1.0, 0.3), (0.62, 0.46), (0.12, 0.5)], 18)
    # Revolved upright, nose up, then laid down; the tail bends upwards.
    fuselage = revolved(sizes * (radius, length), outline(24)).turned("x", 90)
    rise = np.maximum(-fuselage.vertices[:, 2] / length - 0.1, 0) ** 2 * length * 0.35
    fuselage = Solid(fuselage.vertices + np.stack((0 * rise, rise, 0 * rise), axis=1), fuselage.faces)
    span, sweep, chord = draw.uniform(0.75, 1.1), draw.uniform(0.2, 0.55), draw.uniform(0.32, 0.45)
    lift = draw.uniform(0.03, 0.16)
    parts = [fuselage]
    for side in (-1, 1):
        root, tip = (0.0, -0.3 * radius, 0.12), (side * span, lift, 0.12 - sweep)
        parts.append(_blade(root, tip, chord, chord * draw.uniform(0.3, 0.4), 0.05))
        parts.append(_engine(root, tip, chord, draw.uniform(0.06, 0.08)))
        tail = -0.46 * length
        parts.append(
            _blade((0, 0.1, tail + 0.16), (side * 0.36 * span, 0.15, tail + 0.16 - 0.4 * sweep), 0.2, 0.1, 0.025)
        )
    fin = draw.uniform(0.32, 0.45)
    parts.append(_blade((0, 0.08, -0.42 * length), (0, 0.1 + fin, -0.42 * length - 0.2), 0.28, 0.14, 0.03))
    return joined(parts)


def car(draw: Random) -> Solid:
    """A car that drives towards +z: body with bonnet, cabin and boot, four wheels, two lights, mirrors."""
    length, width, height = draw.uniform(1.7, 2.1), draw.uniform(0.7, 0.85), draw.uniform(0.3, 0.38)
    cabin, roof = draw.uniform(0.3, 0.42), draw.uniform(0.4, 0.6)
    wheel, ground = draw.uniform(0.17, 0.21), 0.14
    section = outline(28, width / 2, length / 2, 5)
    body = revolved(
        [(0.94, ground), (1, ground + 0.3 * height), (1, ground + 0.75 * height), (0.93, ground + height)], section
    )
    back = draw.uniform(-0.3, -0.12) * length
    rings = []
    for level, wide, low, high in (
        (0.95 * height, 0.9, back - 0.5 * roof - 0.12, back + roof + 0.14),
        (height + 0.9 * cabin, 0.74, back - 0.42 * roof, back + 0.5 * roof),
        (height + cabin, 0.66, back - 0.34 * roof, back + 0.4 * roof),
    ):
        ring = outline(28, wide * width / 2, (high - low) / 2, 5)
        rings.append(np.stack((ring[:, 0], np.full(28, ground + level), ring[:, 1] + (low + high) / 2), axis=1))
    parts = [body, lofted(rings)]
    tyre = [(0.55 * wheel, -0.07), (wheel, -0.06), (wheel, 0.06), (0.55 * wheel, 0.07)]
    for side in (-1, 1):
        x = side * width / 2
        parts += [revolved(tyre, outline(22)).turned("z", 90).moved((0.87 * x, wheel, z * length)) for z in (-0.3, 0.3)]
        light = revolved([(0.05, -0.02), (0.06, 0.02), (0.03, 0.05)], outline(12)).turned("x", 90)
        parts.append(light.moved((0.62 * x, ground + 0.6 * height, 0.485 * length)))
        parts.append(box((0.1, 0.07, 0.05), (1.02 * x, ground + height + 0.03, back + roof)))
    return joined(parts)


def _blade(root: tuple[float, ...], tip: tuple[float, ...], root_chord: float, tip_chord: float, thick: float) -> Solid:
    """A wing from root to tip: thin lens-shaped sections along z, their thickness across the span."""
    start, end = np.array(root), np.array(tip)
    across = np.cross(end - start, (0, 0, 1))
    across /= np.linalg.norm(across)
    profile: Floats = outline(14, 0.5, 0.5)
    rings = []
    for part in np.linspace(0, 1, 5):
        chord = root_chord + part * (tip_chord - root_chord)
        height = thick * chord / root_chord
        ring = profile[:, :1] * chord * np.array([0, 0, 1.0]) + profile[:, 1:] * height * across
        rings.append(start + part * (end - start) + ring)
    return lofted(rings)


def _engine(root: tuple[float, ...], tip: tuple[float, ...], chord: float, radius: float) -> Solid:
    """An engine below the wing, hollow in front."""
    at = np.array(root) + 0.38 * (np.array(tip) - np.array(root)) + (0, -radius * 1.05, 0.22 * chord)
    shape = [(0.55, -1.6), (0.85, -0.8), (1.0, 0.4), (0.9, 1.2), (0.75, 1.1), (0.7, 0.5)]
    return revolved(np.array(shape) * radius, outline(16)).turned("x", 90).moved(at)
