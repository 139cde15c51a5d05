"""The options of a call in a request's body, such as timeout and dry run, for HTTP, gRPC and MCP. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec

from aima_core import call as calls
from services.gateway.entrance.dispatch import Caller, own_key, read_timeout


class Beside(msgspec.Struct, forbid_unknown_fields=True):
    """The options of a call. `timeout` is in seconds."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    dry_run: bool = False
    trace_id: Annotated[str, msgspec.Meta(pattern=r"^(?!0{32})[0-9a-f]{32}$")] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=120, pattern=r"^[ -~]+$")] | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Options(Beside, rename={"asynchronous": "async"}):
    """The options of a call over HTTP. The answer can also be an operation or a stream of parts."""

    asynchronous: bool = False
    stream: bool = False


def with_options(caller: Caller, options: Beside) -> Caller:
    """Return the caller with the options applied. An option overrides the header with the same meaning."""
    headers = dict(caller.headers)
    if options.dry_run:
        headers[calls.DRY_RUN] = "true"
    if options.trace_id:
        headers[calls.TRACEPARENT] = f"00-{options.trace_id}-{calls.token(8)}-01"
    if options.idempotency_key:
        headers[calls.IDEMPOTENCY_KEY] = own_key(caller.owner, options.idempotency_key)
    if options.expected_version is not None:
        headers[calls.EXPECTED_VERSION] = str(options.expected_version)
    timeout = read_timeout(str(options.timeout)) if options.timeout else caller.timeout
    return replace(caller, headers=headers, timeout=timeout)
