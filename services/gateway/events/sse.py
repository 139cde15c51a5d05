"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): writing them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.process.effects import end

QUIET = 15.0  # seconds after which a comment is sent, so that proxies and clients see that the connection lives
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second keeps nginx from collecting them

_encode = msgspec.json.Encoder(enc_hook=str).encode


def event(data: Any, *, kind: str = "", ident: str = "") -> bytes:
    """Return one event; `data` is encoded as JSON unless it is bytes, which are JSON already and have no newline."""
    body = data if isinstance(data, bytes) else _encode(data)
    head = (f"event: {kind}\n" if kind else "") + (f"id: {ident}\n" if ident else "")
    return b"%bdata: %b\n\n" % (head.encode(), body)


class Stream(Response):
    """Sends a comment at once, so that who waits sees an answer, events as they come, and a comment when none do.

    Ends with the last event, or when the client has gone: then whoever makes the events is cancelled.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        first: asyncio.Task[bytes] | None = None,
        valid: Callable[[], bool] = lambda: True,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._events = events
        self._pending = first
        self._valid = valid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        gone: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                gone = asyncio.create_task(_gone(receive))
                await self._tell(gone, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await end([task for task in (gone, self._pending) if task])
            if close := getattr(self._events, "aclose", None):
                await close()

    async def _tell(self, gone: asyncio.Task[None], send: Send) -> None:
        await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
        while not gone.done():
            self._pending = self._pending or asyncio.create_task(_next(self._events))
            await asyncio.wait((self._pending, gone), timeout=QUIET, return_when=asyncio.FIRST_COMPLETED)
            found = b": quiet\n\n"
            if self._pending.done():
                done, self._pending = self._pending, None
                try:
                    found = done.result()
                except StopAsyncIteration:
                    return
            if not self._valid():
                return
            await send({"type": "http.response.body", "body": found, "more_body": True})


async def answer(events: AsyncIterator[bytes], valid: Callable[[], bool]) -> Stream:
    """Return the response that sends these, beginning at once: there may be none for long.

    It ends as soon as whoever asked is no longer `valid`.
    """
    return Stream(events, valid=valid)


async def answer_once_begun(events: AsyncIterator[bytes]) -> Stream:
    """Return the response that sends these; what is raised before the first one is still an ordinary error."""
    first = asyncio.create_task(_next(events))
    try:
        done, _ = await asyncio.wait((first,), timeout=QUIET)
    except asyncio.CancelledError:
        await end([first])
        raise
    if done and (error := first.exception()) and not isinstance(error, StopAsyncIteration):
        raise error
    return Stream(events, first)


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
