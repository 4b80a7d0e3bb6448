"""The SQL macros of the semantic scan against NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_semantic import NETWORKS, recorded, write_recorded
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from synthetic_semantic import AZIMUTH, CLASS_NAMES, ELEVATION, Tables, clipped_volume, grid, volume, write_tables

from raysense.query.catalogue import callees_first, read_macros
from raysense.query.connection import open_results

ROLL = {"name": "roll", "unit": "degrees", "low": -180.0, "high": 180.0, "periodic": True}
METHODS = {"naive": "published", "oir_b": "published", "oir_w": "published", "constrained": "constrained"}
SPACE = (AZIMUTH, ELEVATION)


def ask(locations: Path | Iterable[Path], sql: str) -> list[dict[str, Any]]:
    with open_results(locations if isinstance(locations, Path) else list(locations)) as database:
        return database.query(sql).rows()


def test_axes_are_a_table(tmp_path: Path) -> None:
    write_tables(tmp_path / "run", Tables(axes=(ROLL, ELEVATION)))
    assert ask(tmp_path / "run", "FROM axes") == [
        {"scan": "run", "axis": axis["name"], "position": place}
        | {key: axis[key] for key in ("unit", "low", "high", "periodic")}
        for place, axis in enumerate((ROLL, ELEVATION), start=1)
    ]


def test_macros_come_after_those_they_call() -> None:
    order = [macro.name for macro in callees_first(read_macros())]
    assert sorted(order) == sorted(macro.name for macro in read_macros())
    for caller, called in (
        ("srvr", "srvr_by_class"),
        ("srvr_by_class", "poisson_weight"),
        ("layer_fi", "fi_informative"),
    ):
        assert order.index(called) < order.index(caller)


def random_boxes(shapes: int, seed: int) -> Tables:
    """Boxes of every method for shapes of unequal numbers of initial points, some diverged, some leaving the space."""
    rng = np.random.default_rng(seed)
    tables = Tables()
    for index in range(shapes):
        label, shape_id = index % 3, f"shape/{index}"
        tables.add_subject(shape_id, label)
        size = 200 * rng.random()
        for init in range(1 + index % 3):
            for method, family in METHODS.items():
                for kind in ("robust", "adversarial"):
                    lower = rng.uniform((-60, -60), (300, 60))
                    upper = lower + rng.uniform(0, (2 * size, size))
                    bounds = {} if rng.random() < 0.1 else {"lower": lower.tolist(), "upper": upper.tolist()}
                    flags = {name: bool(rng.random() < 0.5) for name in ("holds", "converged")}
                    tables.add_region(
                        shape_id, label, init=init, kind=kind, family=family, method=method, **bounds, **flags,
                        evaluations=int(rng.integers(100)),
                    )  # fmt: skip
    return tables


def sizes(row: dict[str, Any]) -> tuple[float, float, float]:
    """What a box counts for the published formula, clipped, and where only feasible boxes count."""
    if row["lower"] is None:
        return 1.0, 1.0, 0.0
    inside = clipped_volume(SPACE, row["lower"], row["upper"])
    return min(abs(volume(SPACE, row["lower"], row["upper"])), 1.0), inside, inside if row["holds"] else 0.0


def test_srvr_is_the_mean_over_boxes(tmp_path: Path) -> None:
    tables = random_boxes(12, seed=0)
    write_tables(tmp_path / "run", tables)
    everything = ask(tmp_path / "run", "FROM srvr_by_class(replicates := 50, seed := 3)")
    shapes = ",".join(f"('shape/{index}')" for index in range(12))
    weights = {
        (row["shape"], row["replicate"]): row["weight"]
        for row in ask(
            tmp_path / "run",
            "SELECT shape, replicate, poisson_weight(shape, replicate, seed := 3) AS weight "
            f"FROM (VALUES {shapes}) AS s(shape), range(1, 51) AS r(replicate)",
        )
    }
    assert {row["label"] for row in everything} == {None, 0, 1, 2}
    assert len(everything) == 4 * 2 * 5
    for row in everything:
        chosen = ["naive", "oir_b", "oir_w"] if row["method"] == "published" else [row["method"]]
        boxes = [
            box for box in tables.regions
            if box["kind"] == row["kind"] and box["method"] in chosen and row["label"] in (None, box["label"])
        ]  # fmt: skip
        assert row["model"] == "digits"
        assert row["class_name"] == (None if row["label"] is None else CLASS_NAMES[row["label"]])
        assert row["family"] == ("constrained" if chosen == ["constrained"] else "published")
        assert (row["n_shapes"], row["n_boxes"]) == (len({box["shape_id"] for box in boxes}), len(boxes))
        values = np.array([sizes(box) for box in boxes])
        found = [row[name] for name in ("srvr", "clipped", "feasible_srvr")]
        np.testing.assert_allclose(found, values.mean(axis=0), rtol=1e-12)
        holds = [box["holds"] and box["lower"] is not None for box in boxes]
        assert np.isclose(row["fraction_holds"], np.mean([box["holds"] for box in boxes]))
        assert sum(values[:, 2] > 0) <= sum(holds)
        assert np.isclose(row["fraction_converged"], np.mean([box["converged"] for box in boxes]))
        assert np.isclose(row["fraction_diverged"], np.mean([box["lower"] is None for box in boxes]))
        assert np.isclose(row["mean_evaluations"], np.mean([box["evaluations"] for box in boxes]))
        drawn = np.array([[weights[box["shape_id"], replicate] for box in boxes] for replicate in range(1, 51)])
        drawn = drawn[drawn.any(axis=1)]
        replicates = drawn @ values / drawn.sum(axis=1)[:, None]
        found = [row[name] for name in ("stderr", "clipped_stderr", "feasible_stderr")]
        np.testing.assert_allclose(found, replicates.std(axis=0, ddof=1), rtol=1e-9)
    together = [row for row in everything if row["label"] is None]
    for row, same in zip(ask(tmp_path / "run", "FROM srvr(replicates := 50, seed := 3)"), together, strict=True):
        assert row == pytest.approx({name: same[name] for name in same if name not in ("label", "class_name")})


def test_the_bootstrap_agrees_with_the_error_of_a_ratio_of_clusters(tmp_path: Path) -> None:
    tables = random_boxes(60, seed=1)
    write_tables(tmp_path / "run", tables)
    (row,) = ask(tmp_path / "run", "FROM srvr(replicates := 1000) WHERE kind = 'robust' AND method = 'published'")
    sums, counts = np.zeros(60), np.zeros(60)
    for box in tables.regions:
        if box["kind"] == "robust" and box["method"] != "constrained":
            sums[int(box["shape_id"].split("/")[1])] += sizes(box)[0]
            counts[int(box["shape_id"].split("/")[1])] += 1
    linear = np.sqrt(np.sum((sums - counts * row["srvr"]) ** 2)) / counts.sum()
    assert row["stderr"] == pytest.approx(linear, rel=0.1)


def test_the_published_mean_needs_its_three_methods(tmp_path: Path) -> None:
    tables = random_boxes(6, seed=3)
    tables.regions = [row for row in tables.regions if (row["kind"], row["method"]) != ("adversarial", "oir_w")]
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "FROM srvr(replicates := 2)")
    assert [row["kind"] for row in rows if row["method"] == "published"] == ["robust"]
    assert len(rows) == 5 + 3


def test_one_shape_alone_has_no_standard_error(tmp_path: Path) -> None:
    write_tables(tmp_path / "run", random_boxes(1, seed=2))
    rows = ask(tmp_path / "run", "FROM srvr()")
    assert len(rows) == 10
    assert all(row["stderr"] is row["clipped_stderr"] is row["feasible_stderr"] is None for row in rows)
    assert all(row["srvr"] is not None for row in rows)


def test_srvr_of_the_recorded_regions(tmp_path: Path) -> None:
    """Table 2's formula on the 20 shapes of the development data; all 100 give 8.919, 9.884, 16.884 and 7.918."""
    regions = recorded("regions_dev")
    network = np.array(regions["network"].to_pylist())
    lower, upper = (np.array(regions[name].to_pylist(), np.float64) for name in ("a", "b"))
    share = np.abs(upper - lower).prod(axis=1) / 36_000
    share = np.minimum(np.where(np.isnan(share), 1, share), 1)
    for name in NETWORKS:
        write_recorded(tmp_path / name, name, maps=False)
    rows = ask([tmp_path / name for name in NETWORKS], "FROM srvr() WHERE method = 'published'")
    found = {row["model"]: 100 * row["srvr"] for row in rows}
    for name in NETWORKS:
        assert found[name] == pytest.approx(100 * share[network == name].mean(), rel=1e-12)
    assert [round(found[name], 3) for name in NETWORKS] == [11.04, 13.141, 19.68, 12.698]
    assert all(row["n_boxes"] == 240 and row["clipped"] < row["srvr"] for row in rows)


