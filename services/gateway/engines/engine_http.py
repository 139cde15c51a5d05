"""Asking an engine over HTTP, and passing on what it says block by block.

Tokens are too many for a client that does more: parsing is httptools' (the parser of Node.js), and a block goes on as
it came. A connection serves the next request if that comes soon and nothing is left on it of the last one: neither a
part of the answer nor of a body that the engine has refused, which would be taken for the beginning of what comes next.
It is not kept for long: llama.cpp gives a thread to each one for as long as it is open. Closing one in mid-answer is
what stops an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast
from urllib.parse import urlsplit

import httptools

from services.gateway.engines.engine_errors import too_large

_CONNECT = 5.0  # seconds
_KEPT = 0.5  # seconds that a connection is kept for the next request
_FULL = 1024 * 1024  # bytes read ahead of whoever reads slowly; then the engine has to wait
_LARGEST = 256 * 1024 * 1024  # bytes of an answer that is of use only whole
_WRITTEN = 256 * 1024  # bytes of a large body that are handed to the transport at once, which keeps a copy

Buffer = bytes | bytearray | memoryview
Body = bytes | Sequence[Buffer]  # an upload stays in the blocks in which it came


class EngineGone(Exception):
    """The engine went away; `begun` tells whether it had answered anything."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the engine went away")
        self.begun = begun


class EngineConnection(asyncio.Protocol):
    """A connection to an engine, for one answer after another. `heard`: something has come of the one that it serves.

    `resting`: those to the same engine that are free; `kept`: seconds that it stays among them.
    """

    def __init__(self, resting: list[EngineConnection], kept: float) -> None:
        self._resting = resting
        self._kept = kept
        self._reply: EngineReply | None = None
        self._end: asyncio.TimerHandle | None = None
        self.heard = False
        self.transport: asyncio.Transport

    def take(self, reply: EngineReply) -> None:
        """Serve an answer from now on."""
        self._reply, self.heard = reply, False
        if self._end:
            self._end.cancel()
            self._end = None

    def rest(self) -> None:
        """Serve the next one, if there is one soon."""
        self._reply = None
        self.transport.resume_reading()
        self._resting.append(self)
        self._end = asyncio.get_running_loop().call_later(self._kept, self.transport.abort)

    # --- what the event loop calls ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        """Hand it to whose it is; what an engine says unasked is no answer to the next request."""
        self.heard = True
        if self._reply:
            self._reply.feed(data)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if self._reply:
            self._reply.lost(exc)
        if self in self._resting:
            self._resting.remove(self)
        if self._end:
            self._end.cancel()

    def pause_writing(self) -> None:
        """Take note: the engine takes no more for now."""
        if self._reply:
            self._reply.full(True)

    def resume_writing(self) -> None:
        """Take note: it does again."""
        if self._reply:
            self._reply.full(False)


