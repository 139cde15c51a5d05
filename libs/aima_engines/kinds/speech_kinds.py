"""Requests about speech: transcripts, speech from text, and the list of voices.

Source: the OpenAI API reference (audio). Engines list their voices under `/v1/audio/voices`, an extension that
Kokoro-FastAPI introduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aima_engines.decoding import decoded
from aima_engines.engine_answer import Engine, EngineBody
from aima_engines.engine_errors import bad_answer, empty_answer, error_in
from aima_engines.kinds.exchange import Exchange
from aima_engines.kinds.media_formats import base64_of, decoded_base64, format_of, wav_seconds
from aima_engines.kinds.request_bodies import form_body, json_body


class _Segment(msgspec.Struct):
    start: float
    end: float
    text: str


class _Transcript(msgspec.Struct):
    text: str
    language: str | None = None
    duration: float | str | None = None  # OpenAI's API sends the number as a text
    segments: list[_Segment] | None = None


class _Voice(msgspec.Struct):
    id: str
    name: str | None = None
    language: str | None = None


class _Voices(msgspec.Struct):
    voices: list[_Voice | str]


_read_transcript = msgspec.json.Decoder(_Transcript, strict=False).decode
_read_voices = msgspec.json.Decoder(_Voices).decode


def transcription_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the form for a transcription. Raises ValidationFailed if `audio` is not base64."""
    audio = decoded_base64(fields["audio"], "audio")
    texts = {"model": model, "response_format": "verbose_json"}
    if language := fields.get("language"):
        texts["language"] = language
    return form_body(texts, audio, f"audio.{format_of(audio) or 'bin'}")


async def transcript(exchange: Exchange) -> dict[str, Any]:
    """Return a transcript. `duration` is the duration in the engine's answer.

    If the answer has no duration, `duration` is the length of the WAV file, or None if the audio is not a WAV file.
    """
    answer = decoded(_read_transcript, await exchange.answer.whole())
    if answer is None:
        raise bad_answer()
    duration = _seconds(answer.duration)
    if duration is None:
        duration = wav_seconds(decoded_base64(exchange.fields["audio"], "audio"))
    return {
        "text": answer.text,
        "segments": [msgspec.to_builtins(segment) for segment in answer.segments or ()],
        "language": answer.language or exchange.fields.get("language") or "",
        "duration": duration,
    }


def speech_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the body that requests speech as a WAV file: AIMA can read its duration, and every player plays it."""
    body = {"input": fields["text"], "response_format": "wav"}
    if voice := fields.get("voice"):
        body["voice"] = voice
    return json_body(body, model)


async def speech(exchange: Exchange) -> dict[str, Any]:
    """Return the audio of a text; send pieces of the audio as parts. `duration` is None if the audio is not a WAV."""
    blocks = []
    if exchange.answer.content_type.startswith(("application/json", "text/")):
        raise error_in(await exchange.answer.whole())
    async for block in exchange.answer.blocks():
        blocks.append(block)
        await exchange.send({"audio": base64_of(block)})
    audio = b"".join(blocks)
    if not audio:
        raise empty_answer()
    kind = format_of(audio, exchange.answer.content_type)
    return {"audio": base64_of(audio), "format": kind, "duration": wav_seconds(audio)}


async def voices(engine: Engine) -> list[tuple[str, str, str]]:
    """Return id, name and language of each of the engine's voices; an empty list if the answer is invalid.

    Raises the engine's error, such as ValidationFailed if the engine does not list voices, and EngineGone.
    """
    async with engine.ask("/v1/audio/voices", EngineBody(), method="GET") as answer:
        listed = decoded(_read_voices, await answer.whole())
    entries = [_Voice(entry) if isinstance(entry, str) else entry for entry in (listed.voices if listed else ())]
    return [(voice.id, voice.name or voice.id, voice.language or "") for voice in entries]


def _seconds(duration: float | str | None) -> float | None:
    try:
        return None if duration is None else float(duration)
    except ValueError:
        return None
