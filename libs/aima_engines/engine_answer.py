"""`Engine`: the engine that serves one request of a client. `EngineAnswer`: the engine's answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from aima_engines.engine_client import Body, EngineClient
from aima_engines.engine_errors import answer_too_large
from aima_engines.engine_http import LARGEST, EngineGone, EngineReply

JSON = {"Content-Type": "application/json", "Accept": "*/*"}


Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class TokenUsage(msgspec.Struct):
    """The field `usage` of an answer: the tokens of the prompt and of the answer."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


@dataclass(frozen=True)
class EngineBody:
    """The body of a request to an engine, and the headers that describe it."""

    content: Body = b""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)


class EngineAnswer:
    """An engine's answer. The code that reads the answer sets `usage`.

    `started_at`: when the request was sent to the engine, in monotonic seconds. `streams`: whether the answer is a
    stream of server-sent events.
    """

    def __init__(self, reply: EngineReply, started_at: float) -> None:
        self.reply = reply
        self.usage = TokenUsage()
        self.started_at = started_at
        self.streams = self.content_type == "text/event-stream"

    async def read(self) -> bytes:
        """Return the next block of the answer, b"" at the end. Raises `broken()` if the answer breaks off."""
        try:
            return await self.reply.read()
        except EngineGone:
            raise self.broken() from None

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks of an answer for a caller that collects them.

        Raises the errors of `read`, and ExecutionFailed if the answer exceeds 256 MiB.
        """
        size = 0
        while block := await self.read():
            size += len(block)
            if size > LARGEST:
                raise answer_too_large(LARGEST)
            yield block

    async def whole(self) -> bytes:
        """Return the whole answer. Raises the errors of `blocks`."""
        return b"".join([block async for block in self.blocks()])

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; "" if the engine sends none."""
        return self.reply.headers.get("content-type", "").partition(";")[0].strip().lower()

    def broken(self) -> Exception:
        """Return the error for an answer that breaks off after it has begun."""
        return EngineGone(begun=True)

    @property
    def first(self) -> float | None:
        """The seconds from the request to the first block of a stream.

        None before the first block, and always None if the answer is not a stream.
        """
        first_at = self.reply.first_at
        return round(first_at - self.started_at, 6) if self.streams and first_at is not None else None


class Engine:
    """The engine of a replica, for one request. `model`: the name by which the engine knows the model.

    With `whole`, `ask` waits for the complete answer. If such an answer breaks off, no part of it has reached the
    caller, so the request can go to another replica.
    """

    def __init__(self, client: EngineClient, endpoint: str, model: str, *, whole: bool) -> None:
        self.model = model
        self._client = client
        self._endpoint = endpoint
        self._whole = whole
        self._reply: EngineReply | None = None

    @property
    def answered(self) -> bool:
        """Whether the engine has sent a part of the answer's body."""
        return self._reply is not None and self._reply.first_at is not None

    @contextlib.asynccontextmanager
    async def ask(self, path: str, body: EngineBody, *, method: str = "POST") -> AsyncIterator[EngineAnswer]:
        """Send a request; yield the answer once its first data has arrived. Leaving the block early stops the engine.

        Raises the engine's error if the status is not 2xx. Raises EngineGone if the engine is unreachable, or if it
        closes the connection before the first data. With `whole`, `ask` waits for the end of the answer instead of the
        first data.
        """
        started_at = time.monotonic()
        self._reply = reply = await self._client.ask(
            f"{self._endpoint}{path}", body.content, body.headers, method=method
        )
        try:
            await reply.check()
            await reply.ready(whole=self._whole)
            yield EngineAnswer(reply, started_at)
        finally:
            reply.close()
