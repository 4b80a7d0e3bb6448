"""The HTML report and its figures."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from synthetic import write_scan

from raysense.datasets import open_data
from raysense.errors import UsageError
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


def real_scan(location: Path, reference: str, **options: object) -> None:
    listing = open_data(reference).list().table
    write_scan(location, reference=reference, listing=listing, n_classes=5, unit_size=20, **options)  # type: ignore[arg-type]
    document = json.loads((location / "scan.json").read_text())
    document["spec"]["split"] = []
    (location / "scan.json").write_text(json.dumps(document))


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
    truth.store.write_failure("u", [{"error": "Traceback\nValueError: bad"}])
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
    assert "The certified interval reaches the closed form" in page.shown
    assert {Path(file).name for file in files[1:]} == {
        "1-a_manhattan.png", "1-a_bound.png", "2-b_manhattan.png", "2-b_bound.png",
    }  # fmt: skip


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
