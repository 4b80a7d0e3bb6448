"""cluster.yaml and jobs/rayjob.yaml: Ray's and AWS's own validation, and the commands in them as far as they run here."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import botocore.session
import click
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from click.testing import CliRunner
from packaging.requirements import Requirement
from pathspec import PathSpec
from processes import ROOT, wait_for

import raysense

CLUSTER = ROOT / "cluster.yaml"
RAYJOB = ROOT / "jobs" / "rayjob.yaml"
DOCKERFILE = ROOT / "jobs" / "Dockerfile"
CRD = "RAYSENSE_RAYJOB_CRD"
"""Environment variable with the path of KubeRay's ray.io_rayjobs.yaml."""

SECRET = re.compile(r"AKIA|ASIA|aws_secret|secret_?key|access_?key|password|PRIVATE KEY|ssh_private_key\s*:", re.I)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def on_gcp() -> str:
    """cluster.yaml with what its comments say for GCP."""
    lines = []
    for line in CLUSTER.read_text().splitlines():
        if not line.endswith("# aws"):
            lines.append(line.replace("# gcp|", "", 1))
    return "\n".join(lines)


@pytest.fixture(params=["aws", "gcp"])
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    text = CLUSTER.read_text() if request.param == "aws" else on_gcp()
    found: dict[str, Any] = yaml.safe_load(text)
    assert found["provider"]["type"] == request.param
    return found


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """With Ray's defaults, after Ray's own validation."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    config = prepared(cluster)
    assert config["head_node_type"] == "head"
    with pytest.raises(jsonschema.ValidationError):
        prepared({**cluster, "max_worker": 3})


def test_the_head_takes_no_work(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    (start,) = (command for command in cluster["head_start_ray_commands"] if "ray start" in command)
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(shlex.split(start))
    assert prepared(cluster)["available_node_types"]["head"]["max_workers"] == 0


def test_the_number_of_workers_stands_at_one_place(cluster: dict[str, Any]) -> None:
    """What `ray up --max-workers` overrides."""
    assert CLUSTER.read_text().count(str(cluster["max_workers"])) == 1
    types = prepared({**cluster, "max_workers": 64})["available_node_types"]
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 64)


def test_aws_accepts_the_machines() -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    for name, node in types.items():
        found = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not found.has_errors(), found.generate_report()
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["IamInstanceProfile"] == {
            "Name": {"head": "raysense-head", "gpu": "raysense-worker"}[name]
        }
    assert types["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in types["head"]["node_config"], "on-demand"
    broken = {**types["gpu"]["node_config"], "InstanceTyp": "g5.2xlarge", "MinCount": 1, "MaxCount": 1}
    assert ParamValidator().validate(broken, shape).has_errors(), "that is, it finds typing errors"


def test_only_ssh_is_reached_from_outside() -> None:
    provider = yaml.safe_load(CLUSTER.read_text())["provider"]
    assert provider["security_group"] == {"GroupName": "raysense"}, "no IpPermissions of its own"
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    rules = _create_default_inbound_rules(["sg-1"], provider["security_group"].get("IpPermissions"))
    assert [rule["FromPort"] for rule in rules if rule.get("IpRanges")] == [22]


def test_the_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    (start,) = (command for command in prepared(cluster)["head_start_ray_commands"] if "ray start" in command)
    hosts = [word for word in shlex.split(start) if word.startswith("--dashboard-host")]
    assert hosts == ["--dashboard-host=127.0.0.1"]


@pytest.mark.parametrize("file", [CLUSTER, RAYJOB], ids=lambda file: file.name)
def test_no_secrets(file: Path) -> None:
    assert not SECRET.findall(file.read_text())


def test_images_are_of_the_pinned_ray_and_of_this_python() -> None:
    docker = yaml.safe_load(CLUSTER.read_text())["docker"]
    (base,) = re.findall(r"^FROM (.*)$", DOCKERFILE.read_text(), re.M)
    for image in (docker["head_image"], docker["worker_image"], base):
        name, _, tag = image.partition(":")
        version, python, platform = tag.split("-")
        assert (name, version) == ("rayproject/ray", pins()["ray"])
        assert platform == ("cpu" if image == docker["head_image"] else "gpu")
        assert python == f"py{sys.version_info.major}{sys.version_info.minor}", "what the tests run on"


def test_the_ray_job_has_the_image_of_the_dockerfile(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    (image,) = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    text = DOCKERFILE.read_text()
    assert f"--tag {image} " in text
    assert image.endswith(f"raysense:{raysense.__version__}-ray{pins()['ray']}-py311")
    (folder,) = re.findall(r"^WORKDIR (.*)$", text, re.M)
    assert yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["working_dir"] == f"local://{folder}"


def test_what_is_installed_is_pinned() -> None:
    """All that the package needs by itself has a version, so that laptop and cluster have the same."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pins()}
    for line in project["dependencies"]:
        assert re.sub(r"[-_.]+", "-", Requirement(line).name).lower() in known
    assert {"aiohttp", "prometheus-client", "opencensus", "grpcio"} <= known, "those of ray[default] too"


