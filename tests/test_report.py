"""The HTML report and its figures."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import Truth, map_values, write_scan

from raysense.datasets import open_data
from raysense.errors import UsageError
from raysense.query.connection import open_results
from raysense.report import influence
from raysense.report.blocks import Block, Paragraph, Plot, Table
from raysense.report.manhattan import powers_of_ten
from raysense.report.page import write_report
from raysense.report.points import LogValues, scale_edges, visible
from raysense.report.style import abbreviated, number

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://example.invalid/x.png>',
    "$\\frac{",
    "{{ 7 * 7 }}",
    "ok\x1b[31m",
]


@pytest.fixture
def npz(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8), rng.integers(0, 5, 60)
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    return f"npz:{tmp_path}/data.npz"


def real_scan(location: Path, reference: str, **options: object) -> Truth:
    listing = open_data(reference).list().table
    truth = write_scan(location, reference=reference, listing=listing, n_classes=5, unit_size=20, **options)  # type: ignore[arg-type]
    document = json.loads((location / "scan.json").read_text())
    document["spec"]["split"] = []
    (location / "scan.json").write_text(json.dumps(document))
    return truth


class Page(html.parser.HTMLParser):
    """What a page shows and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "background") or (name == "href" and tag != "a"):
                self.loads.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_a_finished_scan(tmp_path: Path, npz: str) -> None:
    real_scan(tmp_path / "run", npz, class_names=["cat", "dog", "owl", "fox", "bee"], failed={3: "corrupt JPEG"})
    seen: list[tuple[int, int]] = []
    files = write_report([tmp_path / "run"], tmp_path / "out/report.html", progress=lambda *step: seen.append(step))
    names = [f"report_figures/{name}.{kind}" for name in ("largest", "manhattan", "bound") for kind in ("png", "pdf")]
    assert files == [str(tmp_path / "out" / name) for name in ["report.html", *names]]
    for path in files:
        head = Path(path).read_bytes()[:8]
        assert head.startswith({"html": b"<!doctyp", "png": b"\x89PNG", "pdf": b"%PDF"}[path.rsplit(".", 1)[1]])
    assert seen[-1][0] == seen[-1][1]
    page = Page(tmp_path / "out/report.html")
    assert page.tags.count("img") == 3
    for phrase in (
        "Influence measure FI",
        "Manhattan plot of FI",
        "FI equals its bound (1 - p)/p to one part in a million",
        "corrupt JPEG",
        "data/0000003",
        "a1a1a1a1a1a1",
        "torch 2.15.0",
        "3 done",
        "75th",
    ):
        assert phrase in page.shown, phrase
    assert re.search(r"(cat|dog|owl|fox|bee) → (cat|dog|owl|fox|bee)", page.shown)
    assert "nfinished" not in page.shown


def test_the_percentile_table_is_the_papers(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "report.html", formats=())
    page = (tmp_path / "report.html").read_text()
    train = truth.fi[truth.split == "train"]
    for percentile in (75, 80, 85, 90, 95, 98, 99, 100):
        assert f'<td>{percentile}th</td><td class="n">{number(float(np.percentile(train, percentile)))}</td>' in page
    assert not (tmp_path / "report_figures").exists()


