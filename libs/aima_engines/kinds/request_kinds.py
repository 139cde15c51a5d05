"""The kinds of requests: which types of models serve each, where an engine serves it, and how both sides are written.

Every door and every domain calls an engine by this table. A new kind is a row here, with a function for its body and
one for its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_engines.engine_answer import Engine, EngineAnswer, EngineBody
from aima_engines.kinds import image_kinds, ranking, speech_kinds, text_kinds
from aima_engines.kinds.exchange import Exchange, SendPart
from aima_engines.kinds.request_bodies import json_body, streamed_json_body

DIALECT = "openai"  # the one dialect of engines, in the words of their manifests


@dataclass(frozen=True)
class RequestKind:
    """A kind of request. `unit`: the unit that asks for it; `types`: the types of models that serve it.

    `path`: of the engine's API. `body(fields, model)` returns the engine's body for a unit's fields, and
    `answer(exchange)` the unit's answer. `narrow(fields)`: the types that serve these fields, if not all do.
    """

    unit: str
    types: tuple[str, ...]
    path: str
    body: Callable[[Mapping[str, Any], str], EngineBody]
    answer: Callable[[Exchange], Awaitable[dict[str, Any]]]
    narrow: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None

    def types_for(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the types of models that can serve a request with these fields."""
        return self.narrow(fields) if self.narrow else self.types

    async def run(
        self, engine: Engine, fields: Mapping[str, Any], send: SendPart
    ) -> tuple[dict[str, Any], EngineAnswer]:
        """Return the unit's answer and the engine's. `fields`: those of the unit, without the model.

        Raises the engine's error, ExecutionFailed for an invalid answer, ValidationFailed for fields that cannot be
        sent, and EngineGone if the connection closes.
        """
        async with engine.ask(self.path, self.body(fields, engine.model)) as answer:
            return await self.answer(Exchange(engine, fields, answer, send)), answer


CHAT = RequestKind(
    "inference.chat",
    text_kinds.TEXT,
    "/v1/chat/completions",
    streamed_json_body,
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
