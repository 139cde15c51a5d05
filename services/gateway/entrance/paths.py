"""Lists the fixed paths of all doors for the documents, and builds the routes of fixed paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.options import refuse_in_query, refuse_options

Answering = Callable[[Request], Awaitable[Response]]


class FixedPath(NamedTuple):
    """A fixed path, as the documents show it. `tag` is the path's group in the OpenAPI document."""

    method: str
    path: str
    summary: str
    tag: str


DOORS = (
    FixedPath("POST", "/api/v2/execute", "Call the unit that the body names.", "units"),
    FixedPath("POST", "/api/v2/command/{unit}", "Call a command by its name; the body is its input.", "units"),
    FixedPath("GET", "/api/v2/query/{unit}", "Call a query by its name; the query string is its input.", "units"),
    FixedPath("POST", "/api/v2/query/{unit}", "Call a query by its name; the body is its input.", "units"),
    FixedPath("GET", "/api/v2/units", "List the units on the bus.", "units"),
    FixedPath("GET", "/api/v2/schema/{unit}", "Describe a unit with its JSON Schemas.", "units"),
    FixedPath("GET", "/api/v2/operations", "List the caller's operations.", "operations"),
    FixedPath("GET", "/api/v2/operations/{id}", "Show an operation.", "operations"),
    FixedPath("DELETE", "/api/v2/operations/{id}", "Cancel an operation.", "operations"),
    FixedPath(
        "GET", "/api/v2/operations/{id}/events", "Stream an operation's progress (server-sent events).", "operations"
    ),
    FixedPath("GET", "/api/v2/events", "Stream the events of all domains (server-sent events).", "events"),
    FixedPath("GET", "/api/v2/resources", "List the resources that can be read and watched.", "resources"),
    FixedPath("GET", "/api/v2/resource/{uri}", "Read a resource.", "resources"),
    FixedPath(
        "GET", "/api/v2/resource/{uri}/watch", "Stream the changes of a resource (server-sent events).", "resources"
    ),
    FixedPath("GET", "/api/v2/health", "Return the health of the gateway, the bus and the domains.", "health"),
    FixedPath("GET", "/health", "Return 200 while the gateway serves requests.", "health"),
    FixedPath("GET", "/metrics", "Return the metrics of AIMA and the gateway in Prometheus's text format.", "health"),
    FixedPath("GET", "/openapi.json", "Return the OpenAPI 3.1 document of all paths.", "documents"),
    FixedPath("GET", "/docs", "Show the OpenAPI document as a web page.", "documents"),
    FixedPath("GET", "/v1/models", "List the served models.", "OpenAI"),
    FixedPath("GET", "/v1/models/{model}", "Show a model.", "OpenAI"),
    FixedPath("POST", "/v1/chat/completions", "Answer the messages of a conversation.", "OpenAI"),
    FixedPath("POST", "/v1/completions", "Complete a text.", "OpenAI"),
    FixedPath("POST", "/v1/embeddings", "Embed texts: return a vector for each.", "OpenAI"),
    FixedPath("POST", "/v1/responses", "Answer a request of the Responses API.", "OpenAI"),
    FixedPath("POST", "/v1/audio/transcriptions", "Transcribe speech.", "OpenAI"),
    FixedPath("POST", "/v1/audio/translations", "Transcribe speech and translate it into English.", "OpenAI"),
    FixedPath("POST", "/v1/audio/speech", "Read a text aloud: return speech.", "OpenAI"),
    FixedPath("POST", "/v1/images/generations", "Generate images from a description.", "OpenAI"),
    FixedPath("POST", "/v1/rerank", "Rank documents by their relevance to a query.", "OpenAI"),
    FixedPath("POST", "/rerank", "The same as /v1/rerank, at the path that clients of Jina and Cohere use.", "OpenAI"),
    FixedPath("POST", "/v1/messages", "Answer the messages of a conversation, as Anthropic's API does.", "Anthropic"),
    FixedPath("POST", "/v1/messages/count_tokens", "Count the tokens of a conversation.", "Anthropic"),
    FixedPath("GET", "/api/tags", "List the models that are ready to serve.", "Ollama"),
    FixedPath("POST", "/api/chat", "Answer the messages of a conversation.", "Ollama"),
    FixedPath("POST", "/api/generate", "Answer a prompt.", "Ollama"),
    FixedPath("POST", "/api/embed", "Embed texts: return a vector for each.", "Ollama"),
    FixedPath("POST", "/api/embeddings", "Embed one text; older clients use this path.", "Ollama"),
    FixedPath("POST", "/api/show", "Show a model.", "Ollama"),
    FixedPath("GET", "/api/ps", "List the loaded models.", "Ollama"),
    FixedPath("POST", "/api/pull", "Pull a model and stream the progress.", "Ollama"),
    FixedPath("DELETE", "/api/delete", "Delete a model.", "Ollama"),
    FixedPath("GET", "/api/version", "Return the release of Ollama whose API the gateway serves.", "Ollama"),
    FixedPath("GET", "/", "Return a short text about this server.", "Ollama"),
    FixedPath("POST", "/mcp", "Send a message of the Model Context Protocol.", "MCP"),
)


class _Endpoint:
    """The ASGI application of a fixed path. It answers every method, so no later route matches the path.

    The gate turns the errors of this application into responses. So this class replaces Starlette's own wrapper, which
    would handle the errors itself. Unless the path `calls_unit`, it also refuses the options of a call.
    """

    def __init__(
        self, methods: Mapping[str, Answering], others: Answering | None = None, *, calls_unit: bool = False
    ) -> None:
        self._methods = dict(methods)
        self._others = others
        self._calls_unit = calls_unit
        if "GET" in self._methods:
            self._methods.setdefault("HEAD", self._methods["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._methods.get(scope["method"], self._others)
        if answering is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._methods)})
        request = Request(scope, receive, send)
        if not self._calls_unit:
            query = scope["query_string"].decode("latin-1")
            refuse_in_query(name for name, _ in parse_qsl(query, keep_blank_values=True))
            refuse_options(caller_of(request.state), scope["path"])
        response = await answering(request)
        await response(scope, receive, send)


def fixed_path(path: str, methods: Mapping[str, Answering], *, calls_unit: bool = False) -> Route:
    """Return the route of a path with these methods. Other methods get 405, even if a later route matches.

    `calls_unit`: the path passes the options of a call to a unit.
    """
    return Route(path, _Endpoint(methods, calls_unit=calls_unit))


def fixed_path_any_method(path: str, answering: Answering) -> Route:
    """Return the route of a path that passes every method, and the options of a call, to `answering`."""
    return Route(path, _Endpoint({}, answering, calls_unit=True))
