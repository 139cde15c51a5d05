"""Responses that translate the engine's answer into the format of another API: as a whole, or delta by delta."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.errors import AimaError
from aima_engines.chat_deltas import ChatDelta, deltas
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.keep_alive import WAITING, keep_alive
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import body_of

T = TypeVar("T")
_encode = msgspec.json.encode


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work. If the client leaves first, cancel the work and raise ClientDisconnect."""
    results: list[T] = []

    async def run() -> None:
        results.append(await work)

    await cancel_on_disconnect(request.receive, run())
    if not results:
        raise ClientDisconnect
    return results[0]


@dataclass(frozen=True)
class Timings:
    """The durations of a request in seconds.

    `waiting`: from the request's arrival until the gateway sends it to an engine. `first`: from that moment until
    the first block of the answer. `rest`: from the first block until the end.
    """

    waiting: float = 0.0
    first: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        return self.waiting + self.first + self.rest


def timings(answer: ProxiedAnswer, requested_at: float) -> Timings:
    """Return the durations of a request that ends now. `requested_at`: the arrival, in monotonic seconds."""
    first = answer.first or 0.0
    return Timings(answer.started_at - requested_at, first, time.monotonic() - answer.started_at - first)


class Translator(Protocol):
    """Translates the deltas of an answer into bytes of the media type `media`."""

    media: str

    def begin(self) -> bytes:
        """Return the bytes before the first delta."""
        ...

    def feed(self, delta: ChatDelta) -> bytes:
        """Return the bytes for a delta; they may be empty."""
        ...

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:
        """Return the last bytes."""
        ...

    def failed(self, error: Mapping[str, Any]) -> bytes:
        """Return the last bytes of an answer that breaks off; `error` is the error's body in the door's format."""
        ...


class TranslatedWhole(Response):
    """A whole answer, sent at once. `translate` reads the engine's answer and returns the value to encode as JSON."""

    def __init__(
        self, proxy: Proxy, caller: Caller, request: EngineRequest, translate: Callable[[ProxiedAnswer], Awaitable[Any]]
    ) -> None:
        super().__init__(media_type="application/json")
        self._proxy, self._caller, self._request, self._translate = proxy, caller, request, translate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Send the request to an engine and the translation to the client. Cancel the request if the client leaves."""
        await cancel_on_disconnect(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        async with self._proxy.forward(self._caller, self._request) as answer:
            body = _encode(await self._translate(answer))
        headers = [*_head(self._caller, "application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class TranslatedStream(Response):
    """An answer that is translated delta by delta. `request` must request a stream from the engine."""

    def __init__(self, proxy: Proxy, caller: Caller, request: EngineRequest, translator: Translator) -> None:
        super().__init__(media_type=translator.media)
        self._proxy, self._caller, self._request, self._translator = proxy, caller, request, translator
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the request to an engine and the translation to the client. Cancel the request if the client leaves."""
        await cancel_on_disconnect(receive, self._answer(send, scope["path"]))

    async def _answer(self, send: Send, path: str) -> None:
        requested_at = time.monotonic()
        try:
            async with (
                keep_alive(partial(self._comment, send)) as stop,
                self._proxy.forward(self._caller, self._request) as answer,
                aclosing(deltas(answer)) as stream,
            ):
                await stop()
                async for delta in stream:
                    await self._start(send)
                    if body := self._translator.feed(delta):
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                await self._start(send)
                last = self._translator.end(answer.usage, timings(answer, requested_at))
        except AimaError as error:
            if not self._started:
                raise
            last = self._translator.failed(body_of(error, path, self._caller.request_id))
        await send({"type": "http.response.body", "body": last})

    async def _comment(self, send: Send) -> None:
        """Send a comment, if the answer's format has comments. The response starts with the first comment."""
        if self._translator.media.startswith("text/event-stream"):
            await self._start(send)
            await send({"type": "http.response.body", "body": WAITING, "more_body": True})

    async def _start(self, send: Send) -> None:
        """Start the response at the first delta, so that an error before the first delta still sets the status."""
        if self._started:
            return
        self._started = True
        headers = [*_head(self._caller, self._translator.media), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-accel-buffering", b"no")]})
        if body := self._translator.begin():
            await send({"type": "http.response.body", "body": body, "more_body": True})


def _head(caller: Caller, media: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of every response. Anthropic's clients expect `request-id`."""
    return [(b"content-type", media.encode()), (b"request-id", caller.request_id.encode())]