def whole_degrees(lower: list[float], upper: list[float], clipped: bool) -> np.ndarray:
    """The unit squares of a box of whole degrees, as a mask over the space, or over a plane where it is not clipped."""
    mask = np.zeros((360, 100) if clipped else (1200, 400), bool)
    a, b = np.array(lower, int), np.array(upper, int)
    if clipped:
        columns = np.arange(a[0], min(b[0], a[0] + 360)) % 360
        mask[np.ix_(columns, np.arange(max(a[1], -10) + 10, max(min(b[1], 90) + 10, 0)))] = True
    else:
        mask[a[0] + 400 : b[0] + 400, a[1] + 150 : b[1] + 150] = True
    return mask


def test_iou_counts_unit_squares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = {"a": Tables(), "b": Tables(model="other")}
    boxes: dict[tuple[str, str, int, str], tuple[list[float], list[float]]] = {}
    for name, part in tables.items():
        part.add_subject("cup/1", 2)
        for init in range(40):
            for method, family in (("naive", "published"), ("constrained", "constrained")):
                lower = rng.integers((-300, -60), (400, 80)).astype(float)
                upper = lower + rng.integers(1, (430, 110))
                bounds = (lower.tolist(), upper.tolist())
                known = {"init": init, "family": family, "method": method, "u0": [float(init), 0.0]}
                if init == 7:
                    part.add_region("cup/1", 2, **known)
                    continue
                boxes[name, family, init, method] = bounds
                part.add_region("cup/1", 2, **known, lower=bounds[0], upper=bounds[1])
        write_tables(tmp_path / name, part)
    for clipped in (True, False):
        rows = ask([tmp_path / "a", tmp_path / "b"], f"FROM region_iou(clipped := {clipped})")
        assert len(rows) == 39 * 4
        compared = {(row["scan_a"], row["method_a"], row["scan_b"], row["method_b"]) for row in rows}
        assert compared == {
            ("a", "constrained", "a", "naive"), ("b", "constrained", "b", "naive"), ("a", "naive", "b", "naive"),
            ("a", "constrained", "b", "constrained"),
        }  # fmt: skip
        for row in rows:
            one, other = (
                whole_degrees(*boxes[row[f"scan_{x}"], row[f"family_{x}"], row["init"], row[f"method_{x}"]], clipped)
                for x in "ab"
            )
            union = int((one | other).sum())
            assert row["iou"] == (None if union == 0 else pytest.approx((one & other).sum() / union, abs=1e-12))


