"""Plans of real scans: pieces computed by real workers, estimates against what a scan then really writes and takes."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from plugin_scans import NumbersComputer, NumbersScan, NumbersSpec
from rich.console import Console

import raysense
from raysense.api import scan_document
from raysense.cli import main
from raysense.engine.runtime import cluster
from raysense.errors import ScanFailed, UsageError
from raysense.options import ComputeOptions, RunOptions
from raysense.passes import METER
from raysense.planning.calibration import calibrate
from raysense.planning.costs import LEVEL, interval
from raysense.planning.display import amount, bytes_text, duration, print_plan, recommendation
from raysense.planning.estimate import unit_costs
from raysense.planning.figures import plan_figure, write_figure
from raysense.planning.fleet import ClusterModel
from raysense.planning.options import PlanOptions
from raysense.planning.plan import Plan
from raysense.planning.probe import Probe, Request
from raysense.planning.scaling import FEWEST_RUNS
from raysense.planning.simulation import simulate, work_of
from raysense.scans import Computer, Prepared, Unit
from raysense.validation import validated

LOCAL = {"startup": 0, "loss_rate": 0, "straggler": "0:1", "latency": 0, "idle": 0}
"""A cluster that is there, and that nothing happens to."""

SCAN = {"items": 800, "unit_size": 20, "seconds": 0.05}


class ItemsScan(NumbersScan):
    """Takes ``seconds`` for each item, and half of them for a unit besides."""

    kind = f"{Path(__file__).resolve()}:ItemsScan"

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        return ItemsComputer(self.spec, prepared)


class ItemsComputer(NumbersComputer):
    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        time.sleep(self._spec.seconds * (unit.size - 0.5))
        METER.add(3 * unit.size)
        return super().compute(unit, upcoming)


class TasksScan(ItemsScan):
    """Every other item is a task of another kind, which takes nine passes and not three; one fails."""

    kind = f"{Path(__file__).resolve()}:TasksScan"

    def prepare(self, options: ComputeOptions) -> Prepared:
        found = super().prepare(options)
        tasks = pa.array(["map" if row % 2 else "regions" for row in range(self.spec.items)])
        return Prepared(found.listing.append_column("task", tasks), found.facts, found.unit_size)

    def open(self, prepared: Prepared, options: ComputeOptions) -> Computer:
        return TasksComputer(self.spec, prepared)


class TasksComputer(ItemsComputer):
    def compute(self, unit: Unit, upcoming: Unit | None = None) -> dict[str, pa.Table]:
        METER.add(6 * sum(row % 2 for row in range(unit.start, unit.stop)))
        return super().compute(unit, upcoming)


@pytest.fixture(scope="module", autouse=True)
def temporary() -> Iterator[Path]:
    """Where temporary files of these tests go, those of Ray's workers too."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("RAY_TMPDIR", tempfile.gettempdir())
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def ray(temporary: Path) -> Iterator[None]:
    """One local Ray for all."""
    with cluster(RunOptions()):
        yield


@pytest.fixture(scope="module")
def plan(ray: None) -> Plan:
    """Of a scan in 40 units of 20 items, each unit 0.05 s."""
    return raysense.plan(NumbersScan.kind, gpus=(2, 1), price=3.0, options=LOCAL, **SCAN)


def test_calibration_measures_pieces_spread_over_the_listing(plan: Plan, temporary: Path) -> None:
    done = plan.calibration
    assert done.complete
    assert (len(done.pieces), done.largest, done.unit_size) == (12, 20, 20)
    assert {piece.items for piece in done.pieces} == {20, 5, 10}
    whole = sorted(piece.start for piece in done.pieces if piece.items == 20)
    assert len(whole) == 6
    assert min(whole) < 800 / 6
    assert max(whole) >= 800 * 5 / 6
    assert all(0.05 <= piece.seconds < 5 for piece in done.pieces)
    assert done.warm_up
    assert not done.on_gpu
    assert any("not for GPUs" in note for note in plan.notes)
    assert not list(temporary.glob("raysense-plan-*"))


def test_a_unit_costs_what_it_sleeps(plan: Plan) -> None:
    estimate = plan.estimate
    assert (estimate.units, estimate.items, estimate.files) == (40, 800, 40 * 3 + 2)
    assert 0.85 * 40 * 0.05 < 3600 * estimate.overhead.value < 5 * 40 * 0.05
    assert 0.9 * 40 * 0.05 < 3600 * estimate.hours.value < 5 * 40 * 0.05  # writing takes long on a busy machine
    assert estimate.hours.low <= estimate.hours.value <= estimate.hours.high
    assert estimate.passes is None


