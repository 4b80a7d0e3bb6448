"""The published growth against formulas written out for one box and one corner at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from raysense.measures import published_growth
from raysense.measures.boxes import Domain, Evaluator
from raysense.measures.growth import Growth
from raysense.measures.published_corners import CornerEvaluation
from raysense.measures.published_growth import grow
from raysense.measures.published_updates import METHODS, PublishedSettings, masks

SETTINGS = PublishedSettings(alpha=0.2, beta=0.03, penalty=0.15)
"""Larger than the published, so that every term shows."""
SUBJECTS = 5


class Hills:
    """A tilted smooth hill for every subject, 0.1 to 0.9, in any number of dimensions."""

    def __init__(self, dimensions: int) -> None:
        generator = torch.Generator().manual_seed(dimensions)
        self.centre = torch.rand(SUBJECTS, dimensions, generator=generator, dtype=torch.float64)
        self.width = 1.5 + torch.rand(SUBJECTS, dimensions, generator=generator, dtype=torch.float64)
        self.calls = {"scores": 0, "gradients": 0}
        self.points = 0

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        self.calls["scores"] += 1
        self.points += len(points)
        return self._values(points, subjects)[0]

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["gradients"] += 1
        self.points += len(points)
        return self._values(points, subjects)

    def _values(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        away = (points - self.centre[subjects]) / self.width[subjects]
        hill = 0.8 * torch.exp(-away.square().sum(dim=1))
        return 0.1 + hill, -2 * hill[:, None] * away / self.width[subjects]


class Complement:
    """1 - f."""

    def __init__(self, function: Hills) -> None:
        self.function = function

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        return 1 - self.function.scores(points, subjects)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        scores, gradients = self.function.scores_and_gradients(points, subjects)
        return 1 - scores, -gradients


class Level:
    """The same score everywhere for a subject; a black box unless it has gradients."""

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values, dtype=torch.float64)
        self.asked: list[list[int]] = []

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        self.asked.append(subjects.unique().tolist())
        return self.values[subjects]


def boxes(dimensions: int, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Bounds of boxes with unequal sides."""
    generator = torch.Generator().manual_seed(seed)
    lower = -torch.rand(count, dimensions, generator=generator, dtype=torch.float64)
    return lower, lower + 0.3 + torch.rand(count, dimensions, generator=generator, dtype=torch.float64)


