"""The report of the significance and ablations scans: heat maps, histograms, tables, scans side by side."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from synthetic import STARTED
from synthetic_significance import Truth, write_significance

from raysense.query.connection import ResultDatabase, open_results
from raysense.report import ablations, significance
from raysense.report.blocks import Block, Notice, Paragraph, Plot, Section, Table
from raysense.report.page import write_report
from raysense.report.significance_data import side_by_side, sparsity_classes
from raysense.report.significance_figures import Band, HeatMap, colour_scale, heat_map, heat_map_bands
from raysense.report.style import RED, number, styled
from raysense.scans._ablations_tables import ablations_schemas
from raysense.store.store import Store, encode_schemas

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LAYERS = {"features.9": (6, 8), "classifier": (10, 6)}
LAST = {"classifier": LAYERS["classifier"]}
LABEL = "KL divergence [nats]"


# -- helpers -----------------------------------------------------------------------------------------------------------


def write(location: Path, *, model: str = "model", data: str = "data", **options: Any) -> Truth:
    """A scan of ten classes; equal references of models and data mean equal fingerprints."""
    options = {"layers": LAYERS, "splits": {"test": [8] * 10}, "class_names": CLASSES, "unit_size": 8} | options
    truth = write_significance(location, model=model, data=data, **options)
    edit(location, lambda document: document["facts"].update(fingerprints={"model": model, "data": data}))
    return truth


def edit(location: Path, change: Any) -> None:
    document = json.loads((location / "scan.json").read_text())
    change(document)
    (location / "scan.json").write_text(json.dumps(document))


def sections(*locations: Path, module: Any = significance) -> list[Section]:
    """The sections on one scan, or the joint ones on several."""
    with open_results(list(locations)) as database:
        kind = "ablations" if module is ablations else "significance"
        scans = [scan for scan in database.scans if scan.kind == kind]
        found: list[Section] = module.joint(database, scans) if len(scans) > 1 else module.sections(database, scans[0])
    return found


def blocks(found: Sequence[Section]) -> list[Block]:
    return [block for section in found for block in section.blocks]


def plots(found: Sequence[Section]) -> dict[str, Plot]:
    return {block.name: block for block in blocks(found) if isinstance(block, Plot)}


def table(found: Sequence[Section], caption: str) -> Table:
    (one,) = (block for block in blocks(found) if isinstance(block, Table) and block.caption.startswith(caption))
    return one


def text(found: Sequence[Section]) -> str:
    kept = [block for block in blocks(found) if isinstance(block, Paragraph | Notice)]
    return " ".join([block.text for block in kept] + [plot.caption for plot in plots(found).values()])


def panels(figure: Figure) -> list[Axes]:
    """The heat maps of a figure, colour bars left out."""
    return [axes for axes in figure.axes if axes.images]


def drawn(axes: Axes) -> np.ndarray:
    """The values of a heat map."""
    return np.asarray(axes.images[0].get_array().filled(np.nan))


def labels(axes: Axes, side: str) -> list[str]:
    return [label.get_text() for label in (axes.get_yticklabels() if side == "y" else axes.get_xticklabels())]


def proportions(truth: Truth, split: str, layer: str, smoothing: float = 0.5) -> np.ndarray:
    """Proportions of every path by class, all classes together last, [classes + 1, rows, columns]."""
    counts, observations = truth.counts[split, layer], truth.n_observations[split, layer]
    counts = np.concatenate([counts, counts.sum(0, keepdims=True)])
    observations = np.append(observations, observations.sum())
    return (counts + smoothing) / (observations + 2 * smoothing)[:, None, None]


def divergences(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(P || Q) of all pairs, the mean over paths, from the definition."""
    return np.array([[np.mean(a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))) for b in q] for a in p])


def entropies(p: np.ndarray) -> np.ndarray:
    values: np.ndarray = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(axis=(1, 2))
    return values


def expected_map(truth: Truth, split: str, layer: str) -> np.ndarray:
    """KL divergences of classes and of all together, entropies on the diagonal."""
    p = proportions(truth, split, layer)
    values = divergences(p, p)
    np.fill_diagonal(values, entropies(p))
    return values


