"""Jobs as they are submitted: a real head of Ray, `ray job submit`, stop, and the same command again."""

from __future__ import annotations

import json
import os
import runpy
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from click.testing import CliRunner
from in_process import Here
from processes import ROOT, committed, wait_for

import raysense
from raysense.engine.runtime import cluster
from raysense.errors import UsageError
from raysense.options import RunOptions
from raysense.references import absolute_reference
from raysense.scans import absolute_kind
from raysense.scans.ablations import AblationsSpec
from raysense.scans.directions import DirectionsSpec
from raysense.semantics.shapes import absolute_shapes
from raysense.studies.imagenet_influence import run_imagenet_influence
from raysense.studies.study import Workspace
from raysense.working_directory import check_lasting, job_directory, kept_path

BIN = Path(sys.executable).parent

ZOO = """
import os, time
import torch

class Gated(torch.nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
        self.gate = gate
    def forward(self, images):
        if not os.path.exists(self.gate):
            time.sleep(0.2)
        return self.linear(images.flatten(1))

class Broken(Gated):
    def forward(self, images):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # in a worker, but not where the scan is prepared
            raise RuntimeError("it breaks where it is computed")
        return super().forward(images)

def slow(gate): return Gated(gate)
def broken(): return Broken("/")
"""


@dataclass
class Head:
    """A running head.

    Attributes:
        dashboard: Address for submissions, a URL on loopback.
        environment: That of the head, and of commands for it.
    """

    dashboard: str
    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [str(BIN / "ray"), "job", arguments[0], "--address", self.dashboard, *arguments[1:]]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=self.environment, text=True, **out)

    def answers(self) -> bool:
        """Whether the job server is there."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.dashboard.rpartition(":")[2]))) == 0

    def details(self, job: str) -> tuple[str, int | None]:
        request = Request(f"{self.dashboard}/api/jobs/{job}")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        return found["status"], found["driver_exit_code"]


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head on ports and in a folder of its own, its dashboard on loopback only, which asks for a token."""
    folder = tempfile.mkdtemp(prefix="r_", dir="/tmp")  # paths of sockets are limited to 107 characters
    port, dashboard, agent, client = free_ports(4)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **token}
    process = subprocess.Popen(
        [
            str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={folder}",
            "--object-store-memory=100000000",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    found = Head(f"http://127.0.0.1:{dashboard}", environment)
    try:
        wait_for(found.answers, timeout=90)
        yield found
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working directory with the jobs, and networks of one's own."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "zoo.py").write_text(ZOO)
    return folder


def submission(checkout: Path, job: str, *arguments: str) -> list[str]:
    flags = ["--working-dir", str(checkout), "--submission-id", job]
    return ["submit", *flags, "--", "python", "-m", "jobs.imagenet_influence", "--data", "digits", *arguments]


def test_submitted_stopped_and_submitted_again(
    head: Head, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One whose scan fails runs beside it.
    broken = ["--out", str(tmp_path / "broken"), "--model", "zoo.py:broken", "--limit", "1", "--max-attempts", "1"]
    failing = head.start(*submission(checkout, "broken", *broken, "--workers", "1", "--worker-cpus", "1"))
    out = tmp_path / "out"
    gate = tmp_path / "gate"  # until it is there, the network is slow
    arguments = ["--out", str(out), "--model", f"zoo.py:slow?gate={gate}", "--target", "input;layer", "--limit", "12"]
    arguments += ["--unit-size", "1", "--workers", "1", "--worker-cpus", "1", "--batch-size", "1"]
    running = head.start(*submission(checkout, "first", *arguments))
    wait_for(lambda: committed(out / "slow") >= 2, timeout=150)
    stopped = head.start("stop", "first")
    assert stopped.wait(timeout=90) == 0
    log, _ = running.communicate(timeout=30)
    assert f"scan    {out}/slow" in log, "it is followed"
    assert head.details("first")[0] == "STOPPED"
    before = {path: path.stat().st_mtime_ns for path in (out / "slow" / "commits").iterdir()}
    assert 2 <= len(before) < 12
    gate.touch()
    (checkout / "notes.txt").write_text("another submission is another copy, in another folder")
    again = head.start(*submission(checkout, "second", *arguments))
    text, _ = again.communicate(timeout=200)
    assert again.returncode == 0, text
    assert head.details("second") == ("SUCCEEDED", 0)
    for title in ("Percentiles of FI", "The strangest images", "Most sensitive layers", "Throughput"):
        assert title in text
    document = json.loads((out / "slow" / "scan.json").read_text())
    assert document["spec"]["model"] == f"./zoo.py:slow?gate={gate}", "the same in every copy"
    status = raysense.status(out / "slow")
    assert (status.committed, status.units) == (12, 12)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is computed twice"
    assert (out / "report.html").stat().st_size > 10_000
    text, _ = failing.communicate(timeout=100)
    assert "it breaks where it is computed" in text
    assert failing.returncode == 1
    assert head.details("broken") == ("FAILED", 1)
    # In a checkout the references mean its own files, which are compared by their fingerprints.
    next((out / "slow" / "commits").iterdir()).unlink()
    monkeypatch.chdir(checkout)
    (checkout / "zoo.py").write_text(ZOO.replace("0.2", "0.1"))
    with pytest.raises(UsageError, match="model changed since the scan"):
        raysense.resume(out / "slow")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with cluster(RunOptions(workers=1)):
        yield


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize(
    ("job", "arguments", "titles", "scans"),
    [
        (
            "imagenet_significance",
            ["--ood", "noisy=raysense.studies.shifts:Shifted?data=digits&split=test&noise=0.3", "--layers", "output"],
            ["Class paths", "nearest to another", "farthest from all", "by how often", "themselves in other data"],
            ["digits", "digits-noisy"],
        ),
        (
            "boundary",
            ["--with", "convexity", "--k", "2", "--groups", "4", "--directions", "2"],
            ["Distance to the decision boundary", "Mean curvature", "convex combinations"],
            ["digits-boundary", "digits-convexity"],
        ),
    ],
)
def test_jobs_end_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    arguments: list[str],
    titles: list[str],
    scans: list[str],
) -> None:
    monkeypatch.setattr("raysense.studies.study.write_report", lambda *given, **named: [])
    monkeypatch.setattr("raysense.engine.run.Dispatcher", Here)
    main = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))["main"]
    common = ["--model", "digits", "--data", "digits", "--split", "test", "--limit", "5"]
    done = CliRunner().invoke(
        main, [*common, "--out", str(tmp_path), "--workers", "1", "--worker-cpus", "1", "--quiet", *arguments]
    )
    assert done.exit_code == 0, done.output
    for title in (*titles, "Throughput", "report  "):
        assert title in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == scans
    assert all(raysense.status(tmp_path / scan).left == 0 for scan in scans)


