"""Constrained growth and the evidence for boxes: known boxes, the authors' maps against exhaustive search, the parts."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest
import torch
from constrained_study import study
from region_oracle import AUTHORS_GRID, Grid, bilinear, box_moments, cell_integrals, largest_boxes
from torch import Tensor

from raysense.errors import UsageError
from raysense.measures.box_search import BoxSearch, Constraints
from raysense.measures.boxes import Domain, Evaluator
from raysense.measures.constrained_growth import Constrained, ConstrainedSettings, grow
from raysense.measures.region_evidence import contains, evidence, student_quantile
from raysense.measures.region_sampling import strata
from raysense.measures.surrogate import Surrogate

SOFT = 0.04
"""Over this share of its half side the score of a known box falls from 1 to 0."""


class KnownBox:
    """A score that is 1 in a box and 0 outside of it, linear between; a product over the axes. Counts its calls."""

    def __init__(self, lower: list[float], upper: list[float], domain: Domain) -> None:
        self.lower, self.upper = torch.tensor(lower).double(), torch.tensor(upper).double()
        self.domain = domain
        self.calls = 0

    def by_axis(self, points: Tensor) -> Tensor:
        centre, half = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        away, turn = points - centre, self.domain.extent
        away = torch.where(self.domain.periodic, torch.remainder(away + turn / 2, turn) - turn / 2, away).abs()
        return (0.5 + (half - away) / (half * SOFT)).clamp(0, 1)

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        self.calls += 1
        return self.by_axis(points).prod(1)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("constrained growth is black-box")

    def moments(self, lower: Tensor, upper: Tensor) -> tuple[float, float]:
        """Mean and variance over a box, to about 1e-6: products of those along the axes."""
        share = (torch.arange(20_000, dtype=torch.float64)[:, None] + 0.5) / 20_000
        values = self.by_axis(lower + share * (upper - lower))
        mean = float(values.mean(0).prod())
        return mean, float(values.square().mean(0).prod()) - mean**2


class Complement:
    def __init__(self, function: KnownBox) -> None:
        self.function = function

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        return 1 - self.function.scores(points, subjects)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("constrained growth is black-box")


class Everywhere:
    """The same score at all points."""

    def __init__(self, score: float) -> None:
        self.score = score

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        return torch.full((len(points),), self.score, dtype=torch.float64)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("constrained growth is black-box")


class Ramp:
    """The first coordinate in the subject's units: uniform over a box, moments known."""

    def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
        return points[:, 0] / (1 + subjects)

    def scores_and_gradients(self, points: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("evidence is black-box")


def unit(*periodic: bool) -> Domain:
    count = len(periodic)
    return Domain(torch.zeros(count).double(), torch.ones(count).double(), torch.tensor(periodic))


def grown(
    function: KnownBox | Complement | Everywhere,
    domain: Domain,
    starts: list[list[float]] | Tensor,
    adversarial: bool = False,
    record: bool = False,
    **settings: float,
) -> Constrained:
    start = torch.as_tensor(starts).double()
    return grow(
        Evaluator(function), domain, start, torch.zeros(len(start)).long(), torch.full((len(start),), adversarial),
        settings=dataclasses.replace(ConstrainedSettings(), **settings), record=record,
    )  # fmt: skip


KNOWN = {
    "1": ([0.3], [0.7], [0.35], [False], 400, 0.04),
    "1, over the seam": ([0.9], [1.2], [0.95], [True], 400, 0.04),
    "2, 1:20": ([0.1, 0.4], [0.9, 0.44], [0.2, 0.41], [False, False], 800, 0.05),
    "2, over the seam": ([0.85, 0.4], [1.35, 0.9], [0.05, 0.45], [True, False], 800, 0.05),
    "2, at the edge": ([0.0, 0.5], [0.6, 1.0], [0.0, 1.0], [False, False], 800, 0.05),
    "3, 1:20": ([0.1, 0.4, 0.3], [0.9, 0.44, 0.8], [0.2, 0.41, 0.7], [False, True, False], 1200, 0.06),
    "4": ([0.1, 0.4, 0.2, 0.3], [0.9, 0.8, 0.7, 0.9], [0.2, 0.5, 0.6, 0.4], [False] * 4, 1600, 0.06),
    "6": ([0.1, 0.2, 0.1, 0.4, 0.2, 0.3], [0.9, 0.8, 0.6, 0.8, 0.7, 0.9], [0.2, 0.5, 0.3, 0.5, 0.6, 0.4], [False] * 6,
          1000, 0.2),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_it_ends_at_the_bounds_of_a_known_box(case: str) -> None:
    lower, upper, start, periodic, evaluations, error = KNOWN[case]
    domain = unit(*periodic)
    function = KnownBox(lower, upper, domain)
    growth, proof = grown(function, domain, [start], evaluations=evaluations)
    side = function.upper - function.lower
    mean, variance = function.moments(growth.lower[0], growth.upper[0])
    # Some score outside of the box may be let in: in one dimension alone up to 1 - eps_v / 0.95 of the side.
    shift = torch.round((growth.lower[0] - function.lower) / domain.extent) * domain.extent
    below = (growth.lower[0] - shift - function.lower) / side
    above = (growth.upper[0] - shift - function.upper) / side
    slack = 0.08
    assert below.max() <= error
    assert above.min() >= -error
    assert below.min() >= -slack
    assert above.max() <= slack
    assert mean >= 0.5
    assert variance <= 0.05
    assert bool(proof.holds[0])
    assert bool(growth.converged[0])
    assert bool(contains(domain, growth.lower, growth.upper, torch.tensor([start]).double())[0])
    assert proof.mean_lower[0] - 0.002 <= mean <= proof.mean_upper[0] + 0.002
    assert int(growth.evaluations[0]) <= evaluations


def test_boxes_do_not_depend_on_their_company_and_share_the_calls() -> None:
    domain = unit(True, False)
    function = KnownBox([0.2, 0.3], [0.8, 0.7], domain)
    starts = [[0.5, 0.5], [0.25, 0.6], [0.9, 0.1], [0.7, 0.69]]
    growth, proof = grown(function, domain, starts, evaluations=200)
    assert function.calls == 6
    alone = [grown(function, domain, [start], evaluations=200) for start in starts]
    again = grown(function, domain, starts, evaluations=200, seed=1)
    for row, (one, one_proof) in enumerate(alone):
        assert torch.equal(one.lower[0], growth.lower[row])
        assert torch.equal(one.upper[0], growth.upper[row])
        assert torch.equal(one_proof.mean[0], proof.mean[row])
        assert one.evaluations[0] == growth.evaluations[row]
    assert not torch.equal(again.growth.lower, growth.lower)


def test_adversarial_is_robust_on_the_complement() -> None:
    domain = unit(False, False)
    function = KnownBox([0.2, 0.3], [0.8, 0.7], domain)
    robust, proof = grown(function, domain, [[0.5, 0.5]], evaluations=200)
    adversarial, other = grown(Complement(function), domain, [[0.5, 0.5]], adversarial=True, evaluations=200)
    torch.testing.assert_close(adversarial.lower, robust.lower)
    torch.testing.assert_close(adversarial.upper, robust.upper)
    torch.testing.assert_close(other.mean, 1 - proof.mean)
    torch.testing.assert_close(other.mean_upper, 1 - proof.mean_lower)
    torch.testing.assert_close(other.variance, proof.variance)
    assert bool(other.holds[0])


def test_a_start_that_fails_may_lie_in_a_box_that_holds() -> None:
    """The mean is asked for, not the score at the start; where nothing near is feasible the first look settles it."""
    domain = unit(False, False)

    class Hole(KnownBox):
        def scores(self, points: Tensor, subjects: Tensor) -> Tensor:
            return super().scores(points, subjects) * ((points - 0.5).abs().amax(1) > 0.02)

    growth, proof = grown(Hole([0.2, 0.2], [0.8, 0.8], domain), domain, [[0.5, 0.5]])
    assert float((growth.upper - growth.lower).prod()) > 0.33
    assert bool(proof.holds[0])
    nothing, reason = grown(Everywhere(0.2), domain, [[0.5, 0.5]])
    assert torch.equal(nothing.lower, nothing.upper)
    assert nothing.lower.tolist() == [[0.5, 0.5]]
    assert not bool(reason.holds[0])
    assert bool(nothing.converged[0])
    assert float(reason.mean[0]) == float(reason.mean_lower[0]) == float(reason.mean_upper[0]) == 0.2
    assert int(nothing.evaluations[0]) == 96


def test_the_whole_space_and_no_number() -> None:
    domain = unit(True, False, False)
    growth, proof = grown(Everywhere(1.0), domain, [[0.9, 0.5, 0.0]], evaluations=100)
    torch.testing.assert_close(growth.upper - growth.lower, domain.extent[None])
    assert bool(proof.holds[0])
    growth, proof = grown(Everywhere(float("nan")), domain, [[0.9, 0.5, 0.0]], evaluations=100)
    assert torch.equal(growth.lower, growth.upper)
    assert not bool(proof.holds[0])
    assert not bool(growth.converged[0])


def test_no_boxes() -> None:
    growth, proof = grown(Everywhere(1.0), unit(False, False), torch.zeros(0, 2).double())
    assert growth.lower.shape == (0, 2)
    assert proof.holds.shape == growth.converged.shape == growth.iterations.shape == (0,)


def test_traces_hold_every_candidate() -> None:
    domain = unit(False, False)
    function = KnownBox([0.2, 0.3], [0.8, 0.7], domain)
    growth, _ = grown(function, domain, [[0.5, 0.5], [0.05, 0.05]], evaluations=100, record=True)
    trace = growth.trace
    assert trace is not None
    assert grown(function, domain, [[0.5, 0.5]], evaluations=100).growth.trace is None
    assert trace.box.bincount(minlength=2).tolist() == growth.iterations.tolist()
    assert trace.iteration.tolist() == sorted(trace.iteration.tolist())
    torch.testing.assert_close(trace.loss, -(trace.upper - trace.lower).prod(1))
    assert bool(
        contains(domain, trace.lower, trace.upper, torch.tensor([[0.5, 0.5], [0.05, 0.05]]).double()[trace.box]).all()
    )


@pytest.mark.parametrize(
    ("starts", "settings", "says"),
    [
        ([[1.5, 0.5]], {}, "outside the space"),
        ([[0.5, 0.5]], {"eps_m": 1.5}, "eps_m 1.5"),
        ([[0.5, 0.5]], {"eps_v": -0.1}, "eps_v -0.1"),
        ([[0.5, 0.5]], {"evaluations": 20}, "evaluations 20"),
        ([[0.5, 0.5]], {"evaluations": 10_000}, "evaluations 10000"),
        ([[0.5, 0.5]], {"margin": -1.0}, "margin -1.0"),
    ],
)
def test_bad_input_is_refused(starts: list[list[float]], settings: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        grown(Everywhere(1.0), unit(False, False), starts, **settings)


def test_boxes_on_the_recorded_maps() -> None:
    """Five shapes of three networks; ``benchmarks/bench_constrained.py`` has all 320 boxes."""
    found = study([20 * network + shape for network in (1, 2, 3) for shape in range(1, 20, 4)])
    figures = found.only(torch.ones_like(found.found))
    assert figures.possible > 20
    assert figures.most_evaluations <= 408
    assert int((found.found & ~found.feasible).sum()) <= 1
    assert int((found.found & ~found.covered).sum()) <= 0.1 * figures.found
    assert figures.ratio_of_sums >= 0.85
    assert figures.mean_ratio >= 0.75
    proof = found.grown.evidence
    assert bool((proof.holds == (found.found | (proof.mean >= 0.5))).all())
    assert bool(proof.contains_start.all())


# The parts


@pytest.mark.parametrize("periodic", [False, True])
def test_the_surrogate_interpolates_and_integrates(periodic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(30, 2, generator=generator, dtype=torch.float64)
    scores = torch.rand(30, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([0.3, 0.12]).double()
    surrogate = Surrogate(points, scores, torch.tensor([periodic, False]), lengths)
    edges = torch.linspace(-0.7, 1.6, 5, dtype=torch.float64)
    fine = torch.linspace(-0.7, 1.6, 80_001, dtype=torch.float64)
    apart = (fine[:, None] - points[:, 0]).abs()
    if periodic:
        apart = torch.minimum(torch.remainder(apart, 1), 1 - torch.remainder(apart, 1))
    heights = torch.exp(-apart / 0.3)
    steps = (heights[1:] + heights[:-1]) / 2 * (fine[1] - fine[0])
    expected = steps.reshape(4, -1, 30).sum(1)
    torch.testing.assert_close(surrogate.integrals(0, edges).diff(dim=0), expected, atol=1e-6, rtol=0)
    # The residual of a point is its score less what the others say; each is left out by hand, the mean kept.
    values = torch.stack((scores, scores.square()), dim=1)
    apart = (points[:, None] - points).abs()
    if periodic:
        apart[..., 0] = torch.minimum(apart[..., 0], 1 - apart[..., 0])
    kernel = torch.exp(-(apart / lengths).sum(2))
    kernel.diagonal().add_(1e-6)
    for left_out in (0, 17):
        others = torch.arange(30) != left_out
        predicted = surrogate.centre + kernel[left_out, others] @ torch.linalg.solve(
            kernel[others][:, others], values[others] - surrogate.centre
        )
        torch.testing.assert_close(surrogate.residuals[left_out], values[left_out] - predicted)


def test_the_search_finds_the_largest_box_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every box of a small lattice, with the estimates of single boxes, which are computed another way."""
    monkeypatch.setattr("raysense.measures.box_search.CELLS", (8, 8))
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(60, 2, generator=generator, dtype=torch.float64)
    start = torch.tensor([0.9, 0.4]).double()
    scores = 1 - ((points - start).abs() * torch.tensor([1.0, 2.0])).sum(1).clamp(max=1)
    periodic = torch.tensor([True, False])
    surrogate = Surrogate(points, scores, periodic, torch.tensor([0.75, 0.75]).double())
    region = torch.tensor([-0.1, 0.0]).double(), torch.tensor([1.9, 1.0]).double()
    for proof, limits in product(
        (False, True), (Constraints(0.5, 0.05, 0.5), Constraints(0.7, 0.05), Constraints(0.5, 0.02))
    ):
        search = BoxSearch(surrogate, start, region, periodic, proof)
        box = search.largest(limits)
        best = 0.0
        for low_a, high_a, low_b, high_b in product(range(9), range(8, 17), range(4), range(4, 9)):
            if not low_a <= 7 < high_a or high_a - low_a > 8:
                continue
            tried = search.bounds([low_a, high_a, low_b, high_b])
            volume = float((tried[1] - tried[0]).prod())
            if volume > best and search.holds(tried, limits):
                best = volume
        assert best > 0
        assert box is not None
        assert search.holds(box, limits)
        assert float((box[1] - box[0]).prod()) == pytest.approx(best)


def test_strata_are_equal_parts() -> None:
    lower, upper = torch.tensor([[0.0, -2.0, 1.0]]).double(), torch.tensor([[1.0, 2.0, 1.5]]).double()
    for count in (1, 2, 7, 32):
        lows, highs = strata(lower, upper, count)
        assert lows.shape == (1, count, 3)
        torch.testing.assert_close((highs - lows).prod(2), torch.full((1, count), 2.0 / count).double())
        inside = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).double() * (upper - lower) + lower
        homes = ((inside[:, None] >= lows[0]) & (inside[:, None] < highs[0])).all(2).sum(1)
        assert bool((homes == 1).all())


def test_evidence_is_unbiased_and_covers() -> None:
    """A thousand boxes over ramps of two subjects, whose mean and variance are those of uniform variables."""
    generator = torch.Generator().manual_seed(2)
    low, high = torch.rand(2, 1000, 2, generator=generator, dtype=torch.float64).sort(dim=0).values
    subjects = torch.arange(1000) % 2
    robust = torch.zeros(1000, dtype=torch.bool)
    found = evidence(Evaluator(Ramp()), unit(False, False), low, high, (low + high) / 2, subjects, robust, points=16)
    mean, spread = (low + high)[:, 0] / 2 / (1 + subjects), (high - low)[:, 0] / (1 + subjects)
    covered = (found.mean_lower <= mean) & (mean <= found.mean_upper)
    assert 0.93 <= float(covered.double().mean()) <= 0.985
    assert abs(float(((found.mean - mean) / spread).mean())) < 0.005
    assert float((found.variance / spread.square()).mean() * 12) == pytest.approx(1, abs=0.02)
    errors = (found.mean - mean).square().mean() / found.mean_stderr.square().mean()
    assert float(errors) == pytest.approx(1, abs=0.15)
    errors = (found.variance - spread.square() / 12).square().mean() / found.var_stderr.square().mean()
    assert float(errors) == pytest.approx(1, abs=0.25)
    assert bool(found.contains_start.all())
    assert bool((found.points == 16).all())


def test_evidence_clips_wraps_and_answers_for_no_box() -> None:
    domain = unit(True, False)
    nan = float("nan")
    rows = {
        "over the seam": ([0.9, 0.0], [1.1, 1.0], 0.5, True),
        "more than a turn": ([0.2, 0.0], [3.2, 1.0], 0.5, True),
        "beyond the edge": ([0.2, 0.5], [0.4, 9.0], 0.3, False),
        "no volume": ([0.25, 0.5], [0.25, 0.5], 0.25, False),
        "outside": ([0.2, 2.0], [0.4, 3.0], nan, False),
        "no number": ([nan, 0.0], [0.4, 1.0], nan, False),
    }
    lower, upper = (torch.tensor([row[side] for row in rows.values()]).double() for side in (0, 1))
    start = torch.tensor([[0.05, 0.25]]).double().expand(len(rows), 2)
    zeros = torch.zeros(len(rows), dtype=torch.int64)
    for adversarial in (False, True):
        found = evidence(
            Evaluator(Ramp()), domain, lower, upper, start, zeros, zeros.bool() | adversarial, points=4000, eps_m=0.6,
            eps_v=0.15,
        )  # fmt: skip
        expected = torch.tensor([row[2] for row in rows.values()]).double()
        torch.testing.assert_close(found.mean, expected, atol=0.003, rtol=0, equal_nan=True)
        assert found.contains_start.tolist() == [row[3] for row in rows.values()]
        assert found.points.tolist() == [4000] * 4 + [0] * 2
        assert found.holds.tolist() == [False, True, False, False, False, False]
        assert found.variance[0] == pytest.approx(0.25 - 0.05 + 1 / 300, abs=0.01)
        assert float(found.variance[3]) == 0
    with pytest.raises(UsageError, match="points 5"):
        evidence(Evaluator(Ramp()), domain, lower, upper, start, zeros, zeros.bool(), points=5)


def test_student_quantiles() -> None:
    """Of the table in Abramowitz & Stegun 26.10."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 6: 2.447, 10: 2.228, 30: 2.042, 120: 1.980}
    found = student_quantile(torch.tensor(list(table)).double())
    torch.testing.assert_close(found, torch.tensor(list(table.values())).double(), rtol=0.003, atol=0)


def test_the_oracle_against_nested_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    grid = Grid((0.0, -10.0), (60.0, 20.0), (6, 5), 75.0)
    maps = 0.55 + 0.4 * (torch.rand(4, 6, 5, generator=generator, dtype=torch.float64) - 0.5)
    integrals = cell_integrals(grid, maps)
    edges = [-10.0, 0.0, 20.0, 40.0, 60.0, 75.0]
    start = (299.0, 12.0)
    found = largest_boxes(grid, integrals, start, eps_m=0.48, eps_v=0.01)
    for subject in range(4):
        best = 0.0
        for first, width, low, high in product(range(-3, 6), range(1, 7), range(5), range(1, 6)):
            begin = 60.0 * first + 30
            if not (begin <= 299 <= begin + 60 * width and edges[low] <= 12 <= edges[high] and low < high):
                continue
            bounds = (
                torch.tensor([begin, edges[low]]).double(),
                torch.tensor([begin + 60 * width, edges[high]]).double(),
            )
            mean, variance = box_moments(grid, maps, subject, *bounds)
            if mean >= 0.52 and variance <= 0.01:
                best = max(best, 60.0 * width * (edges[high] - edges[low]))
        assert float(found.volume[subject]) == pytest.approx(best)
    assert 0 < float(found.volume.min()) < float(found.volume.max())


def test_exact_moments_against_many_points() -> None:
    generator = torch.Generator().manual_seed(4)
    maps = torch.rand(1, 120, 34, generator=generator, dtype=torch.float64)
    lower, upper = torch.tensor([-40.3, -10.0]).double(), torch.tensor([33.7, 90.0]).double()
    axes = [low + (high - low) * (torch.arange(1500) + 0.5) / 1500 for low, high in zip(lower, upper, strict=True)]
    points = torch.cartesian_prod(*axes)
    scores = bilinear(AUTHORS_GRID, maps, points, torch.zeros(len(points), dtype=torch.int64))
    expected = float(scores.mean()), float(scores.var(correction=0))
    assert box_moments(AUTHORS_GRID, maps, 0, lower, upper) == pytest.approx(expected, abs=1e-5)
