"""HTTP/1.1 with an engine: a connection, and the reply that arrives on the connection block by block.

The code does as little as possible for each block, because tokens arrive at a high rate: httptools (the parser of
Node.js) parses the reply, and the blocks stay unchanged. `engine_client.py` opens and reuses the connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import httptools

from aima_engines.engine_errors import answer_too_large, refusal

_FULL = 1024 * 1024  # bytes read ahead for a slow reader; with more, the engine has to wait
LARGEST = 256 * 1024 * 1024  # bytes; the largest answer that is collected before it is passed on
_REFUSAL = 64 * 1024  # bytes read of an engine's error body, which has the message at its start
_LARGEST_HEAD = 64 * 1024  # bytes of all headers of a reply; the connection of a larger reply is closed
_WRITTEN = 256 * 1024  # bytes of a large body per write: the transport keeps a copy of what it cannot send at once

MOST_LOST = 2
"""The replicas that may close the connection of one request. More would be ended by a request that ends its replica."""

Buffer = bytes | bytearray | memoryview


class EngineGone(Exception):
    """The engine closed the connection before the end of its answer, or accepts none.

    `begun`: whether a part of the answer had arrived. `sent`: whether the engine has received a part of the request.
    """

    def __init__(self, begun: bool, *, sent: bool = True) -> None:
        super().__init__("the engine closed the connection" if sent else "the engine accepts no connection")
        self.begun = begun
        self.sent = sent

    @property
    def code(self) -> str:
        """The error code to record."""
        return "ENGINE_GONE" if self.sent else "ENGINE_UNREACHABLE"


class EngineConnection(asyncio.Protocol):
    """A connection to an engine. It serves one request after another.

    `received`: whether data of the present answer has arrived. `idle`: the list of free connections to the same engine.
    `kept`: seconds until a free connection is closed.
    """

    def __init__(self, idle: list[EngineConnection], kept: float) -> None:
        self._idle = idle
        self._kept = kept
        self._reply: EngineReply | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self.received = False
        self.transport: asyncio.Transport

    def attach(self, reply: EngineReply) -> None:
        """Pass all data that arrives from now on to this reply."""
        self._reply, self.received = reply, False
        if self._expiry:
            self._expiry.cancel()
            self._expiry = None

    def release(self) -> None:
        """Make the connection available to the next request. Closes the connection after `kept` idle seconds."""
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
            self.transport.abort()  # data before the next request would look like the answer to that request

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
    """An engine's answer while it arrives. `read_head` sets `status` and `headers`, whose names are in lower case.

    `first_at`: when the body's first block arrived, in monotonic seconds.
    """

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        self._parser = httptools.HttpResponseParser(self)
        self._blocks: list[bytes] = []
        self._size = self._head_size = 0
        self._has_length = False
        self._has_head = self._ended = self._lost = self._full = self._collects_all = False
        self._sent = self._reusable = self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.first_at: float | None = None
        connection.attach(self)

    async def read(self) -> bytes:
        """Wait for data and return all data so far; b"" at the end. Raises EngineGone if the answer breaks off."""
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
        """Return the data that has arrived since the last read, without waiting; b"" if there is none."""
        blocks, self._blocks, self._size = self._blocks, [], 0
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def read_at_most(self, limit: int) -> bytes:
        """Return the body's first `limit` bytes. Raises EngineGone if the answer breaks off earlier."""
        body = b""
        while len(body) < limit and (block := await self.read()):
            body += block
        return body[:limit]

    async def read_head(self) -> None:
        """Wait until status and headers have arrived. Raises EngineGone if the connection closes earlier."""
        while not self._has_head:
            if self._lost:
                raise EngineGone(begun=False)
            await self._wait()

    async def ready(self, *, whole: bool = False) -> None:
        """Wait for the first block of the body; with `whole`, for the complete body.

        Raises EngineGone if the connection closes earlier, and ExecutionFailed if the body is too large.
        """
        self._collects_all = whole
        if whole:
            self._resume_reading()
        while not self._ended and (whole or not self._blocks):
            if self._lost:
                raise EngineGone(begun=False)
            if self._size > LARGEST:
                raise answer_too_large(LARGEST)
            await self._wait()

    async def check(self) -> None:
        """Raise the engine's error if the status is not 2xx: ValidationFailed for a 400, for example."""
        if not 200 <= self.status < 300:
            raise refusal(self.status, await self.read_at_most(_REFUSAL))

    async def send(self, request: bytes, blocks: Sequence[Buffer]) -> None:
        """Send the request, then the blocks of its body as fast as the engine reads; stop if the engine refuses."""
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
        """Release the connection for reuse if the exchange is complete. Otherwise close it, which stops the engine."""
        if self._closed:
            return  # another reply may already use the connection
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
        """Record the end of the connection. An answer without a declared length ends with the connection."""
        if self._has_head and not self._has_length and exc is None:
            self._ended = True
        self._lost = True
        self._wake()

    def pause_writing(self, full: bool) -> None:
        """Record whether the transport's buffer is full. The buffer fills if the engine reads the request slowly."""
        self._full = full
        self._wake()

    # --- called by the parser ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._ended:  # a second answer to the same request
            raise EngineGone(begun=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > _LARGEST_HEAD:
            raise EngineGone(begun=False)
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
        # after a refusal, unread bytes of the request's body may be left on the connection, before the next request
        self._reusable = self._parser.should_keep_alive() and self.status < 400
