"""Mesh files: OBJ, PLY (ascii and binary) and GLB, read without changing a vertex or losing a face.

PLY is read by plyfile and GLB by trimesh, which keep everything. OBJ is read here: trimesh drops and repeats vertices
there (also those without a face, which normalisation counts) and takes negative indices from the end of the file, and
tinyobjloader's coordinates differ from the text's in the last bit and read ``nan`` as 0.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raysense.datasets.paths import open_location, read_bytes
from raysense.errors import UsageError
from raysense.references import local_path
from raysense.semantics.meshes import Mesh
from raysense.semantics.triangulation import triangulated

_UNREADABLE_GLB = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization")
_GLB_HEADER_BYTES = 20


class Polygons(NamedTuple):
    """What a file holds.

    Attributes:
        vertices: [V, 3] float64.
        indices: [I] int64, the corners of all polygons one after the other.
        counts: [P] int64, corners of each polygon.
    """

    vertices: NDArray[np.float64]
    indices: NDArray[np.int64]
    counts: NDArray[np.int64]


def load_mesh(path: str | Path, name: str | None = None) -> Mesh:
    """Load a mesh as it is stored: every vertex in its order, every face in its order, polygons cut into triangles.

    Several objects, groups and materials become one mesh; of a GLB the default scene is taken, each node's mesh moved by
    its node. Neither cleaned nor normalised: see ``meshes.cleaned`` and ``meshes.normalised``.

    Args:
        path: A file, or its URI on any pyarrow filesystem, that ends in .obj, .ply or .glb.
        name: What to call it in messages; the path where None.

    Raises:
        UsageError: the file is missing, empty, broken (truncated, a vertex that is not finite, an index out of range),
            of another format, or has no faces.
    """
    location = str(path) if "://" in str(path) else str(local_path(str(path)))
    name = name or str(path)
    try:
        filesystem, inside = open_location(location, "mesh")
        data = read_bytes(filesystem, inside)
    except FileNotFoundError as error:
        raise UsageError(f"mesh {name!r}: there is no file {location}; correct the path") from error
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"mesh {name!r}: {location} cannot be read ({error}); correct the path") from error
    return parse_mesh(data, PurePosixPath(inside).suffix, name)


def parse_mesh(data: bytes, suffix: str, name: str) -> Mesh:
    """The mesh in the content of a file.

    Args:
        data: The whole file.
        suffix: .obj, .ply or .glb, in any case.
        name: What to call it in messages.

    Raises:
        UsageError: as `load_mesh`.
    """
    if suffix.lower() not in MESH_FORMATS:
        raise UsageError(
            f"mesh {name!r}: {suffix or 'a file without extension'} is no known format; give OBJ, PLY or GLB"
        )
    if not data.strip():
        raise UsageError(f"mesh {name!r}: the file is empty; give a file with faces")
    try:
        polygons = MESH_FORMATS[suffix.lower()](data)
        _check(polygons)
    except ValueError as error:
        raise UsageError(f"mesh {name!r}: {error}; mend or replace the file") from error
    faces = triangulated(*polygons)
    return Mesh(torch.from_numpy(polygons.vertices), torch.from_numpy(faces), name)


def _check(polygons: Polygons) -> None:
    """Raise ValueError where a mesh has nothing to show, or faces of vertices that are not there."""
    vertices, indices, counts = polygons
    if not len(vertices):
        raise ValueError("there are no vertices")
    if not len(counts):
        raise ValueError("there are no faces")
    broken = ~np.isfinite(vertices).all(axis=1)
    if broken.any():
        raise ValueError(f"{broken.sum()} of its vertices are not finite, the first is number {broken.argmax() + 1}")
    outside = (indices < 0) | (indices >= len(vertices))
    if outside.any():
        raise ValueError(f"a face names vertex {indices[outside.argmax()] + 1}, but there are {len(vertices)} vertices")
    if counts.min() < 3:
        raise ValueError(f"face {counts.argmin() + 1} has {counts.min()} corners")


def _parse_obj(data: bytes) -> Polygons:
    """Vertices and faces of a Wavefront OBJ; normals, texture coordinates, groups and materials are passed over."""
    text = data.decode(errors="replace").replace("\\\r\n", " ").replace("\\\n", " ")
    vertices: list[list[float]] = []
    indices: list[int] = []
    counts: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        keyword, _, rest = line.lstrip().partition("#")[0].replace("\t", " ").partition(" ")
        try:
            if keyword == "v":
                x, y, z = rest.split()[:3]
                vertices.append([float(x), float(y), float(z)])
            elif keyword == "f":
                corners = [_obj_index(corner, len(vertices)) for corner in rest.split()]
                indices += corners
                counts.append(len(corners))
        except ValueError as error:
            raise ValueError(
                f"line {number} ({line.strip()[:60]!r}) is not a vertex or a face of an OBJ file"
            ) from error
    return Polygons(
        np.array(vertices, dtype=np.float64).reshape(-1, 3),
        np.array(indices, dtype=np.int64),
        np.array(counts, dtype=np.int64),
    )


def _obj_index(corner: str, so_far: int) -> int:
    """Index from 0 of a corner ``v``, ``v/vt``, ``v/vt/vn`` or ``v//vn``; a negative one counts back from here."""
    index = int(corner.partition("/")[0])
    if index < 0:
        index += so_far + 1
        if index <= 0:
            raise ValueError("counts back beyond the first vertex")
    return index - 1


