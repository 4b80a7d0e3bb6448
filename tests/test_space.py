"""Semantic spaces: what may be written, what is refused, and boxes in them."""

from __future__ import annotations

import pytest
import torch

from raysense.errors import UsageError
from raysense.measures import boxes
from raysense.measures.boxes import Evaluator, corners
from raysense.semantics.space import parse_space


def test_the_space_of_the_paper() -> None:
    space = parse_space(["azimuth", "elevation"])
    assert space.names == ("azimuth", "elevation")
    assert space.volume == 36000
    assert space.domain.periodic.tolist() == [True, False]
    assert not space.of_images


def test_parameters_are_columns_fixed_values_or_defaults() -> None:
    space = parse_space(["elevation=0:60", "azimuth"], ["ambient=0.2"])
    points = torch.tensor([[10.0, 20.0], [30.0, 400.0]], dtype=torch.float64)
    found = space.parameters(points)
    assert found["elevation"].tolist() == [10.0, 30.0]
    assert found["azimuth"].tolist() == [20.0, 400.0]
    assert found["ambient"].tolist() == [0.2, 0.2]
    assert found["distance"].tolist() == [2.732, 2.732]
    assert "rotation" not in found


def test_values_without_a_meaning_are_the_nearest_with_one() -> None:
    found = parse_space(["scale", "blur"]).parameters(torch.tensor([[-3.0, -1.0], [2.0, 1e9]], dtype=torch.float64))
    assert found["scale"].tolist() == [0.05, 2.0]
    assert found["blur"].tolist() == [0.0, 1000.0]


def test_an_arc_is_not_periodic() -> None:
    assert parse_space(["azimuth=-90:270"]).domain.periodic.item()
    assert not parse_space(["azimuth=0:180"]).domain.periodic.item()


def test_wrapped() -> None:
    domain = parse_space(["azimuth", "elevation"]).domain
    points = torch.tensor([[370.0, 95.0], [-10.0, -20.0]], dtype=torch.float64)
    assert domain.wrapped(points).tolist() == [[10.0, 95.0], [350.0, -20.0]]


@pytest.mark.parametrize(
    ("axes", "fixed", "words"),
    [
        ([], [], "name at least one"),
        (["azimut"], [], "no axis 'azimut'"),
        (["azimuth", "azimuth"], [], "named twice"),
        (["azimuth", "rotation"], [], "do not go together"),
        (["elevation=50:10"], [], "inverted"),
        (["elevation=10"], [], "no range"),
        (["elevation=a:b"], [], "no range"),
        (["elevation=0:inf"], [], "no range"),
        (["azimuth=0:400"], [], "longer than a whole turn"),
        (["distance=0:3"], [], "meaningful values"),
        (["azimuth"], ["azimuth=3"], "already set"),
        (["azimuth"], ["scale=3"], "no axis 'scale'"),
        (["azimuth"], ["red=2"], "must lie in"),
        (["azimuth"], ["red"], "write red=VALUE"),
        (
            ["azimuth", "elevation", "distance", "roll", "field_of_view", "red", "green", "blue", "background",
             "ambient", "light_intensity"],
            [],
            "2^11 = 2,048 corners",
        ),
    ],
)  # fmt: skip
def test_bad_spaces_are_refused(axes: list[str], fixed: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space(axes, fixed)
    assert words in str(caught.value)


def test_corners_are_the_binary_numbers() -> None:
    found = corners(torch.tensor([[0.0, 10.0]]), torch.tensor([[1.0, 20.0]]))
    assert found.tolist() == [[[0.0, 10.0], [1.0, 10.0], [0.0, 20.0], [1.0, 20.0]]]


class _Counted:
    def __init__(self) -> None:
        self.points = 0

    def scores(self, points: torch.Tensor, subjects: torch.Tensor) -> torch.Tensor:
        self.points += len(points)
        return points.sum(1) + 100 * subjects

    def scores_and_gradients(self, points: torch.Tensor, subjects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores(points, subjects), torch.ones_like(points)


def test_equal_points_of_a_subject_are_evaluated_once() -> None:
    function = _Counted()
    evaluator = Evaluator(function)
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [-0.0, 1.0]], dtype=torch.float64)
    subjects = torch.tensor([0, 0, 1, 0, 0])
    assert evaluator.scores(points, subjects).tolist() == [3.0, 3.0, 103.0, 1.0, 1.0]
    assert (function.points, evaluator.evaluated, evaluator.requested) == (3, 3, 5)
    scores, gradients = evaluator.scores_and_gradients(points, subjects)
    assert scores.tolist() == [3.0, 3.0, 103.0, 1.0, 1.0]
    assert gradients.shape == (5, 2)


def test_points_with_one_hash_are_not_confused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_hashed", lambda keys: torch.zeros_like(keys[:, 0]))
    evaluator = Evaluator(_Counted())
    points = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    assert evaluator.scores(points, torch.zeros(3, dtype=torch.int64)).tolist() == [1.0, 2.0, 1.0]
    assert evaluator.evaluated == 2