def smooth(rng: np.random.Generator, shape: tuple[int, ...], modes: list[str], width: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), width, mode=modes)
    return 1 / (1 + np.exp(-6 * noise / noise.std()))


def enclosed(score: np.ndarray, periodic: list[bool], low: float, high: float) -> list[np.ndarray]:
    """Masks of the traps by flooding on a map repeated three times along the periodic axes."""
    tiled = np.tile(score, [3 if closed else 1 for closed in periodic])
    parts, count = ndimage.label(tiled < high)
    found: dict[bytes, np.ndarray] = {}
    for index in range(1, count + 1):
        places = np.argwhere(parts == index)
        low_end, high_end = places.min(axis=0), places.max(axis=0)
        if (low_end == 0).any() or (high_end == np.array(tiled.shape) - 1).any():
            continue
        mask = np.zeros(score.shape, bool)
        mask[tuple((places % score.shape).T)] = True
        spans = [closed and mask.any(axis=tuple({0, 1} - {axis})).all() for axis, closed in enumerate(periodic)]
        if score[mask].min() < low and not any(spans):
            found[mask.tobytes()] = mask
    return list(found.values())


@pytest.mark.parametrize("axes", [(AZIMUTH, ELEVATION), (AZIMUTH, ROLL)])
def test_traps_are_those_that_flooding_finds(tmp_path: Path, axes: tuple[dict[str, Any], ...]) -> None:
    rng = np.random.default_rng(5)
    names, periodic = [axis["name"] for axis in axes], [axis["periodic"] for axis in axes]
    tables = Tables(axes=axes)
    maps = {}
    for index in range(8):
        tables.add_subject(f"s{index}", 0)
        maps[f"s{index}"] = smooth(rng, (40, 24), ["wrap" if x else "nearest" for x in periodic], 1.0 + 0.1 * index)
        tables.add_map(f"s{index}", 0, names, maps[f"s{index}"])
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "FROM semantic_traps(low := 0.2, high := 0.6)")
    total = 0
    for shape_id, score in maps.items():
        expected = enclosed(score, periodic, 0.2, 0.6)
        part = [row for row in rows if row["shape_id"] == shape_id]
        assert [row["trap"] for row in part] == list(range(1, len(part) + 1))
        assert [row["cells"] for row in part] == sorted((int(mask.sum()) for mask in expected), reverse=True)
        total += len(expected)
        lines = [grid(axis, steps) for axis, steps in zip(axes, score.shape, strict=True)]
        for row in part:
            (mask,) = (x for x in expected if score[x].min() == row["min_score"])
            assert row["area"] == mask.mean()
            assert (
                score[tuple(line.tolist().index(x) for line, x in zip(lines, row["u_min"], strict=True))]
                == score[mask].min()
            )
            around = np.zeros_like(mask)
            for axis, closed in enumerate(periodic):
                for step in (1, -1):
                    moved = np.roll(mask, step, axis)
                    assert closed or not np.take(moved, 0 if step == 1 else -1, axis).any()
                    around |= moved
            around &= ~mask
            assert row["surround"] == pytest.approx(score[around].mean(), rel=1e-12)
            assert row["depth"] == pytest.approx(score[around].mean() - score[mask].min(), rel=1e-12)
            assert (score[around] >= 0.6).all()
            for axis, line in enumerate(lines):
                taken = mask.any(axis=1 - axis)
                step = line[1] - line[0]
                first = next(i for i in range(len(line)) if taken[i] and not taken[i - 1])
                assert row["lower"][axis] == pytest.approx(line[first])
                assert row["upper"][axis] == pytest.approx(line[first] + step * (taken.sum() - 1))
                index = np.argwhere(mask)[:, axis]
                mean = line[0] + step * np.mean(np.where(index < first, index + len(line), index))
                span = step * len(line)
                assert row["centre"][axis] == pytest.approx(mean - span if mean > line[-1] + step - 1e-9 else mean)
    assert total >= 6, "the maps must have traps for this to test anything"