def mounted(cluster: dict[str, Any], target: Path) -> None:
    """The files that `ray up` copies, in a folder as on a node."""
    source = (ROOT / cluster["file_mounts"]["~/raysense"]).resolve()
    patterns = [*cluster["rsync_exclude"]]
    for file in cluster["rsync_filter"]:
        patterns += (source / file).read_text().splitlines()
    if shutil.which("rsync"):
        from ray.autoscaler._private.command_runner import SSHCommandRunner

        arguments = SSHCommandRunner._create_rsync_filter_args(None, cluster)
        subprocess.run(["rsync", "-a", *arguments, f"{source}/", f"{target}/"], check=True)
        return
    left_out = PathSpec.from_lines("gitignore", patterns)
    for folder, folders, files in os.walk(source):
        here = Path(folder).relative_to(source)
        folders[:] = [name for name in folders if not left_out.match_file(f"{here / name}/")]
        for name in files:
            if not left_out.match_file(str(here / name)):
                (target / here).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / here / name, target / here / name)


def test_what_is_copied_can_be_installed(tmp_path: Path) -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    home = tmp_path / "home"
    mounted(cluster, home / "raysense")
    copied = {path.name for path in (home / "raysense").iterdir()}
    assert {"raysense", "jobs", "pyproject.toml", "constraints.txt"} <= copied
    assert not copied & {".venv", ".git", "build", "demo-output", ".mypy_cache"}
    assert sum(path.stat().st_size for path in (home / "raysense").rglob("*") if path.is_file()) < 20e6
    (command,) = cluster["setup_commands"]
    assert command.startswith("pip install ")
    # The real line; only the other packages, which are gigabytes, and the builder's environment are left out.
    line = command.replace(
        "pip install", f"{sys.executable} -m pip install --no-deps --no-build-isolation --target {tmp_path}/site"
    )
    environment = {**os.environ, "HOME": str(home), "PIP_NO_INDEX": "1"}
    subprocess.run(["bash", "-c", line], env=environment, check=True, capture_output=True, timeout=120)
    installed = tmp_path / "site" / "raysense"
    assert (installed / "query" / "macros" / "sparsity.sql").exists()
    assert (installed / "engine" / "preemption.py").exists()


