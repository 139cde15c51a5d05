"""The table of the kinds of requests: for each kind its unit, model types, path, body and answer.

Every door and every domain calls engines by this table. A new kind is a new row, with one function that writes the
engine's body and one that reads the engine's answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_engines.engine_answer import Engine, EngineAnswer, EngineBody
from aima_engines.kinds import image_kinds, ranking, speech_kinds, text_kinds
from aima_engines.kinds.exchange import Exchange, SendPart
from aima_engines.kinds.request_bodies import chat_body, json_body, streamed_json_body

DIALECT = "openai"  # the only dialect so far, as manifests name it


@dataclass(frozen=True)
class RequestKind:
    """A kind of request. `unit`: the unit that sends such requests. `types`: the model types that serve the kind.

    `path`: the path in the engine's API. `body(fields, model)` returns the engine's body for a unit's fields.
    `answer(exchange)` returns the unit's answer. `narrow(fields)` returns the model types that serve these fields. A
    kind has `narrow` only if some of its requests need a special model type.
    """

    unit: str
    types: tuple[str, ...]
    path: str
    body: Callable[[Mapping[str, Any], str], EngineBody]
    answer: Callable[[Exchange], Awaitable[dict[str, Any]]]
    narrow: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None

    def types_for(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the model types that can serve a request with these fields."""
        return self.narrow(fields) if self.narrow else self.types

    async def run(
        self, engine: Engine, fields: Mapping[str, Any], send: SendPart
    ) -> tuple[dict[str, Any], EngineAnswer]:
        """Send a request; return the unit's and the engine's answer. `fields`: the unit's fields without the model.

        Raises the engine's error, ExecutionFailed if the answer is invalid, ValidationFailed if a field is not valid
        base64, and EngineGone if the connection closes.
        """
        async with engine.ask(self.path, self.body(fields, engine.model)) as answer:
            return await self.answer(Exchange(engine, fields, answer, send)), answer


CHAT = RequestKind(
    "inference.chat",
    text_kinds.TEXT,
    "/v1/chat/completions",
    chat_body,
    text_kinds.chat,
    text_kinds.types_for_chat,
)
COMPLETE = RequestKind(
    "inference.complete", text_kinds.TEXT, "/v1/completions", streamed_json_body, text_kinds.completion
)
EMBED = RequestKind("inference.embed", ("embedding",), "/v1/embeddings", json_body, text_kinds.embeddings)
TRANSCRIBE = RequestKind(
    "inference.transcribe",
    ("asr",),
    "/v1/audio/transcriptions",
    speech_kinds.transcription_body,
    speech_kinds.transcript,
)
SYNTHESIZE = RequestKind(
    "inference.synthesize", ("tts",), "/v1/audio/speech", speech_kinds.speech_body, speech_kinds.speech
)
GENERATE_IMAGE = RequestKind(
    "inference.generate_image",
    ("diffusion",),
    "/v1/images/generations",
    image_kinds.image_body,
    image_kinds.images,
)
GENERATE_VIDEO = RequestKind(
    "inference.generate_video", ("video_gen",), image_kinds.VIDEOS, image_kinds.video_body, image_kinds.video
)
RERANK = RequestKind("inference.rerank", ("rerank",), "/v1/rerank", json_body, ranking.ranking)
DETECT = RequestKind(
    "inference.detect", ("detection",), "/v1/detect", image_kinds.detection_body, image_kinds.detections
)
KINDS: Mapping[str, RequestKind] = {
    kind.unit: kind
    for kind in (
        CHAT,
        COMPLETE,
        EMBED,
        TRANSCRIBE,
        SYNTHESIZE,
        GENERATE_IMAGE,
        GENERATE_VIDEO,
        RERANK,
        DETECT,
    )
}
