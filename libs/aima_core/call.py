"""Defines `Call`: a request's caller, arrival time, deadline and ids. A message's headers describe the call.

Pure functions take ids and the time only from the call, so deciding the same call twice gives the same result.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from random import getrandbits

import msgspec

from aima_core.errors import InvalidRequest

TRACEPARENT = "traceparent"  # https://www.w3.org/TR/trace-context/
REQUEST_ID = "Aima-Request-Id"
IDEMPOTENCY_KEY = "Aima-Idempotency-Key"
CAUSATION_ID = "Aima-Causation-Id"
CORRELATION_ID = "Aima-Correlation-Id"
PRINCIPAL = "Aima-Principal"
TIMEOUT = "Aima-Timeout"
DRY_RUN = "Aima-Dry-Run"
EXPECTED_VERSION = "Aima-Expected-Version"
PARTS = "Aima-Parts"  # "true": send progress as parts before the reply
BATCH = "Aima-Batch"  # "true": several requests in one message (batches.py)
SEQ = "Aima-Seq"  # number of a part, from 1
FINAL = "Aima-Final"  # "true": this message is the reply, no part follows
CONTENT_TYPE = "Content-Type"
MALFORMED = "Aima-Malformed"  # `Connection` sets this header on a message whose header bytes cannot be used

_TRACE = re.compile("[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LONGEST_KEY = 200  # characters of an id in a header; limited, because the log stores the id


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request without its input. `at` is the arrival time. `at` and `deadline` are in Unix seconds.

    `deadline` is None for a call that the process makes for itself. Only the unit's own timeout limits such a call.
    """

    request_id: str
    at: float
    node: str = "local"
    correlation_id: str = ""
    causation_id: str = ""
    principal: str = ""
    trace: str = ""
    deadline: float | None = None
    idempotency_key: str = ""
    dry_run: bool = False
    expected_version: int | None = None
    parts: bool = False

    def new_id(self, prefix: str, salt: str = "") -> str:
        """Return an id such as `svc-7f3a09c1`. The same call, or the same idempotency key, always gives the same id.

        For several ids with one prefix, pass a different `salt` for each id.
        """
        seed = self.idempotency_key or self.request_id
        digest = hashlib.blake2s(f"{seed}/{salt}".encode(), digest_size=4).hexdigest()
        return f"{prefix}-{digest}"


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def token(size: int) -> str:
    """Return `size` random bytes in hex, for ids. Not for secrets, because the generator is predictable."""
    # Python seeds the generator again after a fork, so forked processes do not repeat each other's ids
    return f"{getrandbits(8 * size):0{2 * size}x}"


def fresh(node: str = "local", cause: str = "", parent: Call | None = None) -> Call:
    """Return a new call that starts now.

    With `parent`, the call has the caller, the correlation id, the trace and the deadline of `parent`. `cause` is the
    id of the event that caused the call.
    """
    request_id = token(8)
    return Call(
        request_id=request_id,
        at=time.time(),
        node=node,
        correlation_id=(parent.correlation_id if parent else "") or request_id,
        causation_id=cause or (parent.request_id if parent else ""),
        principal=parent.principal if parent else "",
        trace=child_of(parent.trace) if parent and parent.trace else new_trace(),
        deadline=parent.deadline if parent else None,
    )


