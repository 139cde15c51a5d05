"""What every HTTP request passes before any door: its host, its key, its rate; and what becomes of its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
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
from services.gateway.entrance.error_bodies import HttpRefusal, failure, status_of
from services.gateway.entrance.rate_limits import RateLimiter
from services.gateway.settings import local
from services.gateway.state import Key

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_HARMLESS = ("GET", "HEAD", "OPTIONS")  # change nothing, and what they tell is kept from other origins by browsers
_OPEN = ("/health", "/api/v2/health", "/docs", "/openapi.json")  # without a key, and as often as one likes


class Gate:
    """The ASGI application around all others. `seen(path, method, status, seconds)` hears of every request."""

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        keys: Mapping[str, Key],
        rates: RateLimiter,
        hosts: frozenset[str] | None,
        origins: frozenset[str],
        seen: Callable[[Scope, int, float], None],
    ) -> None:
        self._app = app
        self._policy = policy
        self._keys = keys
        self._rates = rates
        self._hosts = hosts
        self._origins = origins
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        begun, status = time.perf_counter(), 0
        path: str = scope["path"]
        caller = Caller(request_id=token(8))
        scope["app"] = self  # Starlette raises what it refuses, rather than answering in plain text

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"aima-request-id", caller.request_id.encode())]
            await send(message)

        try:
            caller = self._admit(scope, path)
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            raise
        except ClientDisconnect:
            logger.debug("a client has gone", path=path)
        except Exception as error:
            if status:  # it has begun to answer: cutting the connection is the only way left to say so
                logger.warning("an answer was cut", path=path, error=repr(error))
                raise
            await _refusal(error, scope, caller.request_id)(scope, receive, sending)
        finally:
            self._seen(scope, status, time.perf_counter() - begun)

    def _admit(self, scope: Scope, path: str) -> Caller:
        headers = _headers(scope)
        self._check_host(headers.get("host", ""))
        if scope["method"] not in _HARMLESS:
            self._check_origin(headers)
        client = scope.get("client")
        address = client[0] if client else "unix"
        if path in _OPEN:
            return caller_from(NOBODY, address, headers)
        try:
            principal = self._policy.identify(_key(headers), self._keys, time.time())
        except Unauthorized:
            self._rates.check(NOBODY, address)  # who tries keys is slowed down like anybody without one
            raise
        self._rates.check(principal, address)
        if self._policy.required and not self._policy.open_queries and not principal.known:
            raise Unauthorized("nothing here is answered without a key", reason="KEY_NEEDED")
        valid = partial(self._still, principal)
        return replace(caller_from(principal, address, headers), valid=valid)

    def _still(self, principal: Principal) -> bool:
        return self._policy.valid(principal, self._keys, time.time())

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse what a page of somebody else's makes a browser send here, with whatever this machine may do.

        A browser says so: https://fetch.spec.whatwg.org/#origin-header, https://www.w3.org/TR/fetch-metadata/.
        """
        origin = headers.get("origin", "")
        if origin:
            same = urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
            foreign = not same and not {origin, "*"} & self._origins
        else:
            foreign = headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        if foreign:
            raise Forbidden(
                "a page of another origin may not ask this; name it in gateway.cors_origins", reason="FOREIGN_ORIGIN"
            )

    def _check_host(self, host: str) -> None:
        """Refuse a name that is not ours: a page elsewhere may have been given our address (DNS rebinding)."""
        if self._hosts is None:
            return
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        if name.lower() not in self._hosts:
            raise HttpRefusal(
                421,
                f"this gateway does not answer to the host {name[:100]!r}; name it in gateway.hosts",
                "UNKNOWN_HOST",
            )


def hosts_of(host: str, more: tuple[str, ...]) -> frozenset[str] | None:
    """Return the names that are answered to on an address; None when any is, because keys are what protects it."""
    if not local(host):
        return None
    return _LOOPBACK | {host, ""} | {name.lower() for name in more}


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by their names in lower case, of each the first: many are looked for in every request."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def _key(headers: Mapping[str, str]) -> str:
    """Return the key that a request shows: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _refusal(error: Exception, scope: Scope, request_id: str) -> Response:
    """Return the answer to a request that no door has answered; OPTIONS only wants to know what a path takes."""
    told = _ours(error, scope["path"])
    if scope["method"] == "OPTIONS" and status_of(told) == 405 and isinstance(told, HttpRefusal):
        return Response(status_code=204, headers=told.headers)
    return failure(told, scope["path"], request_id)


def _ours(error: Exception, path: str) -> AimaError:
    """Return what went wrong as an error of ours."""
    match error:
        case AimaError():
            return error
        case HTTPException(status_code=405):
            taken = (error.headers or {}).get("Allow", "").split(", ")
            allow = ", ".join(sorted({*taken, "OPTIONS"}))
            return HttpRefusal(405, f"{path} takes {allow}", "METHOD_NOT_ALLOWED", {"Allow": allow})
        case HTTPException(status_code=404):
            return HttpRefusal(404, f"there is nothing at {path}; /openapi.json lists what there is", "NO_SUCH_PATH")
        case HTTPException():
            return HttpRefusal(error.status_code, str(error.detail), "REFUSED", error.headers)
    logger.error("a door broke", path=path, exc_info=(True))
    return InternalError("internal error")


def caller_of(scope_state: Any) -> Caller:
    """Return who asks, as the gate has found it."""
    caller: Caller = scope_state.caller
    return caller