def drawn(rows: list[str]) -> np.ndarray:
    """A map from a picture, azimuth to the right and elevation upwards: # 0.05, + 0.3, . 0.9."""
    values = {"#": 0.05, "+": 0.3, ".": 0.9}
    return np.array([[values[cell] for cell in row] for row in reversed(rows)]).T


@pytest.mark.parametrize(
    ("picture", "bounds"),
    [
        (["........", "..##....", "........"], [([90, 40], [135, 40])]),
        (["........", "#.....+#", "........"], [([270, 40], [360, 40])]),
        (["..#.....", "..#.....", "........"], []),
        (["........", "########", "........"], []),
        (["........", "..++....", "........"], []),
        (["......", ".#....", "..#...", "......"], [([60, 70 / 3 + 10 / 3 * 10], None), ([120, 70 / 3], None)]),
        (["........", ".+++....", ".+.+....", ".+#+....", "........"], [([45, 15], [135, 65])]),
    ],
)
def test_traps_of_pictures(
    tmp_path: Path, picture: list[str], bounds: list[tuple[list[float], list[float] | None]]
) -> None:
    """Inside; across the seam; at the border; all around; not low enough; touching at corners only; with an island."""
    tables = Tables()
    tables.add_subject("s", 1)
    tables.add_map("s", 1, ["azimuth", "elevation"], drawn(picture))
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "FROM semantic_traps()")
    assert len(rows) == len(bounds)
    for row, (lower, upper) in zip(rows, bounds, strict=True):
        np.testing.assert_allclose(row["lower"], lower)
        np.testing.assert_allclose(row["upper"], lower if upper is None else upper)
        assert row["class_name"] == "chair"


