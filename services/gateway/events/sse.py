"""Writes server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.process.effects import end

QUIET = 15.0  # seconds without an event until a comment is sent; comments stop proxies from closing the connection
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx must not buffer the events

_encode = msgspec.json.Encoder(enc_hook=str).encode


def event(data: Any, *, kind: str = "", ident: str = "") -> bytes:
    """Return one server-sent event with `data` as JSON. Bytes must already be JSON without a newline."""
    body = data if isinstance(data, bytes) else _encode(data)
    head = (f"event: {kind}\n" if kind else "") + (f"id: {ident}\n" if ident else "")
    return b"%bdata: %b\n\n" % (head.encode(), body)


class Stream(Response):
    """A response of server-sent events.

    A first comment goes out at once, so the client knows that the response has begun. Another comment goes out after
    every `QUIET` seconds without an event. The response ends after the last event, when the client leaves, or when
    `valid` returns False because the client's key has expired or was revoked. The end of the response closes `events`.
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
        disconnected: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                disconnected = asyncio.create_task(_disconnected(receive))
                await self._send_events(disconnected, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await end([task for task in (disconnected, self._pending) if task])
            if close := getattr(self._events, "aclose", None):
                await close()

    async def _send_events(self, disconnected: asyncio.Task[None], send: Send) -> None:
        await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
        while not disconnected.done():
            self._pending = self._pending or asyncio.create_task(_next(self._events))
            await asyncio.wait((self._pending, disconnected), timeout=QUIET, return_when=asyncio.FIRST_COMPLETED)
            frame = b": quiet\n\n"
            if self._pending.done():
                done, self._pending = self._pending, None
                try:
                    frame = done.result()
                except StopAsyncIteration:
                    return
            if not self._valid():
                return
            await send({"type": "http.response.body", "body": frame, "more_body": True})


async def answer(events: AsyncIterator[bytes], valid: Callable[[], bool]) -> Stream:
    """Return a response that begins at once, before its first event. The response ends once `valid` returns False."""
    return Stream(events, valid=valid)


async def answer_once_begun(events: AsyncIterator[bytes]) -> Stream:
    """Wait at most `QUIET` seconds for the first event, then return the response.

    If `events` raises an error before the first event, raises this error.
    """
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
