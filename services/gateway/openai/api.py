"""The OpenAI API for text: models, chat completions, completions, embeddings.

Source: the OpenAI API reference. A request is looked at only as far as it must be - which model, streamed or not - and
its answer is the engine's own, byte for byte, but for the usage at the end of a stream that the client did not ask for.
A whole answer of an engine that would go on for a client who has left is put together from a stream, field by field.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.call import unix
from aima_core.errors import AimaError, NotFound
from services.gateway.anthropic import answers
from services.gateway.engines import translation
from services.gateway.engines.chat_completion import PATH, TEXT, body_for_model, streaming_body, types_for
from services.gateway.engines.embeddings import vectors
from services.gateway.engines.passthrough import EventPassthrough, WholePassthrough
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.entrance import bodies
from services.gateway.entrance.access import Principal
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import estimate
from services.gateway.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling

_LISTED = 10.0  # seconds that the domains get to list what they know
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class OpenAI:
    """The routes of the text API."""

    def __init__(self, asking: Dispatcher, proxy: Proxy, body_limit: int) -> None:
        self._asking = asking
        self._proxy = proxy
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path("/v1/models", {"GET": self.models}),
            fixed_path("/v1/models/{model:path}", {"GET": self.model}),
            fixed_path(PATH, {"POST": self.chat}),
            fixed_path("/v1/completions", {"POST": self.complete}),
            fixed_path("/v1/embeddings", {"POST": self.embed}),
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
        job = EngineRequest(
            "inference.chat",
            asked.model,
            types_for(message.content for message in asked.messages),
            PATH,
            _body(asked, fields),
            streamed=None if asked.stream else streaming_body(fields),
            tokens=estimate(data, asked.max_completion_tokens or asked.max_tokens, asked.answers),
            tools=bool(asked.tools),
            wait=waiting_caller(request).wait,
            whole=not asked.stream,
        )
        return self._sample(request, asked, job)

    async def complete(self, request: Request) -> Response:
        """Let a model continue a text."""
        data = await bodies.read_json(request, self._limit)
        asked, fields = bodies.decode(data, CompletionRequest), _fields(data)
        job = EngineRequest(
            "inference.complete",
            asked.model,
            TEXT,
            "/v1/completions",
            _body(asked, fields),
            streamed=None if asked.stream else streaming_body(fields),
            tokens=estimate(data, asked.max_tokens, asked.answers),
            wait=waiting_caller(request).wait,
            whole=not asked.stream,
        )
        return self._sample(request, asked, job)

    async def embed(self, request: Request) -> Response:
        """Turn texts into vectors."""
        data = await bodies.read_json(request, self._limit)
        asked = bodies.decode(data, EmbeddingRequest)
        job = EngineRequest(
            "inference.embed",
            asked.model,
            ("embedding",),
            "/v1/embeddings",
            body_for_model(_fields(data)),
            tokens=estimate(data, 0),
            wait=waiting_caller(request).wait,
            whole=True,
        )
        if asked.dimensions is None:
            return WholePassthrough(self._proxy, caller_of(request.state), job)

        async def tell(carried: ProxiedAnswer) -> Raw:
            return Raw((await vectors(carried, asked.model, asked.dimensions))[1])

        return translation.TranslatedWhole(self._proxy, caller_of(request.state), job, tell)

    async def models(self, request: Request) -> Response:
        """List the models that have services, as far as the key may use them."""
        caller = caller_of(request.state)
        served, created = await self._served(caller)
        found = [_shown(name, model, created) for model in served for name in _names(model, caller.principal)]
        return json(answers.models(found) if _anthropic(request) else {"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """Show one of them, by any name that it can be asked by."""
        caller, name = caller_of(request.state), request.path_params["model"]
        served, created = await self._served(caller)
        meant = next((model for model in served if _is_called(model, name)), None)
        if meant is None or not caller.principal.may_use(name):
            raise NotFound(f"there is no model {name}", reason="MODEL_NOT_FOUND", model=name)
        found = _shown(name, meant, created)
        return json(answers.model(found) if _anthropic(request) else found)

    async def _served(self, caller: Caller) -> tuple[list[Mapping[str, Any]], Mapping[str, int]]:
        """Return the models that have services, and when each was created."""
        await self._asking.permitted(caller, "inference.models", {})
        asking = self._asking.client.ask("inference.models", {}, timeout=_LISTED, headers=caller.on_behalf())
        served, created = await asyncio.gather(asking, self._created(caller))
        return served.data["models"], created

    async def _created(self, caller: Caller) -> dict[str, int]:
        """Return when models were created, as far as somebody knows: the list does without."""
        try:
            known = await self._asking.client.ask(
                "model.list", {"limit": 1000}, timeout=_LISTED, headers=caller.on_behalf()
            )
        except AimaError:
            return {}
        return {item["id"]: int(unix(item["created_at"])) for item in known.data["items"]}

    def _sample(self, request: Request, asked: Sampling, job: EngineRequest) -> Response:
        caller = caller_of(request.state)
        if not asked.stream:
            return WholePassthrough(self._proxy, caller, job)
        return EventPassthrough(self._proxy, caller, job, usage_told=_told(asked))


def _names(model: Mapping[str, Any], who: Principal) -> list[str]:
    """Return the names under which a model is listed: its id, or those that a key is bound to."""
    if not who.models:
        return [model["id"]]
    names = [model["id"], model["name"], *(service["name"] for service in model["services"])]
    return [name for name in dict.fromkeys(names) if who.may_use(name)]


def _is_called(model: Mapping[str, Any], name: str) -> bool:
    """Whether a model can be asked by a name: its own, or that or the id of one of its services."""
    services = (service[field] for service in model["services"] for field in ("name", "service_id"))
    return name in (model["id"], model["name"], *services)


def _shown(name: str, model: Mapping[str, Any], created: Mapping[str, int]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created.get(model["id"], 0), "owned_by": "aima"}


def _told(asked: Sampling) -> bool:
    """Whether a client wants to be told of the usage at the end of a stream."""
    return bool(asked.stream_options and asked.stream_options.include_usage)


def _body(asked: Sampling, fields: Mapping[str, Raw]) -> Callable[[str], bytes]:
    """Return what makes the engine's body; of a stream, we always want to be told of the usage."""
    return streaming_body(fields) if asked.stream and not _told(asked) else body_for_model(fields)


def _anthropic(request: Request) -> bool:
    """Whether a client of Anthropic's API asks, which lists models at the same path."""
    return "anthropic-version" in request.headers


def _as_system(messages: Raw) -> bytes:
    """Return the messages with the developer's role under its older name, which every template knows."""
    found = msgspec.json.decode(messages, type=list[dict[str, Raw]])
    return _encode([{**m, "role": "system"} if m["role"] == b'"developer"' else m for m in found])
