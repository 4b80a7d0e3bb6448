"""The simulated cluster against closed forms, and the dispatcher itself, driven by it through every kind of fault."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysense.engine.dispatch import Dispatcher
from raysense.engine.observers import Observer
from raysense.options import ComputeOptions, RunOptions
from raysense.planning.costs import LEVEL, fit_line, interval, residuals
from raysense.planning.crew import Faults, SimulatedCrew, Work
from raysense.planning.fleet import ClusterModel
from raysense.planning.scaling import Scenario, SizePoint, best_size, simulated_point, size_sweep
from raysense.planning.simulation import simulate, work_of
from raysense.scans.base import Unit


def equal_units(count: int, seconds: float) -> Work:
    units = [Unit(str(number), number, number + 1) for number in range(count)]
    return Work(units, [seconds] * count, [1] * count)


class TestClosedForms:
    @settings(max_examples=40, deadline=None)
    @given(
        units=st.integers(1, 120), workers=st.integers(1, 40), seconds=st.floats(0.1, 5000), startup=st.floats(0, 900)
    )
    def test_equal_units_take_whole_rounds(self, units: int, workers: int, seconds: float, startup: float) -> None:
        model = ClusterModel(
            startup=startup, opening=7, startup_spread=0, opening_spread=0, reply=0, dispatch=0, idle=60
        )
        run = simulate(equal_units(units, seconds), workers, model)
        used = min(units, workers)
        assert run.wall == pytest.approx(math.ceil(units / workers) * seconds + startup + 7)
        assert run.machines == used
        assert run.spent.computing == pytest.approx(units * seconds)
        assert run.ideal <= run.paid <= used * (run.wall + 60) + 1e-6
        assert set(run.commits) == {str(number) for number in range(units)}
        assert set(run.commits.values()) == {1}

    def test_time_is_paid_from_order_to_idle_end(self) -> None:
        model = ClusterModel(startup=100, opening=10, startup_spread=0, opening_spread=0, reply=0, dispatch=0, idle=300)
        run = simulate(equal_units(20, 50.0), 4, model)
        assert run.wall == pytest.approx(100 + 10 + 5 * 50)
        assert run.paid == pytest.approx(4 * (run.wall + 300))
        assert run.booting == pytest.approx(4 * 100)
        assert run.spent.opening == pytest.approx(4 * 10)

    def test_publishing_and_the_driver_cost_their_time(self) -> None:
        model = ClusterModel(publishing=0.5, dispatch=0.25, reply=0)
        run = simulate(equal_units(100, 0.01), 50, model)
        assert run.wall >= 100 * 0.25  # the driver is the bottleneck: half of the workers would do
        alone = simulate(equal_units(100, 0.01), 1, ClusterModel(publishing=0.5, dispatch=0, reply=0))
        assert alone.wall == pytest.approx(51.0)
        assert alone.spent.overhead == pytest.approx(50.0)

    def test_rework_is_half_a_unit_a_loss(self) -> None:
        model = ClusterModel(loss_rate=6.0, notice=0, startup_spread=0, opening_spread=0, reply=0, dispatch=0)
        runs = [
            simulate(equal_units(2000, 60.0), 10, model, seed, options=RunOptions(duplicates=False)) for seed in (1, 2)
        ]
        losses = sum(run.losses for run in runs)
        assert losses == pytest.approx(2 * 10 * 6.0 * runs[0].wall / 3600, rel=0.25)
        assert sum(run.spent.lost for run in runs) == pytest.approx(losses * 30.0, rel=0.15)

    def test_with_notice_enough_nothing_is_lost(self) -> None:
        sudden, warned = (
            simulate(
                equal_units(1000, 20.0),
                10,
                ClusterModel(loss_rate=6.0, notice=notice, notice_share=1.0, reply=0, dispatch=0),
                options=RunOptions(duplicates=False),
            )
            for notice in (0.0, 120.0)
        )
        assert min(sudden.losses, warned.losses) > 10
        assert sudden.spent.lost > 50
        assert warned.spent.lost == 0

    def test_gpus_of_a_machine_go_together(self) -> None:
        model = ClusterModel(gpus_per_node=8, loss_rate=2.0, notice=0, startup=60)
        lost: list[str] = []

        class Watching(Observer):
            def lost(self, worker: str, reason: str) -> None:
                lost.append(worker)

        run = simulate(equal_units(3000, 30.0), 16, model, 3, observer=Watching())
        assert run.losses >= 3
        assert len(lost) > 6 * run.losses
        assert run.machines >= 2 + run.losses - 1

    def test_one_slow_machine_in_many_hardly_delays(self) -> None:
        slow = ClusterModel(straggler_share=0.1, straggler_factor=5.0)
        runs = {
            duplicates: [
                simulate(equal_units(400, 60.0), 20, slow, seed, options=RunOptions(duplicates=duplicates)).wall
                for seed in range(8)
            ]
            for duplicates in (False, True)
        }
        least = 400 * 60 / 20
        assert all(wall >= least for wall in runs[True])
        assert np.mean(runs[True]) < np.mean(runs[False])

    def test_wall_time_approaches_start_up_and_one_unit(self) -> None:
        model = ClusterModel(startup=60, opening=5, startup_spread=0, opening_spread=0, reply=0, dispatch=0)
        walls = [simulate(equal_units(640, 10.0), workers, model).wall for workers in (1, 4, 16, 64, 640, 2000)]
        assert walls == pytest.approx([65 + 6400, 65 + 1600, 65 + 400, 65 + 100, 75, 75])

    def test_groups_stand_for_their_units(self) -> None:
        seconds = 20 * np.random.default_rng(0).lognormal(0, 0.2, 6000)
        model = ClusterModel(startup=180, opening=10, loss_rate=0.1, straggler_share=0.02, straggler_factor=3)
        sizes = [256] * 6000
        grouped = work_of(sizes, seconds, 8, 0.5)
        assert len(grouped.units) < 1000
        assert sum(grouped.parts) == 6000
        assert sum(unit.size for unit in grouped.units) == 6000 * 256
        assert sum(grouped.seconds) == pytest.approx(seconds.sum())
        units = [Unit(str(number), 256 * number, 256 * number + 256) for number in range(6000)]
        single = Work(units, seconds.tolist(), [1] * 6000, 0.5)
        first, second = simulate(grouped, 8, model, 5), simulate(single, 8, model, 5)
        assert first.wall == pytest.approx(second.wall, rel=0.01)
        assert first.paid == pytest.approx(second.paid, rel=0.01)
        assert first.spent.overhead == pytest.approx(second.spent.overhead, rel=0.01)


class Journal:
    """Attempts in memory."""

    def __init__(self) -> None:
        self.written: dict[str, list[dict[str, Any]]] = {}
        self.failed: set[str] = set()

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    def write_attempts(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        self.written[unit] = list(attempts)

    def write_failure(self, unit: str, attempts: list[dict[str, Any]]) -> None:
        self.failed.add(unit)

    def clear_failure(self, unit: str) -> None:
        self.failed.discard(unit)


class TestDispatcher:
    """Every unit is committed or given up on by the rules, whatever happens to units, workers and machines."""

    @pytest.mark.parametrize("seed", range(8))
    def test_every_unit_once_through_every_fault(self, seed: int) -> None:
        check_faulty_run(1200, 24, seed)

    def test_losses_of_machines_are_never_held_against_units(self) -> None:
        model = ClusterModel(startup=30, opening=5, loss_rate=60.0, notice=20, notice_share=0.5)
        run = simulate(equal_units(1500, 25.0), 30, model, 7)
        assert run.losses > 100
        assert not run.failed
        assert len(run.commits) == 1500

    def test_as_long_as_a_commit_came_before_the_loss_the_unit_is_not_repeated(self) -> None:
        model = ClusterModel(loss_rate=300.0, notice=0, reply=1.0)
        run = simulate(equal_units(1500, 3.0), 20, model, 1, options=RunOptions(duplicates=False))
        assert run.losses > 100
        # Without duplicates only a reply that was lost could make a unit run twice; the crew is asked for those.
        assert Counter(run.commits.values()) == {1: 1500}


def check_faulty_run(units: int, workers: int, seed: int) -> None:
    """Run units through a cluster where everything goes wrong, and check the rules."""
    numbers = np.random.default_rng(seed).permutation(units)
    raising, killing, hanging = (frozenset(part.tolist()) for part in np.split(numbers[:9], 3))
    faults = Faults(0.01, 0.003, 0.001, 0.0005, 0.03, raising, killing, hanging)
    model = ClusterModel(
        gpus_per_node=4, startup=90, opening=8, loss_rate=1.0, notice=60, straggler_share=0.05, straggler_factor=4
    )
    seconds = 15 * np.random.default_rng(seed).lognormal(0, 0.5, units)
    work = Work([Unit(str(n), 10 * n, 10 * n + 10) for n in range(units)], seconds.tolist(), [1] * units)
    crew, journal, options = SimulatedCrew(work, model, seed, faults), Journal(), RunOptions()
    failed = Dispatcher(crew, journal, options, ComputeOptions(), workers, Observer()).run(work.units, lambda: False)
    everything = {unit.id for unit in work.units}
    assert set(crew.commits) | set(failed) == everything
    assert not set(crew.commits) & set(failed)
    assert set(failed) == journal.failed
    assert {str(n) for n in raising | killing | hanging} <= set(failed)
    for unit in failed:
        kinds = Counter(attempt["kind"] for attempt in journal.written[unit])
        assert kinds["error"] == options.max_attempts or kinds["loss"] == options.max_losses
    for unit, attempts in journal.written.items():
        kinds = Counter(attempt["kind"] for attempt in attempts)
        assert kinds["error"] <= options.max_attempts
        assert kinds["loss"] <= options.max_losses, unit
    assert crew.size == 0


class TestCosts:
    def test_exact_measurements_are_fitted_exactly(self) -> None:
        sizes, places = [64, 16, 64, 32, 64, 16], [0, 0, 1, 1, 2, 2]
        line = fit_line(sizes, [0.5 + 0.02 * size for size in sizes], places, 0)
        assert (line.fixed, line.each) == (pytest.approx(0.5), pytest.approx(0.02))
        total = line.total(100, 6400)
        assert (total.value, total.low, total.high) == tuple(pytest.approx(178.0) for _ in range(3))
        assert line.total(100, 0).value + line.total(0, 6400).value == pytest.approx(178.0)

    def test_the_line_goes_through_units_of_the_usual_size(self) -> None:
        sizes, places = [64, 16, 64, 32], [0, 0, 1, 1]
        values = [20.0, 18.0, 22.0, 23.0]  # as files that are compressed better when they are larger
        line = fit_line(sizes, values, places, 0, usual=64)
        assert line.total(10, 640).value == pytest.approx(210.0)
        assert line.fixed > 0
        assert fit_line(sizes, values, places, 0).total(10, 640).value > 215.0
        larger = fit_line(sizes, [2.0 * size for size in sizes], places, 0, usual=1000)
        assert (larger.fixed, larger.each) == (pytest.approx(0.0, abs=1e-9), pytest.approx(2.0))

    def test_without_a_cost_of_units_the_mean_of_all_items_counts(self) -> None:
        line = fit_line([10, 10, 10, 10], [1.0, 9.0, 1.0, 1.0], [0, 1, 2, 3], 0)
        assert (line.fixed, line.each, line.separable) == (0.0, pytest.approx(0.3), False)
        assert line.total(10, 100).low < 30 < line.total(10, 100).high

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1e4)), min_size=1, max_size=12))
    def test_costs_are_never_negative_or_unknown(self, measured: list[tuple[int, float]]) -> None:
        sizes, values = zip(*measured, strict=True)
        line = fit_line(sizes, values, [number // 2 for number in range(len(sizes))], 1)
        found = line.total(7, 1000)
        assert 0 <= found.low <= found.value <= found.high < math.inf
        assert line.draws.min() >= 0
        assert residuals(line, sizes, values).mean() == pytest.approx(1.0)

    def test_intervals_hold_what_they_promise(self) -> None:
        rng = np.random.default_rng(0)
        sizes, places = [64, 16, 64, 32] * 3, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        inside = 0
        for trial in range(300):
            local = rng.lognormal(0, 0.3, 6).repeat(2) / math.exp(0.045)
            values = [0.3 + 0.02 * size * factor for size, factor in zip(sizes, local, strict=True)]
            total = fit_line(sizes, values, places, trial).total(100, 6400)
            inside += total.low <= 0.3 * 100 + 0.02 * 6400 <= total.high
        assert inside / 300 == pytest.approx(LEVEL, abs=0.1)

    def test_quantiles(self) -> None:
        found = interval(np.arange(1.0, 100.0))  # 99 values cut a distribution into 100 equal parts
        assert (found.low, found.value, found.high) == pytest.approx((10.0, 50.0, 90.0))


class TestScaling:
    def scenario(self, fixed: float = 0.5, **model: float) -> Scenario:
        sizes, places = [64, 16, 64, 32], [0, 0, 1, 1]
        line = fit_line(sizes, [fixed + 0.1 * size for size in sizes], places, 0)
        return Scenario(line, np.array([0.9, 1.0, 1.1]), ClusterModel(**model), 2.0, 0)

    def test_more_gpus_are_quicker_and_dearer(self) -> None:
        scenario = self.scenario(startup=60.0, opening=5.0, idle=60.0, loss_rate=0.05)
        numbers = (1, 2, 8, 64, 1000)
        points = [simulated_point(scenario, [64] * 400, gpus, 3000) for gpus in numbers]
        walls = [point.wall.value for point in points]
        assert all(earlier >= 0.98 * later for earlier, later in pairwise(walls))
        assert points[0].efficiency > 0.9 > 0.1 > points[-1].efficiency
        for point in points:
            shares = point.shares
            parts = (shares.computing, shares.overhead, shares.starting, shares.lost, shares.waiting)
            assert sum(parts) == pytest.approx(1.0, abs=0.01)
            assert point.money is not None
            assert point.money.value == pytest.approx(2 * point.gpu_hours.value)
            assert point.wall.low <= point.wall.value <= point.wall.high

    def test_runs_with_a_seed_are_the_same(self) -> None:
        scenario = self.scenario(startup=60.0, loss_rate=1.0)
        assert simulated_point(scenario, [64] * 100, 5) == simulated_point(scenario, [64] * 100, 5)

    def test_best_unit_size_weighs_overhead_against_the_end_and_losses(self) -> None:
        sizes = {size: [size] * (65536 // size) for size in (4, 32, 256, 2048, 16384)}
        points = {fixed: list(size_sweep(self.scenario(fixed), sizes, 16)) for fixed in (0.001, 20.0)}
        cheap, dear = (best_size(points[fixed], 2048) for fixed in points)
        assert cheap.unit_size < dear.unit_size
        assert dear.unit_size < 16384  # four units would keep four workers busy
        least: SizePoint = min(points[20.0], key=lambda each: each.point.wall.value)
        assert dear.point.wall.value <= 1.02 * least.point.wall.value
