"""Requests for speech, images, video, detection and ranking: against a stand-in engine, and against invalid answers."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus.nats_server import free_port
from aima_core.errors import ExecutionFailed, ValidationFailed
from aima_core.testing import until
from aima_engines import engine_answer, engine_http, sse_parser
from aima_engines.engine_answer import Engine
from aima_engines.engine_client import EngineClient
from aima_engines.engine_http import EngineGone
from aima_engines.kinds import image_kinds
from aima_engines.kinds.media_formats import format_of, wav_seconds
from aima_engines.kinds.request_kinds import (
    DETECT,
    EMBED,
    GENERATE_IMAGE,
    GENERATE_VIDEO,
    KINDS,
    RERANK,
    SYNTHESIZE,
    TRANSCRIBE,
    RequestKind,
)
from aima_engines.kinds.speech_kinds import voices
from services.engine.outside.health_check import healthy
from tests.aima_engines.conftest import Parts
from tests.inference.conftest import Saying
from tests.stand_ins.media_engine import PNG, wav

STAND_IN = Path(__file__).parents[1] / "stand_ins" / "media_engine.py"
MP4 = b"\x00\x00\x00\x18ftypisom"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A stand-in engine of media."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-S", str(STAND_IN), "--port", str(port), "--model", "served"])
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(10)


@pytest.fixture
async def engine(client: EngineClient, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(image_kinds, "_POLL", 0.01)
    await until(lambda: healthy(endpoint, "/health", 1))
    return Engine(client, endpoint, "served", whole=False)


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def run(engine: Engine, kind: RequestKind, fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Send one request; return its answer and its parts."""
    parts = Parts()
    answer, _ = await kind.run(engine, fields, parts)
    return answer, parts.all


async def test_speech_is_transcribed(engine: Engine) -> None:
    answer, _ = await run(engine, TRANSCRIBE, {"audio": text_of(wav(b"hi")), "language": "fr"})
    said = "audio.wav: 46 bytes, 53ad338e9e0dd1b0"
    assert answer == {
        "text": said,
        "segments": [{"start": 0.0, "end": 2.0, "text": said}],
        "language": "fr",
        "duration": 2.0,
    }


@pytest.mark.parametrize("kind", [TRANSCRIBE, DETECT])
async def test_a_file_that_is_not_base64_is_refused_by_its_field(engine: Engine, kind: RequestKind) -> None:
    field = "audio" if kind is TRANSCRIBE else "image"
    with pytest.raises(ValidationFailed) as refused:
        await run(engine, kind, {field: "no base64!"})
    assert refused.value.details["fields"] == [{"field": field, "expected": "base64 text (RFC 4648)"}]


async def test_a_transcript_without_a_duration_gets_that_of_its_wav_file(client: EngineClient, saying: Saying) -> None:
    engine = Engine(client, await saying(b'{"text": "hi"}', kind="application/json"), "served", whole=True)
    for audio, seconds in ((wav(bytes(1500)), 1.5), (b"ID3 music", None)):
        answer, _ = await run(engine, TRANSCRIBE, {"audio": text_of(audio)})
        assert answer == {"text": "hi", "segments": [], "language": "", "duration": seconds}


async def test_text_is_spoken_as_a_wav_file(engine: Engine) -> None:
    answer, parts = await run(engine, SYNTHESIZE, {"text": "hi", "voice": "nova"})
    audio = wav(b"nova: hi" * 1000)
    assert answer == {"audio": text_of(audio), "format": "wav", "duration": 8.0}
    assert b"".join(base64.b64decode(part["audio"]) for part in parts) == audio


async def test_an_engine_lists_its_voices(engine: Engine) -> None:
    assert await voices(engine) == [("alloy", "alloy", ""), ("nova", "Nova", "en")]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"size": "64x32"}, "64x32"),
        ({"width": 64, "height": 32}, "64x32"),
        ({"width": 64}, "64x512"),
        ({}, "any size"),
    ],
)
async def test_an_image_is_generated_in_its_size(engine: Engine, fields: dict[str, Any], size: str) -> None:
    answer, _ = await run(engine, GENERATE_IMAGE, {"prompt": "a cat", **fields})
    assert answer == {"images": [text_of(PNG + f"a cat, {size}".encode())], "format": "png"}


