"""Serves Ollama's API for chats, generations and embeddings.

Source: the Ollama API reference. `requests.py` converts requests to chat completions; `answers.py` converts answers to
lines. Unlike Ollama, this door does not start a model that has no service. The door refuses the request, and the error
names the unit to call.
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

from aima_engines.chat_deltas import joined
from aima_engines.kinds.embeddings import vectors
from aima_engines.kinds.request_bodies import body_for_model, streaming_body
from aima_engines.kinds.request_kinds import COMPLETE, EMBED
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.engines.translation import TranslatedStream, TranslatedWhole, timings, until_disconnect
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.dispatch import Caller
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import estimate
from services.gateway.ollama import answers as answers
from services.gateway.ollama import requests as requests

OLLAMA = "0.12.0"
"""The release of Ollama whose API this door serves: chats with tools, structured output and `think`."""
_LANDING = """AIMA is running. It serves the APIs of OpenAI (/v1), Anthropic (/v1/messages) and Ollama (/api),
MCP (/mcp), and its own API (/api/v2). /docs shows all paths.
"""


Unload = Callable[[Caller, str], Awaitable[None]]


class Ollama:
    """The routes of Ollama's API that run a model. `unload` ends the replicas of a model."""

    def __init__(self, proxy: Proxy, unload: Unload, body_limit: int) -> None:
        self._proxy = proxy
        self._unload = unload
        self._limit = body_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path("/", {"GET": self.landing}),
            fixed_path("/api/version", {"GET": self.version}),
            fixed_path("/api/chat", {"POST": self.chat}),
            fixed_path("/api/generate", {"POST": self.generate}),
            fixed_path("/api/embed", {"POST": self.embed}),
            fixed_path("/api/embeddings", {"POST": self.embed_one}),
        ]

    async def landing(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Return a short text. Ollama's clients request it to check that a server runs."""
        return PlainTextResponse(_LANDING)

    async def version(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Return the release of Ollama whose API this door serves. Ollama's clients compare it with what they need."""
        return json({"version": OLLAMA})

    async def chat(self, request: Request) -> Response:
        body = bodies.decode(await read(request, self._limit), requests.ChatRequest)
        if not body.messages:
            return await self._load(request, "chat", body)
        return self._answer(request, "chat", body, self._chat_request(request, body, requests.chat(body)))

    async def generate(self, request: Request) -> Response:
        """Answer a prompt. With `raw`, the model continues the prompt."""
        body = bodies.decode(await read(request, self._limit), requests.GenerateRequest)
        if not body.prompt:
            return await self._load(request, "generate", body)
        engine_request = self._chat_request(request, body, requests.generate(body))
        if body.raw:
            make = streaming_body(requests.raw(body))
            engine_request = replace(engine_request, kind=COMPLETE, types=(), make=make)
        return self._answer(request, "generate", body, engine_request)

    async def embed(self, request: Request) -> Response:
        data = await read(request, self._limit)
        body, started_at = bodies.decode(data, requests.EmbedRequest), time.monotonic()

        async def translate(proxied: ProxiedAnswer) -> Any:
            embeddings = await _vectors(proxied, body.model, body.dimensions)
            return answers.embedded(body.model, embeddings, proxied.usage, timings(proxied, started_at))

        fields = {"input": body.input, **({"dimensions": body.dimensions} if body.dimensions else {})}
        return TranslatedWhole(
            self._proxy, caller_of(request.state), self._embed_request(request, body.model, fields), translate
        )

    async def embed_one(self, request: Request) -> Response:
        """Turn one text into a vector, for older clients."""
        body = bodies.decode(await read(request, self._limit), requests.OldEmbedRequest)

        async def translate(proxied: ProxiedAnswer) -> Any:
            return {"embedding": (await _vectors(proxied, body.model))[0]}

        engine_request = self._embed_request(request, body.model, {"input": [body.prompt]})
        return TranslatedWhole(self._proxy, caller_of(request.state), engine_request, translate)

    def _chat_request(self, request: Request, body: requests.Sampling, chat_body: Mapping[str, Any]) -> EngineRequest:
        return chat_request(body.model, chat_body, whole=not body.streamed, wait=waiting_caller(request).wait)

    def _embed_request(self, request: Request, name: str, fields: Mapping[str, Any]) -> EngineRequest:
        make, tokens = body_for_model(fields), estimate(msgspec.json.encode(fields), 1)
        return EngineRequest(EMBED, name, make, tokens=tokens, wait=waiting_caller(request).wait, whole=True)

    async def _load(self, request: Request, kind: answers.Kind, body: requests.Sampling) -> Response:
        """Wait until the model is loaded, or unload it if the request asks for it."""
        if body.unloads:
            await self._unload(caller_of(request.state), body.model)
            return json(answers.unloaded(kind, body.model))
        engine_request = self._chat_request(request, body, {"messages": []})
        started_at = time.monotonic()
        await until_disconnect(request, self._proxy.await_replica(caller_of(request.state), engine_request))
        return json(answers.loaded(kind, body.model, time.monotonic() - started_at))

    def _answer(
        self, request: Request, kind: answers.Kind, body: requests.Sampling, engine_request: EngineRequest
    ) -> Response:
        """Return the response: one JSON object, or a stream of lines."""
        caller, started_at = caller_of(request.state), time.monotonic()
        if body.streamed:
            return TranslatedStream(self._proxy, caller, engine_request, answers.Lines(kind, body.model))

        async def translate(proxied: ProxiedAnswer) -> Any:
            answer = await joined(proxied)
            return answers.final(kind, body.model, answer, proxied.usage, timings(proxied, started_at))

        return TranslatedWhole(self._proxy, caller, engine_request, translate)


async def read(request: Request, limit: int) -> bytes:
    """Return the body without a check of its media type: many of Ollama's clients send none."""
    return bodies.repaired(await bodies.read(request, limit))


async def _vectors(proxied: ProxiedAnswer, model: str, dimensions: int | None = None) -> list[msgspec.Raw]:
    response, _ = await vectors(proxied, model, dimensions)
    return [vector.embedding for vector in response.data]
