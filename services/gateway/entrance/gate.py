"""Checks the host, origin, key and rate of every HTTP request, and turns errors into responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aima_core.call import token
from aima_core.errors import AimaError, Forbidden, InternalError, Unauthorized
from aima_core.structured_logs import logger
from services.gateway.entrance.access import NOBODY, Policy, Principal
from services.gateway.entrance.dispatch import Caller, caller_from
from services.gateway.entrance.error_bodies import HttpRefusal, failure, is_foreign, no_such_path, status_of
from services.gateway.entrance.options import refuse_conditions
from services.gateway.entrance.presented_keys import principal_of
from services.gateway.entrance.rate_limits import RateLimiter
from services.gateway.settings import local
from services.gateway.state import Key

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_SAFE = ("GET", "HEAD", "OPTIONS")  # these methods change nothing, and browsers hide their answers from other origins
_MOST_IGNORED = 20  # ignored fields that a response names
_OPEN = ("/health", "/api/v2/health", "/docs", "/openapi.json")  # these paths need no key and have no rate limit


class Gate:
    """The outer ASGI application. It calls `count(scope, status, seconds)` after every request."""

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        keys: Mapping[str, Key],
        limiter: RateLimiter,
        hosts: frozenset[str] | None,
        origins: frozenset[str],
        count: Callable[[Scope, int, float], None],
    ) -> None:
        self._app = app
        self._policy = policy
        self._keys = keys
        self._limiter = limiter
        self._hosts = hosts
        self._origins = origins
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        started_at, status = time.perf_counter(), 0
        path: str = scope["path"]
        caller = Caller(request_id=token(8))
        scope["app"] = self  # makes Starlette raise its errors; otherwise, Starlette sends them as plain text

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"aima-request-id", caller.request_id.encode()),
                    *_ignored(scope.get("state", {}).get("ignored", ())),
                ]
            await send(message)

        try:
            caller = self._admit(scope, path)
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            raise
        except ClientDisconnect:
            logger.debug("client disconnected", path=path)
        except Exception as error:
            if status:  # the response has started, so only a cut connection can still report the error
                logger.warning("response cut by an error", path=path, error=repr(error))
                raise
            await _refusal(error, scope, caller.request_id)(scope, receive, send_with_id)
        finally:
            self._count(scope, status, time.perf_counter() - started_at)

    def _admit(self, scope: Scope, path: str) -> Caller:
        pairs, foreign = _pairs(scope), is_foreign(path)
        headers = dict(reversed(pairs))  # if a header occurs more than once, the first value counts
        self._check_host(headers.get("host", ""))
        if scope["method"] not in _SAFE:
            self._check_origin(headers)
        client = scope.get("client")
        address = client[0] if client else "unix"
        if path in _OPEN:
            return caller_from(NOBODY, address, pairs)
        try:
            principal = principal_of(pairs, self._policy, self._keys, time.time(), dummies=foreign)
        except Unauthorized:
            self._limiter.check(NOBODY, address)  # slows down attempts to guess keys
            raise
        self._limiter.check(principal, address)
        if self._policy.required and not self._policy.open_queries and not principal.known:
            raise Unauthorized(
                "every request needs a key; create one with: aima keys create NAME; send it as Authorization: Bearer"
                " KEY",
                reason="KEY_NEEDED",
            )
        if foreign:  # OpenAI's client sends an Idempotency-Key with each request; it has no effect there
            pairs = [pair for pair in pairs if pair[0] != "idempotency-key"]
        elif scope["method"] not in _SAFE:
            refuse_conditions(headers)
        valid = partial(self._is_valid, principal)
        return replace(caller_from(principal, address, pairs), valid=valid)

    def _is_valid(self, principal: Principal) -> bool:
        return self._policy.valid(principal, self._keys, time.time())

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse a request that a foreign web page sends through the browser of this machine's user.

        Such a request would have this machine's rights. Browsers mark it with headers:
        https://fetch.spec.whatwg.org/#origin-header, https://www.w3.org/TR/fetch-metadata/.
        """
        origin = headers.get("origin", "")
        if origin:
            same = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
            foreign = not same and not {origin, "*"} & self._origins
        else:
            foreign = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        if foreign:
            raise Forbidden(
                "a web page of another origin may not send this request;"
                " to allow the page, add its origin to gateway.cors_origins",
                reason="FOREIGN_ORIGIN",
            )

    def _check_host(self, host: str) -> None:
        """Refuse an unknown host name. A foreign page's host name may resolve to this address (DNS rebinding)."""
        if self._hosts is None:
            return
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        if name.lower() not in self._hosts:
            raise HttpRefusal(
                421,
                f"this gateway does not accept the host name {name[:100]!r}; to allow it, add it to gateway.hosts",
                "UNKNOWN_HOST",
            )


def hosts_of(host: str, more: tuple[str, ...]) -> frozenset[str] | None:
    """Return the accepted host names. None means that every name is accepted.

    Every name is accepted if other machines can connect, because keys then protect access.
    """
    if not local(host):
        return None
    return _LOOPBACK | {host, ""} | {name.lower() for name in more}


def _pairs(scope: Scope) -> list[tuple[str, str]]:
    """Return the headers, with their names in lower case."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


def _refusal(error: Exception, scope: Scope, request_id: str) -> Response:
    """Return the response for an error. An OPTIONS request gets the allowed methods."""
    refusal = _as_aima_error(error, scope["path"])
    if scope["method"] == "OPTIONS" and status_of(refusal) == 405 and isinstance(refusal, HttpRefusal):
        return Response(status_code=204, headers=refusal.headers)
    return failure(refusal, scope["path"], request_id)


def _as_aima_error(error: Exception, path: str) -> AimaError:
    match error:
        case AimaError():
            return error
        case HTTPException(status_code=405):
            methods = (error.headers or {}).get("Allow", "").split(", ")
            allow = ", ".join(sorted({*methods, "OPTIONS"}))
            return HttpRefusal(405, f"{path} allows only {allow}", "METHOD_NOT_ALLOWED", {"Allow": allow})
        case HTTPException(status_code=404):
            return no_such_path(path)
        case HTTPException():
            return HttpRefusal(error.status_code, str(error.detail), "REFUSED", error.headers)
    logger.error("request failed by an internal error", path=path, exc_info=(True))
    return InternalError("internal error")


def _ignored(names: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Return the header that names the fields of a request that were ignored."""
    shown = [name for name in names[:_MOST_IGNORED] if name.isascii() and name.isprintable() and len(name) <= 64]
    return [(b"aima-ignored", ", ".join(shown).encode())] if shown else []


def caller_of(scope_state: Any) -> Caller:
    """Return the caller that the gate has identified."""
    caller: Caller = scope_state.caller
    return caller