async def test_a_video_is_awaited(engine: Engine) -> None:
    answer, parts = await run(engine, GENERATE_VIDEO, {"prompt": "waves", "duration": 2.5, "width": 64, "height": 32})
    assert answer == {"video": text_of(MP4 + b"waves, 64x32"), "format": "mp4", "duration": 2.5}
    assert parts == [{"progress": 0.0}, {"progress": 50.0}]


async def test_a_video_that_fails_names_the_engines_reason(engine: Engine) -> None:
    with pytest.raises(ExecutionFailed) as failed:
        await run(engine, GENERATE_VIDEO, {"prompt": "a failure"})
    assert (failed.value.reason, failed.value.message) == ("ENGINE_FAILED", "the engine failed: the film is torn")


async def test_a_caller_who_leaves_cancels_the_video(
    engine: Engine, client: EngineClient, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_kinds, "_POLL", 600)
    parts = Parts()
    work = asyncio.ensure_future(GENERATE_VIDEO.run(engine, {"prompt": "a long one"}, parts))
    await until(lambda: bool(parts.all))
    work.cancel()
    await asyncio.wait((work,))
    assert work.cancelled()
    reply = await client.ask(f"{endpoint}/v1/videos/video-{len('a long one')}", method="DELETE")
    assert reply.status == 404, "the engine still has the video"
    reply.close()


async def test_objects_are_detected(engine: Engine) -> None:
    answer, _ = await run(engine, DETECT, {"image": text_of(b"12345")})
    assert answer == {"detections": [{"label": "thing", "confidence": 0.5, "box": [0.0, 0.0, 5.0, 1.0]}]}


async def test_documents_are_ranked_best_first(engine: Engine) -> None:
    answer, _ = await run(engine, RERANK, {"query": "a b", "documents": ["c", "a b", "a"]})
    assert answer == {
        "results": [
            {"index": 1, "score": 1.0, "document": "a b"},
            {"index": 2, "score": 0.5, "document": "a"},
            {"index": 0, "score": 0.0, "document": "c"},
        ]
    }


INVALID: list[tuple[RequestKind, dict[str, Any], Any]] = [
    (TRANSCRIBE, {"audio": ""}, {"segments": []}),
    (TRANSCRIBE, {"audio": ""}, []),
    (SYNTHESIZE, {"text": "x"}, b""),
    (GENERATE_IMAGE, {"prompt": "x"}, {"data": []}),
    (GENERATE_IMAGE, {"prompt": "x"}, {"data": [{"url": "http://127.0.0.1/x.png"}]}),
    (GENERATE_IMAGE, {"prompt": "x"}, {"data": [{"b64_json": "!"}]}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"status": "queued"}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"id": "../keys", "status": "queued"}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"id": "..", "status": "queued"}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"id": "a\n", "status": "queued"}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"id": "a", "status": "pending"}),
    (GENERATE_VIDEO, {"prompt": "x"}, {"id": "a", "status": "completed", "seconds": -1}),
    (GENERATE_IMAGE, {"prompt": "x"}, {"data": [{"b64_json": "AAAA"}, {"b64_json": "!"}]}),
    (SYNTHESIZE, {"text": "x"}, {}),
    (EMBED, {"input": ["a", "b"]}, {"data": [{"embedding": [1.0]}]}),
    (EMBED, {"input": "a"}, {"data": [{"embedding": []}]}),
    (RERANK, {"query": "x", "documents": ["a", "b"]}, {"results": [{"index": 0, "score": 1.0}] * 2}),
    (RERANK, {"query": "x", "documents": ["a"]}, {"results": [], "usage": {"prompt_tokens": -5}}),
    (RERANK, {"query": "x", "documents": ["a"]}, {"results": [], "usage": {"total_tokens": 10**15}}),
    (RERANK, {"query": "x", "documents": ["a"]}, {"results": [{"index": 1, "score": 1.0}]}),
    (RERANK, {"query": "x", "documents": ["a"]}, {"results": [{"index": 0}]}),
    (DETECT, {"image": ""}, {"detections": [{"label": "a", "confidence": 1, "box": [1, 2, 3]}]}),
]


