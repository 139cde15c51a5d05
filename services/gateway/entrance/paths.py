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


class Door(NamedTuple):
    """A fixed path, as the documents show it. `tag` groups those that belong together."""

    method: str
    path: str
    summary: str
    tag: str


DOORS = (
    Door("POST", "/api/v2/execute", "Ask the unit that the body names.", "units"),
    Door("POST", "/api/v2/command/{unit}", "Ask a command by its name; the body is its input.", "units"),
    Door("GET", "/api/v2/query/{unit}", "Ask a query by its name; the query string is its input.", "units"),
    Door("POST", "/api/v2/query/{unit}", "Ask a query by its name; the body is its input.", "units"),
    Door("GET", "/api/v2/units", "List the units that are on the bus.", "units"),
    Door("GET", "/api/v2/schema/{unit}", "Describe one unit with its JSON Schemas.", "units"),
    Door("GET", "/api/v2/operations", "List the caller's operations.", "operations"),
    Door("GET", "/api/v2/operations/{id}", "Show an operation.", "operations"),
    Door("DELETE", "/api/v2/operations/{id}", "Cancel an operation.", "operations"),
    Door("GET", "/api/v2/operations/{id}/events", "Follow an operation: server-sent events.", "operations"),
    Door("GET", "/api/v2/events", "Follow what happens: server-sent events.", "events"),
    Door("GET", "/api/v2/resources", "List the addresses that can be read and watched.", "resources"),
    Door("GET", "/api/v2/resource/{uri}", "Read what stands at an address.", "resources"),
    Door("GET", "/api/v2/resource/{uri}/watch", "Follow what stands at an address: server-sent events.", "resources"),
    Door("GET", "/api/v2/health", "Tell how everything that the gateway needs is.", "health"),
    Door("GET", "/health", "Tell that the gateway serves.", "health"),
    Door("GET", "/metrics", "Tell what the system does and the gateway counts, in Prometheus's text format.", "health"),
    Door("GET", "/openapi.json", "Describe everything here in OpenAPI 3.1.", "documents"),
    Door("GET", "/docs", "Show that description as a page.", "documents"),
    Door("GET", "/v1/models", "List the models that can be asked.", "OpenAI"),
    Door("GET", "/v1/models/{model}", "Show one model.", "OpenAI"),
    Door("POST", "/v1/chat/completions", "Answer a conversation.", "OpenAI"),
    Door("POST", "/v1/completions", "Continue a text.", "OpenAI"),
    Door("POST", "/v1/embeddings", "Turn texts into vectors.", "OpenAI"),
    Door("POST", "/v1/responses", "Answer, in the shape of the Responses API.", "OpenAI"),
    Door("POST", "/v1/audio/transcriptions", "Write down what is spoken.", "OpenAI"),
    Door("POST", "/v1/audio/translations", "Write down in English what is spoken.", "OpenAI"),
    Door("POST", "/v1/audio/speech", "Speak a text.", "OpenAI"),
    Door("POST", "/v1/images/generations", "Make images of a description.", "OpenAI"),
    Door("POST", "/v1/rerank", "Order documents by how well they answer a query.", "OpenAI"),
    Door("POST", "/rerank", "The same, where clients of Jina and Cohere look for it.", "OpenAI"),
    Door("POST", "/v1/messages", "Answer a conversation, in the shape of Anthropic's API.", "Anthropic"),
    Door("POST", "/v1/messages/count_tokens", "Count the tokens of a conversation.", "Anthropic"),
    Door("GET", "/api/tags", "List the models, in the shape of Ollama's API.", "Ollama"),
    Door("POST", "/api/chat", "Answer a conversation.", "Ollama"),
    Door("POST", "/api/generate", "Continue a text.", "Ollama"),
    Door("POST", "/api/embed", "Turn texts into vectors.", "Ollama"),
    Door("POST", "/api/embeddings", "Turn a text into a vector, as older clients ask for it.", "Ollama"),
    Door("POST", "/api/show", "Show one model.", "Ollama"),
    Door("GET", "/api/ps", "List the models that are loaded.", "Ollama"),
    Door("POST", "/api/pull", "Pull a model, with its progress.", "Ollama"),
    Door("DELETE", "/api/delete", "Remove a model.", "Ollama"),
    Door("GET", "/api/version", "Tell the version.", "Ollama"),
    Door("GET", "/", "Tell what is here.", "Ollama"),
    Door("POST", "/mcp", "Speak the Model Context Protocol.", "MCP"),
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


def door(path: str, takes: Mapping[str, Answering]) -> Route:
    """Return the route of a path that takes these methods; others are told so, whatever comes after it."""
    return Route(path, _Endpoint(takes))


def door_of_any(path: str, answering: Answering) -> Route:
    """Return the route of a path whose methods only who answers knows."""
    return Route(path, _Endpoint({}, answering))
