"""The report of the scans of decision boundaries: distances, curvatures, shared directions, paths, convexity, detection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_boundary import CLASSES, write_boundary, write_convexity, write_detect, write_directions, write_paths

from raysense.query.connection import open_results
from raysense.report import boundary, convexity, detect, directions, paths
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.boundary_figures import CurvatureProfile, curvature_profile
from raysense.report.histogram_figures import Distribution, histograms
from raysense.report.line_figures import Line, Panel, line_figure
from raysense.report.page import write_report
from raysense.report.section_figures import Section as Cut
from raysense.report.section_figures import section_figure
from raysense.report.style import number, styled

KINDS = {
    boundary: write_boundary, directions: write_directions, paths: write_paths, convexity: write_convexity,
    detect: write_detect,
}  # fmt: skip
SPLITS = {"test": 25, "train": 15}


def sections(module: ModuleType, *locations: Path) -> list[Section]:
    """The sections on one scan, or the joint ones on several."""
    with open_results(list(locations)) as database:
        several = len(locations) > 1
        found: list[Section] = (
            module.joint(database, database.scans) if several else module.sections(database, database.scans[0])
        )
    return found


def blocks(found: Sequence[Section]) -> list[Block]:
    return [block for section in found for block in section.blocks]


def plots(found: Sequence[Section]) -> dict[str, Plot]:
    known = [block for block in blocks(found) if isinstance(block, Plot)]
    assert len({plot.name for plot in known}) == len(known)
    return {plot.name: plot for plot in known}


def table(found: Sequence[Section], caption: str) -> Table:
    (one,) = (block for block in blocks(found) if isinstance(block, Table) and block.caption.startswith(caption))
    assert all(len(row) == len(one.columns) for row in one.rows)
    return one


def text(found: Sequence[Section]) -> str:
    return " ".join(block.text for block in blocks(found) if isinstance(block, Paragraph | Notice))


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    return [] if shown is None else [entry.get_text() for entry in shown.get_texts()]


def drawn(axes: Axes) -> dict[str, np.ndarray]:
    """Points [N, 2] of the lines with error bars by their label."""
    return {bars.get_label(): np.column_stack(bars.lines[0].get_data()) for bars in axes.containers}


def counts(figure: Figure) -> list[float]:
    """What the bars of every histogram add up to."""
    return [float(patch.get_data().values.sum()) for axes in figure.axes for patch in axes.patches]


def check_layout(figure: Figure) -> None:
    """Labels, titles and legends lie on the figure; tick labels of an axis do not overlap."""
    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    renderer = canvas.get_renderer()
    parts = [
        part for axes in figure.axes for part in (axes.title, axes.xaxis.label, axes.yaxis.label, axes.get_legend())
    ]
    for part in [part for part in [*parts, *figure.legends] if part is not None]:
        box = part.get_window_extent(renderer)
        inside = box.x0 > -2 and box.y0 > -2 and box.x1 < figure.bbox.width + 2 and box.y1 < figure.bbox.height + 2
        assert inside or box.width < 1, part
    for axes in figure.axes:
        labels = [label for label in axes.get_xticklabels() if label.get_visible() and label.get_rotation() == 0]
        boxes = sorted((box.x0, box.x1) for box in (label.get_window_extent(renderer) for label in labels))
        assert all(end < start for (_, end), (start, _) in pairwise(boxes))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_lines() -> None:
    x, y = np.array([1.01, 1.02, 2.0, 3.0]), np.array([0.5, np.nan, 0.25, 0.0])
    error = np.array([0.1, np.nan, np.nan, 0.1])
    panels = [
        Panel(
            [Line("$a_1$", x, y, error, "red"), Line("b", x, 2 * y, None, "blue")],
            "share",
            shares=True,
            levels={0.1: "level"},
        ),
        Panel([Line("$a_1$", x, y, None, "red")], "size", logarithmic=True),
    ]
    figure = line_figure(panels, "scale")
    upper, lower = figure.axes
    np.testing.assert_array_equal(drawn(upper)["$a_1$"], [[1.01, 0.5], [2.0, 0.25], [3.0, 0.0]])
    np.testing.assert_allclose(drawn(lower)["$a_1$"], [[1.01, np.log10(0.5)], [2.0, np.log10(0.25)]])
    assert legend(upper) == ["level", "$a_1$", "b"]
    assert [label.get_text() for label in lower.get_xticklabels()] == ["1.01", "2", "3"]
    check_layout(figure)


def test_histograms() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=2000), [1e6]])
    figure, says = histograms({"": [Distribution("", values, "red")]}, "x", "samples")
    assert counts(figure) == [2001]
    assert says == " 1 values beyond the horizontal axis are counted in the bars at its ends."
    figure, says = histograms(
        {"a": [Distribution("", np.array([0.0, 1.0, 1.0, 12.0]), "red")]}, "x", "pairs", scale="integers"
    )
    assert figure.axes[0].patches[0].get_data().values.tolist() == [1, 2, *[0] * 10, 1]
    figure, says = histograms({"a": [Distribution("", np.array([0.0, 1e-4, 1e-3]), "red")]}, "x", "pairs", scale="log")
    assert counts(figure) == [3]
    assert "1 values below 1e-16 (1 of them exactly 0)" in says
    assert counts(histograms({"a": [Distribution("", np.ones(5), "red")]}, "x", "samples")[0]) == [5]


def test_cross_sections() -> None:
    predicted = np.arange(48).reshape(6, 8) % 40
    predicted[0, 0] = -1
    cuts = [Cut(f"segment {place}", ("x", "p"), (0.0, 5.0), (-1.0, 6.0, -2.0, 2.0), predicted) for place in range(3)]
    names = {3: "$cat$", 4: "a name that is much too long for a legend"}
    figure = section_figure(cuts, 3, names)
    image = figure.axes[0].images[0]
    assert image.get_extent() == [-1.0, 6.0, -2.0, 2.0]
    shades = np.array([to_hex(colour) for colour in image.cmap(image.norm(image.get_array())).reshape(-1, 4)]).reshape(
        6, 8
    )
    assert len(set(shades[predicted == 3])) == 1
    assert not set(shades[predicted == 3]) & set(shades[predicted != 3])
    entries = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert entries[0] == "$cat$ (the path's class)"
    assert entries[-2:] == ["end of the path", "anchor point"]
    # The class's own colour, nine others, and one for all that are left.
    assert len(set(shades.ravel())) == 11
    assert any(entry.endswith("other classes") for entry in entries)
    check_layout(figure)


def test_profile_of_a_flat_boundary() -> None:
    flat = CurvatureProfile(5, np.arange(1, 6), np.zeros(5), np.zeros(5), np.zeros(5))
    _, right = curvature_profile(flat).axes
    assert [len(line.get_xdata()) for line in right.lines] == [0, 0]


# -- one scan ----------------------------------------------------------------------------------------------------------


def test_scans_without_rows(tmp_path: Path) -> None:
    locations = [tmp_path / f"{module.__name__}{number}" for module in KINDS for number in range(2)]
    for location, write in zip(locations, (write for write in KINDS.values() for _ in range(2)), strict=True):
        write(location, commit=0)
    with open_results(locations) as database:
        for place, module in enumerate(KINDS):
            pair = database.scans[2 * place : 2 * place + 2]
            (section,) = module.sections(database, pair[0])
            assert isinstance(section.blocks[-1], Notice)
            assert module.joint(database, pair) == []


def test_boundary(tmp_path: Path) -> None:
    written = write_boundary(
        tmp_path / "run", splits=SPLITS, spectrum=30, dimension=60, steps=(0.01, 0.1, 1.0), failed=[2], blocked=0.1
    )
    found = sections(boundary, tmp_path / "run")
    assert [section.title for section in found] == [
        "Distance to the decision boundary", "Mean curvature of the boundary", "Curvature as a function of the scale",
        "Principal curvatures",
    ]  # fmt: skip
    figures = plots(found)
    n_found = int((written.column("boundary", "status") == "found").sum())
    assert sum(counts(figures["distance"].figure)) == sum(counts(figures["mean_curvature"].figure)) == n_found
    assert [axes.get_title() for axes in figures["distance"].figure.axes] == ["split train", "split test"]
    cells = table(found, "Distance to the boundary").rows
    assert [row[:3] for row in cells] == [[s, p, "l2"] for s in ("train", "test") for p in ("correctly", "wrongly")]
    assert sum(int(row[3]) for row in cells) == 39
    curvature = written.column("boundary", "mean_curvature")[written.split("boundary") == "train"]
    row = table(found, "Mean curvature").rows[0]
    assert row[:2] == ["train", "differences, h = 0.1"]
    assert row[3].startswith(f"{number(np.nanmean(curvature))} ± ")
    upper, lower = figures["curvature_steps"].figure.axes
    assert set(drawn(upper)) == {"split train", "split test"}
    np.testing.assert_allclose(drawn(lower)["split test"][:, 1], np.log10(0.3 / (0.2 + np.array([0.01, 0.1, 1.0]))))
    left, right = figures["curvature_profile_1"].figure.axes
    (_, line) = left.lines
    assert (line.get_xdata()[0], len(line.get_xdata())) == (1, 59)
    assert [entry.get_label() for entry in right.lines] == ["positive", "|negative|"]
    assert right.lines[0].get_ydata()[0] == pytest.approx(np.log10(line.get_ydata()[0]))
    assert right.lines[1].get_ydata()[0] == pytest.approx(np.log10(-line.get_ydata()[-1]))
    assert "Their sum, the asymmetry at the extremes, is -" in text(found)


def test_boundary_at_both_ends_of_the_true_class(tmp_path: Path) -> None:
    write_boundary(tmp_path / "run", splits={"test": 12}, ends=6, n_ends=3, blocked=0, region="label", norm="linf")
    found = sections(boundary, tmp_path / "run")
    plot = plots(found)["curvature_profile"]
    assert "6 of 3,071 curvatures were computed" in plot.caption
    left, right = plot.figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "3", "3,069", "3,070", "3,071"]
    assert [line.get_xdata().tolist() for line in right.lines] == [[1, 2, 3], [1, 2, 3]]
    assert (
        plots(found)["distance"]
        .figure.get_supxlabel()
        .startswith("distance to the boundary, largest change of a value")
    )


def test_distances_alone(tmp_path: Path) -> None:
    write_boundary(tmp_path / "run", splits={"test": 9}, curvature=False, blocked=1.0)
    (section,) = sections(boundary, tmp_path / "run")
    assert not plots([section])
    assert "No sample has a boundary within the search." in text([section])
    assert {row[7] for row in table([section], "Distance").rows} == {"–"}


def test_directions(tmp_path: Path) -> None:
    written = write_directions(tmp_path / "run", splits={"test": 30}, shared=20)
    found = sections(directions, tmp_path / "run")
    rho = written.column("direction_curvatures", "rho").reshape(30, 20).mean(0)
    upper, _ = plots(found)["rho"].figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in upper.containers[0]], rho)
    (axes,) = plots(found)["noise"].figure.axes
    lines = drawn(axes)
    assert set(lines) == {"noise in S", "noise outside S"}
    inside = written.column("direction_noise", "space") == "S"
    rate = written.column("direction_noise", "changed")[inside].reshape(30, 6).sum(0) / 300
    np.testing.assert_allclose(lines["noise in S"][:, 1], rate)
    norms = table(found, "Norm of the projection")
    assert [row[0] for row in norms.rows][:2] == ["random", "adversarial, r(x)"]
    assert norms.columns == ["perturbation v", "test"]


def test_paths(tmp_path: Path) -> None:
    written = write_paths(tmp_path / "run", pairs=12, pictures=2, resolution=8, anchors=18, scenarios=["noise"])
    found = sections(paths, tmp_path / "run")
    assert [row[:4] for row in table(found, "Pairs by scenario").rows] == [["noise", "11", "10 (90.9%)", "4 (36.4%)"]]
    missing = table(found, "Pairs that are not connected: 2.").rows
    depth = written.tables["paths"]["depth"].to_pylist()[-1]
    assert missing[0] == ["noise-000011", "test/000011", "–", "cat", f"2 segments leave the class at depth {depth}"]
    assert missing[-1][-1].startswith("no second image")
    figures = plots(found)
    assert counts(figures["anchors"].figure) == [10]
    assert counts(figures["length_ratio"].figure) == [6]
    straight, bent = figures["sections_noise_2"], figures["sections_noise_1"]
    cuts = written.tables["cross_sections"].to_pylist()
    first = next(cut for cut in cuts if cut["pair"] == "noise-000000")
    (axes,) = straight.figure.axes
    shades = axes.images[0].get_array().data
    assert shades.shape == (4, 8)
    np.testing.assert_array_equal(shades.ravel() == 0, np.array(first["predicted"]) == 3)
    assert tuple(axes.lines[0].get_xdata()) == (0.0, first["to_x"])
    assert "class cat" in straight.caption
    anchors = next(path["anchors"] for path in written.tables["paths"].to_pylist() if path["pair"] == "noise-000001")
    titles = [axes.get_title() for axes in bent.figure.axes]
    assert titles == ["straight", *(f"segment {place} of {anchors + 1}" for place in range(1, 12))]
    assert f" 11 of the {anchors + 1} segments of the path are drawn." in bent.caption


def test_paths_all_connected(tmp_path: Path) -> None:
    write_paths(tmp_path / "run", pairs=4, scenarios=["noise"], pictures=4, unconnected=0, errors=0, anchors=1)
    found = sections(paths, tmp_path / "run")
    assert "All pairs are connected." in text(found)
    assert "3 of 4 pairs are drawn" in text(found)
    assert [len(plot.figure.axes) for name, plot in plots(found).items() if name.startswith("sections")] == [3, 3, 1]


def test_convexity(tmp_path: Path) -> None:
    written = write_convexity(tmp_path / "run", k=(2, 10), groups=8)
    found = sections(convexity, tmp_path / "run")
    (axes,) = plots(found)["convexity"].figure.axes
    inside, k = written.column("convexity", "inside"), written.column("convexity", "k")
    share = [inside[k == size].sum() / 60 for size in (2, 10)]
    np.testing.assert_allclose(drawn(axes)["measured"], np.column_stack([np.log10([2, 10]), share]))
    assert [row[:3] for row in table(found, "Convex combinations").rows] == [["2", "6", "60"], ["10", "6", "60"]]


def test_detection(tmp_path: Path) -> None:
    written = write_detect(tmp_path / "run", splits={"test": 30}, scales=(1.02, 2.0), unfound=[3], unknown=[4])
    found = sections(detect, tmp_path / "run")
    assert [section.title for section in found] == [
        "Detection of perturbed inputs, split test", "Recovery of labels, split test",
    ]  # fmt: skip
    figures = plots(found)
    roc, precision = figures["roc_scales"].figure.axes
    with open_results(tmp_path / "run") as database:
        areas = database.query("FROM detection_areas() WHERE measure = 'rho' AND attack = 'deepfool'").rows()
    expected = [f"scale {row['scale']:g}: {row['roc_area']:.3f} ± {row['roc_stderr']:.3f}" for row in areas]
    assert legend(roc) == [*expected, "chance"]
    for line, row in zip(roc.lines, areas, strict=False):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(row["roc_area"])
    assert legend(precision)[0] == f"scale 1.02: {areas[0]['average_precision']:.3f}"
    assert [label.split(":")[0] for label in legend(figures["roc_baselines"].figure.axes[0])] == [
        "curvature ρ", "1 - largest softmax", "energy", "chance",
    ]  # fmt: skip
    upper, lower = figures["roc_areas"].figure.axes
    np.testing.assert_allclose(drawn(upper)["curvature ρ"][:, 1], [row["roc_area"] for row in areas])
    assert upper.get_ylim() == lower.get_ylim()
    assert counts(figures["rho"].figure) == [29, 29, 29]
    original = written.column("detections", "attack") == "none"
    rho = written.column("detections", "rho")[original]
    share = np.mean(rho[~np.isnan(rho)] >= 0)
    cells = table(found, "Algorithm 2 with threshold").rows
    assert [row[0] for row in cells] == ["as they are", "DeepFool", "DeepFool", "random noise", "random noise"]
    assert (cells[0][2], cells[0][4]) == ("29", f"{100 * share:.1f} ± {100 * np.sqrt(share * (1 - share) / 29):.1f}%")
    flagged, _ = figures["recovery"].figure.axes
    assert legend(flagged) == ["as they are", "perturbed inputs", "random noise"]


def test_detection_of_nothing(tmp_path: Path) -> None:
    write_detect(tmp_path / "run", splits={"test": 4}, unfound=range(4))
    assert set(plots(sections(detect, tmp_path / "run"))) == {"rho"}


# -- several scans -----------------------------------------------------------------------------------------------------


def test_scans_side_by_side(tmp_path: Path) -> None:
    small = {"splits": {"test": 8}}
    options = {
        boundary: {**small, "steps": (0.1, 1.0)},
        directions: {**small, "shared": 3, "noise": (0.1, 0.3)},
        paths: {"pairs": 4, "pictures": 0},
        convexity: {"groups": 4},
        detect: small,
    }
    expected = {
        boundary: {"distances_l2", "curvature_steps"}, directions: {"noise"}, paths: set(), convexity: {"convexity"},
        detect: {"detection"},
    }  # fmt: skip
    for module, write in KINDS.items():
        places = [tmp_path / module.__name__ / name for name in ("one", "two")]
        for seed, place in enumerate(places):
            write(place, seed=seed, **options[module])
        found = sections(module, *places)
        assert all(section.title.endswith(", all scans") for section in found)
        assert set(plots(found)) == expected[module]
        for plot in plots(found).values():
            labels = {label.split(" · ")[0] for axes in plot.figure.axes for label in drawn(axes)}
            assert labels == {"one", "two"}
        tables = [block for block in blocks(found) if isinstance(block, Table)]
        for one in tables:
            assert {"one", "two"} <= {cell.split(" · ")[0] for cell in [*one.columns, *(row[0] for row in one.rows)]}
        assert tables


def test_a_page(tmp_path: Path) -> None:
    write_convexity(tmp_path / "run", k=(2, 3), groups=4, class_names=["<b>bold</b>", *CLASSES[1:]])
    page, *files = write_report(tmp_path / "run", tmp_path / "report.html", formats=["png"])
    assert [Path(file).name for file in files] == ["convexity.png"]
    assert "Convexity of classification regions" in Path(page).read_text()
