"""Serves the OpenAI API for speech and images, and the rerank API of Jina and Cohere.

Sources: the OpenAI API reference (audio, images); the Jina API reference (rerank). The gateway passes media on block by
block, unchanged. It sorts a ranking and cuts it to `top_n`, because some engines do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.call import token
from aima_core.errors import ValidationFailed
from aima_engines.kinds.ranking import read_ranking
from aima_engines.kinds.request_bodies import body_for_model
from aima_engines.kinds.request_kinds import GENERATE_IMAGE, RERANK, SYNTHESIZE, TRANSCRIBE, RequestKind
from services.gateway.engines.passthrough import BlockPassthrough
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy
from services.gateway.engines.translation import TranslatedWhole
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.dispatch import Dispatcher
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.openai.requests import ModelName, Positive
from services.gateway.openai.uploads import Form, boundary

_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class SpeechRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/audio/speech`. The engine also gets all other fields, unchanged."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1, max_length=100_000)]
    voice: str | dict[str, Any] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    response_format: str | None = None
    stream_format: Literal["audio", "sse"] | None = None


class ImageRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/images/generations`. The engine also gets all other fields, unchanged."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1, max_length=100_000)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Annotated[str, Meta(pattern=r"^(auto|[0-9]{2,5}x[0-9]{2,5})$")] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None


class Document(msgspec.Struct):
    """A document to rank."""

    text: str


class RerankRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/rerank`."""

    model: ModelName
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=10_000)]
    top_n: Positive | None = None
    return_documents: bool = False


class Media:
    """The routes for media. `upload_limit` is the maximum number of bytes of a body with a file."""

    def __init__(self, dispatcher: Dispatcher, proxy: Proxy, body_limit: int, upload_limit: int) -> None:
        self._dispatcher = dispatcher
        self._proxy = proxy
        self._limit = body_limit
        self._upload_limit = upload_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path(TRANSCRIBE.path, {"POST": self.transcribe}),
            fixed_path("/v1/audio/translations", {"POST": self.transcribe}),
            fixed_path(SYNTHESIZE.path, {"POST": self.speak}),
            fixed_path(GENERATE_IMAGE.path, {"POST": self.imagine}),
            fixed_path(RERANK.path, {"POST": self.rerank}),
            fixed_path("/rerank", {"POST": self.rerank}),
        ]

    async def transcribe(self, request: Request) -> Response:
        """Transcribe speech, or translate it into English."""
        # check the rights before reading a large body
        await self._dispatcher.permitted(caller_of(request.state), TRANSCRIBE.unit, {})
        form = Form(request.headers.get("content-type", ""))
        await form.read(bodies.blocks(request, self._upload_limit))
        model = form.text("model")
        if not 1 <= len(model) <= 120:
            raise _missing("model", "the name of a model")
        if not form.has_file("file"):
            raise _missing("file", "a file with speech")
        line = boundary()
        headers = {"Content-Type": f"multipart/form-data; boundary={line}", "Accept": "*/*"}
        engine_request = EngineRequest(
            TRANSCRIBE,
            model,
            lambda name: form.written(line, {"model": name}),
            path=request.url.path,  # this may also be the path of translations
            headers=headers,
            wait=waiting_caller(request).wait,
        )
        return BlockPassthrough(self._proxy, caller_of(request.state), engine_request)

    async def speak(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        return self._pass(request, bodies.decode(data, SpeechRequest).model, data, SYNTHESIZE)

    async def imagine(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        body = bodies.decode(data, ImageRequest)
        return self._pass(request, body.model, data, GENERATE_IMAGE)

    async def rerank(self, request: Request) -> Response:
        body = bodies.decode(await bodies.read_json(request, self._limit), RerankRequest)
        engine_body: dict[str, Any] = {"query": body.query, "documents": _texts(body)}
        if body.top_n:
            engine_body["top_n"] = body.top_n
        wait = waiting_caller(request).wait
        engine_request = EngineRequest(RERANK, body.model, body_for_model(engine_body), wait=wait, whole=True)

        async def translate(proxied: ProxiedAnswer) -> dict[str, Any]:
            scored = await read_ranking(proxied, len(body.documents))
            return ranked(body, scored, proxied.usage.prompt_tokens)

        return TranslatedWhole(self._proxy, caller_of(request.state), engine_request, translate)

    def _pass(self, request: Request, model: str, data: bytes, kind: RequestKind) -> Response:
        make, wait = body_for_model(_fields(data)), waiting_caller(request).wait
        return BlockPassthrough(self._proxy, caller_of(request.state), EngineRequest(kind, model, make, wait=wait))


def ranked(body: RerankRequest, scored: Sequence[tuple[int, float]], tokens: int) -> dict[str, Any]:
    """Return a ranking, cut to `top_n`. The ranking has the texts if the client requested them. Pure.

    `scored`: index and score of each document, best first; `tokens`: tokens of the request.
    """
    texts = _texts(body)
    results: list[dict[str, Any]] = []
    for index, score in scored[: body.top_n]:
        document = {"document": {"text": texts[index]}} if body.return_documents else {}
        results.append({"index": index, "relevance_score": score, **document})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": f"rerank-{token(8)}", "object": "list", "model": body.model, "results": results, "usage": usage}


def _texts(body: RerankRequest) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in body.documents]


def _missing(field: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {expected} is needed", fields=[{"field": field, "expected": expected}])
