"""The OpenAI API for speech and images, and reranking as Jina and Cohere have it.

Sources: the OpenAI API reference (audio, images); the Jina API reference (rerank). Media are passed on block by block,
unchanged. A ranking is sorted and cut here, because not every engine does both.
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
    """The body of `/v1/audio/speech`; other fields are passed on to the engine unchanged."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1, max_length=100_000)]
    voice: str | dict[str, Any] | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    response_format: str | None = None
    stream_format: Literal["audio", "sse"] | None = None


class ImageRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/images/generations`; other fields are passed on to the engine unchanged."""

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


class RankedDocument(msgspec.Struct):
    """A document's place in an engine's ranking. Engines call the score either `relevance_score` or `score`."""

    index: Annotated[int, Meta(ge=0)]
    relevance_score: float | None = None
    score: float | None = None


class RankingUsage(msgspec.Struct):
    """The tokens that a ranking used, as the engine counts them."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class Ranking(msgspec.Struct):
    """An engine's response to a rerank request."""

    results: list[RankedDocument]
    usage: RankingUsage | None = None


class Media:
    """The routes for media. `upload_limit`: the most bytes of a body with a file."""

    def __init__(self, dispatcher: Dispatcher, proxy: Proxy, body_limit: int, upload_limit: int) -> None:
        self._dispatcher = dispatcher
        self._proxy = proxy
        self._limit = body_limit
        self._upload_limit = upload_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path("/v1/audio/transcriptions", {"POST": self.transcribe}),
            fixed_path("/v1/audio/translations", {"POST": self.transcribe}),
            fixed_path("/v1/audio/speech", {"POST": self.speak}),
            fixed_path("/v1/images/generations", {"POST": self.imagine}),
            fixed_path(_RERANK, {"POST": self.rerank}),
            fixed_path("/rerank", {"POST": self.rerank}),
        ]

    async def transcribe(self, request: Request) -> Response:
        """Transcribe speech, or translate it into English."""
        await self._dispatcher.permitted(caller_of(request.state), _TRANSCRIBE, {})  # before a large body is read
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
            _TRANSCRIBE,
            model,
            ("asr",),
            request.url.path,
            lambda name: form.written(line, {"model": name}),
            headers,
            wait=waiting_caller(request).wait,
        )
        return BlockPassthrough(self._proxy, caller_of(request.state), engine_request)

    async def speak(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        return self._pass(request, bodies.decode(data, SpeechRequest).model, data, "inference.synthesize", "tts")

    async def imagine(self, request: Request) -> Response:
        data = await bodies.read_json(request, self._limit)
        body = bodies.decode(data, ImageRequest)
        return self._pass(request, body.model, data, "inference.generate_image", "diffusion")

    async def rerank(self, request: Request) -> Response:
        body = bodies.decode(await bodies.read_json(request, self._limit), RerankRequest)
        engine_body: dict[str, Any] = {"query": body.query, "documents": _texts(body)}
        if body.top_n:
            engine_body["top_n"] = body.top_n
        wait = waiting_caller(request).wait
        engine_request = EngineRequest(
            "inference.rerank", body.model, ("rerank",), _RERANK, body_for_model(engine_body), wait=wait, whole=True
        )

        async def translate(proxied: ProxiedAnswer) -> dict[str, Any]:
            ranking = _read(await proxied.whole())
            usage = ranking.usage or RankingUsage()
            proxied.usage = TokenUsage(prompt_tokens=usage.prompt_tokens or usage.total_tokens)
            return ranked(body, ranking)

        return TranslatedWhole(self._proxy, caller_of(request.state), engine_request, translate)

    def _pass(self, request: Request, model: str, data: bytes, unit: str, model_type: str) -> Response:
        engine_request = EngineRequest(
            unit,
            model,
            (model_type,),
            request.url.path,
            body_for_model(_fields(data)),
            wait=waiting_caller(request).wait,
        )
        return BlockPassthrough(self._proxy, caller_of(request.state), engine_request)


def ranked(body: RerankRequest, ranking: Ranking) -> dict[str, Any]:
    """Return a ranking: best first, at most `top_n`, with the documents if the client asked for them. Pure.

    Raises ExecutionFailed if the engine ranks a document that the client did not send.
    """
    texts = _texts(body)
    scored = sorted(((_score(item), item.index) for item in ranking.results), key=lambda pair: (-pair[0], pair[1]))
    if any(index >= len(texts) for _, index in scored):
        raise bad_answer()
    results: list[dict[str, Any]] = []
    for score, index in scored[: body.top_n]:
        document = {"document": {"text": texts[index]}} if body.return_documents else {}
        results.append({"index": index, "relevance_score": score, **document})
    counted = ranking.usage or RankingUsage()
    tokens = counted.total_tokens or counted.prompt_tokens
    usage = {"prompt_tokens": counted.prompt_tokens or tokens, "total_tokens": tokens}
    return {"id": f"rerank-{token(8)}", "object": "list", "model": body.model, "results": results, "usage": usage}


def _texts(body: RerankRequest) -> list[str]:
    return [document if isinstance(document, str) else document.text for document in body.documents]


def _score(item: RankedDocument) -> float:
    score = item.score if item.relevance_score is None else item.relevance_score
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
