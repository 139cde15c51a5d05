"""What every HTTP request passes before any door: its host, its key, its rate; and what becomes of its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aima_core.errors import AimaError, InternalError, RateLimited
from aima_core.logs import logger
from services.gateway.access import NOBODY, Policy, Principal
from services.gateway.answers import HttpRefusal, failure
from services.gateway.asking import Caller, caller_from
from services.gateway.limits import Rates
from services.gateway.state import Key

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_OPEN = ("/health", "/docs", "/openapi.json")  # answered without a key, and to any number of requests


class Gate:
    """The ASGI application around all others. `seen(path, method, status, seconds)` hears of every request."""

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        keys: Mapping[str, Key],
        rates: Rates,
        hosts: frozenset[str] | None,
        seen: Callable[[Scope, int, float], None],
    ) -> None:
        self._app = app
        self._policy = policy
        self._keys = keys
        self._rates = rates
        self._hosts = hosts
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        begun, status = time.perf_counter(), 0
        path: str = scope["path"]
        caller = Caller(request_id="")
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
        except Exception as error:
            if status:  # it has begun to answer: cutting the connection is the only way left to say so
                logger.warning("an answer was cut", path=path, error=repr(error))
                raise
            await failure(_ours(error, path), path, caller.request_id)(scope, receive, sending)
        finally:
            self._seen(scope, status, time.perf_counter() - begun)

    def _admit(self, scope: Scope, path: str) -> Caller:
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        client = scope.get("client")
        address = client[0] if client else "unix"
        token = _token(headers)
        principal = NOBODY if path in _OPEN else self._policy.identify(token, self._keys, time.time())
        caller = caller_from(principal, address, headers)
        if path not in _OPEN:
            self._check_rate(principal, address)
        return caller

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

    def _check_rate(self, principal: Principal, address: str) -> None:
        wait = self._rates.take(principal.key_id or address, principal.requests_per_minute, known=principal.known)
        if wait:
            raise RateLimited("too many requests in a minute", reason="TOO_MANY_REQUESTS", retry_after=wait)


def hosts_of(host: str, more: tuple[str, ...]) -> frozenset[str] | None:
    """Return the names that are answered to on an address; None when any is, because keys are what protects it."""
    if host and host not in _LOOPBACK and not host.startswith("127."):
        return None
    return _LOOPBACK | {host, ""} | {name.lower() for name in more}


def _token(headers: Headers) -> str:
    """Return the key that a request shows: `Authorization: Bearer`, or `x-api-key` as Anthropic's clients do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _ours(error: Exception, path: str) -> AimaError:
    """Return what went wrong as an error of ours."""
    match error:
        case AimaError():
            return error
        case HTTPException(status_code=405):
            allow = (error.headers or {}).get("Allow", "")
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
