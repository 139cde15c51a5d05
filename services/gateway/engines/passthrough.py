"""Responses that pass on the engine's answer unchanged: as a whole, event by event, or block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.errors import AimaError, ValidationFailed
from aima_engines.engine_errors import engine_failed, engine_gone
from services.gateway.engines.keep_alive import WAITING, keep_alive
from services.gateway.engines.proxying import EngineRequest, Proxy
from services.gateway.engines.usage import UsageReader, usage_of, whole_answer
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import body_of

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
    """A whole JSON answer, sent at once. If the engine streams the answer, its chunks are joined first.

    `each`: the number of answers to each prompt. `explain` turns the engine's refusal into one for the client.
    """

    def __init__(
        self,
        proxy: Proxy,
        caller: Caller,
        request: EngineRequest,
        *,
        each: int = 1,
        explain: Callable[[ValidationFailed], ValidationFailed] = lambda error: error,
    ) -> None:
        super().__init__(proxy, caller, request)
        self._each = each
        self._explain = explain

    async def _answer(self, scope: Scope, send: Send) -> None:  # noqa: ARG002 (the base class's signature)
        try:
            async with self._proxy.forward(self._caller, self._request) as answer:
                if answer.streams:
                    body, media_type = _encode(await whole_answer(answer, self._each)), "application/json"
                else:
                    body = await answer.whole()
                    media_type = answer.reply.headers.get("content-type", "application/json")
                    answer.usage = usage_of(body)
                await _start(send, media_type, str(len(body)))
                await send({"type": "http.response.body", "body": body})
        except ValidationFailed as error:
            raise self._explain(error) from None


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
    """An answer of server-sent events, sent event by event.

    `usage_told`: whether the client requested the usage. `several`: whether the client requested several answers, and
    `each`: how many to each prompt.
    """

    def __init__(
        self,
        proxy: Proxy,
        caller: Caller,
        request: EngineRequest,
        *,
        usage_told: bool,
        several: bool = False,
        each: int = 1,
    ) -> None:
        super().__init__(proxy, caller, request)
        self._reader = UsageReader(usage_told, several=several, each=each)
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


async def _start(send: Send, media_type: str, length: str | None) -> None:
    headers = [(b"content-type", media_type.encode("latin-1"))]
    if length is not None:
        headers.append((b"content-length", length.encode("latin-1")))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