def test_an_unfinished_scan_says_so_first(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run", commit=4)
    truth.store.failures.write_failure("u", [{"error": "Traceback\nValueError: bad"}])
    write_report([tmp_path / "run"], tmp_path / "report.html", formats=())
    shown = Page(tmp_path / "report.html").shown
    assert "This scan is unfinished: 4 of 9 units are done, 1 failed, 4 are left" in shown
    assert shown.index("Unfinished: scan run") < shown.index("Kind")
    assert "ValueError: bad" in shown


def test_a_scan_without_rows(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=0)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "No sample has been scored yet." in page.shown
    assert page.tags.count("img") == 0


def test_a_scan_of_failed_samples_only(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", splits={"train": 60}, failed=dict.fromkeys(range(60), "logits are not finite"))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    shown = Page(tmp_path / "report.html").shown
    assert "Samples that failed: 60 (the first 50 are listed)" in shown


def test_a_bound_is_called_a_bound_everywhere(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", method="bound")
    files = write_report([tmp_path / "run"], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    for phrase in (
        "Every value here is an upper bound of FI",
        "Percentiles of the upper bound of FI",
        "train (upper bound)",
        "Manhattan plot of the upper bound of FI",
        "Samples with the largest upper bound of FI",
    ):
        assert phrase in page.shown, phrase
    assert "FI against its bound" not in page.shown
    assert not any("bound." in Path(file).name for file in files)


def test_several_scans_share_a_table(tmp_path: Path) -> None:
    write_scan(tmp_path / "a")
    write_scan(tmp_path / "b", method="certified", commit=2)
    files = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html", formats=("png",))
    page = Page(tmp_path / "report.html")
    assert "All scans" in page.shown
    assert "a · exact · train" in page.shown
    assert "b · certified · train" in page.shown
    assert "Where FI is certified, rows at the bound are those whose interval reaches it" in page.shown
    assert {Path(file).name for file in files[1:]} == {
        "all_manhattan_1.png", "1-a_manhattan.png", "1-a_bound.png", "2-b_manhattan.png", "2-b_bound.png",
    }  # fmt: skip


def cells(page: Path, caption: str) -> list[list[str]]:
    """Rows of the table whose caption starts like this, the column heads first."""
    (table,) = re.findall(rf"<figcaption>{re.escape(caption)}.*?</table>", page.read_text(), flags=re.DOTALL)
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", table)
    ]


def test_the_joint_table_has_train_and_test_of_every_network(tmp_path: Path) -> None:
    truths = {name: write_scan(tmp_path / name, objective="predicted", seed=seed) for seed, name in enumerate("ab")}
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html", formats=())
    head, *rows = cells(tmp_path / "report.html", "Percentiles of FI of all scans")
    assert head == ["Percentile", "a · train", "a · test", "b · train", "b · test"]
    assert [row[0] for row in rows] == [f"{percentile}th" for percentile in (75, 80, 85, 90, 95, 98, 99, 100)]
    for column, (name, split) in enumerate((name, split) for name in "ab" for split in ("train", "test")):
        values = truths[name].fi[truths[name].split == split]
        assert rows[4][column + 1] == number(float(np.percentile(values, 95)))


def blocks(location: Path | list[Path]) -> list[Block]:
    """What the sections on one scan, or the joint ones on several, hold."""
    with open_results(location) as database:
        scans = database.scans
        sections = influence.joint(database, scans) if len(scans) > 1 else influence.sections(database, scans[0])
    return [block for section in sections for block in section.blocks]


def figures(found: list[Block]) -> dict[str, Figure]:
    return {block.name: block.figure for block in found if isinstance(block, Plot)}


def test_networks_side_by_side_have_one_axis(tmp_path: Path) -> None:
    write_scan(tmp_path / "a", splits={"train": 60, "test": 30}, fi={0: 1e9}, layers=("x", "y", "z"))
    write_scan(tmp_path / "b", splits={"train": 60}, class_names=[f"class {i}" for i in range(10)], layers=("x", "y"))
    found = figures(blocks([tmp_path / "a", tmp_path / "b"]))
    assert list(found) == ["manhattan_1", "depth_1"]
    panels = found["manhattan_1"].axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "a · train (60 samples)", "b · train (60 samples)", "a · test (30 samples)", "b · test: no samples",
    ]  # fmt: skip
    assert len({axes.get_ylim() for axes in panels}) == 1
    assert [label.get_text() for label in panels[3].get_xticklabels()] == [f"class {i}" for i in range(10)]
    depths = [line.get_xdata().tolist() for line in found["depth_1"].axes[0].lines]
    assert depths == [[0.0, 0.5, 1.0], [0.0, 1.0]]


def test_many_layers_share_one_set_of_sections(tmp_path: Path) -> None:
    names = [f"block{index}.conv" for index in reversed(range(45))]
    truth = write_scan(tmp_path / "run", layers=names, target="parameters", splits={"train": 80, "test": 20})
    files = write_report(tmp_path / "run", tmp_path / "report.html", formats=("png",))
    assert [Path(file).name for file in files[1:]] == [
        "manhattan.png", "bound.png", "layers.png", "layer_profile.png",
    ]  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h3>FI of every layer</h3>") == 1
    assert '<figure class="wide compact">' in page
    head, *rows = cells(tmp_path / "report.html", "FI of every layer over all samples")
    assert head[:3] == ["", "layer", "median FI"]
    assert [row[1] for row in rows] == names
    for row, values in zip(rows, truth.layer_fi, strict=True):
        assert row[2] == number(float(np.median(values)))
        at_bound = int(np.sum(values == truth.fi_bound))
        assert row[6] == f"{at_bound} ({at_bound:.1f}%)"
    (informative,) = cells(tmp_path / "report.html", "Rows whose FI equals its bound")[1:]
    assert informative[:4] == ["parameters", "label", "exact", "100"]


def test_layers_of_a_bound_say_that_they_are_all_the_same(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", layers=("a", "b"), target="", method="bound", commit=1)
    write_report(tmp_path / "run", tmp_path / "report.html", formats=())
    page = Page(tmp_path / "report.html")
    assert "the same for all of them" in page.shown
    assert page.tags.count("img") == 0


def test_detection_of_outliers(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", splits={"train": 300, "outlier": 30}, cook=True)
    files = write_report(tmp_path / "run", tmp_path / "report.html", formats=("png",))
    assert "detection.png" in [Path(file).name for file in files]
    with open_results(tmp_path / "run") as database:
        areas = {row["measure"]: row for row in database.query("FROM outlier_areas()").rows()}
    _, *rows = cells(tmp_path / "report.html", "Areas under the curves")
    names = ["fi", "jacobian_norm", "cook", "fi_bound"]
    assert [row[0] for row in rows] == ["FI", "Jacobian norm", "Cook's local influence", "softmax alone, (1 - p)/p"]
    for row, name in zip(rows, names, strict=True):
        assert row[1:3] == ["330", "30"]
        for cell, kind in ((row[3], "roc"), (row[4], "pr")):
            assert cell == "{:.3f} [{:.3f}, {:.3f}]".format(
                *(areas[name][f"{kind}_{x}"] for x in ("area", "lower", "upper"))
            )
    left, right = figures(blocks(tmp_path / "run"))["detection"].axes
    assert len(left.lines) == len(right.lines) == 5, "four measures and chance"
    assert all(line.get_xydata()[[0, -1]].tolist() == [[0, 0], [1, 1]] for line in left.lines)


def test_pixel_maps_and_attacks(tmp_path: Path, npz: str) -> None:
    names = ["cat", "dog", "owl", "fox", "bee"]
    mapped = (1, 2, 3, 5, 8, 13, 21)
    truths = real_scan(tmp_path / "run", npz, class_names=names, maps=mapped, map_shape=(3, 12, 12), attack=True)
    everything = blocks(tmp_path / "run")
    found = figures(everything)
    for index in range(1, 7):
        assert {f"maps_{index}", f"maps_{index}_channels"} <= found.keys()
    assert "maps_7" not in found
    largest = max(mapped, key=lambda row: map_values(truths, row, 1, None).max())
    images = [axes.images[0].get_array() for axes in found["maps_1"].axes if axes.images]
    pixels = np.load(npz.removeprefix("npz:"))["x"]
    np.testing.assert_allclose(images[0], pixels[largest] / 255)
    low = images[1].min()
    np.testing.assert_allclose(images[1], np.maximum(map_values(truths, largest, 1, None), low))
    assert len(images) == 1 + 4 + 4

    panels = found["attacks"].axes[:5]
    with open_results(tmp_path / "run") as database:
        rows = database.query("FROM pixel_attacks ORDER BY class_before = class_after, sample_id").rows()
    first = rows[0]
    original, attacked = (panel.images[0].get_array() for panel in panels[:2])
    changed = np.argwhere((np.asarray(original) != np.asarray(attacked)).any(axis=2)).tolist()
    assert changed == [[first["row"], first["column"]]]
    assert attacked[first["row"], first["column"]].tolist() == first["after"]
    assert f"{names[first['class_before']]} (50.75%)" in panels[0].get_xlabel()
    after = f"{names[first['class_after']]} (69.66%)\n{names[first['class_before']]} (30.26%)"
    assert panels[1].get_xlabel() == after
    (frame,) = panels[2].patches
    assert frame.get_center() == pytest.approx((first["column"], first["row"]))

    said = [block.text for block in everything if isinstance(block, Paragraph)]
    assert "Of 7 samples with maps the 6 with the largest FI of a pixel are shown." in said
    assert said[-1].endswith("The predicted class changes in 4 of 7 images.")
    table = everything[-1]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == [row["sample_id"] for row in rows]
    assert table.rows[0][4] == "0.00, 0.00, 0.00 → 1.00, 1.00, 1.00"


def test_pixel_maps_without_their_images(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", reference="/nowhere.py:data", target="", maps=(0, 1), attack=True)
    found = figures(blocks(tmp_path / "run"))
    assert list(found) == ["maps_1", "maps_2"]
    assert sum(bool(axes.images) for axes in found["maps_1"].axes) == 4
    write_report(tmp_path / "run", tmp_path / "report.html", formats=())
    assert "would run the code" in Page(tmp_path / "report.html").shown
    assert len(cells(tmp_path / "report.html", "One-pixel attacks; pixel values")) == 3


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(-9.0, 4.0, ["$10^{-8}$", "$10^{-6}$", "$10^{-4}$", "0.01", "1", "100", "$10^{4}$"]),
     (-4.2, -2.9, ["$10^{-4}$", "$2 \\times 10^{-4}$", "0.0005", "0.001"]),
     (2.5, 3.5, ["500", "1000", "2000"])],
)  # fmt: skip
def test_ticks_of_log_scales(low: float, high: float, labels: list[str]) -> None:
    axes = Figure().add_subplot()
    axes.set_ylim(low, high)
    powers_of_ten(axes.yaxis)
    formatter = axes.yaxis.get_major_formatter()
    assert [formatter(tick) for tick in axes.get_yticks() if low <= tick <= high] == labels


def test_a_kind_without_a_module_of_its_own_gets_its_facts(tmp_path: Path) -> None:
    truth = write_scan(tmp_path / "run")
    document = truth.store.document()
    truth.store.directory.write_json("scan.json", {**document, "kind": "other"})
    assert write_report(tmp_path / "run", tmp_path / "report.html") == [str(tmp_path / "report.html")]
    shown = Page(tmp_path / "report.html").shown
    assert "Kind other" in shown
    assert "Influence measure" not in shown


def test_data_out_of_reach_is_said_in_words(tmp_path: Path, npz: str) -> None:
    real_scan(tmp_path / "run", npz)
    (tmp_path / "data.npz").unlink()
    write_report([tmp_path / "run"], tmp_path / "report.html")
    shown = Page(tmp_path / "report.html").shown
    assert "cannot be shown" in shown
    assert "Manhattan plot of FI" in shown


def test_hostile_names_are_text(tmp_path: Path, npz: str) -> None:
    location = tmp_path / "<script>alert(2)</script>' OR 1=1 --"
    labels = open_data(npz).list().table["label"].to_pylist()
    largest = {labels.index(label): 1e6 + label for label in range(5)}
    failed = next(row for row in range(60) if row not in largest)
    real_scan(location, npz, class_names=HOSTILE, failed={failed: "<script>alert(3)</script>"}, fi=largest)
    write_report([location], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "script" not in page.tags
    assert all(name in page.shown for name in HOSTILE)
    assert "<script>alert(3)</script>" in page.shown
    assert all(source.startswith("data:") for source in page.loads)


def test_nothing_is_loaded_from_outside(tmp_path: Path, npz: str) -> None:
    real_scan(tmp_path / "run", npz)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.loads
    assert all(source.startswith("data:") for source in page.loads)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert {"script", "iframe", "object", "embed"}.isdisjoint(page.tags)


def test_a_thousand_classes_and_many_samples_stay_small(tmp_path: Path) -> None:
    names = [f"a long class name such as ImageNet has, number {i}" for i in range(1000)]
    write_scan(tmp_path / "run", splits={"val": 150_000}, unit_size=50_000, n_classes=1000, class_names=names)
    files = write_report([tmp_path / "run"], tmp_path / "report.html")
    assert all(Path(file).stat().st_size < 2_000_000 for file in files)
    shown = Page(tmp_path / "report.html").shown
    assert re.search(r"Of 150,000 samples of split val [\d,]+ are drawn", shown)


def test_extreme_values_are_drawn_at_the_edge_and_said(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", fi={0: 0.0, 1: 1e-30, 2: np.inf, 3: 1e30})
    write_report([tmp_path / "run"], tmp_path / "report.html", formats=())
    shown = Page(tmp_path / "report.html").shown
    assert "2 samples of split train below 1e-16 (1 of them exactly 0) at the lower edge" in shown
    assert "2 samples of split train above 1e16 at the upper edge" in shown
    assert "∞" in shown


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    write_scan(tmp_path / "run", commit=2)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert dict(mpl.rcParams) == before


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    write_scan(tmp_path / "run", commit=1)
    with pytest.raises(UsageError, match="is a directory"):
        write_report([tmp_path / "run"], tmp_path)
    with pytest.raises(UsageError, match="'gif' of the figures is unknown; choose from png, pdf, svg"):
        write_report([tmp_path / "run"], tmp_path / "r.html", formats=("gif",))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output .*file/r.html' cannot be written"):
        write_report([tmp_path / "run"], tmp_path / "file/r.html")
    with pytest.raises(UsageError, match="holds no scan"):
        write_report([tmp_path / "nothing"], tmp_path / "r.html")


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.87e-3, "2.87e-3"), (0.031, "0.0310"), (3.579, "3.58"), (0.99999, "1.00"), (14730.0, "1.47e4"), (562.0, "562"),
     (999.7, "1.00e3"), (0.0, "0"), (1e-30, "1.00e-30"), (float("inf"), "∞"), (None, "–")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_abbreviated() -> None:
    assert abbreviated("Carcharodon carcharias", 11) == "Carch…arias"
    assert abbreviated("short\nname", 16) == "short name"


def test_thinning_keeps_the_extremes() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(200_000), rng.normal(size=200_000)
    kept = visible(x, y, 300, 200)
    assert len(kept) < 60_000
    assert y[kept].max() > y.max() - np.ptp(y) / 200
    assert y[kept].min() < y.min() + np.ptp(y) / 200


def test_clamping_counts_what_it_moves() -> None:
    values = np.array([0.0, 1e-20, 1e-3, 1.0, np.inf])
    clamped = LogValues.of(values, scale_edges(values))
    np.testing.assert_allclose(clamped.logs, [-4, -4, -3, 0, 1])
    assert (clamped.below, clamped.zeros, clamped.above) == (2, 1, 1)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Open a page headless; returns the addresses outside the file that it asked for, and its console messages."""
    log = folder / "net.json"
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--no-first-run", "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder}/profile", "--enable-logging=stderr", f"--log-net-log={log}",
        f"--screenshot={folder}/page.png", "--window-size=1000,3000", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    # The browser's own housekeeping has no origin; what the page asks for has.
    asked = [
        event["url"]
        for event in events
        if "url" in event and event.get("initiator", "not an origin") != "not an origin"
    ]
    outside = [url for url in asked if not url.startswith(("file:", "data:"))]
    return outside, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page with")
def test_a_browser_shows_the_page_without_requests_or_errors(tmp_path: Path, npz: str) -> None:
    control = tmp_path / "control.html"
    control.write_text('<img src="http://example.invalid/x.png"><script>console.error("seen")</script>')
    outside, console = browse(control, tmp_path)
    assert outside == ["http://example.invalid/x.png"], "the test must see a request that is made"
    assert len(console) >= 1
    real_scan(tmp_path / "run", npz, class_names=HOSTILE)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    outside, console = browse(tmp_path / "report.html", tmp_path)
    assert outside == []
    assert console == []
    from PIL import Image

    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert (shown != 255).any(axis=2).mean() > 0.02, "the page is not empty"


def test_reading_a_report_runs_no_code_that_the_scan_names(tmp_path: Path) -> None:
    """Somebody else's results: neither its kind nor its data factory is imported, unless asked for."""
    factory = tmp_path / "factory.py"
    factory.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\ndef data(): return [(__import__('torch').rand(1, 8, 8), 0)]\n"
    )
    truth = write_scan(tmp_path / "run", reference=f"{factory}:data")
    document = truth.store.document()
    truth.store.directory.write_json("scan.json", {**document, "kind": f"{factory}:Scan"})
    write_report(tmp_path / "run", tmp_path / "report.html")
    truth.store.directory.write_json("scan.json", document)
    write_report(tmp_path / "run", tmp_path / "report.html")
    assert "would run the code" in Page(tmp_path / "report.html").shown
    assert not (tmp_path / "ran").exists()
    write_report(tmp_path / "run", tmp_path / "report.html", run_code=True)
    assert (tmp_path / "ran").exists()
