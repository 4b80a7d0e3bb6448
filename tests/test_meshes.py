"""Mesh files, triangulation, cleaning and normalisation: nothing may be lost or moved on the way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_samples import CUBE, QUADS, glb, obj, plain_obj, ply, triangle_positions
from shared_data import shared_data

from raysense.errors import UsageError
from raysense.semantics.mesh_files import load_mesh, parse_mesh
from raysense.semantics.meshes import Mesh, cleaned, normalised
from raysense.semantics.triangulation import triangulated

CORNERS = ["{0}", "{0}/1", "{0}/{0}/{0}", "{0}//2"]
FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]
STRAY = np.array([[9.0, -9.0, 0.123456789012345678]])


def _area_vector(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    corners = np.asarray(vertices)[np.asarray(faces)]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2


def _mesh(vertices: object, faces: object) -> Mesh:
    return Mesh(torch.tensor(np.asarray(vertices), dtype=torch.float64), torch.tensor(np.asarray(faces)), "test")


@pytest.mark.parametrize("corner", CORNERS)
def test_obj_keeps_every_vertex_and_face(tmp_path: Path, corner: str) -> None:
    rng = np.random.default_rng(0)
    vertices = rng.standard_normal((200, 3)) * 10.0 ** rng.integers(-9, 6, (200, 3))
    faces = [tuple(face) for face in rng.permuted(np.tile(np.arange(180), (300, 1)), axis=1)[:, :3].tolist()]
    path = tmp_path / "random.OBJ"
    path.write_text(obj(vertices, faces, corner))
    mesh = load_mesh(path)
    assert mesh.vertices.dtype == torch.float64
    assert mesh.faces.dtype == torch.int64
    assert np.array_equal(mesh.vertices.numpy(), vertices), "bit for bit, the twenty unreferenced ones too"
    assert np.array_equal(mesh.faces.numpy(), np.array(faces))


def test_obj_with_everything_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mixed.obj"
    path.write_bytes(
        b"# an OBJ\r\nmtllib none.mtl\r\no first\r\nv 0 0 0 1.0\r\nv 1 0 0 .5 .5 .5\r\nv 1 1 0\r\ng left\r\nusemtl a\r\n"
        b"f -3 -2 -1\r\nvt 0 0\r\nvn 0 0 1\r\n  v\t0 1 0   # with a comment\r\no second\r\nusemtl b\r\ns off\r\n"
        b"f 1/1/1 3/1/1 \\\r\n 4/1/1\r\nv 5 5 5\r\nl 1 2\r\np 1\r\nf -2//1 -3//1 1//1\r\nv 7 7 7\r\nf 1 2 3 4\r\n"
    )
    mesh = load_mesh(path)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5], [7, 7, 7]]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 0], [0, 1, 2], [0, 2, 3]]


def test_shapenet_meshes_are_kept() -> None:
    paths = sorted(shared_data("semantic", "shapes_dev").glob("*/*.obj"))
    assert len(paths) == 20
    for path in paths:
        vertices, polygons = plain_obj(path)
        mesh = load_mesh(path)
        assert np.array_equal(mesh.vertices.numpy(), vertices)
        assert np.array_equal(mesh.faces.numpy(), np.array(polygons))
        clean = cleaned(mesh)
        assert clean.duplicates + clean.degenerate + len(clean.faces) == len(polygons)
        assert 0.42 < clean.duplicates / len(polygons) <= 0.51, "the faces are stored twice"
        once = triangle_positions(clean.vertices, clean.faces)
        assert set(once.values()) == {1}
        if len(polygons) < 3000:  # what else is in the file has no area
            others = np.array(list(set(triangle_positions(vertices, polygons)) - set(once))).reshape(-1, 3)
            assert np.abs(_area_vector(others, np.arange(len(others)).reshape(-1, 3))).max(initial=0) < 1e-12
        ready = normalised(clean)
        assert ready.vertices.shape == mesh.vertices.shape, "vertices of no face count for the extent"
        extent = vertices - vertices.min(axis=0)
        extent = extent / extent.max() * 2
        assert np.array_equal(ready.vertices.numpy(), extent - extent.max(axis=0) / 2)


@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize("form", FORMS)
def test_ply_keeps_every_vertex_and_face(tmp_path: Path, form: str, kind: str) -> None:
    path = tmp_path / "box.ply"
    path.write_bytes(ply(np.concatenate((CUBE, STRAY)), [*QUADS, (0, 1, 2)], form, kind))
    mesh = load_mesh(path)
    expected = np.concatenate((CUBE, STRAY)).astype(np.float32 if kind == "float" else np.float64)
    assert np.array_equal(mesh.vertices.numpy(), expected.astype(np.float64))
    assert mesh.faces.tolist()[:2] == [[0, 1, 3], [0, 3, 2]]
    assert mesh.faces.tolist()[-1] == [0, 1, 2]
    assert len(mesh.faces) == 13


def test_glb_places_the_parts_by_their_nodes(tmp_path: Path) -> None:
    other = CUBE[:5] * 3
    turn = [[0, 0, 1, 5], [1, 0, 0, 6], [0, 1, 0, 7], [0, 0, 0, 1]]
    nodes = [
        {"children": [1, 2], "scale": [2, 2, 2]},
        {"mesh": 0, "matrix": np.array(turn).T.ravel().tolist()},
        {"mesh": 0, "translation": [1, 2, 3]},
    ]
    sides = np.array([side[:3] for side in QUADS])
    content = glb(nodes, [{"vertices": CUBE, "faces": sides}, {"vertices": other, "faces": [[0, 1, 4]]}])
    (tmp_path / "scene.glb").write_bytes(content)
    mesh = load_mesh(tmp_path / "scene.glb")
    parts = [part.astype(np.float32).astype(np.float64) for part in (CUBE, other)]
    rotation, shift = np.array(turn, dtype=float)[:3, :3], np.array(turn, dtype=float)[:3, 3]
    expected = {}
    for part, faces in zip(parts, (sides, [[0, 1, 4]]), strict=True):
        for place in (part @ rotation.T + shift, part + np.array([1, 2, 3])):
            expected |= triangle_positions((2 * place).round(9), faces)
    assert triangle_positions(mesh.vertices.numpy().round(9), mesh.faces) == expected
    assert len(mesh.vertices) == 2 * (8 + 5), "unreferenced vertices are kept"
    again = parse_mesh(content, ".glb", "again")
    assert torch.equal(again.vertices, mesh.vertices)
    assert torch.equal(again.faces, mesh.faces)
    plain = parse_mesh(glb([{"mesh": 0}], [{"vertices": CUBE, "faces": sides}]), ".glb", "plain")
    assert np.array_equal(plain.vertices.numpy(), parts[0])
    assert np.array_equal(plain.faces.numpy(), sides)


def _star(points: int) -> np.ndarray:
    """A star in a slanted plane, as a polygon whose fan around its first corner leaves it."""
    angles = np.arange(2 * points) * np.pi / points
    sizes = np.where(np.arange(2 * points) % 2, 0.3, 1.0)
    flat = np.stack((np.cos(angles) * sizes, np.sin(angles) * sizes), axis=1)
    return np.concatenate((flat, (flat @ [0.3, -0.7])[:, None]), axis=1)


@pytest.mark.parametrize("first", range(5))
def test_concave_polygons(first: int) -> None:
    for polygon in (_star(5), np.array([(0, 0, 0), (4, 0, 0), (4, 4, 0), (2, 1, 0), (0, 4.0, 0)])):
        polygon = np.roll(polygon, first, axis=0)
        count = len(polygon)
        faces = triangulated(polygon, np.arange(count), np.array([count]))
        areas = _area_vector(polygon, faces)
        whole = np.cross(polygon, np.roll(polygon, -1, axis=0)).sum(axis=0) / 2
        assert faces.shape == (count - 2, 3)
        np.testing.assert_allclose(areas.sum(axis=0), whole, atol=1e-12)
        assert (areas @ whole >= 0).all(), "no triangle is turned over, so they tile the polygon"


def test_polygons_keep_their_order() -> None:
    vertices = np.random.default_rng(1).standard_normal((9, 3))
    counts = np.array([3, 4, 3, 4])
    faces = triangulated(vertices, np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 0, 2, 4, 6]), counts)
    assert faces[[0, 3]].tolist() == [[0, 1, 2], [6, 7, 8]]
    assert sorted(set(faces[1:3].ravel().tolist())) == [3, 4, 5, 6]


def test_cleaning_counts() -> None:
    vertices = np.concatenate((CUBE, CUBE[:3], [[0.1, -0.2, -0.0], [0.1, -0.2, 0.0], [0.1, -0.2, 1.0]]))
    faces = [
        (0, 1, 2), (2, 1, 0), (1, 2, 0),  # the same, in three orders
        (8, 9, 10),  # the same positions, other vertices
        (0, 3, 5), (4, 4, 6), (0, 8, 5),  # a corner twice, by index and by position
        (11, 13, 0), (11, 12, 13),  # on one line; zeros of both signs are one place
        (4, 5, 7),
    ]  # fmt: skip
    clean = cleaned(_mesh(vertices, faces))
    assert clean.faces.tolist() == [[0, 1, 2], [0, 3, 5], [4, 5, 7]]
    assert (clean.duplicates, clean.degenerate) == (3, 4)
    again = cleaned(clean)
    assert torch.equal(again.faces, clean.faces)
    assert (again.duplicates, again.degenerate) == (3, 4), "nothing more to drop"
    for scale, shift in ((1e-8, 0.0), (1e8, 0.0), (1.0, 1e3)):
        other = cleaned(_mesh(np.asarray(vertices) * scale + shift, faces))
        assert torch.equal(other.faces, clean.faces), "the size and the place of the mesh make no difference"


def test_small_and_thin_faces_are_kept() -> None:
    vertices = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0.5, 1e-9, 0), (0, 1e-7, 0), (1e-7, 0, 0)]
    assert len(cleaned(_mesh(vertices, [(0, 1, 2), (0, 1, 3), (0, 4, 5)])).faces) == 3


def test_normalisation_counts_stray_vertices() -> None:
    ready = normalised(_mesh([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 4.0)], [(0, 1, 2)]))
    assert ready.vertices.tolist() == [[-0.25, -0.25, -1], [0.25, -0.25, -1], [-0.25, 0.25, -1], [-0.25, -0.25, 1]]


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.obj", b"", "the file is empty"),
    ("a.obj", b" \n\n", "the file is empty"),
    ("a.obj", b"# nothing\n", "there are no vertices"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "there are no faces"),
    ("a.obj", b"v 0 0 0\nv 1 nan 0\nv 0 inf 0\nf 1 2 3\n", "2 of its vertices are not finite, the first is number 2"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "a face names vertex 9, but there are 3 vertices"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 0\n", "a face names vertex 0, but"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 -4\n", "line 4 .*not a vertex or a face"),
    ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2\n", "face 1 has 2 corners"),
    ("a.obj", b"v 0 0 0\nv 1 0\n", r"line 2 \('v 1 0'\)"),
    ("a.obj", b"v 0 0 0\nv 1 0 zero\n", "line 2"),
    ("a.obj", b"v 0 0 0\nf 1 x 1\n", "line 2"),
    ("a.ply", b"solid\n", "no PLY file, or truncated"),
    ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "there are no vertices"),
    ("a.ply", ply(CUBE, []), "there are no faces"),
    ("a.ply", ply(CUBE, QUADS).replace(b"property double z\n", b"property double w\n"), "no x, y and z"),
    ("a.ply", ply(CUBE, QUADS).replace(b"vertex_indices", b"corners"), "no vertex_indices"),
    ("a.ply", ply(CUBE, [(0, 1, 8)]), "a face names vertex 9, but there are 8"),
    ("a.glb", b"glTF", "no GLB file, or truncated"),
    ("a.glb", b"something else altogether", "no GLB file, or truncated"),
    ("a.glb", glb([{"mesh": 0}], [{"vertices": CUBE, "faces": [[0, 1, 9]]}]), "vertex 10 of a part with 8"),
    ("a.glb", glb([{}], [{"vertices": CUBE, "faces": [[0, 1, 2]]}]), "there are no vertices"),
    (
        "a.glb",
        glb([{"mesh": 0}], [{"vertices": CUBE}], extensionsRequired=["KHR_draco_mesh_compression"]),
        "needs KHR_draco_mesh_compression",
    ),
    ("a.stl", b"solid", ".stl is no known format; give OBJ, PLY or GLB"),
    ("a", b"v 0 0 0", "a file without extension"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_mesh(tmp_path / name, "my mesh")
    assert str(caught.value).startswith("mesh 'my mesh': ")


@pytest.mark.parametrize(
    ("suffix", "whole"),
    [
        *((".ply", ply(CUBE, QUADS, form)) for form in FORMS),
        (".glb", glb([{"mesh": 0}], [{"vertices": CUBE, "faces": [[0, 1, 2]]}])),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_truncated_anywhere(suffix: str, whole: bytes) -> None:
    parse_mesh(whole, suffix, "whole")
    # The last byte of an ascii file is a newline, which nobody misses.
    for length in range(1, len(whole) - 1, 7):
        with pytest.raises(UsageError):
            parse_mesh(whole[:length], suffix, "part")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        load_mesh(tmp_path / "absent.obj")
    with pytest.raises(UsageError, match=r"mesh 'nosuch://bucket/a\.obj' cannot be opened"):
        load_mesh("nosuch://bucket/a.obj")
    (tmp_path / "folder.obj").mkdir()
    with pytest.raises(UsageError, match=r"cannot be read|there is no file"):
        load_mesh(tmp_path / "folder.obj")


@pytest.mark.parametrize(
    ("of", "call", "message"),
    [
        (_mesh([(0, 0, 0), (1, 1, 1), (2, 2, 2)], [(0, 1, 2)]), cleaned, "none of its 1 faces has an area"),
        (_mesh([(1, 1, 1)] * 3, [(0, 1, 2)]), cleaned, "none of its 1 faces"),
        (_mesh([(1, 1, 1)] * 3, [(0, 1, 2)]), normalised, "its extent is 0"),
        (_mesh([(-1e308, 0, 0), (1e308, 1, 0), (0, 0, 1)], [(0, 1, 2)]), normalised, "its extent is inf"),
    ],
)
def test_nothing_left(of: Mesh, call: Callable[[Mesh], Mesh], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(of)
