"""The OpenAI API for text: models, chat completions, completions, embeddings.

Source: the OpenAI API reference. A request is looked at only as far as it must be - which model, streamed or not - and
its answer is the engine's own, byte for byte, but for the usage at the end of a stream that the client did not ask for.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aima_core.call import unix
from aima_core.errors import AimaError, ExecutionFailed, NotFound
from services.gateway import bodies
from services.gateway.answers import body_of, json
from services.gateway.asking import Asking, Caller
from services.gateway.carrying import Carrier, Job, Tokens, gone
from services.gateway.gate import caller_of
from services.gateway.waiting import patient, unless_gone

TEXT = ("llm", "vlm")
DONE = b"data: [DONE]\n\n"
_GUESS = 1024  # tokens of an answer whose length nobody bounds, for quotas

Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
ModelName = Annotated[str, Meta(min_length=1, max_length=120)]


class Message(msgspec.Struct):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(msgspec.Struct):
    """What a stream tells beside its text."""

    include_usage: bool = False


class Sampling(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common; other fields go on to the engine as they are."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class ChatRequest(Sampling, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionRequest(Sampling, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/embeddings`."""

    model: ModelName
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None


class Chunk(msgspec.Struct):
    """As much of an answer as is looked at."""

    usage: Tokens | None = None
    choices: list[Raw] = []
    error: Raw | None = None


_chunk = msgspec.json.Decoder(Chunk).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class OpenAI:
    """The routes of the text API."""

    def __init__(self, asking: Asking, carrier: Carrier, body_limit: int) -> None:
        self._asking = asking
        self._carrier = carrier
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """Let a model take its turn."""
        data = await bodies.read_json(request, self._limit)
        asked = bodies.decode(data, ChatRequest)
        fields = _fields(data)
        if asked.max_completion_tokens and not asked.max_tokens:
            fields["max_tokens"] = fields["max_completion_tokens"]  # its older name, which every engine knows
        if any(message.role == "developer" for message in asked.messages):
            fields["messages"] = Raw(_as_system(fields["messages"]))
        most = asked.max_completion_tokens or asked.max_tokens
        return self._sample(
            request, asked, fields, "inference.chat", "/v1/chat/completions", _tokens(data, most), bool(asked.tools)
        )

    async def complete(self, request: Request) -> Response:
        """Let a model continue a text."""
        data = await bodies.read_json(request, self._limit)
        asked = bodies.decode(data, CompletionRequest)
        tokens = _tokens(data, asked.max_tokens)
        return self._sample(request, asked, _fields(data), "inference.complete", "/v1/completions", tokens)

    async def embed(self, request: Request) -> Response:
        """Turn texts into vectors."""
        data = await bodies.read_json(request, self._limit)
        asked = bodies.decode(data, EmbeddingRequest)
        job = Job(
            "inference.embed",
            asked.model,
            ("embedding",),
            "/v1/embeddings",
            named(_fields(data)),
            tokens=_tokens(data, 1),
            wait=patient(request).wait,
        )
        return Whole(self._carrier, patient(request).caller, job)

    async def models(self, request: Request) -> Response:
        """List the models that have services, as far as the key may use them."""
        return json({"object": "list", "data": await self._models(caller_of(request.state))})

    async def model(self, request: Request) -> Response:
        """Show one of them."""
        name = request.path_params["model"]
        for found in await self._models(caller_of(request.state)):
            if found["id"] == name:
                return json(found)
        raise NotFound(f"there is no model {name}", reason="MODEL_NOT_FOUND", model=name)

    async def _models(self, caller: Caller) -> list[dict[str, Any]]:
        await self._asking.permitted(caller, "inference.models", {})
        client, headers = self._asking.client, caller.on_behalf()
        served, known = await asyncio.gather(
            client.ask("inference.models", {}, timeout=10, headers=headers),
            client.ask("model.list", {"limit": 1000}, timeout=10, headers=headers),
        )
        created = {item["id"]: int(unix(item["created_at"])) for item in known.data["items"]}
        return [
            {"id": model["id"], "object": "model", "created": created.get(model["id"], 0), "owned_by": "aima"}
            for model in served.data["models"]
            if caller.principal.may_use(model["id"], model["name"], *(s["name"] for s in model["services"]))
        ]

    def _sample(
        self,
        request: Request,
        asked: Sampling,
        fields: dict[str, Raw],
        unit: str,
        path: str,
        tokens: int,
        tools: bool = False,
    ) -> Response:
        told = bool(asked.stream_options and asked.stream_options.include_usage)
        if asked.stream and not told:
            fields["stream_options"] = Raw(b'{"include_usage":true}')
        job = Job(unit, asked.model, TEXT, path, named(fields), tokens=tokens, tools=tools, wait=patient(request).wait)
        if asked.stream:
            return Streamed(self._carrier, patient(request).caller, job, usage_told=told)
        return Whole(self._carrier, patient(request).caller, job)


