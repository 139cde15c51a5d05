"""The HTTP client for engines: every door and every domain that calls an engine uses it, one client per process.

The client reuses a connection only after a complete exchange: the reply is read to its end, and the engine has read
the whole request body. Otherwise, leftover bytes would be read as the start of the next message. The client keeps an
idle connection for half a second only, because llama.cpp uses a thread for each open connection. Closing a connection
in the middle of a reply stops the engine.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import urlsplit

from aima_engines.engine_http import Buffer, EngineConnection, EngineGone, EngineReply

_CONNECT = 5.0  # seconds to connect to an engine
_KEPT = 0.5  # seconds that an idle connection stays open for the next request

Body = bytes | Sequence[Buffer]
"""A request's body: bytes or, for an upload, the blocks in the order in which they arrived."""


@lru_cache
def _address_of(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80, parts.path


async def _connect(host: str, port: int, connection: asyncio.Protocol) -> None:
    await asyncio.get_running_loop().create_connection(lambda: connection, host, port)


Connect = Callable[[str, int, asyncio.Protocol], Awaitable[None]]
"""A function that connects a protocol to a host and port. It raises OSError if nothing listens there."""


class EngineClient:
    """Sends requests to engines. `kept`: seconds that an idle connection waits for the next request."""

    def __init__(self, kept: float = _KEPT, connect: Connect = _connect) -> None:
        self._kept = kept
        self._connect = connect
        self._idle: dict[tuple[str, int], list[EngineConnection]] = defaultdict(list)

    async def ask(
        self, url: str, body: Body = b"", headers: Mapping[str, str] | None = None, *, method: str = "POST"
    ) -> EngineReply:
        """Send a request to an engine; return the reply once its status and headers have arrived.

        Raises EngineGone if the engine is unreachable or closes the connection.

        If a reused connection closes without any answer, `ask` sends the request again on a new connection (RFC 9112,
        9.3.1): the usual cause is that the engine closed the idle connection at that moment.
        """
        host, port, path = _address_of(url)
        first_block, blocks = (body, ()) if isinstance(body, bytes) else (b"", body)
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {host}:{port}",
            f"Content-Length: {len(first_block) + sum(len(block) for block in blocks)}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
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
        connection = EngineConnection(idle, self._kept)
        try:
            async with asyncio.timeout(_CONNECT):
                await self._connect(host, port, connection)
        except (OSError, TimeoutError):
            raise EngineGone(begun=False, sent=False) from None
        return await _exchange(connection, request, blocks)

    def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.transport.abort()


async def _exchange(connection: EngineConnection, request: bytes, blocks: Sequence[Buffer]) -> EngineReply:
    """Send the request; return the reply once its status and headers have arrived."""
    reply = EngineReply(connection)
    try:
        await reply.send(request, blocks)
        await reply.read_head()
    except BaseException:
        reply.close()
        raise
    return reply
