"""A client's patience: how long it waits, and what happens when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from aima_core.errors import InvalidRequest
from services.gateway.asking import Caller, read_timeout
from services.gateway.gate import caller_of


@dataclass(frozen=True)
class Patience:
    """Whether a client waits for a model that is loading; `caller` has until when."""

    caller: Caller
    wait: bool


def patient(request: Request, *, wait: bool = False) -> Patience:
    """Return what `Prefer: wait=60` (RFC 7240) asks for; a bare `wait` leaves the time to us."""
    caller = caller_of(request.state)
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.strip().partition("=")
        if name.lower() == "wait":
            try:
                return Patience(replace(caller, timeout=read_timeout(value) or caller.timeout), True)
            except InvalidRequest as error:
                raise InvalidRequest(f"Prefer: wait: {error.message}", header="Prefer") from None
    return Patience(caller, wait)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; a client who goes away before its end cancels it. The request's body has been read."""
    doing, going = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, going), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            doing.cancel()
        await _settled(doing)
    finally:
        for task in (doing, going):
            task.cancel()
        await asyncio.gather(doing, going, return_exceptions=True)


async def _settled(doing: asyncio.Future[None]) -> None:
    try:
        await doing
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
