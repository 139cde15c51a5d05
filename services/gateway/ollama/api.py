"""Ollama's API: its chats, generations and embeddings, and its view of the models.

Source: the Ollama API reference. Requests become chat completions (`requests.py`), answers become lines
(`answers.py`). A model that has no service is not served by itself: the refusal says what to do.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from aima_core import VERSION
from services.gateway.engines import chat_completion
from services.gateway.engines.embeddings import vectors
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.engines.translation import TranslatedStream, TranslatedWhole, timings, until_disconnect
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import estimate
from services.gateway.ollama import answers as answers
from services.gateway.ollama import requests as requests

_COMPLETE, _EMBED = "/v1/completions", "/v1/embeddings"  # of an engine
_LANDING = """AIMA is running. It speaks the APIs of OpenAI (/v1), Anthropic (/v1/messages) and Ollama (/api),
MCP (/mcp), and its own (/api/v2); /docs shows them all.
"""


KnownAs = Callable[[Request, str], Awaitable[str]]


class Ollama:
    """The routes of Ollama's API for what models do. `known_as` says which model a name means."""

    def __init__(self, proxy: Proxy, known_as: KnownAs, body_limit: int) -> None:
        self._proxy = proxy
        self._known_as = known_as
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path("/", {"GET": self.landing}),
            fixed_path("/api/version", {"GET": self.version}),
            fixed_path("/api/chat", {"POST": self.chat}),
            fixed_path("/api/generate", {"POST": self.generate}),
            fixed_path("/api/embed", {"POST": self.embed}),
            fixed_path("/api/embeddings", {"POST": self.embed_one}),
        ]

    async def landing(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Say what is here; Ollama's clients look whether anything is."""
        return PlainTextResponse(_LANDING)

    async def version(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Tell the version, which is ours."""
        return json({"version": VERSION})

    async def chat(self, request: Request) -> Response:
        """Let a model take its turn."""
        asked = bodies.decode(await read(request, self._limit), requests.ChatRequest)
        if not asked.messages:
            return await self._load(request, "chat", asked)
        return self._answer(request, "chat", asked, await self._job(request, asked, requests.chat(asked)))

    async def generate(self, request: Request) -> Response:
        """Let a model answer a prompt; a raw one it continues."""
        asked = bodies.decode(await read(request, self._limit), requests.GenerateRequest)
        if not asked.prompt:
            return await self._load(request, "generate", asked)
        job = await self._job(request, asked, requests.generate(asked))
        if asked.raw:
            make = chat_completion.streaming_body(requests.raw(asked))
            job = replace(job, unit="inference.complete", path=_COMPLETE, make=make)
        return self._answer(request, "generate", asked, job)

    async def embed(self, request: Request) -> Response:
        """Turn texts into vectors."""
        data = await read(request, self._limit)
        asked, begun = bodies.decode(data, requests.EmbedRequest), time.monotonic()

        async def tell(carried: ProxiedAnswer) -> Any:
            found = await _vectors(carried, asked.model, asked.dimensions)
            return answers.embedded(asked.model, found, carried.usage, timings(carried, begun))

        fields = {"input": asked.input, **({"dimensions": asked.dimensions} if asked.dimensions else {})}
        return TranslatedWhole(
            self._proxy, caller_of(request.state), await self._embedding(request, asked.model, fields), tell
        )

    async def embed_one(self, request: Request) -> Response:
        """Turn a text into a vector, as older clients ask for it."""
        asked = bodies.decode(await read(request, self._limit), requests.OldEmbedRequest)

        async def tell(carried: ProxiedAnswer) -> Any:
            return {"embedding": (await _vectors(carried, asked.model))[0]}

        job = await self._embedding(request, asked.model, {"input": [asked.prompt]})
        return TranslatedWhole(self._proxy, caller_of(request.state), job, tell)

    async def _job(self, request: Request, asked: requests.Sampling, body: Mapping[str, Any]) -> EngineRequest:
        """Return the request for a chat; it waits for a model that is loading, as Ollama's clients are used to."""
        model, wait = await self._known_as(request, asked.model), waiting_caller(request, wait=True).wait
        return chat_completion.chat_request(model, body, whole=not asked.streamed, wait=wait)

    async def _embedding(self, request: Request, name: str, fields: Mapping[str, Any]) -> EngineRequest:
        make, tokens = chat_completion.body_for_model(fields), estimate(msgspec.json.encode(fields), 1)
        model, wait = await self._known_as(request, name), waiting_caller(request, wait=True).wait
        return EngineRequest(
            "inference.embed", model, ("embedding",), _EMBED, make, tokens=tokens, wait=wait, whole=True
        )

    async def _load(self, request: Request, kind: answers.Kind, asked: requests.Sampling) -> Response:
        """Wait until the model is loaded."""
        if asked.unloads:
            raise requests.refusal("keep_alive", "more than 0: it is service.scale that puts a service to sleep")
        job = await self._job(request, asked, {"messages": []})
        begun = time.monotonic()
        await until_disconnect(request, self._proxy.await_replica(caller_of(request.state), job))
        return json(answers.loaded(kind, asked.model, time.monotonic() - begun))

    def _answer(self, request: Request, kind: answers.Kind, asked: requests.Sampling, job: EngineRequest) -> Response:
        """Return the response, whole or in lines."""
        caller, begun = caller_of(request.state), time.monotonic()
        if asked.streamed:
            return TranslatedStream(self._proxy, caller, job, answers.Lines(kind, asked.model))

        async def tell(carried: ProxiedAnswer) -> Any:
            answer = await chat_completion.joined(carried)
            return answers.final(kind, asked.model, answer, carried.usage, timings(carried, begun))

        return TranslatedWhole(self._proxy, caller, job, tell)


async def read(request: Request, limit: int) -> bytes:
    """Return the body, JSON whatever a program calls it: many say nothing of it, as Ollama lets them."""
    return await bodies.read(request, limit)


async def _vectors(carried: ProxiedAnswer, model: str, dimensions: int | None = None) -> list[msgspec.Raw]:
    found, _ = await vectors(carried, model, dimensions)
    return [vector.embedding for vector in found.data]