class Whole(Response):
    """An answer that comes in one piece, as the engine gave it."""

    def __init__(self, carrier: Carrier, caller: Caller, job: Job) -> None:
        super().__init__()
        self._carrier, self._caller, self._job = carrier, caller, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI's signature)
        """Ask and answer; a client who goes away ends the request."""
        await unless_gone(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        async with self._carrier.carry(self._caller, self._job) as carried:
            body = await carried.whole()
            carried.usage = usage_of(body)
            kind = carried.reply.headers.get("content-type", "application/json")
            headers = [(b"content-type", kind.encode("latin-1")), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


class Streamed(Response):
    """An answer that comes in events, each passed on as it comes."""

    def __init__(self, carrier: Carrier, caller: Caller, job: Job, *, usage_told: bool) -> None:
        super().__init__()
        self._carrier, self._caller, self._job = carrier, caller, job
        self._tally = Tally(usage_told)
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask and answer; a client who goes away ends the request."""
        await unless_gone(receive, self._answer(send, scope["path"]))

    async def _answer(self, send: Send, path: str) -> None:
        try:
            await self._copy(send)
        except AimaError as error:
            if not self._begun:
                raise
            if not self._tally.failed:  # the engine has not said it itself
                told = _encode(body_of(error, path, self._caller.request_id))
                await send({"type": "http.response.body", "body": b"data: %b\n\n" % told, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _copy(self, send: Send) -> None:
        tally = self._tally
        async with self._carrier.carry(self._caller, self._job) as carried:
            while block := await carried.read():
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                if events := tally.feed(block):
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            carried.usage = tally.usage
            if tally.failed:
                raise ExecutionFailed("the engine failed", reason="ENGINE_FAILED")
            if not tally.ended:
                raise gone(begun=True)


_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Tally:
    """Watches a stream of events go by: whether it has ended as it should, and what it says of its usage.

    Events are looked into only where they may hold one of the two. The usage is kept back from a client who did not
    ask for it, because one that does not expect it stumbles over a chunk without choices.
    """

    def __init__(self, usage_told: bool) -> None:
        self._told = usage_told
        self._rest = b""
        self.usage = Tokens()
        self.ended = False
        self.failed = False

    def feed(self, block: bytes) -> bytes:
        """Take what has come, return what goes on: whole events."""
        if b"\r" in block:  # some frameworks end lines like that; between a CR and its LF a block may be cut
            block = block.replace(b"\r", b"")
        head, end, self._rest = (self._rest + block).rpartition(b"\n\n")
        events = head + end
        if DONE in events:
            self.ended = True
        if b'"usage"' not in events and b'"error"' not in events:
            return events
        return b"".join(self._look(event + b"\n\n") for event in events.split(b"\n\n")[:-1])

    def _look(self, event: bytes) -> bytes:
        if not event.startswith(b"data:") or event == DONE:
            return event
        try:
            chunk = _chunk(event[5:])
        except msgspec.MsgspecError:
            return event
        self.failed = self.failed or chunk.error is not None
        if chunk.usage is None:
            return event
        self.usage = chunk.usage
        return event if self._told or chunk.choices else b""


def usage_of(body: bytes) -> Tokens:
    """Return the usage that a whole answer tells; none when it tells none."""
    try:
        return _chunk(body).usage or Tokens()
    except msgspec.MsgspecError:
        return Tokens()


def named(fields: dict[str, Raw]) -> Any:
    """Return what makes the body for an engine that knows the model by some name."""

    def make(name: str) -> bytes:
        return _encode({**fields, "model": name})

    return make


def _as_system(messages: Raw) -> bytes:
    """Return the messages with the developer's role under its older name, which every template knows."""
    found = msgspec.json.decode(messages, type=list[dict[str, Raw]])
    return _encode([{**m, "role": "system"} if m["role"] == b'"developer"' else m for m in found])


def _tokens(data: bytes, most: int | None) -> int:
    """Return how many tokens a request may use at most, as far as one can say: four bytes of text are about one."""
    return len(data) // 4 + (most or _GUESS)
