"""The fixed paths of all doors: how one is made, and which there are, for the documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Answering = Callable[[Request], Awaitable[Response]]


class FixedPath(NamedTuple):
    """A fixed path, as the documents show it. `tag` groups those that belong together."""

    method: str
    path: str
    summary: str
    tag: str


DOORS = (
    FixedPath("POST", "/api/v2/execute", "Ask the unit that the body names.", "units"),
    FixedPath("POST", "/api/v2/command/{unit}", "Ask a command by its name; the body is its input.", "units"),
    FixedPath("GET", "/api/v2/query/{unit}", "Ask a query by its name; the query string is its input.", "units"),
    FixedPath("POST", "/api/v2/query/{unit}", "Ask a query by its name; the body is its input.", "units"),
    FixedPath("GET", "/api/v2/units", "List the units that are on the bus.", "units"),
    FixedPath("GET", "/api/v2/schema/{unit}", "Describe one unit with its JSON Schemas.", "units"),
    FixedPath("GET", "/api/v2/operations", "List the caller's operations.", "operations"),
    FixedPath("GET", "/api/v2/operations/{id}", "Show an operation.", "operations"),
    FixedPath("DELETE", "/api/v2/operations/{id}", "Cancel an operation.", "operations"),
    FixedPath("GET", "/api/v2/operations/{id}/events", "Follow an operation: server-sent events.", "operations"),
    FixedPath("GET", "/api/v2/events", "Follow what happens: server-sent events.", "events"),
    FixedPath("GET", "/api/v2/resources", "List the addresses that can be read and watched.", "resources"),
    FixedPath("GET", "/api/v2/resource/{uri}", "Read what stands at an address.", "resources"),
    FixedPath(
        "GET", "/api/v2/resource/{uri}/watch", "Follow what stands at an address: server-sent events.", "resources"
    ),
    FixedPath("GET", "/api/v2/health", "Tell how everything that the gateway needs is.", "health"),
    FixedPath("GET", "/health", "Tell that the gateway serves.", "health"),
    FixedPath(
        "GET", "/metrics", "Tell what the system does and the gateway counts, in Prometheus's text format.", "health"
    ),
    FixedPath("GET", "/openapi.json", "Describe everything here in OpenAPI 3.1.", "documents"),
    FixedPath("GET", "/docs", "Show that description as a page.", "documents"),
    FixedPath("GET", "/v1/models", "List the models that can be asked.", "OpenAI"),
    FixedPath("GET", "/v1/models/{model}", "Show one model.", "OpenAI"),
    FixedPath("POST", "/v1/chat/completions", "Answer a conversation.", "OpenAI"),
    FixedPath("POST", "/v1/completions", "Continue a text.", "OpenAI"),
    FixedPath("POST", "/v1/embeddings", "Turn texts into vectors.", "OpenAI"),
    FixedPath("POST", "/v1/responses", "Answer, in the shape of the Responses API.", "OpenAI"),
    FixedPath("POST", "/v1/audio/transcriptions", "Write down what is spoken.", "OpenAI"),
    FixedPath("POST", "/v1/audio/translations", "Write down in English what is spoken.", "OpenAI"),
    FixedPath("POST", "/v1/audio/speech", "Speak a text.", "OpenAI"),
    FixedPath("POST", "/v1/images/generations", "Make images of a description.", "OpenAI"),
    FixedPath("POST", "/v1/rerank", "Order documents by how well they answer a query.", "OpenAI"),
    FixedPath("POST", "/rerank", "The same, where clients of Jina and Cohere look for it.", "OpenAI"),
    FixedPath("POST", "/v1/messages", "Answer a conversation, in the shape of Anthropic's API.", "Anthropic"),
    FixedPath("POST", "/v1/messages/count_tokens", "Count the tokens of a conversation.", "Anthropic"),
    FixedPath("GET", "/api/tags", "List the models, in the shape of Ollama's API.", "Ollama"),
    FixedPath("POST", "/api/chat", "Answer a conversation.", "Ollama"),
    FixedPath("POST", "/api/generate", "Continue a text.", "Ollama"),
    FixedPath("POST", "/api/embed", "Turn texts into vectors.", "Ollama"),
    FixedPath("POST", "/api/embeddings", "Turn a text into a vector, as older clients ask for it.", "Ollama"),
    FixedPath("POST", "/api/show", "Show one model.", "Ollama"),
    FixedPath("GET", "/api/ps", "List the models that are loaded.", "Ollama"),
    FixedPath("POST", "/api/pull", "Pull a model, with its progress.", "Ollama"),
    FixedPath("DELETE", "/api/delete", "Remove a model.", "Ollama"),
    FixedPath("GET", "/api/version", "Tell the version.", "Ollama"),
    FixedPath("GET", "/", "Tell what is here.", "Ollama"),
    FixedPath("POST", "/mcp", "Speak the Model Context Protocol.", "MCP"),
)


class _Endpoint:
    """The ASGI application behind a fixed path: it takes any method, so that no path behind it does.

    What is raised is the gate's to answer, which is why Starlette's own wrapper around each answer is not needed.
    """

    def __init__(self, takes: Mapping[str, Answering], others: Answering | None = None) -> None:
        self._takes = dict(takes)
        self._others = others
        if "GET" in self._takes:
            self._takes.setdefault("HEAD", self._takes["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._takes.get(scope["method"], self._others)
        if answering is None:
            raise HTTPException(405, headers={"Allow": ", ".join(self._takes)})
        response = await answering(Request(scope, receive, send))
        await response(scope, receive, send)


def fixed_path(path: str, takes: Mapping[str, Answering]) -> Route:
    """Return the route of a path that takes these methods; others are told so, whatever comes after it."""
    return Route(path, _Endpoint(takes))


def fixed_path_any_method(path: str, answering: Answering) -> Route:
    """Return the route of a path whose methods only who answers knows."""
    return Route(path, _Endpoint({}, answering))