def check_layout(figure: Figure) -> None:
    """Titles and labels lie on the figure, heat maps with their labels overlap neither each other nor do their labels."""
    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    renderer = canvas.get_renderer()
    for axes in figure.axes:
        for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
            box = part.get_window_extent(renderer)
            inside = box.x0 > -2 and box.y0 > -2 and box.x1 < figure.bbox.width + 2 and box.y1 < figure.bbox.height + 2
            assert inside or not part.get_text(), part.get_text()
        for side, across in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            shown = [label.get_window_extent(renderer) for label in side.get_ticklabels() if label.get_visible()]
            ends = sorted((getattr(box, f"{across}0"), getattr(box, f"{across}1")) for box in shown)
            # Line heights leave room above and below the letters.
            assert all(end < start + 3 for (_, end), (start, _) in itertools.pairwise(ends))
    frames = [axes.get_tightbbox(renderer) for axes in panels(figure)]
    for one, other in itertools.combinations(frames, 2):
        shared = (min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0))
        assert min(shared) < 2, "two heat maps overlap"


def random_map(names: Sequence[str], scale: float = 1.0, title: str = "trained", entropy: float = 0.4) -> HeatMap:
    values = np.random.default_rng(len(names)).lognormal(-1, 0.6, (len(names) + 1,) * 2) * scale
    np.fill_diagonal(values, entropy)
    shown = [*names, "overall"]
    return HeatMap(title, shown, shown, values, overall=True)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_colours_of_values() -> None:
    names = ["cat", "dog", "frog"]
    linear = colour_scale([random_map(names)])
    assert (linear.low, linear.logarithmic, linear.infinite) == (0.0, False, False)
    assert linear.says == " Colours are linear."
    wide = random_map(names, scale=1e-7)
    wide.values[0, 1], wide.values[1, 0], wide.values[1, 2] = 0.0, np.inf, np.nan
    scale = colour_scale([wide])
    assert scale.logarithmic
    assert scale.low == pytest.approx(0.4 / 1e4)
    below = "10 of 14 values below 4.00e-5 have the lowest colour"
    assert scale.says == f" Colours are logarithmic; {below}. Red: infinite (1 of 15 values). Grey: no value."
    figure, _ = heat_map(wide, LABEL)
    (axes,) = panels(figure)
    image = axes.images[0]
    assert isinstance(image.norm, LogNorm)
    shades = image.cmap(image.norm(image.get_array()))
    np.testing.assert_allclose(shades[1, 0], to_rgba(RED))
    np.testing.assert_allclose(shades[0, 1], image.cmap(0.0))
    np.testing.assert_allclose(shades[1, 2], to_rgba("#DDDDDD"), atol=1e-9)
    written = {
        (round(found.get_position()[1]), round(found.get_position()[0])): found.get_text() for found in axes.texts
    }
    assert written == {at: number(value) for at, value in np.ndenumerate(wide.values) if not np.isnan(value)}
    assert written[1, 0] == "∞"


@pytest.mark.parametrize(
    ("value", "ends", "says"),
    [
        (0.0, (0.0, 1.0), " All values are 0."),
        (np.inf, (0.0, 1.0), " Red: infinite (4 of 4 values)."),
        (np.nan, (0.0, 1.0), " Grey: no value."),
        (-1e-3, (-1e-3, 0.0), ""),
        (1e200, (0.0, 1e200), " Colours are linear."),
        (1e-200, (0.0, 1e-200), " Colours are linear."),
    ],
)
def test_colours_of_equal_values(value: float, ends: tuple[float, float], says: str) -> None:
    found = HeatMap("", ["cat", "overall"], ["cat", "overall"], np.full((2, 2), value), overall=True)
    scale = colour_scale([found])
    assert (scale.low, scale.high) == ends
    assert scale.says == says
    (axes,) = panels(heat_map(found, LABEL)[0])
    assert len(axes.texts) == (0 if np.isnan(value) else 4)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (CLASSES, 3),
        ([f"{name} {index}" for index in range(5) for name in CLASSES], 3),
        (["$x_1$", "a" * 40], 2),
        (CLASSES, 5),
    ],
    ids=["ten", "fifty", "long", "ragged"],
)  # fmt: skip
def test_labels_are_readable(names: Sequence[str], count: int) -> None:
    maps = [random_map(names, 10.0**-at, f"a-condition-on-some-data-{at}", 0.1 * (at + 1)) for at in range(count)]
    bands = [Band("one scale", maps, colour_scale(maps)), Band("own scales", maps, None)]
    figure, says = heat_map_bands(bands, LABEL + "\n(diagonal: entropy)")
    check_layout(figure)
    found = panels(figure)
    assert len(found) == 2 * count
    assert len({axes.images[0].norm.vmax for axes in found[:count]}) == 1
    assert [axes.images[0].norm.vmax for axes in found[count:]] == [part.values.max() for part in maps]
    assert labels(found[0], "y")[-1] == labels(found[count - 1], "x")[-1] == "overall"
    assert labels(found[0], "y")[0] == names[0]
    assert bool(re.search(r"One in \d classes is labelled\.", says)) == (len(names) == 50)