def test_a_map_that_is_not_complete_has_no_traps_yet(tmp_path: Path) -> None:
    tables = Tables()
    tables.add_subject("s", 1)
    tables.add_map("s", 1, ["azimuth", "elevation"], drawn(["........", "..##....", "........"]))
    left_out = next(row for row in tables.semantic_maps if row["cell"] == [4, 1])
    tables.semantic_maps.remove(left_out)
    write_tables(tmp_path / "run", tables)
    assert ask(tmp_path / "run", "FROM semantic_traps()") == []


def test_traps_of_profiles(tmp_path: Path) -> None:
    """The lower part of a circle is a trap up to half of it; on an open axis what counts is the border."""
    tables = Tables()
    tables.add_subject("s", 1)
    tables.add_map("s", 1, ["azimuth"], drawn(["#.+#..#+"])[:, 0])
    tables.add_map("s", 1, ["elevation"], drawn(["#.+#..#+"])[:, 0])
    tables.add_subject("t", 1)
    tables.add_map("t", 1, ["azimuth"], drawn(["#...####"])[:, 0])
    tables.add_map("t", 1, ["elevation"], drawn([".#####.."])[:, 0])
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "SELECT axes, trap, cells, lower, upper, centre FROM semantic_traps()")
    assert [tuple(row.values()) for row in rows] == [
        ("azimuth", 1, 3, [270.0], [360.0], [315.0]),
        ("azimuth", 2, 2, [90.0], [135.0], [112.5]),
        ("elevation", 1, 2, [pytest.approx(-10 + 200 / 7)], [pytest.approx(-10 + 300 / 7)], [pytest.approx(-10 + 250 / 7)]),
        ("elevation", 1, 5, [pytest.approx(-10 + 100 / 7)], [pytest.approx(-10 + 500 / 7)], [pytest.approx(-10 + 300 / 7)]),
    ]  # fmt: skip


