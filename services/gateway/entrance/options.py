"""The options of a call at the doors of HTTP, gRPC and MCP: in a body or in headers, never in a query string. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Annotated

import msgspec

from aima_core import call as calls
from aima_core.bus.call_options import GUARDED, OPTIONS, looks_like_option, set_twice, unknown_option
from aima_core.errors import InvalidRequest
from services.gateway.entrance.dispatch import Caller, own_key, read_timeout

_IN_QUERY = (calls.DRY_RUN, calls.EXPECTED_VERSION, calls.IDEMPOTENCY_KEY)  # clients of other APIs send a timeout


class Beside(msgspec.Struct, forbid_unknown_fields=True):
    """The options of a call. `timeout` is in seconds."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    dry_run: bool | None = None
    trace_id: Annotated[str, msgspec.Meta(pattern=r"^(?!0{32})[0-9a-f]{32}$")] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=120, pattern=r"^[ -~]+$")] | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Options(Beside, rename={"asynchronous": "async"}):
    """The options of a call over HTTP. The answer can also be an operation or a stream of parts."""

    asynchronous: bool = False
    stream: bool = False


def with_options(caller: Caller, options: Beside) -> Caller:
    """Return the caller with the options applied. Raises InvalidRequest if a header sets an option to another value."""
    headers = {
        **({calls.DRY_RUN: "true"} if options.dry_run else {}),
        **({calls.IDEMPOTENCY_KEY: own_key(caller.owner, options.idempotency_key)} if options.idempotency_key else {}),
        **({} if options.expected_version is None else {calls.EXPECTED_VERSION: str(options.expected_version)}),
    }
    if options.dry_run is False and caller.dry_run:
        raise set_twice(calls.DRY_RUN)
    if options.trace_id:
        headers[calls.TRACEPARENT] = f"00-{options.trace_id}-{calls.token(8)}-01"
    return with_headers(caller, headers, read_timeout(str(options.timeout)) if options.timeout else None)


def with_headers(caller: Caller, headers: Mapping[str, str], timeout: float | None) -> Caller:
    """Return the caller with more headers and a timeout. Raises InvalidRequest if it has another value of an option."""
    for name, value in headers.items():
        if name in GUARDED and caller.headers.get(name, value) != value:
            raise set_twice(name)
    if timeout and caller.timeout and timeout != caller.timeout:
        raise set_twice(calls.TIMEOUT)
    return replace(caller, headers={**caller.headers, **headers}, timeout=timeout or caller.timeout)


# --- refusals: options that would have no effect -----------------------------------------------------------------


def refuse_options(caller: Caller, path: str) -> None:
    """Raise InvalidRequest for an option at a path that calls no unit, or several units."""
    for header in (calls.DRY_RUN, calls.EXPECTED_VERSION, calls.IDEMPOTENCY_KEY):
        if header in caller.headers:
            raise InvalidRequest(
                f"{path} does not honour {header}; omit it, or call a unit at /api/v2/execute",
                reason="NOT_HONOURED",
                option=header,
            )


def refuse_conditions(headers: Collection[str]) -> None:
    """Raise InvalidRequest for a condition of HTTP, which AIMA would ignore. `headers` are names in lower case."""
    for name in ("if-match", "if-unmodified-since"):
        if name in headers:
            raise InvalidRequest(
                f"AIMA does not honour the header {name}; use {calls.EXPECTED_VERSION}",
                reason="NOT_HONOURED",
                option=name,
            )


def refuse_in_query(names: Iterable[str], fields: Collection[str] = ()) -> None:
    """Raise InvalidRequest for an option in a query string. `fields` are the input fields of the called unit."""
    for name in names:
        if name not in fields and looks_like_option(name, _IN_QUERY):
            raise unknown_option(f"in a query string, {name}", name, OPTIONS, "the header ")


def refuse_in_body(data: Iterable[str], fields: Collection[str], options: Iterable[str], place: str = "") -> None:
    """Raise InvalidRequest for a field that looks like an option and is none of `fields`.

    `options` are the names of the options where they belong, after `place`, such as `options.`.
    """
    for name in data:
        if name not in fields and looks_like_option(name):
            raise unknown_option(f"the field {name}", name, options, place)
