"""Serves the OpenAI API for text: models, chat completions, completions and embeddings.

Source: the OpenAI API reference. `fields.py` decides which fields the engine gets. The gateway passes the engine's
response on byte for byte, except for the usage at the end of a stream: it is removed if the client did not request it,
and it is the sum if there are several answers.

Some engines continue with a whole response after the client has left. From these engines, the gateway requests a
stream, and assembles the whole response from it, field by field.
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
from aima_core.suggestions import find_named
from aima_engines.kinds.embeddings import vectors
from aima_engines.kinds.request_bodies import body_for_model, streaming_body
from aima_engines.kinds.request_kinds import CHAT, COMPLETE, EMBED
from aima_engines.kinds.text_kinds import types_for_contents
from aima_engines.kinds.tool_choice import choice_of_tool, without_nulls
from services.gateway.anthropic import answers
from services.gateway.engines import translation
from services.gateway.engines.passthrough import EventPassthrough, WholePassthrough
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.engines.usage import whole_answer
from services.gateway.entrance import bodies
from services.gateway.entrance.access import Principal
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import estimate
from services.gateway.openai.completions import check_completion, in_completions_shape
from services.gateway.openai.fields import Extensions, for_engine, refuse_unreadable
from services.gateway.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling

_LIST_TIMEOUT = 10.0  # seconds that the inference domain and the model domain have to list their models
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class OpenAI:
    """The routes of the text API."""

    def __init__(self, dispatcher: Dispatcher, proxy: Proxy, body_limit: int) -> None:
        self._dispatcher = dispatcher
        self._proxy = proxy
        self._limit = body_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path("/v1/models", {"GET": self.models}),
            fixed_path("/v1/models/{model:path}", {"GET": self.model}),
            fixed_path(CHAT.path, {"POST": self.chat}),
            fixed_path(COMPLETE.path, {"POST": self.complete}),
            fixed_path(EMBED.path, {"POST": self.embed}),
        ]

    async def chat(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        body = bodies.decode(data, ChatRequest)
        refuse_unreadable(msgspec.to_builtins(body.messages))
        fields = _for_engine(request, data, body)
        if body.max_completion_tokens and not body.max_tokens:
            fields["max_tokens"] = Raw(_encode(body.max_completion_tokens))  # the older name, which every engine knows
        if any(message.role == "developer" for message in body.messages):
            fields["messages"] = Raw(_as_system(fields["messages"]))
        if body.tools or body.tool_choice:
            tools, choice = choice_of_tool(without_nulls(body.tools or ()), body.tool_choice)
            fields |= {"tools": Raw(_encode(tools)), **({"tool_choice": Raw(_encode(choice))} if choice else {})}
        engine_request = EngineRequest(
            CHAT,
            body.model,
            _make_body(body, fields),
            types=types_for_contents(message.content for message in body.messages),
            streamed=None if body.stream else streaming_body(fields),
            tokens=estimate(data, body.max_completion_tokens or body.max_tokens, body.answers),
            tools=bool(body.tools),
            wait=waiting_caller(request).wait,
            whole=not body.stream,
        )
        return self._sample(request, body, engine_request)

    async def complete(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        body = bodies.decode(data, CompletionRequest)
        check_completion(body)
        fields = _for_engine(request, data, body)
        engine_request = EngineRequest(
            COMPLETE,
            body.model,
            _make_body(body, fields),
            streamed=None if body.stream else streaming_body(fields),
            tokens=estimate(data, body.max_tokens, body.answers),
            wait=waiting_caller(request).wait,
            whole=not body.stream,
        )
        if body.logprobs is None:
            return self._sample(request, body, engine_request)

        async def translate(proxied: ProxiedAnswer) -> dict[str, Any]:
            return in_completions_shape(await whole_answer(proxied, body.n or 1))

        return translation.TranslatedWhole(self._proxy, caller_of(request.state), engine_request, translate)

    async def embed(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        body = bodies.decode(data, EmbeddingRequest)
        engine_request = EngineRequest(
            EMBED,
            body.model,
            body_for_model(_for_engine(request, data, body)),
            tokens=estimate(data, 0),
            wait=waiting_caller(request).wait,
            whole=True,
        )
        if body.dimensions is None:
            return WholePassthrough(self._proxy, caller_of(request.state), engine_request, explain=body.explain)

        async def translate(proxied: ProxiedAnswer) -> Raw:
            return Raw((await vectors(proxied, body.model, body.dimensions))[1])

        return translation.TranslatedWhole(self._proxy, caller_of(request.state), engine_request, translate)

    async def models(self, request: Request) -> Response:
        """List the models that have a service and that the key may use."""
        caller = caller_of(request.state)
        served, created = await self._served(caller)
        listed = [_model_object(name, model, created) for model in served for name in _names(model, caller.principal)]
        return json(answers.models(listed) if _anthropic(request) else {"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """Return a model that has a service. The path has the model's id or name, or the id or name of a service."""
        caller, name = caller_of(request.state), request.path_params["model"]
        served, created = await self._served(caller)
        ident = find_named(name, {model["id"]: _all_names(model) for model in served}, "model")
        match = next((model for model in served if model["id"] == ident), None)
        if match is None or not caller.principal.may_use(name, match["id"], *_all_names(match)):
            raise NotFound(
                f"there is no model {name}; GET /v1/models lists the models", reason="MODEL_NOT_FOUND", model=name
            )
        shown = _model_object(name, match, created)
        return json(answers.model(shown) if _anthropic(request) else shown)

    async def _served(self, caller: Caller) -> tuple[list[Mapping[str, Any]], Mapping[str, int]]:
        """Return the models that have a service, and the Unix time of each model's creation by id."""
        await self._dispatcher.permitted(caller, "inference.models", {})
        serving = self._dispatcher.client.ask("inference.models", {}, timeout=_LIST_TIMEOUT, headers=caller.on_behalf())
        served, created = await asyncio.gather(serving, self._created(caller))
        return served.data["models"], created

    async def _created(self, caller: Caller) -> dict[str, int]:
        """Return the Unix time of each model's creation by id. Empty if the model domain does not answer."""
        try:
            models = await self._dispatcher.client.ask(
                "model.list", {"limit": 1000}, timeout=_LIST_TIMEOUT, headers=caller.on_behalf()
            )
        except AimaError:
            return {}
        return {item["id"]: int(unix(item["created_at"])) for item in models.data["items"]}

    def _sample(self, request: Request, body: Sampling, engine_request: EngineRequest) -> Response:
        caller = caller_of(request.state)
        if not body.stream:
            return WholePassthrough(self._proxy, caller, engine_request, each=body.n or 1)
        return EventPassthrough(
            self._proxy,
            caller,
            engine_request,
            usage_told=_wants_usage(body),
            several=body.answers > 1,
            each=body.n or 1,
        )


