"""Cells of maps and initial points; classes by index, name or WordNet id."""

from __future__ import annotations

import pytest
import torch

from raysense.classes import class_index
from raysense.errors import UsageError
from raysense.semantics.grids import PAPER_POINTS, initial_points, parse_grid
from raysense.semantics.space import parse_space

SPACE = parse_space(["azimuth", "elevation"])


def test_the_grid_of_the_paper() -> None:
    grid = parse_grid("azimuth:3,elevation:3", SPACE)
    assert (grid.axes, grid.counts, grid.size) == ("azimuth,elevation", (120, 34), 4080)
    cells = grid.cells(0, 4080)
    found = grid.coordinates(cells)
    assert found[:, 0].max() == 357  # 360 is 0
    assert (found[:, 1].min(), found[:, 1].max()) == (-10, 89)
    assert cells[35].tolist() == [1, 1]


def test_a_step_that_divides_a_turn_but_for_rounding_is_made_exact() -> None:
    assert parse_grid("azimuth:6.92308", SPACE).steps == (360 / 52,)
    assert parse_grid("azimuth:119.99999", SPACE).counts == (3,)


def test_a_map_of_one_axis_keeps_the_others_at_their_defaults() -> None:
    grid = parse_grid("azimuth:90", SPACE)
    assert grid.points(grid.cells(0, 4)).tolist() == [[0.0, 30.0], [90.0, 30.0], [180.0, 30.0], [270.0, 30.0]]
    narrow = parse_space(["azimuth", "elevation=60:90"])
    grid = parse_grid("azimuth:180", narrow)
    assert grid.points(grid.cells(0, 1)).tolist() == [[0.0, 60.0]]


def test_axes_of_a_map_come_in_the_order_asked_for() -> None:
    grid = parse_grid("elevation:50,azimuth:180", SPACE)
    cells = grid.cells(0, grid.size)
    assert grid.coordinates(cells)[1].tolist() == [-10.0, 180.0]
    assert grid.points(cells)[1].tolist() == [180.0, -10.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("roll:3", "not among the axes azimuth, elevation"),
        ("azimuth:x", "no step"),
        ("azimuth:0", "above 0"),
        ("elevation:101", "at most 100"),
        ("azimuth:7", "do not divide the whole turn; use 6.92308"),
        ("azimuth:3,azimuth:3", "two different ones"),
    ],
)
def test_bad_maps_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_grid(text, SPACE)
    assert words in str(caught.value)


def test_initial_points() -> None:
    assert initial_points("auto", SPACE, 0).tolist() == [list(point) for point in PAPER_POINTS]
    swapped = parse_space(["elevation", "azimuth"])
    assert initial_points("auto", swapped, 0).tolist() == [[b, a] for a, b in PAPER_POINTS]
    assert initial_points("10:20; 350:-10", SPACE, 0).tolist() == [[10.0, 20.0], [350.0, -10.0]]
    assert initial_points("default", SPACE, 0).tolist() == [[0.0, 30.0]]
    assert initial_points("auto", parse_space(["rotation", "scale"]), 0).tolist() == [[0.0, 1.0]]
    spread = initial_points("7", SPACE, 3)
    assert spread.shape == (7, 2)
    assert torch.equal(spread, initial_points("7", SPACE, 3))
    assert not torch.equal(spread, initial_points("7", SPACE, 4))
    assert ((spread >= SPACE.domain.lower) & (spread <= SPACE.domain.upper)).all()
    # Where one of the paper's points lies outside, points are spread instead.
    assert (initial_points("auto", parse_space(["azimuth=0:90", "elevation"]), 0)[:, 0] <= 90).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "at least one point"),
        (";", "names no point"),
        ("", "names no point"),
        ("²", "is no point"),
        ("10", ""),
        ("10:95", "lies outside the space"),
        ("10:20:30", "has 3 coordinates"),
        ("a:b", "is no point"),
    ],
)
def test_bad_points_are_refused(text: str, words: str) -> None:
    if not words:
        assert len(initial_points(text, SPACE, 0)) == int(text)
        return
    with pytest.raises(UsageError) as caught:
        initial_points(text, SPACE, 0)
    assert words in str(caught.value)


NAMES = ["tench", "coffee mug", "cup, tea cup", "crane", "crane"] + [f"class {number}" for number in range(995)]


def test_classes_by_index_name_and_wordnet_id() -> None:
    assert class_index("3", 1000, NAMES) == 3
    assert class_index("Coffee_Mug", 1000, NAMES) == 1
    assert class_index("tea cup", 1000, NAMES) == 2
    assert class_index("n07930864", 1000, NAMES) == 968


@pytest.mark.parametrize(
    ("text", "count", "names", "words"),
    [
        ("1000", 1000, NAMES, "0 to 999"),
        ("crane", 1000, NAMES, "3 and 4"),
        ("coffee mugg", 1000, NAMES, "did you mean coffee mug"),
        ("cup", 10, None, "give its index"),
        ("n07930864", 10, None, "1,000 ImageNet classes"),
        ("n00000000", 1000, NAMES, "none of the 1,000"),
    ],
)
def test_classes_that_are_not_there(text: str, count: int, names: list[str] | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        class_index(text, count, names)
    assert words in str(caught.value)
