"""The report of the semantic scan: tables, maps, profiles, traps, poses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from recorded_semantic import write_recorded
from scipy import ndimage
from synthetic_semantic import AZIMUTH, ELEVATION, Tables, grid, write_tables

from raysense.datasets import open_data
from raysense.errors import RaysenseError
from raysense.query.connection import open_results
from raysense.report import semantic
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Table
from raysense.report.page import write_report
from raysense.report.poses import base_values, pose_pictures
from raysense.report.semantic_data import MapAxis, SemanticMap
from raysense.store.store import encode_schemas

METHODS = (("naive", "published"), ("oir_b", "published"), ("oir_w", "published"), ("constrained", "constrained"))
STARTS = [[130.0, 30.0], [50.0, 20.0]]
ROTATION = {"name": "rotation", "unit": "degrees", "low": -180.0, "high": 180.0, "periodic": True}
SCALE = {"name": "scale", "unit": "factor", "low": 0.5, "high": 2.0, "periodic": False}


def network(shapes: int = 2, model: str = "digits", seed: int = 0, folder: str = "/nowhere") -> Tables:
    """Three classes: a robust band with a hole that crosses the seam, boxes of every kind, profiles with FI."""
    rng = np.random.default_rng(seed)
    tables = Tables(model=model, shapes=folder)
    for index in range(3 * shapes):
        label, shape_id = index % 3, f"{tables.classes[index % 3]}/{index // 3}"
        tables.add_subject(shape_id, label)
        score = 0.8 + 0.1 * rng.random((24, 11))
        score[:, 0] = 0.02
        if label == 1:
            score[[22, 23, 0], 5] = 0.05
        tables.add_map(shape_id, label, ["azimuth", "elevation"], score)
        profile = np.where(np.arange(24) // 3 == 3 + label, 0.05, 0.7 + 0.1 * rng.random(24))
        bound = (1 - profile) / profile
        tables.add_map(shape_id, label, ["azimuth"], profile, fi=bound * rng.random(24), fi_bound=bound)
        for kind in ("robust", "adversarial"):
            for init, start in enumerate(STARTS):
                for method, family in METHODS:
                    known = {"init": init, "kind": kind, "family": family, "method": method, "holds": method != "oir_b"}
                    lower = [start[0] - 10 - 60 * init, start[1] - 30]
                    upper = [start[0] + 20, start[1] + 5]
                    tables.add_region(shape_id, label, **known, u0=start, lower=lower, upper=upper)
    tables.add_subject("cup/broken", 2, error="mesh cup/broken has no faces; give one with triangles")
    return tables


def blocks(*locations: Path) -> list[Block]:
    """What the sections on one scan, or the joint ones on several, hold."""
    with open_results(list(locations)) as database:
        scans = database.scans
        sections = semantic.joint(database, scans) if len(scans) > 1 else semantic.sections(database, scans[0])
    return [block for section in sections for block in section.blocks]


def figures(found: Sequence[Block]) -> dict[str, Figure]:
    return {block.name: block.figure for block in found if isinstance(block, Plot)}


def table(found: Sequence[Block], caption: str) -> Table:
    (one,) = (block for block in found if isinstance(block, Table) and block.caption.startswith(caption))
    return one


def text(found: Sequence[Block]) -> str:
    return " ".join(
        block.text if isinstance(block, Paragraph | Notice) else getattr(block, "caption", "") for block in found
    )


def mesh(panel: object) -> np.ndarray:
    """The values of a drawn map, shape [x, y], with the column that closes a periodic axis."""
    (drawn,) = (artist for artist in panel.collections if isinstance(artist, QuadMesh))  # type: ignore[attr-defined]
    return np.asarray(drawn.get_array()).T


def test_a_scan(tmp_path: Path) -> None:
    tables = network(shapes=1)
    write_tables(tmp_path / "run", tables)
    found = blocks(tmp_path / "run")
    drawn = figures(found)
    assert list(drawn) == [f"map_1_{i}" for i in range(1, 4)] + [f"profile_1_{i}" for i in range(1, 4)]
    with open_results(tmp_path / "run") as database:
        srvr = {(row["kind"], row["method"]): row for row in database.query("FROM srvr()").rows()}
        expected = database.query("FROM semantic_traps()").rows()

    rows = table(found, "SRVR over 3 shapes").rows
    order = ["published", "naive", "oir_b", "oir_w", "constrained"]
    assert [row[:2] for row in rows] == [[kind, method] for kind in ("robust", "adversarial") for method in order]
    for row in rows:
        values = srvr[row[0], row[1]]
        names = (("srvr", "stderr"), ("clipped", "clipped_stderr"), ("feasible_srvr", "feasible_stderr"))
        assert list(row[3:6]) == [f"{100 * values[value]:.2f} ± {100 * values[error]:.2f}" for value, error in names]
        assert row[6] == f"{100 * values['fraction_holds']:.1f}%"
    by_class = table(found, "SRVR of robust regions by class")
    assert list(by_class.columns) == [
        "class", "shapes", "published, SRVR [%]", "published, feasible [%]", "constrained, feasible [%]",
    ]  # fmt: skip
    assert [row[:2] for row in by_class.rows] == [["bottle", "1"], ["chair", "1"], ["cup", "1"]]
    agreement = table(found, "Agreement of methods")
    methods = ("constrained", "naive", "oir_b", "oir_w")
    pairs = [f"{one} and {other}" for index, one in enumerate(methods) for other in methods[index + 1 :]]
    assert [row[:3] for row in agreement.rows] == [
        [kind, pair, "6"] for kind in ("robust", "adversarial") for pair in pairs
    ]  # fmt: skip
    assert all(row[3:] == ["1.00", "1.00", "1.00"] for row in agreement.rows), "all methods have equal boxes here"

    traps = table(found, "Traps: 4;")
    assert len(expected) == 4
    largest = sorted(expected, key=lambda row: (-row["area"], row["shape_id"], row["axes"]))
    assert [(row[0], row[3]) for row in traps.rows] == [(row["shape_id"], str(row["trap"])) for row in largest]
    seam = next(row for row in traps.rows if row[2] == "azimuth, elevation")
    assert seam[4:] == ["3", "1.14%", "0.0500", "0, 40", "330 – 360 × 40 – 40", seam[9]]
    foretold = table(found, "How well measures")
    assert [row[:4] for row in foretold.rows] == [
        ["azimuth", "azimuth", name, "3"] for name in ("1 − score (baseline)", "FI", "(1 − p)/p")
    ]  # fmt: skip
    assert table(found, "Shapes or images that failed: 1").rows == [
        ["cup/broken", "cup", "mesh cup/broken has no faces; give one with triangles"]
    ]
    assert "The poses cannot be shown" in text(found)


def test_a_map_shows_scores_boxes_and_traps(tmp_path: Path) -> None:
    tables = network(shapes=1)
    write_tables(tmp_path / "run", tables)
    found = blocks(tmp_path / "run")
    (caption,) = (block.caption for block in found if isinstance(block, Plot) and block.name == "map_1_1")
    assert caption.startswith("chair/0: "), "the shape with a trap comes first"
    robust, adversarial = figures(found)["map_1_1"].axes[:2]
    assert (robust.get_xlim(), robust.get_ylim()) == ((0, 360), (-10, 90))
    assert (adversarial.get_xlabel(), robust.get_ylabel()) == ("azimuth [degrees]", "elevation [degrees]")
    expected = np.zeros((24, 11))
    for row in tables.semantic_maps:
        if row["shape_id"] == "chair/0" and len(row["cell"]) == 2:
            expected[tuple(row["cell"])] = row["score"]
    np.testing.assert_array_equal(mesh(robust), np.vstack([expected, expected[:1]]))
    (drawn,) = (artist for artist in robust.collections if isinstance(artist, QuadMesh))
    corners = drawn.get_coordinates()
    assert corners[0, 0].tolist() == [-7.5, -15.0]
    assert corners[-1, -1].tolist() == [367.5, 95.0]

    boxes = [patch.get_bbox().extents for patch in robust.patches]
    assert len(boxes) == 2 * 4 * 3, "each box has a copy a turn to the left and one to the right"
    for x in (-20.0, 340.0):
        assert sum(np.allclose(box, [x, -10, x + 90, 25]) for box in boxes) == 4, (
            "a box across the seam shows at both ends"
        )
    assert {tuple(line.get_xydata()[0]) for line in robust.lines} == {tuple(start) for start in STARTS}

    (outline,) = (artist for artist in robust.collections if isinstance(artist, LineCollection))
    segments = {tuple(np.round(np.ravel(part), 6)) for part in outline.get_segments()}
    assert len(segments) == 2 * 8, "three cells in a row have eight sides, and the seam repeats them"
    assert {(322.5, 35.0, 322.5, 45.0), (7.5, 35.0, 7.5, 45.0), (-7.5, 35.0, 7.5, 35.0)} <= segments
    assert [label.get_text() for label in robust.texts] == ["1"]
    assert len(figures(found)["map_1_2"].axes[0].patches) == 24


def test_a_profile_shows_scores_fi_regions_and_traps(tmp_path: Path) -> None:
    tables = Tables(axes=(AZIMUTH,), shapes="/nowhere")
    tables.add_subject("cup/0", 2)
    score = np.where(np.isin(np.arange(12), (0, 11)), 0.02, 0.9)
    bound = (1 - score) / score
    tables.add_map("cup/0", 2, ["azimuth"], score, fi=bound / 2, fi_bound=bound)
    tables.add_region("cup/0", 2, u0=[60.0], lower=[30.0], upper=[90.0])
    tables.add_region("cup/0", 2, u0=[345.0], lower=[300.0], upper=[390.0], kind="adversarial")
    tables.add_region("cup/0", 2, u0=[100.0], init=3)
    write_tables(tmp_path / "run", tables)
    found = blocks(tmp_path / "run")
    above, below = figures(found)["profile_1_1"].axes
    curve = above.lines[0].get_xydata()
    np.testing.assert_allclose(curve, np.column_stack([30 * np.arange(13), [*score, score[0]]]))
    intervals = [line.get_xdata().tolist() for line in above.lines if len(line.get_xdata()) == 2]
    assert intervals == [[30, 90], [300, 360], [0, 30]]
    points = [line.get_xydata()[0].tolist() for line in above.lines if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(points, [[60, 0.9], [345, 0.02]])
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in above.patches)
    assert spans == [(0, 15), (315, 360)]
    upper, fi = (10 ** line.get_ydata() for line in below.lines)
    np.testing.assert_allclose(fi, upper / 2)
    assert below.get_xlabel() == "azimuth [degrees]"
    assert [label.get_text() for label in above.get_legend().get_texts()] == [
        "trap", "constrained", "constrained (adversarial)", "initial point",
    ]  # fmt: skip
    assert "Shaded: 1 trap, where" in text(found)


def test_many_shapes_are_not_all_drawn(tmp_path: Path) -> None:
    tables = Tables(shapes="/nowhere", classes=[f"class {index:02d}" for index in range(9)])
    for index in range(18):
        tables.add_subject(f"s{index:02d}", index % 9)
        tables.add_map(f"s{index:02d}", index % 9, ["azimuth", "elevation"], np.full((4, 3), 0.3 + 0.01 * index))
    write_tables(tmp_path / "run", tables)
    found = blocks(tmp_path / "run")
    assert list(figures(found)) == [f"map_1_{index}" for index in range(1, 7)]
    assert "Of 18 shapes or images with maps 6 are drawn: every class has its turn" in text(found)
    titles = [figure.get_suptitle() for figure in figures(found).values()]
    assert titles == [f"class {index - 9:02d} s{index:02d}" for index in range(17, 11, -1)], "the highest scores first"
    assert "There are none." in text(found), "traps"


def test_networks_side_by_side(tmp_path: Path) -> None:
    parts = {"a": network(model="one", seed=1), "b": network(model="two", seed=2)}
    for name, tables in parts.items():
        write_tables(tmp_path / name, tables)
    found = blocks(tmp_path / "a", tmp_path / "b")
    drawn = figures(found)
    assert list(drawn) == ["nsm", "class_maps", "profiles"]
    rows = table(found, "SRVR of robust regions in percent").rows
    published = ("published", "naive", "oir_b", "oir_w")
    cells = [[method, measure] for method in published for measure in ("SRVR", "clipped", "feasible")]
    assert [row[:2] for row in rows] == [*cells, ["constrained", "feasible"]]
    with open_results([tmp_path / "a", tmp_path / "b"]) as database:
        expected = database.query("FROM srvr() WHERE kind = 'robust' AND method = 'published' ORDER BY scan").rows()
    assert rows[0][2:] == [f"{100 * row['srvr']:.2f} ± {100 * row['stderr']:.2f}" for row in expected]

    panels = drawn["nsm"].axes[:12]
    assert [panel.get_title() for panel in panels[:3]] == ["a", "b", "mean of 2"]
    assert [panel.get_ylabel()[:-1] for panel in panels[:9:3]] != ["chair/"] * 3, "every class has its turn"
    assert panels[0].get_ylabel().startswith("chair/"), "those with traps come first"
    for one, other, mean in zip(panels[::3], panels[1::3], panels[2::3], strict=True):
        np.testing.assert_allclose(mesh(mean), (mesh(one) + mesh(other)) / 2)
    classes = drawn["class_maps"].axes[:9]
    assert [panel.get_ylabel() for panel in classes[::3]] == ["bottle", "chair", "cup"]
    scores = [
        row["score"] for row in parts["a"].semantic_maps if row["shape_id"][:3] == "cup" and row["cell"] == [5, 6]
    ]
    assert mesh(classes[6])[5, 6] == pytest.approx(np.mean(scores), rel=1e-12)
    assert [len(panel.lines) for panel in drawn["profiles"].axes[:3]] == [2, 2, 2]
    traps = table(found, "Maps and their traps").rows
    assert [row[:3] + row[5:7] for row in traps] == [
        ["a", "azimuth", "6", "6", "6"], ["b", "azimuth", "6", "6", "6"],
        ["a", "azimuth, elevation", "6", "2", "2"], ["b", "azimuth, elevation", "6", "2", "2"],
    ]  # fmt: skip


def test_a_map_that_is_not_complete(tmp_path: Path) -> None:
    tables = network(shapes=1)
    tables.semantic_maps = [row for row in tables.semantic_maps if len(row["cell"]) == 1 or row["cell"][0] < 9]
    write_tables(tmp_path / "run", tables, commit=2)
    found = blocks(tmp_path / "run")
    drawn = mesh(figures(found)["map_1_1"].axes[0])
    assert np.isnan(drawn[9:24]).all()
    assert np.isfinite(drawn[:9]).all()
    assert "Grey cells are not computed yet." in text(found)


def test_a_scan_without_rows_and_without_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "run", network(shapes=1), commit=0)
    assert text(blocks(tmp_path / "run")) == "Nothing has been scored yet."
    for kept, figure in (("regions", None), ("semantic_maps", "map_1_1")):
        store = write_tables(tmp_path / kept, network(shapes=1))
        schemas = {name: schema for name, schema in store.schemas().items() if name in (kept, "subjects", "units")}
        store.directory.write_json("scan.json", {**store.document(), "schemas": encode_schemas(schemas)})
        found = blocks(tmp_path / kept)
        assert (figure in figures(found)) == (figure is not None)
        assert ("SRVR" in text(found)) == (kept == "regions")
    assert "SRVR" not in text(blocks(tmp_path / "regions", tmp_path / "semantic_maps"))


def test_the_page_with_hostile_names(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> $\\frac{ {{ 7 * 7 }}' OR 1=1 --"
    for scan in ("$a_{", "b'"):
        tables = Tables(classes=[hostile], shapes="/nowhere", model=hostile)
        tables.add_subject(hostile, 0)
        tables.add_map(hostile, 0, ["azimuth", "elevation"], np.full((4, 3), 0.5))
        tables.add_map(hostile, 0, ["azimuth"], np.full(4, 0.5))
        tables.add_region(hostile, 0, lower=[1.0, 2.0], upper=[3.0, 4.0])
        write_tables(tmp_path / scan, tables)
    files = write_report([tmp_path / "$a_{", tmp_path / "b'"], tmp_path / "report.html", formats=())
    page = (tmp_path / "report.html").read_text()
    assert files == [str(tmp_path / "report.html")]
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $\\frac{ {{ 7 * 7 }}&#39; OR 1=1 --" in page
    assert page.count("<img") == 3 + 2 * 2


def test_poses_of_shapes(tmp_path: Path) -> None:
    tables = Tables(axes=(ELEVATION, {**AZIMUTH, "low": 90.0, "high": 180.0, "periodic": False}), shapes="procedural")
    tables.add_subject("cup/0", 2)
    tables.add_map("cup/0", 2, ["elevation", "azimuth"], np.full((4, 3), 0.5))
    store = write_tables(tmp_path / "run", tables)
    with open_results(tmp_path / "run") as database:
        (scan,) = database.scans
        assert base_values(scan) == {"elevation": 30.0, "azimuth": 90.0}, "the default azimuth 0 lies outside"
        one, same, other = pose_pictures(scan, "cup/0", [{}, {"azimuth": 90.0, "elevation": 30.0}, {"azimuth": 160.0}])
        assert one.shape == (96, 96, 3)
        assert one.min() >= 0
        assert 0.2 < one.max() <= 1
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 0.1
        with pytest.raises(RaysenseError, match="cup/99"):
            pose_pictures(scan, "cup/99", [{}])
    found = blocks(tmp_path / "run")
    assert not any(isinstance(block, Notice) for block in found)
    strip = figures(found)["map_1_1"].axes[0]
    assert [inset.get_title() for inset in strip.child_axes] == [f"{-10 + 12.5 * (i + 0.5):g}" for i in range(8)]
    assert [label.get_text() for label in strip.texts] == ["azimuth\n90"]
    assert store.committed()


def test_poses_of_images(tmp_path: Path) -> None:
    listing = open_data("digits").list().table.slice(0, 3)
    sample = listing["sample_id"][1].as_py()
    tables = Tables(axes=(ROTATION, SCALE), classes=[str(digit) for digit in range(10)])
    tables.add_subject(sample, listing["label"][1].as_py())
    store = write_tables(tmp_path / "run", tables, listing=listing)
    document = store.document()
    spec = {**document["spec"], "shapes": None, "data": "digits", "split": []}
    store.directory.write_json("scan.json", {**document, "spec": spec})
    with open_results(tmp_path / "run") as database:
        (scan,) = database.scans
        assert base_values(scan) == {"rotation": 0.0, "scale": 1.0}
        plain, turned = pose_pictures(scan, sample, [{}, {"rotation": 180.0}])
        assert plain.shape == (8, 8)
        np.testing.assert_allclose(turned, plain[::-1, ::-1], atol=1e-5)
        with pytest.raises(RaysenseError, match="is not in the data"):
            pose_pictures(scan, "digits/none", [{}])


@pytest.mark.parametrize("periodic", [False, True])
def test_components_are_those_that_flooding_finds(periodic: bool) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((15, 9))
    axes = (MapAxis(**{**AZIMUTH, "periodic": periodic}), MapAxis(**ELEVATION))
    lines = tuple(grid(axis, steps) for axis, steps in zip((AZIMUTH, ELEVATION), values.shape, strict=True))
    found = SemanticMap(axes, lines, values)
    parts, _ = ndimage.label(values < 0.55)
    if periodic:
        for left, right in zip(parts[0], parts[-1], strict=True):
            if left and right:
                parts[parts == right] = left
    for cell in np.argwhere(values < 0.55):
        start = [line[index] for line, index in zip(lines, cell, strict=True)]
        np.testing.assert_array_equal(found.component(start, 0.55), parts == parts[tuple(cell)])


def test_recorded_results(tmp_path: Path) -> None:
    """A shape that the authors recorded: map, boxes and traps in a picture, its mesh in poses."""
    write_recorded(tmp_path / "run", "Inceptionv3", objects=(4,))
    write_report(tmp_path / "run", tmp_path / "report.html", formats=("png",))
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"Traps: \d+;", page)
    assert "cannot be shown" not in page
    assert "in Figures 2 and 3 of Hamdi &amp; Ghanem (2020)" in page
    assert [file.name for file in (tmp_path / "report_figures").iterdir()] == ["map_1_1.png"]