def test_mean_maps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores: dict[tuple[str, str], np.ndarray] = {}
    for name in "ab":
        tables = Tables()
        for shape_id, label in (("s0", 0), ("s1", 1), ("s2", 1)):
            tables.add_subject(shape_id, label)
            scores[name, shape_id] = rng.random((6, 4))
            tables.add_map(shape_id, label, ["azimuth", "elevation"], scores[name, shape_id])
        tables.add_subject("broken", 2, error="no faces")
        write_tables(tmp_path / name, tables, commit=2 if name == "b" else None)
    scans = [tmp_path / "a", tmp_path / "b"]
    rows = ask(scans, "FROM data_semantic_map()")
    assert len(rows) == 3 * 24
    for row in rows:
        values = [scores[key][tuple(row["cell"])] for key in scores if key[1] == row["shape_id"] and key != ("b", "s2")]
        assert row["n_scans"] == len(values)
        assert row["score"] == pytest.approx(np.mean(values), rel=1e-12)
        assert row["std_score"] == (pytest.approx(np.std(values, ddof=1), rel=1e-9) if len(values) > 1 else None)
        assert row["u"] == [60.0 * row["cell"][0], pytest.approx(-10 + 100 / 3 * row["cell"][1])]
    rows = ask(scans, "FROM class_semantic_map()")
    assert [(row["scan"], row["class_name"], row["n_maps"]) for row in rows[::24]] == [
        (None, "bottle", 2), (None, "chair", 3), ("a", "bottle", 1), ("a", "chair", 2), ("b", "bottle", 1),
        ("b", "chair", 1),
    ]  # fmt: skip
    committed = {key: score for key, score in scores.items() if key != ("b", "s2")}
    for row in rows:
        members = ("s0",) if row["class_name"] == "bottle" else ("s1", "s2")
        chosen = [
            score for (scan, shape), score in committed.items() if row["scan"] in (None, scan) and shape in members
        ]
        assert row["score"] == pytest.approx(np.mean([score[tuple(row["cell"])] for score in chosen]), rel=1e-12)


def profiles(seed: int, shapes: int, steps: int = 60) -> tuple[Tables, dict[str, dict[str, np.ndarray]]]:
    """1D scans along both axes with FI that follows the slope, and a 2D map without FI."""
    rng = np.random.default_rng(seed)
    tables, truth = Tables(), {}
    for index in range(shapes):
        shape_id, label = f"s{index}", index % 2
        tables.add_subject(shape_id, label)
        for axis in ("azimuth", "elevation"):
            score = smooth(rng, (steps,), ["wrap"], 2.0)
            bound = (1 - score) / np.maximum(score, 1e-3)
            fi = np.round(bound * rng.random(steps), 3)
            truth[f"{shape_id}/{axis}"] = {"score": score, "fi": fi, "fi_bound": bound, "jacobian_norm": np.sqrt(fi)}
            tables.add_map(shape_id, label, [axis], **truth[f"{shape_id}/{axis}"])
        tables.add_map(shape_id, label, ["azimuth", "elevation"], rng.random((4, 3)))
    return tables, truth


def test_profiles_and_their_mean_over_shapes(tmp_path: Path) -> None:
    tables, truth = profiles(0, 5, steps=12)
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "FROM semantic_profile()")
    assert len(rows) == 12 * 2 * (5 + 2)
    for row in rows:
        label = CLASS_NAMES.index(row["class_name"])
        chosen = [row["shape_id"]] if row["shape_id"] else [f"s{index}" for index in range(label, 5, 2)]
        place = round(
            (row["u"] - (0 if row["axis"] == "azimuth" else -10)) / (30 if row["axis"] == "azimuth" else 100 / 11)
        )
        values = {name: [truth[f"{s}/{row['axis']}"][name][place] for s in chosen] for name in truth["s0/azimuth"]}
        assert row["n_shapes"] == len(chosen)
        assert row["score"] == pytest.approx(np.mean(values["score"]), rel=1e-12)
        for name in ("fi", "fi_bound", "jacobian_norm"):
            assert row[name] == pytest.approx(np.median(values[name]), rel=1e-12)


