"""Asking an engine over HTTP, and passing on what it says block by block.

Tokens are too many for a client that does more: parsing is httptools' (the parser of Node.js), and a block goes on as
it came. A connection for each request: llama.cpp closes idle ones just as they are used again, and opening one on the
same machine takes a fraction of a millisecond; closing it is also what stops an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools

_CONNECT = 5.0  # seconds
_FULL = 1024 * 1024  # bytes read ahead of whoever reads slowly; then the engine has to wait
_WRITTEN = 256 * 1024  # bytes of a large body that are handed to the transport at once, which keeps a copy

Buffer = bytes | bytearray | memoryview
Body = bytes | Sequence[Buffer]  # an upload stays in the blocks in which it came


class Broken(Exception):
    """The engine went away; `begun` tells whether it had answered anything."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the engine went away")
        self.begun = begun


class Reply(asyncio.Protocol):
    """An engine's answer as it comes. `status` and `headers` (lower case) are there once `ask` has returned it.

    `first_at`: when the first block of its body came, by the monotonic clock.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._blocks: list[bytes] = []
        self._size = 0
        self._told_length = False
        self._headed = self._ended = self._lost = self._full = self._all = False
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first_at: float | None = None

    async def read(self) -> bytes:
        """Return what has come since the last time, empty at the end. Raises Broken when it breaks off."""
        while not self._blocks:
            if self._ended:
                return b""
            if self._lost:
                raise Broken(begun=True)
            await self._wait()
        block = self.come()
        if self._transport and not self._lost:
            self._transport.resume_reading()
        return block

    def come(self) -> bytes:
        """Return what has come since the last time, and wait for nothing."""
        blocks, self._blocks, self._size = self._blocks, [], 0
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def whole(self) -> bytes:
        """Return all of it. Raises Broken when it breaks off."""
        blocks = []
        while block := await self.read():
            blocks.append(block)
        return b"".join(blocks)

    async def head(self) -> None:
        """Return as soon as status and headers are there. Raises Broken when they never come."""
        while not self._headed:
            if self._lost:
                raise Broken(begun=False)
            await self._wait()

    async def ready(self, *, whole: bool = False) -> None:
        """Return as soon as something of the body is there, or `whole` all of it. Raises Broken when it breaks off."""
        self._all = whole
        if whole and self._transport and not self._lost:
            self._transport.resume_reading()
        while not self._ended and (whole or not self._blocks):
            if self._lost:
                raise Broken(begun=False)
            await self._wait()

    async def send(self, blocks: Sequence[Buffer]) -> None:
        """Send the body, no faster than the engine takes it; one that has refused it gets no more of it."""
        assert self._transport
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), _WRITTEN):
                while self._full and not self._refused():
                    await self._wait()
                if self._refused():
                    return
                self._transport.write(view[start : start + _WRITTEN])

    def close(self) -> None:
        """Let go; an engine that is still answering notices, and stops."""
        if self._transport:
            self._transport.abort()

    def _refused(self) -> bool:
        return self._lost or self.status >= 400

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what the event loop calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derive from nothing
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._lost = True
            self.close()
        if self._size > _FULL and self._transport and not self._all:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note; an answer that did not say how long it is ends like this."""
        if self._headed and not self._told_length and exc is None:
            self._ended = True
        self._lost = True
        self._wake()

    def pause_writing(self) -> None:
        """Take note: the engine takes no more for now."""
        self._full = True

    def resume_writing(self) -> None:
        """Take note: it does again."""
        self._full = False
        self._wake()

    # --- what the parser calls --------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        self._told_length = self._told_length or key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        """Note the status."""
        self.status = self._parser.get_status_code()
        self._headed = True

    def on_body(self, body: bytes) -> None:
        """Keep a block."""
        self.first_at = self.first_at or time.monotonic()
        self._blocks.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """Note the end."""
        self._ended = True


@lru_cache
def _place(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80, parts.path


async def ask(url: str, body: Body, headers: Mapping[str, str]) -> Reply:
    """Post to an engine; return its answer with status and headers. Raises Broken when it cannot be reached."""
    host, port, path = _place(url)
    at_once, blocks = (body, ()) if isinstance(body, bytes) else (b"", body)
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: close",
        f"Content-Length: {len(at_once) + sum(len(block) for block in blocks)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + at_once
    reply = Reply(request)
    try:
        async with asyncio.timeout(_CONNECT):
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: reply, host, port)
    except (OSError, TimeoutError):
        raise Broken(begun=False) from None
    try:
        await reply.send(blocks)
        await reply.head()
    except BaseException:
        reply.close()
        raise
    return reply
