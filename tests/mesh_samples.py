"""Meshes as files, written by hand for the tests, and a plain parse of OBJ to compare with."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CUBE = np.array([(x, y, z) for x in (0.1, 1.3) for y in (-0.2, 0.9) for z in (2.0, 2.7)])
"""A box's corners, exact in neither float32 nor few digits."""

QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
"""Its sides."""


def plain_obj(path: Path) -> tuple[Floats, list[list[int]]]:
    """Vertices and polygons of an OBJ with positive indices, read in the plainest way."""
    vertices, polygons = [], []
    for line in path.read_text().split("\n"):
        words = line.split()
        if words and words[0] == "v":
            vertices.append([float(word) for word in words[1:4]])
        if words and words[0] == "f":
            polygons.append([int(word.split("/")[0]) - 1 for word in words[1:]])
    return np.array(vertices), polygons


def triangle_positions(vertices: ArrayLike, faces: ArrayLike) -> Counter[tuple[tuple[float, ...], ...]]:
    """Triangles as multisets of exact positions, with how often each is there."""
    corners = np.asarray(vertices)[np.asarray(faces)]
    return Counter(tuple(sorted(map(tuple, face))) for face in corners.tolist())


def obj(vertices: Floats, polygons: list[tuple[int, ...]], corner: str = "{0}") -> str:
    """An OBJ whose corners are written as ``corner`` with the index from 1."""
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in vertices.tolist()]
    lines += ["vt 0.5 0.5", "vn 0 0 1"] * len(vertices)
    lines += ["f " + " ".join(corner.format(index + 1) for index in polygon) for polygon in polygons]
    return "\n".join(lines) + "\n"


def ply(vertices: Floats, polygons: list[tuple[int, ...]], form: str = "ascii", kind: str = "double") -> bytes:
    """A PLY of one of the three forms, with a colour per vertex, coordinates of kind float or double."""
    header = (
        f"ply\nformat {form} 1.0\ncomment by hand\nelement vertex {len(vertices)}\n"
        f"property {kind} x\nproperty {kind} y\nproperty {kind} z\nproperty uchar red\n"
        f"element face {len(polygons)}\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    if form == "ascii":
        rows = [f"{x!r} {y!r} {z!r} 7" for x, y, z in vertices.tolist()]
        rows += [f"{len(polygon)} {' '.join(map(str, polygon))}" for polygon in polygons]
        return header + ("\n".join(rows) + "\n").encode()
    order, letter = ("<" if "little" in form else ">"), {"double": "d", "float": "f"}[kind]
    body = b"".join(struct.pack(f"{order}3{letter}B", *vertex, 7) for vertex in vertices.tolist())
    body += b"".join(struct.pack(f"{order}B{len(polygon)}i", len(polygon), *polygon) for polygon in polygons)
    return header + body


def glb(nodes: list[dict[str, object]], primitives: list[dict[str, object]], **root: object) -> bytes:
    """A GLB of one mesh, placed by every node that has ``mesh``.

    Each primitive has ``vertices`` [V, 3], stored as float32, and may have ``faces`` [F, 3], stored as uint16.
    """
    blob, views, accessors, stored = b"", [], [], []
    for primitive in primitives:
        entry: dict[str, object] = {}
        arrays = [("vertices", "<f4", 5126, "VEC3"), ("faces", "<u2", 5123, "SCALAR")]
        for key, dtype, component, kind in arrays:
            if key not in primitive:
                continue
            array = np.asarray(primitive[key]).astype(dtype)
            data = array.tobytes()
            data += b"\0" * (-len(data) % 4)
            views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)})
            count = len(array) if kind == "VEC3" else array.size
            accessors.append({"bufferView": len(views) - 1, "componentType": component, "count": count, "type": kind})
            blob += data
            place = len(accessors) - 1
            entry |= {"attributes": {"POSITION": place}} if kind == "VEC3" else {"indices": place}
        stored.append(entry)
    document = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": nodes,
        "meshes": [{"primitives": stored}], "buffers": [{"byteLength": len(blob)}], "bufferViews": views,
        "accessors": accessors, **root,
    }  # fmt: skip
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(blob))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return header + chunks