def test_estimate_is_what_a_scan_then_writes_and_takes(plan: Plan, tmp_path: Path) -> None:
    raysense.scan(NumbersScan.kind, tmp_path / "s", run={"workers": 2}, **SCAN)
    folders = (tmp_path / "s" / "tables").iterdir()
    written = {folder.name: sum(path.stat().st_size for path in folder.iterdir()) for folder in folders}
    assert written.keys() == plan.estimate.table_sizes.keys() == {"squares", "units"}
    for table, size in written.items():
        assert plan.estimate.table_sizes[table].value == pytest.approx(size, rel=0.03)
    with raysense.open_results(tmp_path / "s") as database:
        query = "SELECT epoch(max(started)) - epoch(min(started)) AS wall FROM units"
        wall = float(database.query(query).rows()[0]["wall"]) + SCAN["seconds"]
    # From the first unit on: starting Ray and the workers is not in it. The machine may have become slower since.
    simulated = plan.asked[0].wall.value - plan.cluster.opening
    assert 40 * SCAN["seconds"] / 2 <= simulated < 3 * wall


@pytest.mark.usefixtures("ray")
def test_every_kind_of_task_is_calibrated_by_its_share() -> None:
    spec = NumbersSpec(items=24, unit_size=1, raising=(0,))
    scan = TasksScan(spec)
    done = calibrate(TasksScan.kind, scan, scan.prepare(ComputeOptions()), validated(PlanOptions, {"gpus": 1, **LOCAL}))
    assert done.complete
    assert set(done.errors) == {"ValueError: unit 0 always fails"}
    alone = [piece.start % 2 for piece in done.pieces if piece.items == 1]
    assert {0, 1} == set(alone)
    passes = unit_costs(done, 0.0, 0).passes.total(24, 24)
    assert passes.low <= 12 * 3 + 12 * 9 <= passes.high
    assert passes.value == pytest.approx(144, rel=0.25)


def test_curve_and_money(plan: Plan) -> None:
    assert [point.gpus for point in plan.curve] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert [point.gpus for point in plan.asked] == [2, 1]
    for point in plan.curve:
        assert point.money is not None
        assert point.money.value == pytest.approx(3 * point.gpu_hours.value)
    assert plan.curve[-1].wall.value < plan.curve[0].wall.value / 2
    # Units cost the same whatever their size, so that the fewest are best, as long as there is one for each worker.
    assert plan.best.unit_size > 20
    assert f"--unit-size {plan.best.unit_size} on 2 workers saves" in recommendation(plan)