def _parse_ply(data: bytes) -> Polygons:
    """Vertices and faces of a PLY file."""
    from plyfile import PlyData, PlyHeaderParseError, PlyParseError

    try:
        content = PlyData.read(io.BytesIO(data))
    except (PlyParseError, PlyHeaderParseError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"it is no PLY file, or truncated ({error})") from error
    elements = {element.name: element for element in content.elements}
    if "vertex" not in elements:
        raise ValueError("there are no vertices")
    vertex = elements["vertex"]
    known = {one.name for one in vertex.properties}
    if not {"x", "y", "z"} <= known:
        raise ValueError("its vertices have no x, y and z")
    vertices = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    if "face" not in elements:
        if "tristrips" in elements:
            raise ValueError("its faces are triangle strips; store triangles")
        raise ValueError("there are no faces")
    face = elements["face"]
    names = [one.name for one in face.properties if one.name in ("vertex_indices", "vertex_index")]
    if not names:
        raise ValueError("its faces have no vertex_indices")
    rows = list(face[names[0]])
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    indices = np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, dtype=np.int64)
    return Polygons(vertices, indices, counts)


def _parse_glb(data: bytes) -> Polygons:
    """Triangles of a binary glTF's default scene, in its coordinates."""
    _check_glb_extensions(data)
    import trimesh

    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False, skip_materials=True)
    except Exception as error:  # trimesh raises whatever its decoding runs into, from KeyError to struct.error
        raise ValueError(f"it is no GLB file, or truncated ({type(error).__name__}: {error})") from error
    order = {name: place for place, name in enumerate(scene.geometry)}
    placed = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        if isinstance(scene.geometry[name], trimesh.Trimesh):
            placed.append((order[name], np.asarray(transform, dtype=np.float64).tolist(), scene.geometry[name]))
    # Nodes without a name get a random one, so that the scene's own order changes from run to run.
    placed.sort(key=lambda one: one[:2])
    vertices, faces, first = [np.zeros((0, 3))], [np.zeros((0, 3), dtype=np.int64)], 0
    for _, rows, part in placed:
        transform = np.array(rows)
        own = np.asarray(part.vertices, dtype=np.float64)
        vertices.append(own if np.array_equal(transform, np.eye(4)) else own @ transform[:3, :3].T + transform[:3, 3])
        own_faces = np.asarray(part.faces, dtype=np.int64)
        if own_faces.size and (own_faces.min() < 0 or own_faces.max() >= len(own)):
            raise ValueError(f"a face names vertex {own_faces.max() + 1} of a part with {len(own)} vertices")
        faces.append(own_faces + first)
        first += len(own)
    triangles = np.concatenate(faces)
    return Polygons(np.concatenate(vertices), triangles.reshape(-1), np.full(len(triangles), 3, dtype=np.int64))


def _check_glb_extensions(data: bytes) -> None:
    """Raise ValueError where the positions are stored in a way that trimesh would read as something else."""
    if data[:4] != b"glTF" or len(data) < _GLB_HEADER_BYTES:
        raise ValueError("it is no GLB file, or truncated")
    length = int.from_bytes(data[12:16], "little")
    try:
        document = json.loads(data[_GLB_HEADER_BYTES : _GLB_HEADER_BYTES + length])
    except ValueError as error:
        raise ValueError("it is truncated, or not a GLB file of version 2") from error
    for extension in document.get("extensionsRequired", ()):
        if extension in _UNREADABLE_GLB:
            raise ValueError(f"it needs {extension}, which cannot be read; export it without")


MESH_FORMATS: dict[str, Callable[[bytes], Polygons]] = {".obj": _parse_obj, ".ply": _parse_ply, ".glb": _parse_glb}
"""Parsers by the extension of the file; each raises ValueError saying what is broken."""
