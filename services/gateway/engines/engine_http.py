"""An HTTP client for engines: sends a request and returns the answer's body block by block as it arrives.

The rate of tokens is too high for a client that does more: httptools (the parser of Node.js) parses, and blocks are
passed on unchanged. A connection is reused if the next request comes soon and nothing of the last one is left on it,
neither of the answer nor of a request body that the engine refused to read: the rest would be taken for the start of
the next message. Connections are kept only briefly because llama.cpp uses a thread for each open one. Closing the
connection in the middle of an answer stops the engine.
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

from services.gateway.engines.engine_errors import answer_too_large

_CONNECT = 5.0  # seconds
_KEPT = 0.5  # seconds that a connection is kept for the next request
_FULL = 1024 * 1024  # bytes read ahead of a slow reader; then the engine has to wait
_LARGEST = 256 * 1024 * 1024  # bytes of an answer that is collected whole
_WRITTEN = 256 * 1024  # bytes of a large body that are handed to the transport at once, which keeps a copy

Buffer = bytes | bytearray | memoryview
Body = bytes | Sequence[Buffer]  # an upload stays in the blocks in which it arrived


class EngineGone(Exception):
    """The engine closed the connection before the end of its answer; `begun`: a part of the answer had arrived."""

    def __init__(self, begun: bool) -> None:
        super().__init__("the engine closed the connection")
        self.begun = begun


class EngineConnection(asyncio.Protocol):
    """A connection to an engine, for one answer after another. `received`: data of the present answer has arrived.

    `idle`: the list of the free connections to the same engine; `kept`: seconds until an idle one is closed.
    """

    def __init__(self, idle: list[EngineConnection], kept: float) -> None:
        self._idle = idle
        self._kept = kept
        self._reply: EngineReply | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.received = False
        self.transport: asyncio.Transport

    def attach(self, reply: EngineReply) -> None:
        """Deliver what arrives to this answer from now on."""
        self._reply, self.received = reply, False
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None

    def release(self) -> None:
        """Make the connection available to the next request; it is closed if none comes soon."""
        self._reply = None
        self.transport.resume_reading()
        self._idle.append(self)
        self._expiry = asyncio.get_running_loop().call_later(self._kept, self.transport.abort)

    # --- called by the event loop -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports have no common base class

    def data_received(self, data: bytes) -> None:
        self.received = True
        if self._reply:
            self._reply.feed(data)
        else:
            self.transport.abort()  # data without a request must not be taken for the answer to the next one

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reply:
            self._reply.connection_lost(exc)
        if self in self._idle:
            self._idle.remove(self)
        if self._expiry:
            self._expiry.cancel()

    def pause_writing(self) -> None:
        if self._reply:
            self._reply.pause_writing(True)

    def resume_writing(self) -> None:
        if self._reply:
            self._reply.pause_writing(False)


class EngineReply:
    """An engine's answer while it arrives. `status` and `headers` (lower case) are set once `ask` has returned.

    `first_at`: arrival of the body's first block, by the monotonic clock.
    """

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        self._parser = httptools.HttpResponseParser(self)
        self._blocks: list[bytes] = []
        self._size = 0
        self._has_length = False
        self._has_head = self._ended = self._lost = self._full = self._collects_all = False
        self._sent = self._reusable = self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first_at: float | None = None
        connection.attach(self)

    async def read(self) -> bytes:
        """Wait for data and return all that has arrived; empty at the end. Raises EngineGone if it breaks off."""
        while not self._blocks:
            if self._ended:
                return b""
            if self._lost:
                raise EngineGone(begun=True)
            await self._wait()
        block = self.read_available()
        self._resume_reading()
        return block

    def read_available(self) -> bytes:
        """Return what has arrived since the last read, without waiting; it may be empty."""
        blocks, self._blocks, self._size = self._blocks, [], 0
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def read_at_most(self, limit: int) -> bytes:
        """Return the body up to `limit` bytes. Raises EngineGone if it breaks off."""
        body = b""
        while len(body) < limit and (block := await self.read()):
            body += block
        return body[:limit]

    async def read_head(self) -> None:
        """Return once status and headers have arrived. Raises EngineGone if the connection closes before."""
        while not self._has_head:
            if self._lost:
                raise EngineGone(begun=False)
            await self._wait()

    async def ready(self, *, whole: bool = False) -> None:
        """Return once a first block of the body has arrived, or with `whole` all of it.

        Raises EngineGone if the connection closes before, ExecutionFailed if the body is too large.
        """
        self._collects_all = whole
        if whole:
            self._resume_reading()
        while not self._ended and (whole or not self._blocks):
            if self._lost:
                raise EngineGone(begun=False)
            if self._size > _LARGEST:
                raise answer_too_large(_LARGEST)
            await self._wait()

    async def send(self, request: bytes, blocks: Sequence[Buffer]) -> None:
        """Send the request and its body's blocks, no faster than the engine reads; stop if it has refused already."""
        self._connection.transport.write(request)
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), _WRITTEN):
                while self._full and not self._refused():
                    await self._wait()
                if self._refused():
                    return
                self._connection.transport.write(view[start : start + _WRITTEN])
        self._sent = True

    def close(self) -> None:
        """Release the connection; close it if the answer has not ended, which stops the engine."""
        if self._closed:
            return  # the connection may serve another answer by now
        self._closed = True
        sent = self._sent and not self._connection.transport.get_write_buffer_size()
        if self._ended and self._reusable and sent and not self._lost:
            self._connection.release()
        else:
            self._connection.transport.abort()

    def _refused(self) -> bool:
        return self._lost or self.status >= 400

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume_reading(self) -> None:
        if not self._lost:
            self._connection.transport.resume_reading()

    # --- called by the connection -----------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lost = True
            self._connection.transport.abort()
        if self._size > _FULL and not self._collects_all:
            self._connection.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection, which also ends an answer without a declared length."""
        if self._has_head and not self._has_length and exc is None:
            self._ended = True
        self._lost = True
        self._wake()

    def pause_writing(self, full: bool) -> None:
        """Note whether the engine has stopped reading the request for now."""
        self._full = full
        self._wake()

    # --- called by the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._ended:  # a second answer, though only one request was sent
            raise EngineGone(begun=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        self._has_length = self._has_length or key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # 1xx is an interim answer; the final one follows

    def on_body(self, body: bytes) -> None:
        self.first_at = self.first_at or time.monotonic()
        self._blocks.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        if not self._has_head:
            self.headers, self._has_length = {}, False
            return
        self._ended = True
        # an engine that refuses a request may not have read its body, which would precede the next request
        self._reusable = self._parser.should_keep_alive() and self.status < 400


@lru_cache
def _address_of(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80, parts.path


class EngineClient:
    """Sends requests to engines. `kept`: seconds that an idle connection waits for the next request."""

    def __init__(self, kept: float = _KEPT) -> None:
        self._kept = kept
        self._idle: dict[tuple[str, int], list[EngineConnection]] = defaultdict(list)

    async def ask(self, url: str, body: Body, headers: Mapping[str, str]) -> EngineReply:
        """Post to an engine; return its answer once the head has arrived. Raises EngineGone if it is unreachable.

        A request sent on an idle connection is sent again if the connection closes without any answer (RFC 9112,
        9.3.1): usually the engine closed it at the moment of its reuse.
        """
        host, port, path = _address_of(url)
        first_block, blocks = (body, ()) if isinstance(body, bytes) else (b"", body)
        lines = [
            f"POST {path} HTTP/1.1",
            f"Host: {host}:{port}",
            f"Content-Length: {len(first_block) + sum(len(block) for block in blocks)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + first_block
        idle = self._idle[host, port]
        if idle:
            connection = idle.pop()
            try:
                return await _exchange(connection, request, blocks)
            except EngineGone:
                if connection.received:
                    raise
        connection = await _connect(host, port, EngineConnection(idle, self._kept))
        return await _exchange(connection, request, blocks)

    def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.transport.abort()


async def _connect(host: str, port: int, connection: EngineConnection) -> EngineConnection:
    try:
        async with asyncio.timeout(_CONNECT):
            await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
    except (OSError, TimeoutError):
        raise EngineGone(begun=False) from None
    return connection


async def _exchange(connection: EngineConnection, request: bytes, blocks: Sequence[Buffer]) -> EngineReply:
    """Send the request; return the answer once its head has arrived."""
    reply = EngineReply(connection)
    try:
        await reply.send(request, blocks)
        await reply.read_head()
    except BaseException:
        reply.close()
        raise
    return reply
