"""Paths that mean the same wherever a scan is gone on with, also in a Ray job.

`ray job submit --working-dir .` copies the directory to every node of the cluster, into a folder of another name for every
submission, and the copies go with the cluster. The driver and the workers run in their copy. So a path below it is kept
relative to it, and results must not go there. This module imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from raysense.errors import UsageError

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray gives to the driver of a submitted job, and to no other process."""


def local_path(text: str) -> Path:
    """Return the absolute local path that a reference or an option names, ``~`` expanded."""
    return Path(os.path.abspath(Path(text).expanduser()))


def in_job() -> bool:
    """Tell whether this process is the driver of a submitted Ray job."""
    return bool(os.environ.get(_JOB_CONFIG))


def job_directory() -> Path | None:
    """Return the copied working directory in which this process, a Ray job's driver, and the job's workers run.

    None outside a job, in one without a working directory, and where the entry point has gone to another directory.
    """
    if not in_job() or not json.loads(os.environ[_JOB_CONFIG]).get("runtime_env", {}).get("working_dir"):
        return None
    # Ray puts the copy first on the path of Python.
    copy = os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    here = os.getcwd()
    return Path(here) if copy and os.path.realpath(copy) == os.path.realpath(here) else None


def kept_path(text: str) -> str:
    """Return a path as it is to be written down: absolute, or ``./...`` within a Ray job's working directory.

    URIs stay as they are.

    Raises:
        UsageError: it leads out of the working directory of a job, which is all that is copied to the cluster.
    """
    if "://" in text:
        return text
    path, directory = local_path(text), job_directory()
    if directory is None:
        return str(path)
    if path.is_relative_to(directory):
        return f"./{path.relative_to(directory)}"
    if not os.path.isabs(os.path.expanduser(text)):
        raise UsageError(
            f"path {text!r} leads out of the job's working directory, and nothing else is copied to the cluster; "
            "move the file into it, or give a URI or an absolute path that every node has"
        )
    return str(path)


def check_lasting(location: str | os.PathLike[str], argument: str = "out") -> None:
    """Raise UsageError where results would be lost, since a Ray job would write them into its own working directory."""
    text = os.fspath(location)
    if "://" in text or not in_job():
        return
    directory = job_directory()
    inside = directory is not None and local_path(text).is_relative_to(directory)
    if inside or not os.path.isabs(os.path.expanduser(text)):
        raise UsageError(
            f"{argument} {text!r} is in the working directory of a Ray job, which goes with the cluster; "
            "give a URI such as s3://bucket/run, or an absolute path on a disk that all nodes share"
        )
