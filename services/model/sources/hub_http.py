"""HTTP for the sources: timeouts, small JSON responses, and the errors for a status or a lost connection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import httpx2
import msgspec

from aima_core.errors import AimaError, ExecutionFailed, Forbidden, NotFound, RateLimited, Unavailable
from aima_core.system.outside_errors import PROXY, error_for, outside_error

HUGGING_FACE = "https://huggingface.co"
FAULTS = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL)
"""The exceptions of a request that got no usable response."""
CONTENT_RANGE = re.compile(r"^bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$", re.ASCII)
MAX_RESPONSE = 32 << 20  # bytes; the file list of the largest repository has some MB


Explain = Callable[[httpx2.Response, str, str], AimaError | None]
"""A function that returns the error for a response; see `refusal`."""


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
    """Return a client with timeouts. Every HTTP request of the model domain uses one.

    The client follows redirects, because hubs serve files from other hosts.
    """
    timeout = httpx2.Timeout(policy.read, connect=policy.connect)
    return httpx2.AsyncClient(timeout=timeout, follow_redirects=True, headers={"User-Agent": "aima"})


def refusal(response: httpx2.Response, what: str, host: str) -> AimaError | None:
    """Return the error for the status of a response; None for 200 and 206. `what`: the requested thing."""
    match status := response.status_code:
        case 200 | 206:
            return None
        case 401 | 403:
            return Forbidden(f"{host} denies access to {what} (HTTP {status}); {_access(host)}", reason="GATED")
        case 404 | 410:
            return NotFound(f"{host} has no {what}; check its name and tag", reason="REPO_NOT_FOUND")
        case 407:
            return error_for(
                replace(PROXY, why="the proxy wants a password"), host, "HUB_UNREACHABLE", str(response.url)
            )
        case 429:
            stated = response.headers.get("Retry-After", "")
            pause = float(stated[:9]) if stated.isdecimal() else 60.0
            return RateLimited(f"{host} limits the rate of requests; try again in {pause:g} s", retry_after=pause)
        case _ if status >= 500:
            return Unavailable(f"{host} fails with HTTP {status} for {what}; try again later", reason="HUB_UNREACHABLE")
        case _:
            return ExecutionFailed(f"{host} answered HTTP {status} for {what}", reason="BAD_ANSWER")


def _access(host: str) -> str:
    """Return what to do about a denied access. AIMA has a token for one hub only."""
    if host == httpx2.URL(os.environ.get("HF_ENDPOINT") or HUGGING_FACE).host:
        return "accept the terms of the repository on the hub, and set HF_TOKEN"
    return "AIMA sends no token to this server, so the repository must be public"


def unreachable(fault: Exception, url: str | httpx2.URL) -> AimaError:
    """Return the error for a failed request: Unavailable, or ExecutionFailed if a repetition fails in the same way."""
    return outside_error(fault, httpx2.URL(url).host, "HUB_UNREACHABLE", str(url))


def stated_length(response: httpx2.Response) -> int | None:
    """Return the length of the body in bytes; None if the response does not state it."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


class Place(NamedTuple):
    """The place of a body in its file: the position of the first byte, the position after the last, the whole size."""

    begin: int
    end: int
    whole: int | None


def content_range(response: httpx2.Response) -> Place | None:
    """Return the place of the body of a response with a part of a file; None if its headers contradict each other."""
    match = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        return None
    place = Place(int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3]))
    length = stated_length(response)
    fits = place.begin < place.end <= (place.end if place.whole is None else place.whole)
    return place if fits and length in (None, place.end - place.begin) else None


def bad_length(what: str, host: str, announced: int, sent: int | None) -> ExecutionFailed:
    """Return the error for a file whose length is not the one in the list of the hub."""
    return ExecutionFailed(
        f"{host} sends {sent} bytes of {what}, but the hub's list states {announced} bytes; pull it again later",
        reason="CHECKSUM_MISMATCH",
        file=what,
        expected_bytes=announced,
        bytes=sent,
    )


async def get_bytes(
    http: httpx2.AsyncClient, request: httpx2.Request, what: str, limit: int = MAX_RESPONSE, explain: Explain = refusal
) -> bytes:
    """Return the body of a small response. Raises the errors of `refusal`, Unavailable and ExecutionFailed."""
    host = request.url.host
    body = bytearray()
    try:
        response = await http.send(request, stream=True)
        try:
            error = explain(response, what, host)
            if error is not None:
                raise error
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > limit:
                    raise ExecutionFailed(f"{host} sent more than {limit} bytes about {what}", reason="BAD_ANSWER")
        finally:
            await response.aclose()
    except FAULTS as fault:
        raise unreachable(fault, request.url) from fault
    return bytes(body)


async def get_json(
    http: httpx2.AsyncClient, request: httpx2.Request, what: str, shape: Any, explain: Explain = refusal
) -> Any:
    """Return a small JSON response of type `shape`. Raises as `get_bytes`, also if the response has another type."""
    try:
        return msgspec.json.decode(await get_bytes(http, request, what, explain=explain), type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
        raise ExecutionFailed(
            f"{request.url.host} sent an unexpected response about {what}: is it a hub of this kind?",
            reason="BAD_ANSWER",
        ) from fault