class EngineReply:
    """An engine's answer as it comes. `status` and `headers` (lower case) are there once `ask` has returned it.

    `first_at`: when the first block of its body came, by the monotonic clock.
    """

    def __init__(self, line: EngineConnection) -> None:
        self._line = line
        self._parser = httptools.HttpResponseParser(self)
        self._blocks: list[bytes] = []
        self._size = 0
        self._told_length = False
        self._headed = self._ended = self._lost = self._full = self._all = False
        self._sent = self._keeps = self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first_at: float | None = None
        line.take(self)

    async def read(self) -> bytes:
        """Return what has come since the last time, empty at the end. Raises Broken when it breaks off."""
        while not self._blocks:
            if self._ended:
                return b""
            if self._lost:
                raise EngineGone(begun=True)
            await self._wait()
        block = self.come()
        self._go_on()
        return block

    def come(self) -> bytes:
        """Return what has come since the last time, and wait for nothing."""
        blocks, self._blocks, self._size = self._blocks, [], 0
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def told(self, most: int) -> bytes:
        """Return what it says, as far as so many bytes tell. Raises Broken when it breaks off."""
        said = b""
        while len(said) < most and (block := await self.read()):
            said += block
        return said[:most]

    async def head(self) -> None:
        """Return as soon as status and headers are there. Raises Broken when they never come."""
        while not self._headed:
            if self._lost:
                raise EngineGone(begun=False)
            await self._wait()

    async def ready(self, *, whole: bool = False) -> None:
        """Return as soon as something of the body is there, or `whole` all of it.

        Raises Broken when it breaks off, ExecutionFailed when there is too much of it.
        """
        self._all = whole
        if whole:
            self._go_on()
        while not self._ended and (whole or not self._blocks):
            if self._lost:
                raise EngineGone(begun=False)
            if self._size > _LARGEST:
                raise too_large(_LARGEST)
            await self._wait()

    async def send(self, request: bytes, blocks: Sequence[Buffer]) -> None:
        """Ask. A body in blocks goes no faster than the engine takes it; one that has refused it gets no more of it."""
        self._line.transport.write(request)
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), _WRITTEN):
                while self._full and not self._refused():
                    await self._wait()
                if self._refused():
                    return
                self._line.transport.write(view[start : start + _WRITTEN])
        self._sent = True

    def close(self) -> None:
        """Let go; an engine that is still answering notices, and stops."""
        if self._closed:
            return  # by now somebody else's answer may come on the line
        self._closed = True
        sent = self._sent and not self._line.transport.get_write_buffer_size()
        if self._ended and self._keeps and sent and not self._lost:
            self._line.rest()
        else:
            self._line.transport.abort()

    def _refused(self) -> bool:
        return self._lost or self.status >= 400

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _go_on(self) -> None:
        if not self._lost:
            self._line.transport.resume_reading()

    # --- what its connection tells it -------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lost = True
            self._line.transport.abort()
        if self._size > _FULL and not self._all:
            self._line.transport.pause_reading()
        self._wake()

    def lost(self, exc: Exception | None) -> None:
        """Take note; an answer that did not say how long it is ends like this."""
        if self._headed and not self._told_length and exc is None:
            self._ended = True
        self._lost = True
        self._wake()

    def full(self, full: bool) -> None:
        """Take note whether the engine takes no more for now."""
        self._full = full
        self._wake()

    # --- what the parser calls --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse a second answer: nobody has asked for one."""
        if self._ended:
            raise EngineGone(begun=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        self._told_length = self._told_length or key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        """Note the status; one below 200 says that the answer is still to come."""
        self.status = self._parser.get_status_code()
        self._headed = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """Keep a block."""
        self.first_at = self.first_at or time.monotonic()
        self._blocks.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """Note the end, and whether the connection is good for another request: a refusal may leave a body unread."""
        if not self._headed:
            self.headers, self._told_length = {}, False
            return
        self._ended = True
        self._keeps = self._parser.should_keep_alive() and self.status < 400


@lru_cache
def _place(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80, parts.path


class EngineClient:
    """The way to the engines. `kept`: seconds that a connection waits for the next request."""

    def __init__(self, kept: float = _KEPT) -> None:
        self._kept = kept
        self._resting: dict[tuple[str, int], list[EngineConnection]] = defaultdict(list)

    async def ask(self, url: str, body: Body, headers: Mapping[str, str]) -> EngineReply:
        """Post to an engine; return its answer with status and headers. Raises Broken when it cannot be reached.

        What was sent on a kept connection is sent once more when that ends without a word (RFC 9112, 9.3.1): mostly the
        engine has closed it just as it was used again.
        """
        host, port, path = _place(url)
        at_once, blocks = (body, ()) if isinstance(body, bytes) else (b"", body)
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {host}:{port}",
            f"Content-Length: {len(at_once) + sum(len(block) for block in blocks)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + at_once
        resting = self._resting[host, port]
        if resting:
            line = resting.pop()
            try:
                return await _asked(line, request, blocks)
            except EngineGone:
                if line.heard:
                    raise
        return await _asked(await _connected(host, port, EngineConnection(resting, self._kept)), request, blocks)

    def close(self) -> None:
        """Close what is kept."""
        for lines in self._resting.values():
            for line in lines:
                line.transport.abort()


async def _connected(host: str, port: int, line: EngineConnection) -> EngineConnection:
    try:
        async with asyncio.timeout(_CONNECT):
            await asyncio.get_running_loop().create_connection(lambda: line, host, port)
    except (OSError, TimeoutError):
        raise EngineGone(begun=False) from None
    return line


async def _asked(line: EngineConnection, request: bytes, blocks: Sequence[Buffer]) -> EngineReply:
    """Return the answer once its head is there."""
    reply = EngineReply(line)
    try:
        await reply.send(request, blocks)
        await reply.head()
    except BaseException:
        reply.close()
        raise
    return reply
