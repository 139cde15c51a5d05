"""HTTP for the sources: timeouts, small JSON responses, and the errors for a status or a lost connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec

from aima_core.errors import AimaError, ExecutionFailed, Forbidden, NotFound, RateLimited, Unavailable

MAX_RESPONSE = 32 << 20  # bytes; the file list of the largest repository has some MB


@dataclass(frozen=True)
class Policy:
    """Timeouts and retries of a source; times in seconds."""

    connect: float = 10
    read: float = 30
    attempts: int = 5  # attempts in a row without a new byte
    backoff: float = 0.5  # delay before the second attempt; each further delay is twice as long
    longest_backoff: float = 15


PATIENT = Policy()


def client(policy: Policy) -> httpx2.AsyncClient:
    """Return a client with timeouts. It follows redirects, because hubs serve files from other hosts."""
    timeout = httpx2.Timeout(policy.read, connect=policy.connect)
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=True, headers={"User-Agent": "aima"})


def refusal(status: int, what: str, host: str, retry_after: str | None = None) -> AimaError | None:
    """Return the error for a response's status; None for 200 and 206. `what`: the requested thing, for the message."""
    match status:
        case 200 | 206:
            return None
        case 401 | 403:
            return Forbidden(
                f"{host} denies access to {what} (HTTP {status}); a token may be missing (Hugging Face: HF_TOKEN)",
                reason="GATED",
            )
        case 404 | 410:
            return NotFound(f"{host} has no {what}; check its name and tag", reason="REPO_NOT_FOUND")
        case 429:
            pause = float(retry_after) if retry_after and retry_after.isdigit() else 60.0
            return RateLimited(f"{host} limits the rate of requests; try again in {pause:g} s", retry_after=pause)
        case _ if status >= 500:
            return Unavailable(f"{host} fails with HTTP {status} for {what}; try again later", reason="HUB_UNREACHABLE")
        case _:
            return ExecutionFailed(f"{host} answered HTTP {status} for {what}", reason="BAD_ANSWER")


def unreachable(fault: Exception, host: str) -> Unavailable:
    """Return the error for a hub that does not answer."""
    return Unavailable(
        f"{host} does not answer ({type(fault).__name__}); check the network connection",
        reason="HUB_UNREACHABLE",
        host=host,
    )


def bad_length(what: str, host: str, announced: int, sent: int | None) -> ExecutionFailed:
    """Return the error for a file whose length is not the one in the list of the hub."""
    return ExecutionFailed(
        f"{host} sends {sent} bytes of {what}, but the hub's list states {announced} bytes; pull it again later",
        reason="CHECKSUM_MISMATCH",
        file=what,
        expected_bytes=announced,
        bytes=sent,
    )


async def get_bytes(http: httpx2.AsyncClient, request: httpx2.Request, what: str, limit: int = MAX_RESPONSE) -> bytes:
    """Return the body of a small response.

    Raises the errors of `refusal`, Unavailable if the hub does not answer, and ExecutionFailed (BAD_ANSWER) if the body
    has more than `limit` bytes.
    """
    host = request.url.host
    body = bytearray()
    try:
        response = await http.send(request, stream=True)
        try:
            error = refusal(response.status_code, what, host, response.headers.get("Retry-After"))
            if error is not None:
                raise error
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > limit:
                    raise ExecutionFailed(f"{host} sent more than {limit} bytes about {what}", reason="BAD_ANSWER")
        finally:
            await response.aclose()
    except (httpx2.HTTPError, httpx2.StreamError) as fault:
        raise unreachable(fault, host) from fault
    return bytes(body)


async def get_json(http: httpx2.AsyncClient, request: httpx2.Request, what: str, shape: Any) -> Any:
    """Return a small JSON response of type `shape`.

    Raises the errors of `get_bytes`, and ExecutionFailed (BAD_ANSWER) if the response has another type.
    """
    try:
        return msgspec.json.decode(await get_bytes(http, request, what), type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ExecutionFailed(
            f"{request.url.host} sent an unexpected response about {what}; check that it is a hub of this kind",
            reason="BAD_ANSWER",
        ) from fault
