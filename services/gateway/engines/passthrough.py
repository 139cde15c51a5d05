"""Responses that pass on the engine's answer unchanged: as a whole, event by event, or block by block."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.errors import AimaError
from aima_engines.assembly import MOST_CALLS, Assembly
from aima_engines.decoding import decoded
from aima_engines.engine_answer import TokenUsage
from aima_engines.engine_errors import bad_answer, engine_failed, engine_gone, error_in
from aima_engines.sse_parser import DONE, NOTHING, Splitter, data_of
from services.gateway.engines.keep_alive import WAITING, keep_alive
from services.gateway.engines.proxying import EngineRequest, Proxy
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import body_of


class _Chunk(msgspec.Struct):
    usage: TokenUsage | None = None
    choices: list[msgspec.Raw] | None = None
    error: Any = None


class _Piece(msgspec.Struct):
    index: Annotated[int, Meta(ge=0, lt=MOST_CALLS)] = 0


class _Delta(msgspec.Struct):
    tool_calls: list[_Piece] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _ToolCalls(msgspec.Struct):
    choices: list[_Choice] | None = None


_SLICE = 64 * 1024  # bytes of a stream that are joined at a time; other tasks run in between
_read = msgspec.json.Decoder(_Chunk).decode
_read_tool_calls = msgspec.json.Decoder(_ToolCalls).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class _Passthrough(Response, ABC):
    def __init__(self, proxy: Proxy, caller: Caller, request: EngineRequest) -> None:
        super().__init__()
        self._proxy, self._caller, self._request = proxy, caller, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the request to an engine and the answer to the client. Cancel the request if the client leaves."""
        await cancel_on_disconnect(receive, self._answer(scope, send))

    @abstractmethod
    async def _answer(self, scope: Scope, send: Send) -> None:
        """Send the request and the whole answer."""


class WholePassthrough(_Passthrough):
    """A whole JSON answer, sent at once. If the engine streams the answer, its chunks are joined first."""

    async def _answer(self, scope: Scope, send: Send) -> None:  # noqa: ARG002 (the base class's signature)
        async with self._proxy.forward(self._caller, self._request) as answer:
            body = await answer.whole()
            media_type = answer.reply.headers.get("content-type", "application/json")
            if answer.streams:
                body, media_type = _encode(await _joined(body)), "application/json"
            answer.usage = usage_of(body)
            await _start(send, media_type, str(len(body)))
            await send({"type": "http.response.body", "body": body})


class BlockPassthrough(_Passthrough):
    """An answer of any media type, sent block by block."""

    async def _answer(self, scope: Scope, send: Send) -> None:  # noqa: ARG002 (the base class's signature)
        async with self._proxy.forward(self._caller, self._request) as answer:
            headers = answer.reply.headers
            await _start(send, headers.get("content-type", "application/octet-stream"), headers.get("content-length"))
            while block := await answer.read():
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class EventPassthrough(_Passthrough):
    """An answer of server-sent events, sent event by event. `usage_told`: whether the client requested the usage."""

    def __init__(self, proxy: Proxy, caller: Caller, request: EngineRequest, *, usage_told: bool) -> None:
        super().__init__(proxy, caller, request)
        self._reader = UsageReader(usage_told)
        self._started = False

    async def _answer(self, scope: Scope, send: Send) -> None:
        try:
            await self._copy(send)
        except AimaError as error:
            if not self._started:
                raise
            if self._reader.error is None:  # otherwise, the client already has the engine's own error event
                body = _encode(body_of(error, scope["path"], self._caller.request_id))
                await send({"type": "http.response.body", "body": b"data: %b\n\n" % body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _copy(self, send: Send) -> None:
        reader = self._reader
        async with (
            keep_alive(partial(self._comment, send)) as stop,
            self._proxy.forward(self._caller, self._request) as answer,
        ):
            await stop()
            while not reader.ended and (block := await answer.read()):
                await self._start(send)
                if events := reader.feed(block):
                    answer.usage = reader.usage
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            answer.usage = reader.usage
            if reader.error is not None:
                raise engine_failed(reader.error)
            if not reader.ended:
                raise engine_gone(begun=True)

    async def _comment(self, send: Send) -> None:
        await self._start(send)
        await send({"type": "http.response.body", "body": WAITING, "more_body": True})

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM})


class UsageReader:
    """Reads usage, error and end from a stream of events, and returns the events to pass on.

    Only events that may contain usage, an error or tool calls are decoded. The index of a tool call is checked, because
    a client may create a list of that length. At the end of a stream, the event with the usage has no choices, and a
    client may fail on an event without choices. So this event is passed on only if the client requested the usage
    (`usage_told`).
    """

    def __init__(self, usage_told: bool) -> None:
        self._usage_told = usage_told
        self._splitter = Splitter()
        self.usage = TokenUsage()
        self.ended = False
        self.error: Any = None

    def feed(self, block: bytes) -> bytes:
        """Add a block. Returns the completed events that the client gets.

        Raises ExecutionFailed if a tool call has an index that `join_numbered` refuses.
        """
        return b"".join(event + b"\n\n" for event in self._splitter.feed(block) if self._passes(event))

    def _passes(self, event: bytes) -> bool:
        if event.endswith(DONE) and data_of(event) == DONE:
            self.ended = True
        if event.endswith(NOTHING) and not data_of(event):
            return False  # clients fail on a chunk that is null
        if b'"tool_calls"' in event and decoded(_read_tool_calls, data_of(event)) is None:
            raise bad_answer()
        if b'"usage"' not in event and b'"error"' not in event:
            return True
        chunk = decoded(_read, data_of(event))
        if chunk is None:
            return True
        self.error = self.error or chunk.error
        if chunk.usage is None:
            return True
        self.usage = chunk.usage
        return self._usage_told or bool(chunk.choices)


def usage_of(body: bytes) -> TokenUsage:
    """Return the usage in a whole answer; zeros if the answer has no usage.

    Raises ExecutionFailed if the body is an error object or invalid JSON, although the status is 2xx.
    """
    answer = decoded(_read, body)
    if answer is None or answer.error is not None:
        raise error_in(body)
    return answer.usage or TokenUsage()


async def _joined(stream: bytes) -> dict[str, Any]:
    """Join a stream into a whole answer. Other tasks run after each slice, because the join can take a second."""
    assembly = Assembly()
    for start in range(0, len(stream), _SLICE):
        assembly.feed(stream[start : start + _SLICE])
        await asyncio.sleep(0)
    return assembly.answer()


async def _start(send: Send, media_type: str, length: str | None) -> None:
    headers = [(b"content-type", media_type.encode("latin-1"))]
    if length is not None:
        headers.append((b"content-length", length.encode("latin-1")))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