@pytest.mark.parametrize(("kind", "fields", "body"), INVALID)
async def test_an_invalid_answer_is_refused(
    client: EngineClient, saying: Saying, kind: RequestKind, fields: Any, body: Any
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    engine = Engine(client, await saying(content, kind="application/json"), "served", whole=True)
    with pytest.raises(ExecutionFailed) as refused:
        await run(engine, kind, fields)
    assert refused.value.reason == "BAD_ANSWER"


async def test_speech_that_is_an_error_object_is_an_error(client: EngineClient, saying: Saying) -> None:
    body = b'{"error": {"message": "no such voice"}}'
    engine = Engine(client, await saying(body, kind="Application/JSON; charset=utf-8"), "served", whole=False)
    with pytest.raises(ExecutionFailed, match="the engine failed: no such voice"):
        await run(engine, SYNTHESIZE, {"text": "x"})


@pytest.mark.parametrize("whole", [True, False])
async def test_an_answer_has_a_largest_size(
    client: EngineClient, saying: Saying, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(engine_answer, "LARGEST", 100_000)
    monkeypatch.setattr(engine_http, "LARGEST", 100_000)
    engine = Engine(client, await saying(bytes(1_000_000), kind="audio/wav"), "served", whole=whole)
    with pytest.raises(ExecutionFailed) as refused:
        await run(engine, SYNTHESIZE, {"text": "x"})
    assert refused.value.reason == "ANSWER_TOO_LARGE"


async def test_the_headers_of_a_reply_have_a_largest_size(client: EngineClient, saying: Saying) -> None:
    engine = Engine(client, await saying(b"", status="200 OK\r\nX: " + "x" * 70_000), "served", whole=True)
    with pytest.raises(EngineGone):
        await run(engine, SYNTHESIZE, {"text": "x"})


def test_a_large_event_in_small_blocks_is_one_event() -> None:
    splitter, data = sse_parser.Splitter(), b"data: " + b"x" * 100_000
    received = [event for start in range(0, len(data), 1000) for event in splitter.feed(data[start : start + 1000])]
    assert (received, splitter.feed(b"\n"), splitter.feed(b"\n: ping\n\n")) == ([], [], [data, b": ping"])


def test_an_event_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_parser, "_LARGEST", 10)
    splitter = sse_parser.Splitter()
    assert splitter.feed(b"data: 123456789\n\ndata: 1") == [b"data: 123456789"]
    with pytest.raises(ExecutionFailed, match="larger than the limit of 10 bytes"):
        splitter.feed(b"234567")


@pytest.mark.parametrize(
    ("data", "content_type", "name"),
    [
        (wav(b""), "audio/mpeg", "wav"),
        (b"RIFF\0\0\0\0WEBP", "", "webp"),
        (MP4, "", "mp4"),
        (b"\0\0\0\0ftypM4A ", "", "m4a"),
        (b"raw", "audio/mpeg; rate=8000", "mp3"),
        (b"raw", "video/quicktime", "quicktime"),
        (b"raw", "application/json", ""),
        (b"", "", ""),
    ],
)
def test_a_format_is_known_by_the_first_bytes_or_the_content_type(data: bytes, content_type: str, name: str) -> None:
    assert format_of(data, content_type) == name


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (wav(bytes(2500)), 2.5),
        (wav(bytes(2500))[:-500], 2.0),
        (wav(bytes(2500)).replace(b"data\xc4\x09\x00\x00", b"data\xff\xff\xff\xff"), 2.5),
        (wav(b"", rate=0), None),
        (wav(b"")[:20], None),
        (b"ID3", None),
    ],
)
def test_the_duration_of_a_wav_file_is_that_of_its_data(data: bytes, seconds: float | None) -> None:
    assert wav_seconds(data) == seconds


def test_the_table_has_every_kind_once() -> None:
    assert len(KINDS) == 9
    assert len({kind.path for kind in KINDS.values()}) == 9
