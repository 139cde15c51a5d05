"""Waiting clients: how long a client wants to wait, and the cancellation of its request when it disconnects."""

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

_MODEL_TIMEOUT = 600.0  # seconds to wait for a loading model if the client does not name a time


@dataclass(frozen=True)
class WaitingCaller:
    """A caller, and how many seconds it waits for a loading model."""

    caller: Caller
    wait: float


def waiting_caller(request: Request, *, wait: bool = False) -> WaitingCaller:
    """Return the caller and the seconds from `Prefer: wait=60` (RFC 7240); 0 without that header.

    A bare `Prefer: wait`, or the argument `wait` without the header, means 600 s. Raises InvalidRequest.
    """
    caller = caller_of(request.state)
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait":
            try:
                return WaitingCaller(caller, read_timeout(value.strip().strip('"')) or _MODEL_TIMEOUT)
            except InvalidRequest as error:
                raise InvalidRequest(f"Prefer: wait: {error.message}", header="Prefer") from None
    return WaitingCaller(caller, _MODEL_TIMEOUT if wait else 0.0)


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Await the work; cancel it if the client disconnects first. The request's body must have been read before."""
    task = asyncio.current_task()
    assert task
    disconnected = False

    async def watch() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if not disconnected or task.uncancel():  # as asyncio.timeout does: the task may have been cancelled elsewhere
            raise
    finally:
        watcher.cancel()
