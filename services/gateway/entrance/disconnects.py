"""A client's patience: how long it waits, and what happens when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from aima_core.errors import InvalidRequest
from services.gateway.entrance.dispatch import Caller, read_timeout
from services.gateway.entrance.gate import caller_of

_PATIENCE = 600.0  # seconds until a model is loaded, when the client does not say


@dataclass(frozen=True)
class WaitingCaller:
    """Who asks, and how many seconds it waits for a model that is loading."""

    caller: Caller
    wait: float


def waiting_caller(request: Request, *, wait: bool = False) -> WaitingCaller:
    """Return what `Prefer: wait=60` (RFC 7240) asks for; a bare `wait`, or the argument, leaves the time to us."""
    caller = caller_of(request.state)
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait":
            try:
                return WaitingCaller(caller, read_timeout(value.strip().strip('"')) or _PATIENCE)
            except InvalidRequest as error:
                raise InvalidRequest(f"Prefer: wait: {error.message}", header="Prefer") from None
    return WaitingCaller(caller, _PATIENCE if wait else 0.0)


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; a client who goes away before its end cancels it. The request's body has been read."""
    doing = asyncio.current_task()
    assert doing
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        doing.cancel()

    watching = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not gone or doing.uncancel():  # as asyncio.timeout does: others may have cancelled it too
            raise
    finally:
        watching.cancel()