def from_headers(headers: Mapping[str, str] | None, *, node: str, default_timeout: float) -> Call:
    """Return the call that a message's headers describe. Raises InvalidRequest for a header with an invalid value.

    `default_timeout` in seconds applies if the headers have no timeout.
    """
    headers, now = headers or {}, time.time()
    for name in (REQUEST_ID, IDEMPOTENCY_KEY, CAUSATION_ID, CORRELATION_ID, PRINCIPAL):
        if len(headers.get(name, "")) > _LONGEST_KEY:
            raise InvalidRequest(f"{name} is longer than {_LONGEST_KEY} characters", header=name)
    timeout = _number(headers, TIMEOUT, default_timeout)
    if not 0 < timeout <= 86_400:
        raise InvalidRequest(f"{TIMEOUT} must be above 0 and at most 86400 seconds", header=TIMEOUT)
    if MALFORMED in headers:
        raise InvalidRequest(
            "the message's headers cannot be read, or set an option twice with different values", reason="NOT_DECODABLE"
        )
    for name in (TIMEOUT, IDEMPOTENCY_KEY, DRY_RUN, EXPECTED_VERSION, PRINCIPAL, PARTS, BATCH):
        if headers.get(name) == "":
            raise InvalidRequest(f"{name} is empty; give it a value, or omit it", header=name)
    version = headers.get(EXPECTED_VERSION)
    if version is not None and not (
        version.isdecimal() and len(version) <= 18
    ):  # a longer number would not fit into SQLite's 64-bit integers
        raise InvalidRequest(f"{EXPECTED_VERSION} must be a whole number", header=EXPECTED_VERSION)
    request_id, principal = headers.get(REQUEST_ID) or token(8), headers.get(PRINCIPAL, "")
    trace = headers.get(TRACEPARENT, "")
    return Call(
        request_id=request_id,
        at=now,
        node=node,
        correlation_id=headers.get(CORRELATION_ID) or request_id,
        causation_id=headers.get(CAUSATION_ID, ""),
        principal=principal,
        trace=trace if _TRACE.fullmatch(trace) else new_trace(),
        deadline=now + timeout,
        idempotency_key=_own_key(principal, headers.get(IDEMPOTENCY_KEY, "")),
        dry_run=flag(headers, DRY_RUN),
        expected_version=None if version is None else int(version),
        parts=flag(headers, PARTS),
    )


def _own_key(principal: str, key: str) -> str:
    """Return an idempotency key that differs from the keys of all other principals.

    No header has a line break, so no caller can send the key of another principal.
    """
    return f"{principal}\n{key}" if principal and key else key


def to_headers(call: Call, *, timeout: float, idempotency_key: str = "") -> dict[str, str]:
    """Return the headers of a new request that `call` causes. `timeout` is in seconds."""
    headers = {
        REQUEST_ID: token(8),
        CORRELATION_ID: call.correlation_id,
        CAUSATION_ID: call.causation_id or call.request_id,
        TIMEOUT: f"{timeout:.3f}",
        TRACEPARENT: child_of(call.trace),
    }
    if call.principal:
        headers[PRINCIPAL] = call.principal
    if idempotency_key:
        headers[IDEMPOTENCY_KEY] = idempotency_key
    return headers


def new_trace() -> str:
    """Return the traceparent of a new trace. Its sampled flag is off: only callers from outside turn it on."""
    return f"00-{token(16)}-{token(8)}-00"


def child_of(trace: str) -> str:
    """Return the traceparent of a call made within `trace`."""
    if len(trace) != 55:
        return new_trace()
    return f"{trace[:36]}{token(8)}{trace[52:]}"


def trace_id(trace: str) -> str:
    """Return the 32 hex digits that name the trace."""
    return trace[3:35]


def timestamp(at: float) -> str:
    """Return Unix seconds as RFC 3339 text in UTC, with microseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def unix(text: str) -> float:
    """Return RFC 3339 text as Unix seconds. Raises ValueError for any other text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _number(headers: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(headers.get(name) or default)
    except ValueError:
        raise InvalidRequest(f"{name} must be a number of seconds", header=name) from None


def flag(headers: Mapping[str, str], name: str) -> bool:
    """Return whether a header is "true". A missing header counts as "false". Raises InvalidRequest for other values."""
    value = headers.get(name, "false").lower()
    if value not in ("true", "false"):  # a misspelt value must not turn a dry run into a real one
        raise InvalidRequest(f"{name} must be true or false", header=name)
    return value == "true"