def directions(method: str, function: Hills, lower: Tensor, upper: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
    """What the module under test computes for boxes of one method."""
    none = torch.zeros(len(lower), dtype=torch.bool)
    corners = CornerEvaluation([method] * len(lower), subjects, none, lower.shape[1], SETTINGS.alpha)
    (known,) = corners.boxes(function, lower, upper)
    return METHODS[method].directions(known, masks(lower.shape[1], lower.device), SETTINGS)


def scalar(function: Hills, subject: int) -> Callable[..., float]:
    """F of one subject at one point, given as numbers."""
    return lambda *point: float(function.scores(torch.tensor([point], dtype=torch.float64), torch.tensor([subject]))[0])


def face(f: Callable[..., float], lower: list[float], upper: list[float], axis: int, at: float) -> float:
    """Trapezoidal integral of f over the other axes of a box, the given axis at a fixed place."""
    total, others = 0.0, [k for k in range(len(lower)) if k != axis]
    for choice in product((0, 1), repeat=len(others)):
        point = [at] * len(lower)
        for k, high in zip(others, choice, strict=True):
            point[k] = upper[k] if high else lower[k]
        total += f(*point)
    for k in others:
        total *= (upper[k] - lower[k]) / 2
    return total


def by_leibniz(
    f: Callable[..., float], lower: list[float], upper: list[float], alpha: float, outer: float, inner: float
) -> tuple[list[float], list[float]]:
    """Derivatives of outer * integral over the outer box + inner * integral over the box, faces by the trapezoidal rule."""
    half = [alpha / 2 * (b - a) for a, b in zip(lower, upper, strict=True)]
    outer_lower = [a - h for a, h in zip(lower, half, strict=True)]
    outer_upper = [b + h for b, h in zip(upper, half, strict=True)]
    by_lower, by_upper = [], []
    for k in range(len(lower)):
        far_low = face(f, outer_lower, outer_upper, k, outer_lower[k])
        far_high = face(f, outer_lower, outer_upper, k, outer_upper[k])
        near_low, near_high = face(f, lower, upper, k, lower[k]), face(f, lower, upper, k, upper[k])
        by_lower.append(outer * (-(1 + alpha / 2) * far_low - alpha / 2 * far_high) - inner * near_low)
        by_upper.append(outer * ((1 + alpha / 2) * far_high + alpha / 2 * far_low) + inner * near_high)
    return by_lower, by_upper


def reference(method: str, f: Callable[..., float], lower: list[float], upper: list[float]) -> tuple[Tensor, Tensor]:
    """Update directions from the integrals of section 3.2, face by face and corner by corner."""
    s = SETTINGS
    if method == "oir_w":  # Eq. (13) just before its limit; rounding and what is left of the limit are about 1e-8
        alpha = 1e-6
        pair = by_leibniz(f, lower, upper, alpha, s.beta / alpha, -(1 + s.beta / alpha))
    elif method == "oir_b":
        pair = by_leibniz(f, lower, upper, s.alpha, 1.0, -2.0)
    else:
        pair = by_leibniz(f, lower, upper, 0.0, 0.0, -1.0)
    by_lower, by_upper = (torch.tensor(values, dtype=torch.float64) for values in pair)
    if method == "naive":
        sides = torch.tensor(upper, dtype=torch.float64) - torch.tensor(lower, dtype=torch.float64)
        return by_lower - s.penalty * sides, by_upper + s.penalty * sides
    return by_lower, by_upper


@pytest.mark.parametrize("dimensions", range(1, 7))
@pytest.mark.parametrize("method", ["naive", "oir_b", "oir_w"])
def test_directions_are_the_derivatives_of_the_integrals(method: str, dimensions: int) -> None:
    function, (lower, upper) = Hills(dimensions), boxes(dimensions, 2)
    subjects = torch.tensor([1, 3])
    found = directions(method, function, lower, upper, subjects)
    for row, subject in enumerate(subjects.tolist()):
        wanted = reference(method, scalar(function, subject), lower[row].tolist(), upper[row].tolist())
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[row], other, rtol=1e-6 if method == "oir_w" else 1e-12, atol=1e-8)


