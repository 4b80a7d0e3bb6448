"""Shape sources: what they list, what identifies them; and the procedural library's shapes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_samples import CUBE, QUADS, glb, obj, ply
from shared_data import shared_data

from raysense.errors import UsageError
from raysense.semantics.procedural import PROCEDURAL_CLASSES, procedural_mesh
from raysense.semantics.shapes import ShapeEntry, absolute_shapes, open_shapes
from raysense.semantics.solids import box, outline, revolved, smooth, tube


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, one file that differs by its extension alone, one in a folder of its own, files to pass over."""
    files = {
        "cup/b.obj": obj(CUBE, QUADS).encode(), "cup/a.ply": ply(CUBE * 2, QUADS), "cup/a.obj": obj(CUBE, QUADS).encode(),
        "vase/deep/er/model.GLB": glb([{"mesh": 0}], [{"vertices": CUBE, "faces": [[0, 1, 2]]}]),
        "chair/x.y.obj": obj(CUBE, QUADS).encode(), "cup/readme.txt": b"no mesh", ".hidden/c.obj": b"", "cup/.c.obj": b"",
        "loose.obj": obj(CUBE, QUADS).encode(),
    }  # fmt: skip
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def test_folder_of_classes(folder: Path) -> None:
    source = open_shapes(f"folder:{folder}")
    assert source.entries() == [
        ShapeEntry("chair/x.y", "chair"), ShapeEntry("cup/a.obj", "cup"), ShapeEntry("cup/a.ply", "cup"),
        ShapeEntry("cup/b", "cup"), ShapeEntry("loose", ""), ShapeEntry("vase/deep/er/model", "vase"),
    ]  # fmt: skip
    mesh = source.mesh("cup/a.ply")
    assert mesh.name == "cup/a.ply"
    assert mesh.faces.shape == (12, 3)
    assert float(mesh.vertices.amax()) == 1.0
    assert (mesh.vertices.amax(dim=0) + mesh.vertices.amin(dim=0)).abs().max() < 1e-15
    assert source.mesh("vase/deep/er/model").faces.shape == (1, 3)
    assert open_shapes(f"{folder}/cup/b.obj?class=a%20cup").entries() == [ShapeEntry("b", "a cup")]
    assert open_shapes(f"{folder}/cup/b.obj").mesh("b").faces.shape == (12, 3)
    loose = open_shapes(f"{folder}?class=thing").entries()
    assert [entry.class_name for entry in loose if entry.shape_id == "loose"] == ["thing"]


def test_fingerprint_follows_the_content(folder: Path) -> None:
    reference = str(folder)
    before, some = open_shapes(reference).fingerprint(), open_shapes(reference).fingerprint(["cup/b", "loose"])
    assert before == open_shapes(f"file://{folder}").fingerprint(), "wherever it lies"
    assert some == open_shapes(reference).fingerprint(["loose", "cup/b", "loose"]) != before
    (folder / "cup/a.ply").write_bytes(ply(CUBE * 3, QUADS))
    assert open_shapes(reference).fingerprint() != before
    assert open_shapes(reference).fingerprint(["cup/b", "loose"]) == some
    (folder / "cup/a.ply").write_bytes(ply(CUBE * 2, QUADS))
    assert open_shapes(reference).fingerprint() == before
    (folder / "cup").rename(folder / "mug")
    assert open_shapes(reference).fingerprint() != before


