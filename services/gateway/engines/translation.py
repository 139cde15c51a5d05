"""Telling an engine's answer in the words of an API that is not the engine's own: whole, or piece by piece."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aima_core.errors import AimaError
from services.gateway.engines.chat_completion import ChatDelta, deltas
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy, TokenUsage
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import body_of

T = TypeVar("T")
_encode = msgspec.json.encode


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work comes to; a client who goes away before cancels it. Raises ClientDisconnect then."""
    found: list[T] = []

    async def do() -> None:
        found.append(await work)

    await cancel_on_disconnect(request.receive, do())
    if not found:
        raise ClientDisconnect
    return found[0]


@dataclass(frozen=True)
class Timings:
    """How long a request took, in seconds: until a replica had it, until its first word, and from then on."""

    waiting: float = 0.0
    first: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.waiting + self.first + self.rest


def timings(carried: ProxiedAnswer, asked: float) -> Timings:
    """Return how long a request took that was asked then and has just ended, by the monotonic clock."""
    first = carried.first or 0.0
    return Timings(carried.begun - asked, first, time.monotonic() - carried.begun - first)


class Translator(Protocol):
    """Puts an answer into words, bytes of the type `media`; `failed` is given the error as the door tells it."""

    media: str

    def begin(self) -> bytes:
        """Return what comes first."""

    def feed(self, piece: ChatDelta) -> bytes:
        """Return what a piece comes to; it may be nothing yet."""

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:
        """Return what comes last."""

    def failed(self, said: Mapping[str, Any]) -> bytes:
        """Return what comes last instead when the answer breaks off."""


class TranslatedWhole(Response):
    """An answer in one piece: `tell` reads the engine's, and returns what becomes JSON."""

    def __init__(
        self, proxy: Proxy, caller: Caller, job: EngineRequest, tell: Callable[[ProxiedAnswer], Awaitable[Any]]
    ) -> None:
        super().__init__(media_type="application/json")
        self._proxy, self._caller, self._job, self._tell = proxy, caller, job, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Ask and answer; a client who goes away ends the request."""
        await cancel_on_disconnect(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        async with self._proxy.forward(self._caller, self._job) as carried:
            body = _encode(await self._tell(carried))
        headers = [*_head(self._caller, "application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class TranslatedStream(Response):
    """An answer that is told as it comes; the job asks the engine for a stream."""

    def __init__(self, proxy: Proxy, caller: Caller, job: EngineRequest, teller: Translator) -> None:
        super().__init__(media_type=teller.media)
        self._proxy, self._caller, self._job, self._teller = proxy, caller, job, teller
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and answer; a client who goes away ends the request."""
        await cancel_on_disconnect(receive, self._answer(send, scope["path"]))

    async def _answer(self, send: Send, path: str) -> None:
        asked = time.monotonic()
        try:
            async with self._proxy.forward(self._caller, self._job) as carried, aclosing(deltas(carried)) as told:
                async for piece in told:
                    await self._begin(send)
                    if words := self._teller.feed(piece):
                        await send({"type": "http.response.body", "body": words, "more_body": True})
                await self._begin(send)
                last = self._teller.end(carried.usage, timings(carried, asked))
        except AimaError as error:
            if not self._begun:
                raise
            last = self._teller.failed(body_of(error, path, self._caller.request_id))
        await send({"type": "http.response.body", "body": last})

    async def _begin(self, send: Send) -> None:
        """Begin with the first piece: until then a refusal has its own status."""
        if self._begun:
            return
        self._begun = True
        headers = [*_head(self._caller, self._teller.media), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-accel-buffering", b"no")]})
        if words := self._teller.begin():
            await send({"type": "http.response.body", "body": words, "more_body": True})


def _head(caller: Caller, media: str) -> list[tuple[bytes, bytes]]:
    """Return the first headers; `request-id` is where Anthropic's clients look for it."""
    return [(b"content-type", media.encode()), (b"request-id", caller.request_id.encode())]