def test_both_objectives_are_two_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def started(self: Workspace, scans: Mapping[str, Mapping[str, Any]]) -> list[str]:
        raise Started({name: (spec["model"], spec["objective"], spec["method"]) for name, spec in scans.items()})

    monkeypatch.setattr(Workspace, "scan_all", started)
    options = {"model": ("digits", "torchvision:resnet18"), "data": "digits", "objective": "both"}
    with pytest.raises(Started) as caught:
        run_imagenet_influence(tmp_path / "out", options, {}, quiet=True)
    assert caught.value.args == (
        {
            "digits-label": ("digits", "label", "certified"),
            "digits-predicted": ("digits", "predicted", "certified"),
            "resnet18-label": ("torchvision:resnet18", "label", "certified"),
            "resnet18-predicted": ("torchvision:resnet18", "predicted", "certified"),
        },
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        (
            "boundary",
            ["--with", "directions"],
            "argument 'with' is 'directions'; it must name some of paths, convexity",
        ),
        ("imagenet_influence", ["--method", "exakt"], "argument 'method' is 'exakt'"),
        ("imagenet_significance", ["--ood", "digits"], "ood 'digits' has no name; write NAME=REFERENCE"),
        (
            "imagenet_significance",
            ["--model", "zoo/digits-v2.pt2", "--ood", "v2=digits"],
            "ood 'v2': with model digits it makes a name that is taken",
        ),
        (
            "imagenet_significance",
            ["--model", "zoo/digits-a.pt2", "--ood", "a-b=digits", "--ood", "b=digits"],
            "ood 'b': with model digits-a it makes a name that is taken",
        ),
    ],
)
def test_jobs_refuse_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, arguments: list[str], message: str
) -> None:
    main = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))["main"]
    with pytest.raises(SystemExit) as exit:
        main.main(["--data", "digits", "--model", "digits", "--out", str(tmp_path / "out"), *arguments])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["--out", str(tmp_path / "out")])
    assert "argument 'data' is missing; give data reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_working_directory_is_small() -> None:
    """What `ray job submit --working-dir .` would send of this repository."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _zip_files

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        _zip_files(
            str(ROOT),
            get_runtime_env_default_excludes(),
            str(package),
            include_gitignore=True,
            include_parent_dir=False,
        )
        names = zipfile.ZipFile(package).namelist()
        assert package.stat().st_size < 10e6
    assert {"jobs/boundary.py", "raysense/api.py", "constraints.txt"} <= set(names)
    assert not [name for name in names if name.startswith((".venv/", ".git/", "build/"))]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process that is a job's driver, as Ray starts it."""
    copy = tmp_path / "_ray_pkg_1"
    (copy / "sub").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PYTHONPATH", f"{copy}:/elsewhere")
    config = {"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    return copy


def test_paths_in_a_job_mean_the_same_in_every_copy(job: Path) -> None:
    assert job_directory() == job
    for text in (
        "zoo.py:net?checkpoint=w.pt",
        f"{job}/zoo.py:net?checkpoint=./w.pt",
        "./zoo.py:net?checkpoint=sub/../w.pt",
    ):
        kept = absolute_reference(text, "model")
        assert kept == "./zoo.py:net?checkpoint=./w.pt"
        assert absolute_reference(kept, "model") == kept
    assert absolute_reference("folder:images/{split}", "data") == "folder:./images/{split}"
    assert absolute_reference("npz:/data/x.npz", "data") == "npz:/data/x.npz", "a disk that all nodes share"
    assert absolute_reference("parquet:s3://bucket/x", "data") == "parquet:s3://bucket/x"
    assert absolute_shapes("sub") == "folder:./sub"
    assert absolute_kind("plug.py:Scan") == "./plug.py:Scan"
    for spec in (AblationsSpec, DirectionsSpec):
        fields = {"model": "digits", "data": "digits"} if spec is DirectionsSpec else {}
        assert spec(of="runs/x", **fields).of == "./runs/x"
        assert spec(of="s3://bucket/x?region=us-east-1", **fields).of == "s3://bucket/x?region=us-east-1"
    with pytest.raises(
        UsageError, match=r"path '\.\./w\.pt' leads out of the job's working directory.*; move the file"
    ):
        absolute_reference("torchvision:resnet18?checkpoint=../w.pt", "model")


@pytest.mark.parametrize("out", ["runs/first", "./x", "{job}/runs"])
def test_results_are_not_written_where_they_would_be_lost(job: Path, out: str) -> None:
    named = out.format(job=job)
    with pytest.raises(UsageError, match=f"out '{named}' is in the working directory of a Ray job.*; give a URI"):
        check_lasting(named)
    with pytest.raises(UsageError, match="working directory of a Ray job"):
        raysense.scan("influence", named, model="digits", data="digits")
    assert not list(job.rglob("scan.json"))


def test_results_are_written_elsewhere(job: Path, tmp_path: Path) -> None:
    check_lasting("s3://bucket/run")
    check_lasting(tmp_path / "run")


def test_a_job_that_went_to_another_directory(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are not there: paths are absolute."""
    monkeypatch.chdir(job / "sub")
    assert job_directory() is None
    assert absolute_reference("m.pt2", "model") == f"{job}/sub/m.pt2"
    with pytest.raises(UsageError, match="give a URI"):
        check_lasting("runs")


def test_outside_a_job_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert job_directory() is None
    assert kept_path("x") == f"{tmp_path}/x"
    check_lasting("runs/first")
