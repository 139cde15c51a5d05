"""Keeps a client's connection alive while its streamed request waits for a replica.

Proxies and clients close a connection that is silent for 30 to 60 s, but a model may load for minutes. A comment of
server-sent events is ignored by every client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

INTERVAL = 10.0  # seconds of silence until a comment is sent
WAITING = b": waiting for a replica\n\n"


@contextlib.asynccontextmanager
async def keep_alive(comment: Callable[[], Awaitable[None]]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Call `comment` every `INTERVAL` seconds until the end of the block. Yields a function that ends the calls."""

    async def send() -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await comment()

    task = asyncio.create_task(send())

    async def stop() -> None:
        task.cancel()
        await asyncio.wait((task,))  # unlike `await task`, this cannot swallow a cancellation of the caller
        if not task.cancelled():
            task.exception()  # the client has left; the request's own task notices it, too

    try:
        yield stop
    finally:
        task.cancel()