@pytest.mark.usefixtures("ray")
def test_units_dearer_than_the_limit_are_calibrated_on_pieces(tmp_path: Path) -> None:
    arguments = ["plan", ItemsScan.kind, "--gpus", "4", "--plan-seconds", "1.5", "--latency", "0", "--format", "json"]
    arguments += ["--items", "4000", "--unit-size", "400", "--seconds", "0.01", "--figure", str(tmp_path / "p.svg")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["calibration"]["seconds"] < 4.0
    assert plan["calibration"]["largest"] < 100
    assert not plan["calibration"]["whole"]
    assert any("takes longer than there was time" in note for note in plan["notes"])
    # 4000 items of 0.01 s, and what a busy machine adds to pieces of some hundredths of a second.
    assert 0.9 * 40 < 3600 * plan["estimate"]["hours"]["value"] < 10 * 40
    assert plan["estimate"]["passes"]["value"] == pytest.approx(12000)
    assert plan["asked"][0]["money"] is None
    assert plan["cluster"]["startup"] == 180
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()


def test_what_cannot_be_computed_is_said() -> None:
    scan = NumbersScan(NumbersSpec(items=4, raising=(0,)))
    prepared = scan.prepare(ComputeOptions())
    probe = Probe()
    request = Request.of(scan_document(NumbersScan.kind, scan, prepared), prepared.listing)
    assert probe.load(request, ComputeOptions()).problem == ""
    measured = probe.measure(Unit("a", 0, 4), None)
    assert (measured.reply.committed, measured.reply.error) == (False, "ValueError: unit 0 always fails")
    assert (measured.files, measured.table_bytes) == (0, {})
    probe.end()
    closed = Probe()
    document = scan_document(NumbersScan.kind, NumbersScan(NumbersSpec(opens=False)), prepared)
    assert closed.load(Request.of(document, prepared.listing), ComputeOptions()).problem.startswith("this scan cannot")
    closed.end()


@pytest.mark.usefixtures("ray")
def test_a_worker_that_hangs_or_dies_ends_the_plan_and_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(ScanFailed, match=r"not one was done within 0\.4 s; raise --seconds"):
        raysense.plan(NumbersScan.kind, gpus=1, options={**LOCAL, "seconds": 0.2}, items=4, hanging=(0,))
    with pytest.raises(ScanFailed, match="worker of the calibration was lost"):
        raysense.plan(NumbersScan.kind, gpus=1, options=LOCAL, items=4, killing=(0,))
    assert not list(temporary.glob("raysense-plan-*"))


def test_plan_is_printed_drawn_and_json(plan: Plan, tmp_path: Path) -> None:
    text = io.StringIO()
    print_plan(plan, Console(file=text, width=200))
    for part in ("Estimate", "files (PUT requests)", "wall time on 2 workers", "Scaling", "1,000", "Unit sizes on 2"):
        assert part in text.getvalue()
    assert "assumed: machines of 1 worker" in text.getvalue()
    assert "no machine is lost" in text.getvalue()
    write_figure(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    free = dataclasses.replace(plan, options=plan.options.model_copy(update={"price": 0.0}))
    assert [axes.get_title() for axes in plan_figure(free).axes] == ["Wall time", "Worker hours paid"]
    document = json.loads(json.dumps(plan.as_dict()))
    assert document["options"]["gpus"] == [2, 1]
    assert document["cluster"]["opening"] == plan.cluster.opening
    assert document["asked"][0]["money"]["value"] > 0


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_figure_is_cut_off(plan: Plan, width: int) -> None:
    text = io.StringIO()
    dear = [dataclasses.replace(point, money=point.gpu_hours.scaled(1e8)) for point in plan.curve]
    plan = dataclasses.replace(plan, curve=tuple(dear))
    print_plan(plan, Console(file=text, width=width))
    lines = [line for line in text.getvalue().splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]
    assert any(line.split()[1] == "1,000" for line in lines)
    assert ("computing" in text.getvalue()) == (width >= 120)
    assert text.getvalue().count("80% interval") == (3 if width >= 80 else 1)


@pytest.mark.usefixtures("ray")
def test_units_that_are_smaller_than_their_most_are_no_lack_of_time() -> None:
    """As where the samples of a class are fewer than a unit's."""
    plan = raysense.plan(NumbersScan.kind, gpus=1, options=LOCAL, items=12, unit_size=16)
    assert plan.calibration.largest == 12
    assert not any("longer than there was time" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--items 4", "argument 'gpus' is missing"),
        ("--gpus 0", "one or several whole numbers from 1 to 10000"),
        ("--gpus many", "argument 'gpus' is 'many'"),
        ("--gpus 2 --straggler 2:3", "SHARE:FACTOR with a share from 0 to 1"),
        ("--gpus 2 --price -1", "argument 'price' is '-1'; it must be at least 0"),
        ("--gpus 2 --format xml", "format 'xml' is unknown; choose one of table, json"),
        ("--gpus 2 --figure x.jpg", "figure 'x.jpg' must end with .png, .pdf, .svg"),
        ("--gpus 2 --figure nowhere/x.png", "in a folder that does not exist"),
        ("--gpus 2 --items 0", "the scan has no samples"),
        ("--gpus 2 --items many", "argument 'items' is 'many'"),
        ("--gpus 2 --device cuda", "no CUDA device"),
        ("--gpus 2 --address 127.0.0.1:1", "no Ray cluster answers"),
    ],
)
def test_misuse_is_one_sentence(arguments: str, message: str) -> None:
    result = CliRunner().invoke(main, ["plan", NumbersScan.kind, *arguments.split()])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("raysense: ")
    assert len(result.stderr.splitlines()) == 1


def test_losses_that_no_scan_would_survive_are_refused() -> None:
    model = ClusterModel(opening=5, loss_rate=1e6, notice=0)
    with pytest.raises(UsageError, match=r"loss_rate 1e\+06: the scan would hardly end"):
        simulate(work_of([1] * 100, np.ones(100), 4), 4, model)


def test_machines_that_take_days_to_come_are_not_simulated_second_by_second() -> None:
    began = time.process_time()
    run = simulate(work_of([1] * 20, np.ones(20), 4), 4, ClusterModel(startup=1e6, startup_spread=0, opening=5))
    assert run.wall == pytest.approx(1e6 + 10, rel=1e-3)
    assert time.process_time() - began < 2


def test_intervals_hold_another_simulation_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for count in (FEWEST_RUNS, 24):
        values = rng.normal(size=(4000, count + 1))
        found = [interval(row[:-1]) for row in values]
        inside = [each.low <= value <= each.high for each, value in zip(found, values[:, -1], strict=True)]
        assert np.mean(inside) == pytest.approx(LEVEL, abs=0.02)


def test_unknown_options_are_refused_in_python() -> None:
    with pytest.raises(UsageError, match="did you mean startup"):
        raysense.plan(NumbersScan.kind, gpus=2, options={"start_up": 3})


def test_options_are_those_of_a_model() -> None:
    options = validated(PlanOptions, {"gpus": "8,64,8"})
    assert options.gpus == (8, 64)
    assert validated(PlanOptions, {"gpus": 5}).gpus == (5,)
    on_gpus = validated(PlanOptions, {"gpus": 1, "device": "cuda", "address": "10.0.0.1:6379"})
    assert on_gpus.run_options.workers == "max"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (duration(0.15), "0.15 s"),
        (duration(59), "59 s"),
        (duration(150), "2.5 min"),
        (duration(7300), "2.03 h"),
        (duration(864000), "10 days"),
        (bytes_text(812), "812 B"),
        (bytes_text(3.42e6), "3.42 MB"),
        (bytes_text(2.5e15), "2,500 TB"),
        (amount(0.01234), "0.0123"),
        (amount(1234567.8), "1,234,568"),
    ],
)
def test_figures_as_text(text: str, value: Any) -> None:
    assert text == value