def _names(model: Mapping[str, Any], principal: Principal) -> list[str]:
    """Return the names under which `/v1/models` lists a model.

    If the key may use every model, the only name is the model's id. Otherwise, the names are the model's id, its name
    and its services' names. Names that the key may not use are omitted.
    """
    if not principal.models:
        return [model["id"]]
    names = [model["id"], model["name"], *(service["name"] for service in model["services"])]
    return [name for name in dict.fromkeys(names) if principal.may_use(name)]


def _all_names(model: Mapping[str, Any]) -> list[str]:
    """Return the names of a served model, and the names and ids of its services."""
    services = (service[field] for service in model["services"] for field in ("name", "service_id"))
    return [model["name"], *services]


def _model_object(name: str, model: Mapping[str, Any], created: Mapping[str, int]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created.get(model["id"], 0), "owned_by": "aima"}


def _wants_usage(body: Sampling) -> bool:
    """Whether the client requests the usage at the end of a stream."""
    return bool(body.stream_options and body.stream_options.include_usage)


def _make_body(body: Sampling, fields: Mapping[str, Raw]) -> Callable[[str], bytes]:
    """Return the function that makes the body for the engine.

    A stream always requests the usage, for quotas. A request for several answers is always a stream, because the usage
    of a whole answer counts only one of them.
    """
    streams = (body.stream and not _wants_usage(body)) or (not body.stream and body.answers > 1)
    return streaming_body(fields) if streams else body_for_model(fields)


def _for_engine(request: Request, data: bytes, body: msgspec.Struct) -> dict[str, Raw]:
    """Return the fields that the engine gets. The response names the fields that are left out.

    A whole number that is written as a float reaches the engine as an integer.
    """
    bodies.decode(data, Extensions)  # checks their bounds
    fields, left_out = for_engine(_fields(data))
    request.state.ignored = left_out
    integers = {name: value for name in fields if type(value := getattr(body, name, None)) is int}
    return fields | {name: Raw(_encode(value)) for name, value in integers.items()}


def _anthropic(request: Request) -> bool:
    """Whether the request comes from a client of Anthropic's API, which lists models at the same path."""
    return "anthropic-version" in request.headers


def _as_system(messages: Raw) -> bytes:
    """Replace the role `developer` by its older name `system`, which every chat template knows."""
    turns = msgspec.json.decode(messages, type=list[dict[str, Raw]])
    return _encode([{**turn, "role": "system"} if turn["role"] == b'"developer"' else turn for turn in turns])