def test_side_by_side() -> None:
    assert side_by_side(["a1", "b1", "a2", "c1", "c2"], lambda item: item[0]) == [["a1", "a2"], ["c1", "c2", "b1"]]
    assert side_by_side(["a1", "b1", "a2", "c1"], lambda item: item[0]) == [["a1", "a2"], ["b1", "c1"]]
    assert side_by_side(["a1", "b1"], lambda item: item[0]) == [["a1", "b1"]]


def test_sparsity_classes() -> None:
    rows = {index: {"density": density} for index, density in enumerate([0.3, 0.1, 0.5, 0.2])}
    assert sparsity_classes(rows, [0, 1, 2, 3]) == {"densest": 2, "median": 3, "sparsest": 1}
    assert sparsity_classes(rows, [0, 3]) == {"densest": 0, "sparsest": 3}
    assert sparsity_classes(rows, [1]) == {"densest": 1}
    assert sparsity_classes(rows, []) == {}


# -- one scan ----------------------------------------------------------------------------------------------------------


def test_a_scan(tmp_path: Path) -> None:
    truth = write(tmp_path / "run", splits={"test": [3] * 10, "train": [8] * 10}, positions={"features.9": 4})
    found = sections(tmp_path / "run")
    cases = [(layer, split) for layer in LAYERS for split in ("train", "test")]
    titles = [f"Layer {layer}, split {split}" for layer, split in cases]
    assert [section.title for section in found] == ["Significant paths", *titles]
    said = text(found[:1])
    assert "features.9 (linear, 6 outputs × 8 inputs = 48 paths, 4 positions a sample); classifier (linear, 10 " in said
    assert "|N_ij| > n Σ_k N_ik" in said
    assert "Every position (token, patch) is an observation of its own." in said
    summary = table(found, "Separation and entropy of classes").rows
    assert len(summary) == len(cases)
    for index, (layer, split) in enumerate(cases):
        expected = expected_map(truth, split, layer)
        own = plots(found[1 + index : 2 + index])
        (axes,) = panels(own[f"kl_{index + 1}"].figure)
        np.testing.assert_allclose(drawn(axes), expected, rtol=1e-9, atol=1e-13)
        assert labels(axes, "x") == labels(axes, "y") == [*CLASSES, "overall"]
        apart = expected[:10, :10][~np.eye(10, dtype=bool)].mean()
        p = proportions(truth, split, layer, smoothing=0)
        assert summary[index] == [
            layer, split, "10", "80" if split == "train" else "30",
            *map(number, (apart, expected.diagonal()[:10].mean(), expected[10, 10], p[:10].mean())),
        ]  # fmt: skip

        histograms = {axes.get_title().split("\n")[0]: axes for axes in own[f"sparsity_{index + 1}"].figure.axes}
        density = p[:10].mean(axis=(1, 2))
        assert list(histograms)[::2] == [CLASSES[density.argmax()], CLASSES[density.argmin()]]
        assert list(histograms)[3] == "overall"
        (steps,) = (patch for patch in histograms["overall"].patches if isinstance(patch, StepPatch))
        counts, total = truth.counts[split, layer].sum(0), truth.n_observations[split, layer].sum()
        counted = np.bincount(np.minimum(counts * 20 // total, 19).ravel(), minlength=20)
        np.testing.assert_array_equal(steps.get_data().values, np.maximum(counted, 0.5))

        off = np.where(np.eye(10, dtype=bool), np.nan, expected[:10, :10])
        order = np.argsort(-np.nanmean(off, axis=1))
        rows = table(found[1 + index : 2 + index], "Classes, those furthest").rows
        assert [row[0] for row in rows] == [*(CLASSES[at] for at in order), "overall"]
        observations = (8 if split == "train" else 3) * (4 if layer == "features.9" else 1)
        nearest = np.nanargmin(off[order[0]])
        values = (
            density[order[0]],
            expected[order[0], order[0]],
            np.nanmean(off[order[0]]),
            np.nanmean(off[:, order[0]]),
        )
        assert rows[0][2:] == [
            str(observations), *map(number, values), CLASSES[nearest], number(off[order[0], nearest])
        ]  # fmt: skip
        assert rows[-1][5:] == ["–"] * 4
    assert all(row[2].isdigit() for row in table(found[1:2], "The 3 most significant paths").rows)


def test_many_classes_are_sampled(tmp_path: Path) -> None:
    splits = {"test": [2] * 60}
    write(tmp_path / "run", splits=splits, class_names=None, layers={"classifier": (4, 3)}, unit_size=2)
    found = sections(tmp_path / "run")
    (axes,) = panels(plots(found)["kl"].figure)
    assert drawn(axes).shape == (51, 51)
    sampled = labels(axes, "y")
    assert [sampled[at] for at in (0, 1, 49, 50)] == ["0", "1", "59", "overall"]
    assert len(set(sampled)) == 51
    assert "50 of 60 classes are drawn, evenly spaced; numbers in tables are those of all classes." in text(found)
    assert table(found, "Separation and entropy").rows[0][2] == "60"
    for caption in ("The 10 densest of 60 classes", "The 10 classes furthest", "The 10 classes nearest"):
        assert len(table(found, caption).rows) == 10 + caption.startswith("The 10 densest")
    assert " 10 of 60 classes, evenly spaced." in table(found, "The 3 most significant paths").caption


def test_layers_left_out_are_named(tmp_path: Path) -> None:
    layers = {f"block.{index}": (3, 4) for index in range(6)}
    write(tmp_path / "run", layers=layers, splits={"test": [2, 2]}, class_names=None)
    found = sections(tmp_path / "run")
    assert [section.title for section in found[1:]] == [f"Layer block.{index}, split test" for index in range(2, 6)]
    assert "The last 4 layers are drawn; only in the table: block.0, block.1." in text(found)
    assert len(table(found, "Separation and entropy").rows) == 6


def test_a_scan_of_one_class(tmp_path: Path) -> None:
    write(tmp_path / "run", splits={"test": [5]}, class_names=["cat"], layers={"fc": (4, 6)})
    found = sections(tmp_path / "run")
    (axes,) = panels(plots(found)["kl"].figure)
    assert labels(axes, "x") == ["cat", "overall"]
    assert [axes.get_title() for axes in plots(found)["sparsity"].figure.axes] == ["cat"]
    check_layout(plots(found)["sparsity"].figure)
    assert table(found, "Separation and entropy").rows[0][2:5] == ["1", "5", "–"]


def test_an_unfinished_scan_and_one_without_rows(tmp_path: Path) -> None:
    write(tmp_path / "part", commit=3, layers=LAST)
    found = sections(tmp_path / "part")
    assert [row[0] for row in table(found[1:2], "Classes, those").rows[:-1]] != []
    assert {row[0] for row in table(found[1:2], "Classes, those").rows} == {*CLASSES[:3], "overall"}
    write(tmp_path / "none", commit=0, layers=LAST)
    (section,) = sections(tmp_path / "none")
    assert [block.text for block in section.blocks if isinstance(block, Notice)] == ["No path has been counted yet."]
    assert sections(tmp_path / "part", tmp_path / "none") == []
    write(tmp_path / "whole", layers=LAST)
    both = sections(tmp_path / "part", tmp_path / "whole")
    assert labels(panels(plots(both)["kl_1"].figure)[1], "x") == [*CLASSES[:3], "overall"]
    assert "3 of 10 classes are drawn, of the 3 that all scans have; numbers" in text(both)
    files = write_report([tmp_path / "part", tmp_path / "none"], tmp_path / "report.html", formats=())
    assert files == [str(tmp_path / "report.html")]
    assert "Unfinished: scan part, scan none." in (tmp_path / "report.html").read_text()


# -- scans side by side ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Truth]]:
    """Two networks on two data sets each, the second of them shifted, and a third network on the first one."""
    folder, truths = tmp_path_factory.mktemp("conditions"), {}
    for seed, (model, data, shift) in enumerate(
        itertools.chain(
            itertools.product(("untrained", "trained"), ("digits",), (0.0,)),
            itertools.product(("untrained", "trained"), ("svhn",), (0.7,)),
            [("shuffled", "digits", 0.0)],
        )
    ):
        name = model if data == "digits" else f"{model}-{data}"
        known: dict[str, Any] = {"structure": model, "shift": shift, "sample_seed": seed, "layers": LAST}
        truths[name] = write(folder / name, model=model, data=data, **known)
    return folder, truths


def test_paths_are_named_by_the_classes_of_the_last_layer(conditions: tuple[Path, dict[str, Truth]]) -> None:
    truth = conditions[1]["trained"]
    last = table(sections(conditions[0] / "trained"), "The 3 most significant paths").rows
    p = proportions(truth, "test", "classifier", smoothing=0)
    assert {row[0] for row in last} == set(CLASSES)
    for name, _, output, column, value, overall, contrast in last:
        index, named = re.fullmatch(r"(\d+) \((\w+)\)", output).groups()  # type: ignore[union-attr]
        assert CLASSES[int(index)] == named
        label = CLASSES.index(name)
        if column.isdigit():
            one, every = (p[at, int(index), int(column)] for at in (label, 10))
            assert [value, overall, contrast] == [number(one), number(every), number(one - every)]
        else:
            assert re.fullmatch(r"all 6|\d others, all alike", column)


@pytest.fixture(scope="module")
def all_conditions(conditions: tuple[Path, dict[str, Truth]]) -> list[Section]:
    """The sections on all of them together."""
    folder, truths = conditions
    return sections(*(folder / name for name in truths))


def test_scans_side_by_side(conditions: tuple[Path, dict[str, Truth]], all_conditions: list[Section]) -> None:
    truths, found = conditions[1], all_conditions
    assert [section.title for section in found] == [
        "Significant paths, all scans",
        "Layer classifier, all scans",
        "Layer classifier, between data sets",
    ]
    rows = table(found, "Separation and entropy of classes in all scans").rows
    assert [row[0] for row in rows] == list(truths)
    drawings = plots(found)
    groups = {"1": ["untrained", "trained", "shuffled"], "2": ["untrained-svhn", "trained-svhn"]}
    scales = set()
    for group, names in groups.items():
        figure = drawings[f"kl_1_{group}"].figure
        maps = panels(figure)
        assert [axes.get_title() for axes in maps] == 2 * names
        for axes, name in zip(maps, 2 * names, strict=True):
            np.testing.assert_allclose(
                drawn(axes), expected_map(truths[name], "test", "classifier"), rtol=1e-9, atol=1e-13
            )
        scales |= {axes.images[0].norm.vmax for axes in maps[: len(names)]}
        assert [axes.images[0].norm.vmax for axes in maps[len(names) :]] == [
            pytest.approx(expected_map(truths[name], "test", "classifier").max()) for name in names
        ]
        histograms = drawings[f"sparsity_1_{group}"].figure.axes
        titles = [axes.get_title().split("\n") for axes in histograms]
        assert [title[0] for title in titles] == 2 * names
        density = truths[names[0]].counts["test", "classifier"].mean(axis=(1, 2))
        extremes = [CLASSES[density.argmax()], CLASSES[density.argmin()]]
        assert [title[1] for title in titles] == [name for name in extremes for _ in names]
    assert len(scales) == 1, "one scale for all data sets"
    assert "The common scale is that of all data sets of this layer." in text(found)


def test_divergence_between_data_sets(conditions: tuple[Path, dict[str, Truth]], all_conditions: list[Section]) -> None:
    truths, found = conditions[1], all_conditions
    same = np.eye(10, dtype=bool)
    for place, network in enumerate(("untrained", "trained")):
        first, other = (proportions(truths[name], "test", "classifier") for name in (network, f"{network}-svhn"))
        within, between = divergences(first, first), divergences(other, first)
        maps = panels(plots(found)[f"between_1_{place + 1}"].figure)
        assert [axes.get_title() for axes in maps] == [f"P and Q: {network}, test", f"P: {network}-svhn, test"]
        assert len({axes.images[0].norm.vmax for axes in maps}) == 1
        for axes, values in zip(maps, (within, between), strict=True):
            np.testing.assert_allclose(drawn(axes), values, rtol=1e-9, atol=1e-13)
        apart = divergences(other, other)[:10, :10][~same].mean()
        values = (between[:10, :10][same], between[:10, :10][~same], within[:10, :10][~same])
        one, two, three = (number(part.mean()) for part in values)
        assert (
            f"From {network}-svhn (test) to {network} (test): the mean KL between the same class in both is {one}, between "
            f"different classes {two}; mean inter-class KL is {three} within {network} (test) and {number(apart)} within "
            f"{network}-svhn (test)."
        ) in text(found)


def test_each_macro_is_asked_once(conditions: tuple[Path, dict[str, Truth]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = conditions
    asked: list[str] = []
    query = ResultDatabase.query
    monkeypatch.setattr(ResultDatabase, "query", lambda self, sql: asked.append(sql) or query(self, sql))
    with open_results([folder / "trained", folder / "shuffled"]) as database:
        significance.joint(database, database.scans)
        for scan in database.scans:
            significance.sections(database, scan)
    calls = [match[0] for sql in asked if (match := re.search(r"\w+\((layer := '[\w.]+'.*?)?\)", sql))]
    assert len(calls) == len(set(calls)) == 1 + 4


def test_scans_that_do_not_fit(tmp_path: Path) -> None:
    small: dict[str, Any] = {"layers": {"fc": (4, 6)}, "splits": {"test": [4] * 3}}
    write(tmp_path / "a", data="one", class_names=["cat", "dog", "frog"], **small)
    write(tmp_path / "b", data="two", class_names=["0", "1", "2"], sample_seed=1, **small)
    write(tmp_path / "c", data="three", class_names=["cat", "dog", "frog"], **small)
    edit(tmp_path / "c", lambda document: document["facts"]["significance"].update(threshold="mean"))
    found = sections(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert (
        "Scans differ in threshold, so that their numbers cannot be compared: sum in a, sum in b, mean in c."
        in text(found)
    )
    maps = panels(plots(found)["kl_1"].figure)
    assert [labels(axes, "y")[0] for axes in maps[:3]] == ["cat", "0", "cat"]
    assert [axes.get_title() for axes in plots(found)["sparsity_1"].figure.axes] == [
        f"{name}\noverall" for name in "abc"
    ]
    check_layout(plots(found)["kl_1"].figure)
    between = panels(plots(found)["between_1"].figure)
    assert [axes.get_title() for axes in between] == ["P and Q: a, test", "P: b, test"]
    assert (labels(between[1], "y")[0], labels(between[1], "x")[0]) == ("0", "cat")
    said = re.search(r"their classes are named differently, so that none is the same; .* is (\S+); mean", text(found))
    assert said is not None
    with open_results([tmp_path / "a", tmp_path / "b"]) as database:
        mean = database.query(
            "SELECT avg(kl) AS kl FROM kl_between('b', 'a') WHERE class_a >= 0 AND class_b >= 0"
        ).rows()
    assert said[1] == number(mean[0]["kl"])


def test_many_scans_wrap_and_the_rest_is_named(tmp_path: Path) -> None:
    for index in range(7):
        write(tmp_path / f"run{index}", model=f"model{index}", splits={"test": [2] * 3}, layers={"fc": (3, 4)})
    found = sections(*(tmp_path / f"run{index}" for index in range(7)))
    figure = plots(found)["kl_1"].figure
    assert len(panels(figure)) == 12
    assert "Not drawn: run6 (test)." in text(found)
    assert len(table(found, "Separation and entropy").rows) == 7


# -- ablations ---------------------------------------------------------------------------------------------------------


def write_distances(
    location: Path, of: Path | None, scale: float = 1.0, layers: Sequence[str] = tuple(LAYERS), commit: bool = True
) -> np.ndarray:
    """An ablations scan of ten classes; its energy distances of layer classifier."""
    rng = np.random.default_rng(int(1e3 * scale))
    rows, energy = [], np.zeros(0)
    for layer, metric in [(None, "outputs"), *itertools.product(layers, ("interactions", "activations", "energy"))]:
        values = rng.random((10, 10)) * (1e-9 if metric == "interactions" else scale)
        np.fill_diagonal(values, {"interactions": 7.6, "energy": 0.0}.get(metric, 0.1))
        energy = values
        for (a, b), value in np.ndenumerate(values):
            error = 0.0 if metric in ("outputs", "interactions") else 0.01 * (a + 1)
            rows.append([layer, metric, "test", a, b, value, error, 5, 5])
    schema = ablations_schemas()["class_distances"]
    made_of = None if of is None else Store.open(of).location
    facts = {
        "data": {"reference": "digits", "classes": list(CLASSES)},
        "significance": {"layers": [{"name": layer, "rows": 1, "inputs": 1, "positions": 1} for layer in layers]},
        "of": {"location": made_of},
    }
    document = {
        "kind": "ablations", "items": 10, "spec": {"of": made_of}, "spec_hash": "5" * 64, "facts": facts,
        "created": STARTED.isoformat(), "versions": {}, "units": 1, "unit_size": 10,
        "schemas": encode_schemas({"class_distances": schema}),
    }  # fmt: skip
    store = Store.create(location, document, None)
    if commit:
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
        store.commit("0000000000", {"class_distances": table}, {"attempt": 1})
    return energy


def test_ablations(tmp_path: Path) -> None:
    energy = write_distances(tmp_path / "run", of=None)
    found = sections(tmp_path / "run", module=ablations)
    rows = table(found, "Separation between classes").rows
    assert [row[:3] for row in rows[:3]] == [
        ["KL divergence between average neuron-weight interactions", "features.9", "test"],
        ["KL divergence between average neuron-weight interactions", "classifier", "test"],
        ["KL divergence between softmax outputs", "–", "test"],
    ]
    assert rows[0][4:] == ["7.60", "0"]
    assert rows[-1] == [
        "energy distance between activations", "classifier", "test",
        number(energy[~np.eye(10, dtype=bool)].mean()), "0", "0.100",
    ]  # fmt: skip
    drawings = plots(found)
    names = ["interactions_1", "interactions_2", "outputs_3", "energy_4", "energy_5"]
    assert list(drawings) == names
    (axes,) = panels(drawings["energy_5"].figure)
    np.testing.assert_allclose(drawn(axes), energy)
    assert labels(axes, "y") == list(CLASSES)
    (axes,) = panels(drawings["interactions_1"].figure)
    assert np.isnan(drawn(axes).diagonal()).all(), "entropies would hide the divergences"
    assert np.isfinite(drawn(axes)).sum() == 90
    write_distances(tmp_path / "none", of=None, commit=False)
    (section,) = sections(tmp_path / "none", module=ablations)
    assert [block.text for block in section.blocks if isinstance(block, Notice)] == ["No class has been compared yet."]


def test_ablations_beside_their_significance_scans(conditions: tuple[Path, dict[str, Truth]], tmp_path: Path) -> None:
    folder, _ = conditions
    bases = [folder / name for name in ("untrained", "trained")]
    made = [tmp_path / f"{base.name}-ablations" for base in bases]
    for index, (location, base) in enumerate(zip(made, bases, strict=True)):
        write_distances(location, base, scale=10.0**index)
    found = sections(*bases, *made, module=ablations)
    with open_results([*bases, *made]) as database:
        expected = database.query("FROM ablation_table()").rows()
    rows = table(found, "Separation between classes").rows
    names = {"paths": "significant path proportions", "interactions": "average", "outputs": "softmax"}
    names |= {"activations": "mean distance", "energy": "energy"}
    assert len(rows) == len(expected) == 2 * (1 + 7)
    for row in rows:
        (one,) = (
            line for line in expected
            if names[line["metric"]] in row[0] and (line["layer"] or "–", line["scan"]) == (row[1], row[3])
        )  # fmt: skip
        assert row[4:6] == [number(one["separation"]), number(one["spread"])]
    maps = panels(plots(found)["energy_4"].figure)
    assert [axes.get_title() for axes in maps] == 2 * [location.name for location in made]
    check_layout(plots(found)["interactions_1"].figure)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_a_report_of_both_kinds(conditions: tuple[Path, dict[str, Truth]], tmp_path: Path) -> None:
    folder, _ = conditions
    write_distances(tmp_path / "ablations", folder / "trained", layers=["classifier"])
    scans = [folder / "trained", tmp_path / "ablations"]
    files = write_report(scans, tmp_path / "out/report.html", formats=("png",))
    named = ["kl", "sparsity"]
    distances = ["interactions_1", "outputs_2", "energy_3"]
    expected = [f"1-trained_{name}" for name in named] + [f"2-ablations_{name}" for name in distances]
    assert files == [
        str(tmp_path / "out" / name) for name in ("report.html", *(f"report_figures/{name}.png" for name in expected))
    ]
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img ") == len(expected)
    assert "Layer classifier, split test" in page
    assert all(label in page for label in CLASSES)