def test_directions_of_one_dimension_are_the_texts() -> None:
    """The 1-D equations of sections 2.3 and 3.2 with Eq. (14)'s sign of f(b) and the trapezoidal rule's own derivative."""
    function, (lower, upper), s = Hills(1), boxes(1), SETTINGS
    subjects = torch.arange(4)

    def f(points: Tensor) -> Tensor:
        return function.scores(points, subjects)[:, None]

    def slope(points: Tensor) -> Tensor:
        return function.scores_and_gradients(points, subjects)[1]

    a, b, r = lower, upper, upper - lower
    outer_a, outer_b, half, beta = a - s.alpha / 2 * r, b + s.alpha / 2 * r, s.alpha / 2, s.beta / 2
    wanted = {
        "naive": (f(a) - s.penalty * r, -f(b) + s.penalty * r),
        "oir_b": (
            -(1 + half) * f(outer_a) - half * f(outer_b) + 2 * f(a),
            (1 + half) * f(outer_b) + half * f(outer_a) - 2 * f(b),
        ),
        "oir_w": (
            beta * (r * slope(a) - f(b)) + (1 - beta) * f(a),
            beta * (r * slope(b) + f(a)) - (1 - beta) * f(b),
        ),
        "trapezoid": (
            (f(a) + f(b)) / 2 - r / 2 * slope(a) - s.penalty * r,
            -(f(a) + f(b)) / 2 - r / 2 * slope(b) + s.penalty * r,
        ),
    }
    assert wanted.keys() == METHODS.keys()
    for method, pair in wanted.items():
        torch.testing.assert_close(directions(method, function, a, b, subjects), pair, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dimensions", range(1, 7))
def test_trapezoidal_directions_are_the_derivatives_of_its_loss(dimensions: int) -> None:
    function, (lower, upper) = Hills(dimensions), boxes(dimensions)
    subjects = torch.arange(4)
    a, b = lower.clone().requires_grad_(), upper.clone().requires_grad_()
    total = torch.zeros(4, dtype=torch.float64)
    for choice in product((False, True), repeat=dimensions):
        total = total + function.scores(torch.where(torch.tensor(choice), b, a), subjects)
    sides = b - a
    loss = SETTINGS.penalty / 2 * sides.square().sum(dim=1) - (sides / 2).prod(dim=1) * total
    wanted = torch.autograd.grad(loss.sum(), (a, b))
    found = directions("trapezoid", function, lower, upper, subjects)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dimensions", [2, 3, 5])
@pytest.mark.parametrize("method", ["naive", "oir_b", "oir_w"])
def test_without_penalty_all_sides_squares_grow_alike(method: str, dimensions: int) -> None:
    """r_k dr_k/dt is the same for every axis, so that r_k^2 - r_j^2 never changes."""
    function, (lower, upper) = Hills(dimensions), boxes(dimensions)
    subjects, nothing = torch.arange(4), PublishedSettings(penalty=0.0)
    corners = CornerEvaluation([method] * 4, subjects, torch.zeros(4, dtype=torch.bool), dimensions, nothing.alpha)
    begin = (upper - lower).square()
    step = 1e-4
    for _ in range(300):
        (known,) = corners.boxes(function, lower, upper)
        by_lower, by_upper = METHODS[method].directions(known, masks(dimensions, lower.device), nothing)
        sides = upper - lower
        torch.testing.assert_close(
            sides * (by_upper - by_lower),
            (sides * (by_upper - by_lower))[:, :1].expand_as(sides),
            rtol=1e-10,
            atol=1e-13,
        )
        lower, upper = lower - step * by_lower, upper - step * by_upper
    end = (upper - lower).square()
    assert (end - begin).abs().min() > 1e-3
    torch.testing.assert_close(end - end[:, :1], begin - begin[:, :1], rtol=0, atol=1e-4)


def all_kinds(dimensions: int, count: int = 3) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Start, subjects, methods and kinds: every combination of points, methods and kinds, methods mingled."""
    generator = torch.Generator().manual_seed(7)
    points = torch.rand(count, dimensions, generator=generator, dtype=torch.float64)
    rows = [(i, name, kind) for i in range(count) for name in METHODS for kind in (False, True)]
    at = torch.tensor([row[0] for row in rows])
    return points[at], at, [row[1] for row in rows], torch.tensor([row[2] for row in rows])


@pytest.mark.parametrize("dimensions", range(1, 7))
def test_growth_follows_the_directions(dimensions: int) -> None:
    start, subjects, methods, adversarial = all_kinds(dimensions)
    settings = PublishedSettings(alpha=0.2, beta=0.03, penalty=0.15, iterations=6, half_width=0.4, settled=0)
    growth = grow(Hills(dimensions), None, start, subjects, methods, adversarial, settings=settings, record=True)
    trace = growth.trace
    assert trace is not None
    assert torch.equal(trace.iteration, torch.arange(6).repeat_interleave(len(start)))
    assert torch.equal(trace.box, torch.arange(len(start)).repeat(6))
    lower = torch.cat((trace.lower.view(6, len(start), -1), growth.lower[None]))
    upper = torch.cat((trace.upper.view(6, len(start), -1), growth.upper[None]))
    assert torch.equal(lower[0], start - 0.4)
    assert torch.equal(upper[0], start + 0.4)
    function = Hills(dimensions)
    for row, method in enumerate(methods):
        f: Hills | Complement = Complement(function) if adversarial[row] else function
        by_lower, by_upper = directions(method, f, lower[:6, row], upper[:6, row], subjects[row].expand(6))  # type: ignore[arg-type]
        torch.testing.assert_close(lower[1:, row], lower[:6, row] - 0.1 * by_lower, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(upper[1:, row], upper[:6, row] - 0.1 * by_upper, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_adversarial_is_robust_on_the_complement(dimensions: int) -> None:
    start, subjects, methods, adversarial = all_kinds(dimensions)
    settings = PublishedSettings(iterations=60, half_width=0.1)
    function = Hills(dimensions)
    robust = grow(
        Complement(function), None, start, subjects, methods, torch.zeros_like(adversarial), settings=settings
    )
    growth = grow(function, None, start, subjects, methods, torch.ones_like(adversarial), settings=settings)
    for name in ("lower", "upper", "loss", "iterations", "converged", "diverged", "evaluations"):
        torch.testing.assert_close(getattr(growth, name), getattr(robust, name), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(
        growth.upper, grow(function, None, start, subjects, methods, adversarial, settings=settings).upper
    )


def one_by_one(function: Hills, methods: list[str], settings: PublishedSettings, *columns: Tensor) -> list[Growth]:
    """The growth of each box alone."""
    start, subjects, adversarial = columns
    return [
        grow(
            function,
            None,
            *(start[i : i + 1], subjects[i : i + 1], [methods[i]], adversarial[i : i + 1]),
            settings=settings,
        )
        for i in range(len(start))
    ]


def test_boxes_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    start, subjects, methods, adversarial = all_kinds(2)
    settings = PublishedSettings(iterations=80, half_width=0.1, settled=3e-3)
    function = Hills(2)
    alone = one_by_one(function, methods, settings, start, subjects, adversarial)
    together = grow(function, None, start, subjects, methods, adversarial, settings=settings)
    assert len(together.iterations.unique()) > 2
    monkeypatch.setattr(published_growth, "CORNERS", 7 * 4)
    parts = grow(function, None, start, subjects, methods, adversarial, settings=settings, record=True)
    for name in ("lower", "upper", "loss", "iterations", "converged", "diverged"):
        wanted = torch.cat([getattr(growth, name) for growth in alone])
        for growth in (together, parts):
            torch.testing.assert_close(getattr(growth, name), wanted, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert torch.equal(together.evaluations, torch.cat([growth.evaluations for growth in alone]))
    assert parts.trace is not None
    assert torch.equal(torch.bincount(parts.trace.box), parts.iterations)
    order = parts.trace.iteration * len(start) + parts.trace.box
    assert torch.equal(order, order.sort().values)


def test_one_call_of_each_kind_per_iteration_and_equal_corners_once() -> None:
    start, subjects, methods, adversarial = all_kinds(3, count=1)
    function = Hills(3)
    evaluator = Evaluator(function)
    settings = PublishedSettings(iterations=5, half_width=0.1, settled=0)
    growth = grow(evaluator, None, start, subjects, methods, adversarial, settings=settings)
    assert function.calls == {"scores": 5 + 1, "gradients": 5}  # one more for the last losses
    each = dict(zip(methods, (growth.evaluations // 8).tolist(), strict=True))
    assert each == {"naive": 5 + 1, "oir_b": 2 * 5 + 2, "oir_w": 5 + 2, "trapezoid": 5 + 1}
    assert int(growth.evaluations.sum()) == evaluator.requested
    assert function.points == evaluator.evaluated
    # At the start the boxes of all methods and kinds are the same: 8 corners and 8 outer ones; 8 with gradients.
    first = grow(
        first_evaluator := Evaluator(Hills(3)),
        None,
        start,
        subjects,
        methods,
        adversarial,
        settings=PublishedSettings(iterations=1, half_width=0.1),
    )
    last_losses = 8 * len(methods) + 8 * 2 * sum(METHODS[name].outer_loss for name in ("oir_b", "oir_w"))
    assert first_evaluator.evaluated == 8 + 8 + 8 + last_losses
    assert int(first.iterations.max()) == 1


def test_converged_boxes_stop_and_cost_nothing_more() -> None:
    """On a constant f in one dimension the naive box comes to rest at f = lambda r."""
    function = Level(0.5, 0.0, 1.0)
    start, subjects = torch.tensor([[3.0], [3.0], [3.0]], dtype=torch.float64), torch.tensor([0, 1, 2])
    growth = grow(function, None, start, subjects, ["naive", "oir_b", "oir_b"], torch.zeros(3, dtype=torch.bool))
    assert growth.converged.tolist() == [True, True, False]
    assert not growth.diverged.any()
    assert growth.iterations[1] == 1
    assert 500 < growth.iterations[0] < 800
    assert growth.iterations[2] == 800
    # In one dimension OIR_B's sides grow by 2 eta (1 - alpha) f per update, whatever they are.
    sides = torch.tensor([[5.0], [2e-5], [2e-5 + 800 * 0.19]], dtype=torch.float64)
    torch.testing.assert_close(growth.upper - growth.lower, sides, rtol=1e-6, atol=1e-12)
    asked = [1 in subjects for subjects in function.asked]
    assert asked == [True] + [False] * 799 + [True]
    assert sum(0 in subjects for subjects in function.asked) == int(growth.iterations[0]) + 1
    endless = grow(
        function,
        None,
        start,
        subjects,
        ["naive"] * 3,
        torch.zeros(3, dtype=torch.bool),
        settings=PublishedSettings(settled=0),
    )
    assert endless.iterations.tolist() == [800] * 3


def test_a_growth_that_diverges_is_recorded_and_dropped() -> None:
    function, space = (
        Level(1.0, 0.01),
        Domain(*torch.tensor([[0.0, 0.0], [10.0, 10.0]]).double(), torch.zeros(2).bool()),
    )
    start, subjects = torch.full((2, 2), 5.0, dtype=torch.float64), torch.tensor([0, 1])
    growth = grow(function, space, start, subjects, ["oir_b", "oir_b"], torch.zeros(2, dtype=torch.bool), record=True)
    assert growth.diverged.tolist() == [True, False]
    # Sides grow by 2 eta (2 - (1 + alpha)^2) f per update, from 2e-5 to beyond 1000 spaces.
    assert int(growth.iterations[0]) == 1 + int(torch.log(torch.tensor(1e4 / 2e-5)) / torch.log(torch.tensor(1.1795)))
    assert growth.lower[0].isnan().all()
    assert growth.upper[0].isnan().all()
    assert growth.loss.isnan().tolist() == [True, False]
    assert growth.iterations[1] == 800
    assert all(0 not in subjects for subjects in function.asked[int(growth.iterations[0]) :])
    lost = grow(Level(torch.nan, 0.2), None, start, subjects, ["naive"] * 2, torch.zeros(2, dtype=torch.bool))
    assert lost.diverged.tolist() == [True, False]
    assert lost.iterations.tolist() == [1, 800]


def test_a_box_that_turns_inside_out_has_diverged() -> None:
    """Outer corners twice as good as the inner ones shrink a one-dimensional box by the same length in every update."""

    class Pit:
        def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
            return torch.where(points[:, 0].abs() < 0.0101, 0.1, 1.0).double()

    start = torch.zeros(1, 1, dtype=torch.float64)
    settings = PublishedSettings(half_width=0.01)
    growth = grow(Pit(), None, start, torch.tensor([0]), ["oir_b"], torch.tensor([False]), settings=settings)
    assert growth.diverged.tolist() == [True]
    assert growth.iterations.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["naive", "oir_c"]}, "method 'oir_c' is unknown; choose from naive, oir_b, oir_w, trapezoid"),
        ({"methods": ["naive", "oir_w"]}, "'oir_w' needs gradients"),
        ({"methods": ["trapezoid", "naive"]}, "'trapezoid' needs gradients"),
        ({"methods": ["naive"]}, "methods must name one a box: 1 for 2 boxes"),
        ({"subjects": torch.zeros(3, dtype=torch.int64)}, "subjects must name one a box: 3 for 2 boxes"),
        ({"start": torch.zeros(2, 1)}, r"start must be \[B, n\] float64 with B > 0, not \[2, 1\] torch.float32"),
        ({"start": torch.zeros(0, 2).double()}, r"with B > 0, not \[0, 2\]"),
        ({"start": torch.zeros(2, 3).double()}, "the space has 2 axes, but start has points of 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "start": torch.zeros(2, 2, dtype=torch.float64),
        "subjects": torch.zeros(2, dtype=torch.int64),
        "methods": ["naive", "oir_b"],
        "adversarial": torch.zeros(2, dtype=torch.bool),
    }
    space = Domain(*torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), torch.zeros(2).bool())
    with pytest.raises(ValueError, match=message):
        grow(Level(0.5), space, **(arguments | changes))  # type: ignore[arg-type]