def test_start_commands_are_ones_that_ray_has(cluster: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for command in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        words = shlex.split(command.replace("&", "").replace("<", ""))
        if "start" not in words:
            continue
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert flags
        assert set(flags) <= known


def test_the_watcher_is_started_in_the_background(cluster: dict[str, Any], tmp_path: Path) -> None:
    from raysense.engine.preemption import main

    command = cluster["worker_start_ray_commands"][-1]
    assert command.rstrip().endswith("&")
    words = shlex.split(command.partition(">")[0])
    place = words.index("raysense.engine.preemption")
    assert words[place - 2 : place] == ["python", "-m"]
    given = dict(zip(words[place + 1 :: 2], words[place + 2 :: 2], strict=True))
    assert given == {"--cloud": cluster["provider"]["type"], "--address": "$RAY_HEAD_IP:6379"}
    assert CliRunner().invoke(main, [*words[place + 1 :], "--help"]).exit_code == 0
    # The shell comes back at once, and the watcher runs on.
    line = re.sub(r"python .*? >", "sleep 10 >", command).replace("/tmp/", f"{tmp_path}/")
    subprocess.run(["bash", "-c", line], check=True, timeout=5)
    wait_for(lambda: [path.name for path in tmp_path.iterdir()] == ["raysense-preemption.log"])


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    (found,) = (document for document in yaml.safe_load_all(RAYJOB.read_text()) if document["kind"] == "RayJob")
    job: dict[str, Any] = found
    return job


def test_ray_derives_an_autoscaler_from_the_ray_job(rayjob: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = rayjob["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["rayVersion"] == pins()["ray"]
    cluster = {"metadata": {"name": "raysense", "namespace": "default"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(cluster)  # validates it too
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert not types["headgroup"]["resources"].get("GPU")
    (group,) = set(types) - {"headgroup"}
    assert (types[group]["min_workers"], types[group]["max_workers"]) == (0, 16)
    assert types[group]["resources"]["GPU"] == 1


def test_a_failed_ray_job_is_submitted_again_and_resumes(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", "-m"]
    main = runpy.run_path(str(ROOT / f"{words[2].replace('.', '/')}.py"))["main"]
    flags = {word for word in words[3:] if word.startswith("--")}
    known = {name for parameter in main.params for name in parameter.opts}
    assert flags <= known
    assert words[words.index("--out") + 1].startswith("s3://")


def test_pods_are_drained_before_they_end(rayjob: dict[str, Any]) -> None:
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "raysense.engine.preemption"]
    from raysense.engine.preemption import main

    assert CliRunner().invoke(main, [*command[3:], "--help"]).exit_code == 0
    seconds = float(command[command.index("--now") + 1])
    assert seconds < pod["terminationGracePeriodSeconds"]


def test_kuberay_accepts_the_ray_job(rayjob: dict[str, Any]) -> None:
    path = os.environ.get(CRD)
    if not path:
        pytest.skip(f"{CRD} does not name KubeRay's ray.io_rayjobs.yaml")
    crd = yaml.safe_load(Path(path).read_text())
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"] if each["name"] == "v1")
    jsonschema.Draft202012Validator(closed(schema)).validate(rayjob)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**rayjob, "spec": {**rayjob["spec"], "entrypont": "x"}}, closed(schema))


def closed(schema: Any) -> Any:
    """The schema, refusing fields that it does not know, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def readme() -> str:
    return (ROOT / "jobs" / "README.md").read_text()


def test_policies_of_the_readme_are_least() -> None:
    blocks = re.findall(r"```json\n(.*?)```", readme(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        for statement in json.loads(block)["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not [action for action in actions if action.endswith("*")]
            assert statement["Resource"] != "*" or all(action.startswith("ec2:") for action in actions)
    worker, _ = (json.loads(block)["Statement"] for block in blocks)
    comment = "".join(
        re.findall(r"^ +#   (.*)$", CLUSTER.read_text().partition("this (the head's has it too)")[2], re.M)
    )
    assert json.loads(comment.partition("IamInstanceProfile")[0])["Statement"] == worker, "as in cluster.yaml"


def commands(text: str) -> list[list[str]]:
    """Command lines of a README: what is indented by four, continued lines joined, without comments."""
    lines = re.sub(r"\\\n +", " ", text).splitlines()
    found = []
    for line in lines:
        if line.startswith("    "):
            try:
                found.append(shlex.split(line, comments=True))
            except ValueError:  # a line of a text over several lines
                continue
    return found


def test_commands_of_the_readme_exist() -> None:
    import ray.dashboard.modules.job.cli as job_cli
    import ray.scripts.scripts as ray_cli

    from raysense.cli import main

    seen = set()
    for words in commands(readme()):
        if words[:1] == ["raysense"]:
            command: Any = main
            rest = words[1:]
            while hasattr(command, "get_command"):
                command = command.get_command(click.Context(command), rest[0])
                assert command is not None, words
                rest = rest[1:]
        elif words[:3] == ["ray", "job", words[2]] if len(words) > 2 else False:
            command, rest = getattr(job_cli, words[2]), words[3:]
            if "--" in rest:
                inner = rest[rest.index("--") + 1 :]
                assert inner[:2] == ["python", "-m"]
                assert (ROOT / f"{inner[2].replace('.', '/')}.py").is_file()
                check_flags(runpy.run_path(str(ROOT / f"{inner[2].replace('.', '/')}.py"))["main"], inner[3:])
                rest = rest[: rest.index("--")]
        elif words[:1] == ["ray"]:
            command, rest = getattr(ray_cli, words[1]), words[2:]
        elif words[:2] == ["python", "-m"]:
            command, rest = runpy.run_path(str(ROOT / f"{words[2].replace('.', '/')}.py"))["main"], words[3:]
        else:
            continue
        seen.add(" ".join(words[:2]))
        check_flags(command, rest)
    assert {
        "ray up",
        "ray dashboard",
        "ray job",
        "ray down",
        "raysense plan",
        "raysense status",
        "raysense compact",
    } <= seen


def check_flags(command: click.Command, words: list[str]) -> None:
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    flags = {word.partition("=")[0] for word in words if word.startswith("-") and word != "--help"}
    assert flags <= known, f"{command.name} {flags - known}"
