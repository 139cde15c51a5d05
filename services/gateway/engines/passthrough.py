"""Answers that are the engine's own, passed on: in one piece, event by event, or block by block."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.errors import AimaError
from services.gateway.engines.assembly import Assembly
from services.gateway.engines.engine_errors import failed, gone
from services.gateway.engines.proxying import EngineRequest, Proxy, TokenUsage
from services.gateway.engines.sse_parser import DONE, NOTHING, Splitter, data_of, decoded
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import body_of


class _Chunk(msgspec.Struct):
    usage: TokenUsage | None = None
    choices: list[msgspec.Raw] = []
    error: Any = None


_SLICE = 64 * 1024  # bytes of a stream that are put together before others have their turn
_read = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class _Relayed(Response, ABC):
    def __init__(self, proxy: Proxy, caller: Caller, job: EngineRequest) -> None:
        super().__init__()
        self._proxy, self._caller, self._job = proxy, caller, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and answer; a client who goes away ends the request."""
        await cancel_on_disconnect(receive, self._answer(scope, send))

    @abstractmethod
    async def _answer(self, scope: Scope, send: Send) -> None:
        """Ask, and send the whole answer."""


class WholePassthrough(_Relayed):
    """An answer in JSON that goes on in one piece; one that came in events is put together."""

    async def _answer(self, scope: Scope, send: Send) -> None:  # noqa: ARG002 (as the others)
        async with self._proxy.forward(self._caller, self._job) as carried:
            body = await carried.whole()
            kind = carried.reply.headers.get("content-type", "application/json")
            if carried.streams:
                body, kind = _encode(await _assembled(body)), "application/json"
            carried.usage = usage_of(body)
            await _start(send, kind, str(len(body)))
            await send({"type": "http.response.body", "body": body})


class BlockPassthrough(_Relayed):
    """An answer of any media type, in blocks as they come."""

    async def _answer(self, scope: Scope, send: Send) -> None:  # noqa: ARG002 (as the others)
        async with self._proxy.forward(self._caller, self._job) as carried:
            headers = carried.reply.headers
            await _start(send, headers.get("content-type", "application/octet-stream"), headers.get("content-length"))
            while block := await carried.read():
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class EventPassthrough(_Relayed):
    """An answer that comes in events, each passed on as it comes."""

    def __init__(self, proxy: Proxy, caller: Caller, job: EngineRequest, *, usage_told: bool) -> None:
        super().__init__(proxy, caller, job)
        self._tally = UsageReader(usage_told)
        self._begun = False

    async def _answer(self, scope: Scope, send: Send) -> None:
        try:
            await self._copy(send)
        except AimaError as error:
            if not self._begun:
                raise
            if self._tally.error is None:  # the engine has not said it itself
                told = _encode(body_of(error, scope["path"], self._caller.request_id))
                await send({"type": "http.response.body", "body": b"data: %b\n\n" % told, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _copy(self, send: Send) -> None:
        tally = self._tally
        async with self._proxy.forward(self._caller, self._job) as carried:
            while not tally.ended and (block := await carried.read()):
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                if events := tally.feed(block):
                    carried.usage = tally.usage
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            carried.usage = tally.usage
            if tally.error is not None:
                raise failed(tally.error)
            if not tally.ended:
                raise gone(begun=True)


class UsageReader:
    """Watches a stream of events go by: whether it has ended as it should, and what it says of its usage.

    Events are looked into only where they may hold one of the two. The usage is kept back from a client who did not
    ask for it, because one that does not expect it stumbles over a chunk without choices.
    """

    def __init__(self, usage_told: bool) -> None:
        self._told = usage_told
        self._splitter = Splitter()
        self.usage = TokenUsage()
        self.ended = False
        self.error: Any = None

    def feed(self, block: bytes) -> bytes:
        """Take what has come, return what goes on: whole events."""
        return b"".join(event + b"\n\n" for event in self._splitter.feed(block) if self._passes(event))

    def _passes(self, event: bytes) -> bool:
        if event.endswith(DONE) and data_of(event) == DONE:
            self.ended = True
        if event.endswith(NOTHING) and not data_of(event):
            return False  # clients stumble over a chunk that is none
        if b'"usage"' not in event and b'"error"' not in event:
            return True
        chunk = decoded(_read, data_of(event))
        if chunk is None:
            return True
        self.error = self.error or chunk.error
        if chunk.usage is None:
            return True
        self.usage = chunk.usage
        return self._told or bool(chunk.choices)


def usage_of(body: bytes) -> TokenUsage:
    """Return the usage that a whole answer tells; none when it tells none."""
    told = decoded(_read, body)
    return (told and told.usage) or TokenUsage()


async def _assembled(stream: bytes) -> dict[str, Any]:
    """Return the answer that a stream tells; others have their turns meanwhile, as the longest take a second."""
    assembly = Assembly()
    for begin in range(0, len(stream), _SLICE):
        assembly.feed(stream[begin : begin + _SLICE])
        await asyncio.sleep(0)
    return assembly.answer()


async def _start(send: Send, kind: str, length: str | None) -> None:
    headers = [(b"content-type", kind.encode("latin-1"))]
    if length is not None:
        headers.append((b"content-length", length.encode("latin-1")))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
