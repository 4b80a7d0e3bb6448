"""Trying again where a store fails for a moment, and only there."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from raysense.errors import UsageError, first_line

PATIENCE_VARIABLE = "RAYSENSE_STORE_PATIENCE"
"""Environment variable: for how long an operation on an object store is tried again, s."""
PATIENCE = 300.0
STRANGER_PATIENCE = 30.0
"""The same for a store that cannot be reached and never was, since its address may be wrong, s."""
LAPSE_PATIENCE = 60.0
"""The same for what is refused though it was granted before, s: without credentials, S3 is asked namelessly."""

_LOG = logging.getLogger("raysense")
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0

_PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_ERRNOS = frozenset(
    {
        *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETDOWN),
        *(errno.ENETRESET, errno.ENETUNREACH),
    }
)
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# An upload that S3 does not know any more was completed, and the answer lost: it is written again.
_AWS_CODES = frozenset(
    {
        *("INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING", "REQUEST_TIMEOUT"),
        *("NETWORK_CONNECTION", "NO_SUCH_UPLOAD"),
    }
)
_AWS_REFUSALS = frozenset({"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"})
_REFUSING_STATUSES = frozenset({400, 401, 403})  # 400: a token that expired; answers to HEAD do not say why
_GOOGLE_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
_GOOGLE_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"})
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (-?\d+)\))?")
_GOOGLE = re.compile(r"google::cloud::Status\((\w+):")
_WORDS = re.compile(
    r"timed? ?-?out|connection (was )?(reset|refused|aborted|closed|lost|broken)|broken pipe|empty reply|"
    r"too many requests|slow ?down|server ?busy|service unavailable|internal (server )?error|bad gateway",
    re.IGNORECASE,
)
_UNREACHED = re.compile(
    r"could ?n[o']t (connect|resolve)|could not (connect|resolve)|failed to connect|cannot connect", re.IGNORECASE
)

Result = TypeVar("Result")


def patience_of_environment() -> float:
    """For how long operations on object stores are tried again, s.

    Raises UsageError where the environment says something that is no number of seconds.
    """
    return number_of_environment(PATIENCE_VARIABLE, PATIENCE)


def number_of_environment(variable: str, default: float) -> float:
    """A number that is not negative from an environment variable.

    Raises UsageError where it is something else.
    """
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"environment variable {variable} is {text!r}; give a number that is not negative")
    return value


def patiently(
    action: Callable[[], Result], what: str, patience: float, reached: bool = True, granted: bool = False
) -> Result:
    """Do something on a store, again and again with growing, random pauses while its failures are of the moment.

    Args:
        action: What to do; doing it twice must be harmless, since an answer can be lost.
        what: For the log: what is done.
        patience: For how long, s; an attempt under way is not cut off.
        reached: Whether the store was reached before; where it was not and cannot be, patience ends after 30 s.
        granted: Whether the like was allowed before: refusals are then tried again for a minute, since the machine's
            credentials may just not be there. An answer does not tell that from missing permissions.

    Raises:
        OSError: it failed for good, or for too long.
    """

    def stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        limit = patience
        if error is not None and not reached and is_unreachable(error):
            limit = min(patience, STRANGER_PATIENCE)
        elif error is not None and not is_transient(error):
            limit = min(patience, LAPSE_PATIENCE)
        return (state.seconds_since_start or 0.0) >= limit

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _LOG.warning(
            "%s failed (%s); trying again in %.1f s", what, first_line(error) if error else "?", state.upcoming_sleep
        )

    retrying = Retrying(
        retry=retry_if_exception(lambda error: is_transient(error) or (granted and is_refused(error))),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
        stop=stop,
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(action)
    except pa.ArrowException as error:
        # What pyarrow's Azure filesystem raises; the more telling ones are OSError, ValueError, ... as well.
        if type(error) is pa.ArrowException:
            raise OSError(first_line(error)) from error
        raise


def is_transient(error: BaseException) -> bool:
    """Whether what failed may succeed when it is done again: 500, 503, time-outs, lost connections.

    Missing files and buckets, missing permissions and invalid requests stay as they are.
    """
    if isinstance(error, _PERMANENT) or not isinstance(error, Exception):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    # HTTP errors of fsspec's filesystems.
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int | str) and str(status).isdecimal():
        return int(status) in _STATUSES
    if not isinstance(error, OSError) and type(error) is not pa.ArrowException:
        return type(error).__name__ in ("ServerDisconnectedError", "ClientPayloadError")
    text = str(error)
    if found := _AWS.search(text):
        unknown = found[1] == "UNKNOWN" and (int(found[2] or 0) in _STATUSES or "Throttling" in text)  # the latter: KMS
        return found[1] in _AWS_CODES or unknown
    if found := _GOOGLE.search(text):
        return found[1] in _GOOGLE_CODES
    return error.errno in _ERRNOS if isinstance(error, OSError) and error.errno else bool(_WORDS.search(text))


def is_refused(error: BaseException) -> bool:
    """Whether the store says that one may not do this, or does not know who asks."""
    if isinstance(error, PermissionError):
        return True
    text = str(error)
    if not isinstance(error, OSError):
        return False
    if found := _AWS.search(text):
        return found[1] in _AWS_REFUSALS or (found[1] == "UNKNOWN" and int(found[2] or 0) in _REFUSING_STATUSES)
    found = _GOOGLE.search(text)
    return found is not None and found[1] in _GOOGLE_REFUSALS


def is_unreachable(error: BaseException) -> bool:
    """Whether nobody answered at the store's address."""
    return isinstance(error, ConnectionRefusedError | socket.gaierror) or bool(_UNREACHED.search(str(error)))
