"""The command as a user runs it: exit status, one clear sentence, output that other programs can read."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from plugin_scans import NumbersScan
from processes import committed, rows, wait_for

import raysense
from raysense.cli import main

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(command: str) -> Run:
    def call(*arguments: object, status: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [command, *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False, **options  # type: ignore[call-overload]
        )  # fmt: skip
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return call


@pytest.fixture(scope="session")
def digits(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished scan made by the command."""
    out = tmp_path_factory.mktemp("digits scan") / "wörk"
    result = run(
        "scan", "influence", "--model", "digits", "--data", "digits", "--split", "train,test", "--limit", 80,
        "--workers", 2, "--out", out,
    )  # fmt: skip
    assert "raysense sql" in result.stdout
    assert "160/160 samples" in result.stderr
    return out


def test_help_is_quick(command: str) -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5
    for name in ("demo", "scan", "run", "resume", "status", "sql", "report", "export"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE)


def test_help_imports_nothing_heavy(command: str) -> None:
    for arguments in ("--help", "scan --help", "scan influence --help", "sql --help", "report --help"):
        code = (
            f"import sys; sys.argv = ['raysense', *{arguments.split()!r}]\n"
            "import atexit; atexit.register(lambda: print(sorted({'torch', 'ray', 'pyarrow', 'duckdb', 'matplotlib'} "
            "& set(sys.modules))))\nfrom raysense.cli import main; main()"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.splitlines()[-1] == "[]", arguments


def test_options_come_from_the_spec(run: Run) -> None:
    text = run("scan", "influence", "--help").stdout
    for option in (
        "--objective",
        "--method",
        "--tolerance",
        "--rank-rule",
        "--split",
        "--limit",
        "--unit-size",
        "--seed",
    ):
        assert option in text
    assert "exact|certified|bound" in text
    assert "fi_percentiles()" in run("sql", "--help").stdout


def test_status_and_resume_of_a_finished_scan(run: Run, digits: Path) -> None:
    text = run("status", digits).stdout
    assert "complete" in text
    assert "160 of 160" in text
    assert "units are in" in run("resume", digits).stdout


def test_sql_formats(run: Run, digits: Path, tmp_path: Path) -> None:
    def output(*arguments: object, **options: Any) -> str:
        """Of the command in this process, where it starts at once."""
        result = CliRunner().invoke(main, ["sql", *map(str, arguments)], **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    query = "SELECT split, count(*) AS n FROM samples GROUP BY split ORDER BY split"
    assert "test" in output(digits, query)
    assert list(csv.DictReader(io.StringIO(run("sql", digits, query, "--format", "csv").stdout))) == [
        {"split": "test", "n": "80"}, {"split": "train", "n": "80"},
    ]  # fmt: skip
    assert json.loads(output(digits, query, "--format", "json"))[0] == {"split": "test", "n": 80}
    with open(tmp_path / "r.parquet", "wb") as file:
        subprocess.run(
            [Path(sys.executable).parent / "raysense", "sql", digits, query, "--format", "parquet"],
            stdout=file,
            check=True,
        )
    assert pq.read_table(tmp_path / "r.parquet")["n"].to_pylist() == [80, 80]
    assert "test" in run("sql", digits, input=query).stdout
    other = tmp_path / "other"
    shutil.copytree(digits, other)
    padded = f"SELECT '{'x' * 300}' AS x FROM samples LIMIT 1"
    assert "xxx" in output(digits, padded)
    both = output(digits, other, "SELECT DISTINCT scan FROM influence", "--format", "json")
    assert len(json.loads(both)) == 2
    assert len(json.loads(output(digits, "FROM fi_outliers(n := 3)", "--format", "json"))) == 3


def test_report_and_export(run: Run, digits: Path, tmp_path: Path) -> None:
    assert "figure files" in run("report", digits, "-o", tmp_path / "r.html").stdout
    assert "Manhattan" in (tmp_path / "r.html").read_text()
    run("export", digits, "-o", tmp_path / "tables")
    assert pq.read_table(tmp_path / "tables" / "influence.parquet").num_rows == 160
    assert "new or empty" in run("export", digits, "-o", tmp_path / "tables", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scan influenza --out x", "'influenza' is not a scan; choose one of ablations, boundary, convexity, detect,"),
        ("scan influence --model digits --data digits", "Missing option '--out'"),
        ("scan influence --out {tmp}/x --data digits", "argument 'model' is missing"),
        ("scan influence --out {tmp}/x --model digits --data digits --limit many", "argument 'limit' is 'many'"),
        ("scan influence --out {tmp}/x --model digits --data digits --workers 0", "argument 'workers' is '0'"),
        ("scan influence --out {tmp}/x --model digits --data digits --device cuda", "no CUDA device"),
        ("scan influence --out {tmp}/x --model digits --data folder:/nowhere", "/nowhere"),
        ("scan influence --out {tmp}/x --model digits --data digit", "did you mean digits"),
        ("scan influence --out {tmp}/x --model digits --data digits --address 127.0.0.1:1", "no Ray cluster answers"),
        ("scan influence --out {tmp} --model digits --data digits", "not a raysense scan"),
        ("scan influence --out {digits} --model digits --data digits", "already holds a scan"),
        ("scan influence --out /proc/x --model digits --data digits", "cannot be written"),
        ("scan influence --out {digits} --model digits --data digits --resume", "split was ['train', 'test'], is []"),
        ("run {tmp}/missing.toml", "cannot be read"),
        ("run {tmp}/broken.toml", "is not TOML"),
        ("run {tmp}/nokind.toml", "has no kind"),
        ("run {tmp}/typo.toml", "did you mean objective"),
        ("run {tmp}/flag.toml", "argument 'quiet' is unknown"),
        ("resume {tmp}", "holds no scan"),
        ("status {tmp}/nowhere", "holds no scan"),
        ("sql {digits} SELECT_*_FROM_sample", "sample"),
        ("sql {digits} FROM_samples --format xml", "format 'xml' is unknown"),
        ("sql {tmp} FROM_samples", "holds no scan"),
        ("report {tmp} -o {tmp}/r.html", "holds no scan"),
        ("export {digits} -o {tmp}/e --format xml", "format 'xml' is unknown"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("scan influence --frob 3 --out {tmp}/x", "No such option"),
    ],
)  # fmt: skip
def test_misuse_is_one_sentence_and_status_2(digits: Path, tmp_path: Path, arguments: str, message: str) -> None:
    """In this process: starting the command takes longer than all else here."""
    (tmp_path / "broken.toml").write_text("kind = ")
    (tmp_path / "nokind.toml").write_text('model = "digits"')
    typo = f'kind = "influence"\nout = "{tmp_path}/x"\nmodel = "digits"\ndata = "digits"\nobjectiv = "label"'
    (tmp_path / "typo.toml").write_text(typo)
    (tmp_path / "flag.toml").write_text(typo.replace("objectiv =", "quiet ="))
    words = [word.replace("_", " ") if "FROM" in word else word for word in arguments.split()]
    result = CliRunner().invoke(main, [word.format(tmp=tmp_path, digits=digits) for word in words])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    first = result.stderr.splitlines()[0]
    assert first.startswith("raysense: ")
    if words[0] != "sql":
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "x" / "scan.json").exists()


def test_run_from_toml_and_failed_units_give_status_1(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "s"
    (tmp_path / "scan.toml").write_text(
        f'kind = "{NumbersScan.kind}"\nout = "{out}"\nitems = 40\nraising = [2]\n[run]\nworkers = 1\nmax_attempts = 1\n'
    )
    result = run("run", tmp_path / "scan.toml", "--quiet", status=1)
    assert "1 of 10 units failed" in result.stderr
    assert committed(out) == 9
    status = run("status", out).stdout
    assert "1 failed" in status
    assert "unit 2 always fails" in status


def test_ctrl_c_on_a_terminal_commits_what_is_done_and_says_how_to_resume(
    run: Run, command: str, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    (tmp_path / "scan.toml").write_text(
        f'kind = "{NumbersScan.kind}"\nout = "{out}"\nitems = 400\nseconds = 0.05\n[run]\nworkers = 2\n'
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command, [command, "run", str(tmp_path / "scan.toml")])
    wait_for(lambda: committed(out) >= 5)
    os.write(terminal, b"\x03")
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 130
    assert f"finish with: raysense resume {out}" in text.replace("\r\n", "").replace("\n", "")
    assert re.search(r"workers [12]/2", text)
    assert re.search(r"\d+/400 samples", text)
    assert "Traceback" not in text
    assert 5 <= committed(out) < 100
    assert raysense.status(out).running is False
    assert "100 units are in" in run("resume", out, "--workers", "1").stdout
    found = rows(out, "squares", "number")
    assert {number: row["square"] for number, row in found.items()} == {number: number**2 for number in range(400)}


def test_an_unexpected_error_is_one_line_without_debug_and_a_traceback_with_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from raysense.scans import Scan, ScanSpec\n"
        "class Bad(Scan):\n    kind = 'bad'\n    spec_type = ScanSpec\n    summary = 'bad'\n"
        "    def schemas(cls): return {}\n    def fingerprints(self, options): return {}\n"
        "    def open(self, prepared, options): ...\n    def prepare(self, options): raise KeyError('lost')\n"
    )
    arguments = ["scan", f"{tmp_path}/bad.py:Bad", "--out", tmp_path / "x"]
    assert "KeyError" in run(*arguments, status=1).stderr
    command = Path(sys.executable).parent / "raysense"
    debug = subprocess.run([command, *arguments, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in debug.stderr


def test_closed_pipe_is_quiet(command: str, digits: Path) -> None:
    shell = f"'{command}' sql '{digits}' 'FROM range(2000000)' --format csv | head -1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "range" in result.stdout
    assert "Traceback" not in result.stderr