def test_references_are_absolute_and_open_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for text in (
        ".",
        "folder:cup?class=c%26d",
        "cup/b.obj",
        f"file://{folder}/?class=x",
        "procedural?classes=vase,cup",
    ):
        absolute = absolute_shapes(text)
        assert absolute_shapes(absolute) == absolute
        source = open_shapes(text)
        assert pickle.loads(pickle.dumps(source)).entries() == open_shapes(absolute).entries() == source.entries()
    assert absolute_shapes("cup") == f"folder:{folder}/cup"
    assert absolute_shapes("procedural") == "procedural?seed=0&variants=4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is named"),
        ("folder:", "nothing is named"),
        ("{}/absent", "there is nothing at"),
        ("{}/cup/readme.txt", "is no mesh file"),
        ("{}/.hidden/..", "there is no shape 'cup/c'; there are 6, such as cup/b"),
        ("{}/empty", "has no mesh files; name a folder of files that end in .obj, .ply or .glb"),
        ("{}?color=red", "no option color"),
        ("{}?class", "malformed"),
        ("{}?class=a&class=b", "given twice"),
        ("nosuch://bucket", "cannot be opened"),
        ("procedural?seed=one", "seed=one is no whole number"),
        ("procedural?variants=0", "0 variants"),
        ("procedural?classes=cups", "no class 'cups'; choose from aeroplane"),
        ("procedural?classes=", "no class ''"),
        ("procedural?root=x", "no option root"),
        ("procedural?variants=1&classes=cup", "there is no shape 'cup/c'; there are 1, such as cup/0"),
    ],
)
def test_misuse(folder: Path, text: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        open_shapes(text.format(folder)).mesh("cup/c")
    assert str(caught.value).startswith("shapes ")


def test_broken_shape_is_named(folder: Path) -> None:
    (folder / "cup/b.obj").write_text("v 0 0 0\nf 1 1 1\n")
    with pytest.raises(UsageError, match="mesh 'cup/b': none of its 1 faces has an area"):
        open_shapes(str(folder)).mesh("cup/b")
    source = open_shapes(str(folder))
    source.entries()
    (folder / "cup/b.obj").unlink()
    with pytest.raises(UsageError, match=r"cup/b\.obj cannot be read"):
        source.mesh("cup/b")


def test_given_shapes() -> None:
    source = open_shapes(str(shared_data("semantic", "shapes_dev")))
    entries = source.entries()
    assert len(entries) == 20
    assert {entry.class_name for entry in entries} == {
        "aeroplane", "bathtub", "bench", "bottle", "chair", "cup", "piano", "rifle", "toilet", "vase",
    }  # fmt: skip
    mesh = source.mesh("chair/362f53ee8de161fac653c0205ce8ff57")
    assert (len(mesh.vertices), len(mesh.faces), mesh.duplicates, mesh.degenerate) == (136, 204, 154, 0)


def _edges(faces: np.ndarray) -> np.ndarray:
    return np.concatenate((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))


@pytest.mark.parametrize("name", PROCEDURAL_CLASSES)
def test_procedural_shapes(name: str) -> None:
    source = open_shapes(f"procedural?variants=3&classes={name}")
    assert [entry.shape_id for entry in source.entries()] == [f"{name}/{variant}" for variant in range(3)]
    extents = []
    for entry in source.entries():
        mesh = source.mesh(entry.shape_id)
        assert (mesh.duplicates, mesh.degenerate) == (0, 0)
        assert 300 <= len(mesh.faces) <= 3000
        assert torch.isfinite(mesh.vertices).all()
        edges = _edges(mesh.faces.numpy())
        codes, back = edges @ [10**6, 1], edges @ [1, 10**6]
        assert len(np.unique(codes)) == len(codes), "no edge has two faces on one side"
        assert np.array_equal(np.sort(codes), np.sort(back)), "every edge has a face on either side: closed, oriented"
        turned = mesh.vertices[:, [2, 1, 0]] * torch.tensor([-1.0, 1, 1])
        nearest = torch.cdist(turned, mesh.vertices).amin(dim=1)
        assert nearest.max() > 0.15, "a quarter turn makes another shape of it"
        extents.append(mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0))
    assert min((extents[a] - extents[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3, "variants differ"


def test_procedural_shapes_are_reproducible() -> None:
    code = (
        "from raysense.semantics.shapes import open_shapes; print(open_shapes('procedural?variants=1').fingerprint())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == open_shapes("procedural?variants=1").fingerprint(), "and loaders are imported for files alone"
    assert other != open_shapes("procedural?variants=1&seed=1").fingerprint()
    few, many = open_shapes("procedural?variants=2"), open_shapes("procedural?variants=11&classes=cup")
    assert torch.equal(few.mesh("cup/1").vertices, many.mesh("cup/1").vertices), "more variants leave the first alone"
    assert [entry.shape_id for entry in many.entries()][-2:] == ["cup/9", "cup/10"]
    assert not torch.equal(procedural_mesh("cup", 0).vertices, procedural_mesh("cup", 0, seed=5).vertices)


def test_solids_have_the_volumes_of_their_formulas() -> None:
    assert box((1, 2, 3), (5, 6, 7)).volume == pytest.approx(6)
    assert box((2, 3, 2), taper=0.5).volume == pytest.approx(3 * (4 + 1 + 2) / 3), "a frustum"
    area = 0.5 * 40 * np.sin(2 * np.pi / 40)
    assert revolved([(1, 0), (1, 2)], outline(40)).volume == pytest.approx(2 * area)
    assert revolved([(1, 2), (1, 0)], outline(40)).volume == pytest.approx(2 * area), "outwards either way"
    assert outline(64, 2, 1, 50)[:, 0].max() == pytest.approx(2)
    angles = np.linspace(0, np.pi, 200)
    bow = tube(np.stack((np.cos(angles), np.sin(angles), 0 * angles), axis=1), 0.1, sides=40)
    assert bow.volume == pytest.approx(np.pi * area * 0.01, rel=1e-3), "Pappus"
    assert bow.turned("z", 90).moved((1, 2, 3)).volume == pytest.approx(bow.volume)
    np.testing.assert_allclose(
        box((1, 1, 1)).moved((1, 0, 0)).turned("y", 90).vertices.mean(axis=0), (0, 0, -1), atol=1e-12
    )
    line = smooth([(0, 0), (1, 2), (4, 3)], 5)
    np.testing.assert_allclose(line[[0, 2, 4]], [(0, 0), (1, 2), (4, 3)], atol=1e-12)