def obuchowski(events: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Standard error of the area under the ROC curve of clustered data, by comparing all pairs (Obuchowski 1997)."""
    every_event, every_other = np.concatenate(events), np.concatenate(others)
    m, n, clusters = len(every_event), len(every_other), len(events)

    def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)

    area = wins(every_event, every_other).mean()
    x = np.array([(wins(part, every_other).mean(axis=1) - area).sum() for part in events])
    y = np.array([(wins(every_event, part).mean(axis=0) - area).sum() for part in others])
    with_events, with_others = (sum(len(part) > 0 for part in parts) for parts in (events, others))
    variance = (
        with_events / (with_events - 1) / m**2 * (x**2).sum() + with_others / (with_others - 1) / n**2 * (y**2).sum()
    )
    return float(np.sqrt(variance + 2 * clusters / (clusters - 1) / m / n * (x * y).sum()))


def test_foretelling_traps(tmp_path: Path) -> None:
    tables, truth = profiles(1, 7)
    write_tables(tmp_path / "run", tables)
    rows = ask(tmp_path / "run", "FROM fi_foretells_traps(low := 0.2, high := 0.6, steps := 2)")
    assert [(row["axis"], row["measure"]) for row in rows] == [
        (axis, measure) for axis in ("azimuth", "elevation") for measure in ("fi", "fi_bound", "jacobian_norm", "score")
    ]  # fmt: skip
    for row in rows:
        closed = row["axis"] == "azimuth"
        events, others, correlations = [], [], []
        for index in range(7):
            measures = truth[f"s{index}/{row['axis']}"]
            score = measures["score"]
            value = 1 - score if row["measure"] == "score" else measures[row["measure"]]
            padded = np.pad(score, 2, mode="wrap") if closed else np.pad(score, 2, constant_values=np.inf)
            least = np.min([padded[shift : shift + 60] for shift in range(5)], axis=0)
            robust, event = score >= 0.6, least < 0.2
            events.append(value[robust & event])
            others.append(value[robust & ~event])
            inner = robust if closed else robust & (np.arange(60) > 0) & (np.arange(60) < 59)
            slope = np.abs(np.roll(score, -1) - np.roll(score, 1))
            correlations.append(spearmanr(value[inner], slope[inner]).statistic)
        m, n = len(np.concatenate(events)), len(np.concatenate(others))
        assert (row["n_maps"], row["n_points"], row["n_events"]) == (7, m + n, m)
        assert m > 10
        area = roc_auc_score([1] * m + [0] * n, np.concatenate([*events, *others]))
        assert row["roc_area"] == pytest.approx(area, abs=1e-12)
        assert row["roc_stderr"] == pytest.approx(obuchowski(events, others), rel=1e-9)
        assert row["rank_correlation"] == pytest.approx(np.mean(correlations), abs=1e-9)
        assert row["rank_correlation_stderr"] == pytest.approx(np.std(correlations, ddof=1) / np.sqrt(7), abs=1e-9)


def test_nothing_to_foretell(tmp_path: Path) -> None:
    """Where no score falls there are no events; maps without FI have no rows."""
    flat = Tables()
    flat.add_subject("s", 0)
    flat.add_map("s", 0, ["azimuth"], np.full(8, 0.9), fi=np.full(8, 0.01), fi_bound=np.full(8, 0.1))
    flat.add_map("s", 0, ["elevation"], np.full(8, 0.9))
    write_tables(tmp_path / "run", flat)
    rows = ask(tmp_path / "run", "FROM fi_foretells_traps()")
    assert [(row["axis"], row["measure"], row["n_points"], row["n_events"]) for row in rows] == [
        ("azimuth", measure, 8, 0) for measure in ("fi", "fi_bound", "score")
    ]  # fmt: skip
    assert all(row["roc_area"] is row["roc_stderr"] is row["rank_correlation"] is None for row in rows)
    assert ask(tmp_path / "run", "FROM semantic_traps()") == []
    assert ask(tmp_path / "run", "FROM srvr()") == []
    assert ask(tmp_path / "run", "FROM region_iou()") == []


def test_traps_of_a_recorded_network_in_reasonable_time(tmp_path: Path) -> None:
    """Twenty maps of 4,080 points: what flooding finds, with the periodic azimuth closed."""
    write_recorded(tmp_path / "run", "Inceptionv3")
    maps = recorded("maps_dev")
    score = np.array(maps["score"])[np.array(maps["network"].to_pylist()) == "Inceptionv3"].reshape(20, 34, 120)
    rows = ask(tmp_path / "run", "FROM semantic_traps()")
    expected = [enclosed(part.T.astype(float), [True, False], 0.1, 0.5) for part in score]
    assert sorted(row["cells"] for row in rows) == sorted(int(mask.sum()) for part in expected for mask in part)
    assert len(rows) > 10
