"""How the sources speak HTTP: deadlines, small JSON answers, and what a status or a lost connection means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec

from aima_core.errors import AimaError, ExecutionFailed, Forbidden, NotFound, RateLimited, Unavailable

MAX_ANSWER = 32 << 20  # bytes: the file list of the largest repository is some MB


@dataclass(frozen=True)
class Policy:
    """How patient a source is. All in seconds, but for the attempts."""

    connect: float = 10
    read: float = 30
    attempts: int = 5  # in a row without a single new byte
    backoff: float = 0.5  # before the second attempt; doubled before each further one
    longest_backoff: float = 15


PATIENT = Policy()


def client(policy: Policy) -> httpx2.AsyncClient:
    """Return a client that follows redirects (hubs send files from elsewhere) and never waits for ever."""
    timeout = httpx2.Timeout(policy.read, connect=policy.connect)
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=True, headers={"User-Agent": "aima"})


def refusal(status: int, what: str, retry_after: str | None = None) -> AimaError | None:
    """Return what the status of an answer about `what` means for the caller, None for a good one."""
    match status:
        case 200 | 206:
            return None
        case 401 | 403:
            return Forbidden(f"the hub does not hand out {what}; is a token missing?", reason="GATED")
        case 404 | 410:
            return NotFound(f"the hub has no {what}", reason="REPO_NOT_FOUND")
        case 429:
            wait = float(retry_after) if retry_after and retry_after.isdigit() else 60.0
            return RateLimited("the hub asks for a pause", retry_after=wait)
        case _ if status >= 500:
            return Unavailable(f"the hub answered {status} for {what}", reason="HUB_UNREACHABLE")
        case _:
            return ExecutionFailed(f"the hub answered {status} for {what}", reason="BAD_ANSWER")


def unreachable(fault: Exception, host: str) -> Unavailable:
    """Return the refusal of a hub that does not answer."""
    return Unavailable(f"{host} does not answer ({type(fault).__name__})", reason="HUB_UNREACHABLE", host=host)


async def get_bytes(http: httpx2.AsyncClient, request: httpx2.Request, what: str, limit: int = MAX_ANSWER) -> bytes:
    """Return a small answer's body. Raises what `refusal` says, Unavailable, and ExecutionFailed (BAD_ANSWER)."""
    body = bytearray()
    try:
        response = await http.send(request, stream=True)
        try:
            refused = refusal(response.status_code, what, response.headers.get("Retry-After"))
            if refused is not None:
                raise refused
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > limit:
                    raise ExecutionFailed(f"the hub's answer about {what} is too long", reason="BAD_ANSWER")
        finally:
            await response.aclose()
    except (httpx2.HTTPError, httpx2.StreamError) as fault:
        raise unreachable(fault, request.url.host) from fault
    return bytes(body)


async def get_json(http: httpx2.AsyncClient, request: httpx2.Request, what: str, shape: Any) -> Any:
    """Return a small JSON answer of a shape. Raises as `get_bytes`, and ExecutionFailed (BAD_ANSWER) for another."""
    try:
        return msgspec.json.decode(await get_bytes(http, request, what), type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ExecutionFailed(f"the hub's answer about {what} is not understood", reason="BAD_ANSWER") from fault
