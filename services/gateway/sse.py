"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): writing them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

QUIET = 15.0  # seconds after which a comment is sent, so that proxies and clients see that the connection lives
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second keeps nginx from collecting them

_encode = msgspec.json.Encoder(enc_hook=str).encode


def event(data: Any, *, kind: str = "", ident: str = "") -> bytes:
    """Return one event; `data` is encoded as JSON unless it is bytes, which are JSON already and have no newline."""
    body = data if isinstance(data, bytes) else _encode(data)
    head = (f"event: {kind}\n" if kind else "") + (f"id: {ident}\n" if ident else "")
    return b"%bdata: %b\n\n" % (head.encode(), body)


async def answer(events: AsyncIterator[bytes]) -> StreamingResponse:
    """Return the response that sends these; what is wrong before the first one is still an ordinary error."""
    return StreamingResponse(lively(events), headers=_HEADERS, media_type="text/event-stream")


async def lively(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events, and a comment whenever there has been none for a while."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait((pending,), timeout=QUIET)
            if not done:
                yield b": quiet\n\n"
                continue
            try:
                found = pending.result()
            except StopAsyncIteration:
                return
            finally:
                pending = None
            yield found
    finally:
        if pending:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pending
        if close := getattr(events, "aclose", None):
            await close()


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)
