"""Reads how long a client waits for a loading model, and cancels the request of a client that disconnects."""

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


@dataclass(frozen=True)
class WaitingCaller:
    """A caller. `wait` is the number of seconds that the caller waits for a replica; None: the gateway's default."""

    caller: Caller
    wait: float | None


def waiting_caller(request: Request) -> WaitingCaller:
    """Return the caller and the seconds in the header `Prefer: wait=60` (RFC 7240).

    With `Prefer: wait=0`, the caller does not wait. Raises InvalidRequest for an invalid number.
    """
    caller = caller_of(request.state)
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "wait":
            text = value.strip().strip('"')
            try:
                return WaitingCaller(caller, 0.0 if text == "0" else read_timeout(text))
            except InvalidRequest as error:
                raise InvalidRequest(f"Prefer: wait: {error.message}", header="Prefer") from None
    return WaitingCaller(caller, None)


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Await the work. Cancels the work if the client disconnects first. The request's body must already be read."""
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
        if not disconnected or task.uncancel():  # something else may also have cancelled the task; see asyncio.timeout
            raise
    finally:
        watcher.cancel()
