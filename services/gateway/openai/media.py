"""The OpenAI API for speech and images, and reranking as Jina and Cohere have it.

Sources: the OpenAI API reference (audio, images); the Jina API reference (rerank). Media are the engine's own, passed
on as they come; a ranking is put in order here, because engines differ in what they leave to others.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.call import token
from aima_core.errors import ValidationFailed
from services.gateway.engines.chat_completion import body_for_model
from services.gateway.engines.engine_errors import bad_answer
from services.gateway.engines.passthrough import BlockPassthrough
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, Proxy, TokenUsage
from services.gateway.engines.sse_parser import decoded
from services.gateway.engines.translation import TranslatedWhole
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.dispatch import Dispatcher
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.openai.requests import ModelName, Positive
from services.gateway.openai.uploads import Form, boundary

_TRANSCRIBE = "inference.transcribe"
_RERANK = "/v1/rerank"
_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class SpeechRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/audio/speech`; other fields go on to the engine as they are."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1, max_length=100_000)]
    voice: str | dict[str, Any] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    response_format: str | None = None
    stream_format: Literal["audio", "sse"] | None = None


class ImageRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/images/generations`; other fields go on to the engine as they are."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1, max_length=100_000)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Annotated[str, Meta(pattern=r"^(auto|[0-9]{2,5}x[0-9]{2,5})$")] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None


class Document(msgspec.Struct):
    """A document."""

    text: str


class RerankRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/rerank`."""

    model: ModelName
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=10_000)]
    top_n: Positive | None = None
    return_documents: bool = False


class Ranked(msgspec.Struct):
    """What an engine says of a document; some call the score so."""

    index: Annotated[int, Meta(ge=0)]
    relevance_score: float | None = None
    score: float | None = None


class Used(msgspec.Struct):
    """What an engine says that a ranking used."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class Ranking(msgspec.Struct):
    """What an engine answers."""

    results: list[Ranked]
    usage: Used | None = None


class Media:
    """The routes for media. `upload_limit`: bytes of a body with a file."""

    def __init__(self, asking: Dispatcher, proxy: Proxy, body_limit: int, upload_limit: int) -> None:
        self._asking = asking
        self._proxy = proxy
        self._limit = body_limit
        self._upload_limit = upload_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path("/v1/audio/transcriptions", {"POST": self.transcribe}),
            fixed_path("/v1/audio/translations", {"POST": self.transcribe}),
            fixed_path("/v1/audio/speech", {"POST": self.speak}),
            fixed_path("/v1/images/generations", {"POST": self.imagine}),
            fixed_path(_RERANK, {"POST": self.rerank}),
            fixed_path("/rerank", {"POST": self.rerank}),
        ]

    async def transcribe(self, request: Request) -> Response:
        """Write down what is spoken, or what it means in English."""
        await self._asking.permitted(caller_of(request.state), _TRANSCRIBE, {})  # before so much is read
        form = Form(request.headers.get("content-type", ""))
        await form.read(bodies.blocks(request, self._upload_limit))
        model = form.text("model")
        if not 1 <= len(model) <= 120:
            raise _missing("model", "the name of a model")
        if not form.has_file("file"):
            raise _missing("file", "a file with speech")
        line = boundary()
        headers = {"Content-Type": f"multipart/form-data; boundary={line}", "Accept": "*/*"}
        job = EngineRequest(
            _TRANSCRIBE,
            model,
            ("asr",),
            request.url.path,
            lambda name: form.written(line, {"model": name}),
            headers,
            wait=waiting_caller(request).wait,
        )
        return BlockPassthrough(self._proxy, caller_of(request.state), job)

    async def speak(self, request: Request) -> Response:
        """Speak a text."""
        data = await bodies.read_json(request, self._limit)
        return self._pass(request, bodies.decode(data, SpeechRequest).model, data, "inference.synthesize", "tts")

    async def imagine(self, request: Request) -> Response:
        """Make images of a description."""
        data = await bodies.read_json(request, self._limit)
        asked = bodies.decode(data, ImageRequest)
        return self._pass(request, asked.model, data, "inference.generate_image", "diffusion")

    async def rerank(self, request: Request) -> Response:
        """Order documents by how well they answer a query."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), RerankRequest)
        body: dict[str, Any] = {"query": asked.query, "documents": _texts(asked)}
        if asked.top_n:
            body["top_n"] = asked.top_n
        wait = waiting_caller(request).wait
        job = EngineRequest(
            "inference.rerank", asked.model, ("rerank",), _RERANK, body_for_model(body), wait=wait, whole=True
        )

        async def tell(carried: ProxiedAnswer) -> dict[str, Any]:
            ranking = _read(await carried.whole())
            used = ranking.usage or Used()
            carried.usage = TokenUsage(prompt_tokens=used.prompt_tokens or used.total_tokens)
            return ranked(asked, ranking)

        return TranslatedWhole(self._proxy, caller_of(request.state), job, tell)

    def _pass(self, request: Request, model: str, data: bytes, unit: str, kind: str) -> Response:
        job = EngineRequest(
            unit, model, (kind,), request.url.path, body_for_model(_fields(data)), wait=waiting_caller(request).wait
        )
        return BlockPassthrough(self._proxy, caller_of(request.state), job)


def ranked(asked: RerankRequest, ranking: Ranking) -> dict[str, Any]:
    """Return a ranking: best first, no more than were asked for, with the documents if they were. Pure.

    Raises ExecutionFailed for one that speaks of documents that were not given.
    """
    texts = _texts(asked)
    scored = sorted(((_score(one), one.index) for one in ranking.results), key=lambda found: (-found[0], found[1]))
    if any(index >= len(texts) for _, index in scored):
        raise bad_answer()
    results: list[dict[str, Any]] = []
    for score, index in scored[: asked.top_n]:
        document = {"document": {"text": texts[index]}} if asked.return_documents else {}
        results.append({"index": index, "relevance_score": score, **document})
    used = ranking.usage or Used()
    tokens = used.total_tokens or used.prompt_tokens
    usage = {"prompt_tokens": used.prompt_tokens or tokens, "total_tokens": tokens}
    return {"id": f"rerank-{token(8)}", "object": "list", "model": asked.model, "results": results, "usage": usage}


def _texts(asked: RerankRequest) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in asked.documents]


def _score(one: Ranked) -> float:
    score = one.score if one.relevance_score is None else one.relevance_score
    if score is None:
        raise bad_answer()
    return score


def _read(body: bytes) -> Ranking:
    ranking = decoded(msgspec.json.Decoder(Ranking).decode, body)
    if ranking is None:
        raise bad_answer()
    return ranking


def _missing(field: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{field}: {expected} is needed", fields=[{"field": field, "expected": expected}])
