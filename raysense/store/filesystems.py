"""Filesystems by URI, with time-outs and patience, and credentials from the environment only.

``s3://``, ``gs://``, ``abfs://``, ``hdfs://`` and ``file://`` are pyarrow's; every other protocol is fsspec's. pyarrow asks
S3 again on its own up to 10 times (about 25 s); `Directory` and `patient` filesystems go on from there, and log every
attempt. What is refused though the like was granted before is tried again for a minute, since a machine's credentials may
be missing for a moment. An environment variable for each::

    RAYSENSE_STORE_PATIENCE    for how long they try again, s (300)
    RAYSENSE_STORE_TIMEOUT     S3: how long a request may stay without a byte, s (15)
    RAYSENSE_STORE_ATTEMPTS    S3: how often a request is sent again before the filesystem reports a failure (10)

Files above 10 MB go to S3 in parts. A writer that dies in between leaves nothing that can be seen, but its parts are
paid for until they are removed: give the bucket a lifecycle rule that ends incomplete multipart uploads after a day.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs
from fsspec.implementations.dirfs import DirFileSystem

from raysense.errors import UsageError, first_line
from raysense.store.fsspec_files import FsspecFiles
from raysense.store.retries import number_of_environment, patience_of_environment, patiently

TIMEOUT_VARIABLE = "RAYSENSE_STORE_TIMEOUT"
ATTEMPTS_VARIABLE = "RAYSENSE_STORE_ATTEMPTS"

_PYARROW_PROTOCOLS = frozenset({"file", "local", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
_REQUEST_TIMEOUT = 15.0
_CONNECT_TIMEOUT = 5.0
_ATTEMPTS = 10.0
_GOOGLE_PATIENCE = 60
_S3_TEXTS = frozenset({"region", "scheme", "endpoint_override", "tls_ca_file_path"})
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_S3_SWITCHES = frozenset(
    {"allow_bucket_creation", "allow_bucket_deletion", "check_directory_existence_before_creation"}
)
_USER = re.compile(r"://([^/?#@]*|[^/?#@:]+:(?!\d+/)[^?#@]*)@")
"""A user, also with a password that has slashes in it, as keys of AWS do; after a port there is a path."""
_SECRET = re.compile(
    r"secret|passw|token|credential|connection_?string|access_?key|account_?key|api_?key|signature|^sas|^sig$|^key$"
)


def open_filesystem(location: str, argument: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or a URI, and the path in it, without a trailing slash.

    Args:
        location: A local path, or a URI such as ``s3://bucket/run``; options of the filesystem follow a ``?``.
        argument: What the location was given for; named in messages.

    Raises:
        UsageError: the URI is malformed, has a password or key in it, or its protocol is not known or not installed;
            its bucket does not exist, as far as this is found out here.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(location))
    _check_no_secrets(location, argument)
    protocol = location.split("::", 1)[0].partition("://")[0]
    foreign = "::" in location.partition("://")[0] or protocol not in _PYARROW_PROTOCOLS
    try:
        if not foreign and "#" in location:
            raise ValueError("what follows a # would be left out; write it as %23")
        if foreign:
            filesystem, path = _open_fsspec(location)
        elif protocol == "s3":
            filesystem, path = _open_s3(location)
        elif protocol in ("gs", "gcs"):
            filesystem, path = _open_google(location)
        else:
            filesystem, path = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{argument} {location!r} cannot be opened ({first_line(error)}); use a local path or a URI that pyarrow "
            "or fsspec knows, such as s3://bucket/run, with %20 for a space and the like"
        ) from error
    except ImportError as error:
        raise UsageError(
            f"{argument} {location!r} needs a package that is not installed ({first_line(error)}); install it on every "
            "machine of the cluster"
        ) from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem, os.path.abspath(path)
    path = path.rstrip("/") or path
    parts = path.strip("/").split("/")
    # Clients of object stores resolve the former on the way, so that files would lie elsewhere than they are listed.
    if not {".", ".."}.isdisjoint(parts) or ("" in parts[1:] and not foreign):
        raise UsageError(f"{argument} {location!r} has a part that is empty, . or ..; write the path without it")
    return filesystem, path


def _check_no_secrets(location: str, argument: str) -> None:
    """Raise UsageError where a URI has a password or key in it: locations end up in scan.json, logs and reports."""
    head, _, query = location.partition("?")
    secret = [name for name, _ in parse_qsl(query, keep_blank_values=True) if _SECRET.search(name.lower())]
    users = [user for user in _USER.findall(head) if ":" in user or re.search(r"\bs3a?://[^/]*@", head)]
    if secret or users:
        shown = _USER.sub("://", head)
        what = f"the option {secret[0]}" if secret else "a user's key or password"
        raise UsageError(
            f"{argument} {shown!r} has {what} in it, which would be written into scans, logs and reports; leave it out, "
            "and give credentials by environment variables, a configuration file or the machine's role"
        )


def _open_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """What `FileSystem.from_uri` opens, with time-outs and more patience."""
    parts = urlsplit(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not options.keys() <= _S3_TEXTS | _S3_SWITCHES | {"allow_delayed_open"}:
        # tls_verify_certificates and smart_defaults, which only a URI can say; what pyarrow does not know, it refuses.
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, path
    # Checks the URI; the region would be looked up where none is given.
    region_given = uri if "region" in options else f"{uri}{'&' if parts.query else '?'}region=us-east-1"
    _, path = pafs.FileSystem.from_uri(region_given)
    texts = {name: options[name] for name in _S3_TEXTS & options.keys()}
    # Only from_uri looks at the environment for this one.
    endpoint = next(filter(None, map(os.environ.get, _S3_ENDPOINTS)), None)
    if "endpoint_override" not in texts and endpoint:
        texts["endpoint_override"] = endpoint
    if not texts.keys() & {"region", "endpoint_override"}:
        texts["region"] = _region(path.partition("/")[0])
    filesystem = pafs.S3FileSystem(
        **texts,
        **{name: options[name].lower() in ("true", "1") for name in _S3_SWITCHES & options.keys()},
        # Small files are then one request instead of three. A missing bucket is reported when they are closed.
        allow_delayed_open=True,
        connect_timeout=_CONNECT_TIMEOUT,
        request_timeout=number_of_environment(TIMEOUT_VARIABLE, _REQUEST_TIMEOUT),
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(
            max_attempts=int(number_of_environment(ATTEMPTS_VARIABLE, _ATTEMPTS))
        ),
    )
    return filesystem, path


@lru_cache
def _region(bucket: str) -> str:
    what = f"looking up the region of bucket {bucket}"
    return str(patiently(lambda: pafs.resolve_s3_region(bucket), what, patience_of_environment(), reached=False))


def _open_google(uri: str) -> tuple[pafs.FileSystem, str]:
    query = urlsplit(uri).query
    if "retry_limit_seconds" not in dict(parse_qsl(query)):
        uri += f"{'&' if query else '?'}retry_limit_seconds={_GOOGLE_PATIENCE}"
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, path


def _open_fsspec(uri: str) -> tuple[pafs.FileSystem, str]:
    for link in uri.split("::"):
        protocol = link.partition("://")[0]
        if "/" not in protocol and protocol not in fsspec.available_protocols():
            raise ValueError(f"no filesystem is called {protocol}")
    filesystem, path = url_to_fs(uri)
    if isinstance(filesystem, DirFileSystem):
        filesystem, path = filesystem.fs, filesystem.path
    return pafs.PyFileSystem(FsspecFiles(filesystem)), str(path)
