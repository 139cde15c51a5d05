"""Speech, images and reranking with OpenAI's own client, before a stand-in that runs as the engine of services."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from aima_core.testing import until
from tests.gateway.conftest import ADMIN, Site
from tests.gateway.media_site import media_site
from tests.gateway.scripted_engines import Place, client_of, place
from tests.stand_ins.media_engine import PNG, wav

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 3_000_000  # bytes of an upload
AUDIO = bytes(range(256)) * 4096 + b"\r\n--almost\r\n-"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway, and a running service of each kind of model."""
    async with media_site(tmp_path_factory.mktemp("media"), AIMA_GATEWAY_UPLOAD_LIMIT=str(LIMIT)) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(site: Site) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(site) as found:
        yield found


def heard(name: str, audio: bytes) -> str:
    return f"{name}: {len(audio)} bytes, {hashlib.sha256(audio).hexdigest()[:16]}"


def spoken(audio: bytes = AUDIO, name: str = "talk.wav") -> io.BytesIO:
    file = io.BytesIO(audio)
    file.name = name
    return file


FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


async def long_form() -> AsyncIterator[bytes]:
    """Yield a form that does not say how long it is, and that is too long."""
    yield b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for _ in range(LIMIT // 65536 + 1):
        yield bytes(65536)


# --- speech to text -----------------------------------------------------------------------------------------------


async def test_a_file_is_transcribed_as_it_was_sent(client: AsyncOpenAI) -> None:
    done = await client.audio.transcriptions.create(model="ears", file=spoken())
    assert done.text == heard("talk.wav", AUDIO)


async def test_a_transcription_comes_in_the_form_that_is_asked_for(client: AsyncOpenAI) -> None:
    said = heard("talk.wav", AUDIO)
    for form, wanted in (
        ("text", said),
        ("srt", f"1\n00:00:00,000 --> 00:00:02,000\n{said}\n\n"),
        ("vtt", f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{said}\n\n"),
    ):
        done: Any = await client.audio.transcriptions.create(model="Ears", file=spoken(), response_format=form)
        assert done == wanted
    long = await client.audio.transcriptions.create(
        model="ears-service", file=spoken(), response_format="verbose_json", language="fr", temperature=0.2
    )
    assert (long.text, long.language, long.segments and long.segments[0].end) == (said, "fr", 2.0)


async def test_a_translation_is_one_too(site: Site) -> None:
    file = {"file": ("talk.wav", AUDIO)}
    answer = await site.http.post("/v1/audio/translations", data={"model": "ears"}, files=file)
    assert answer.json()["text"] == f"in English, {heard('talk.wav', AUDIO)}"


async def test_a_form_that_comes_in_single_bytes_is_read_as_well(site: Site) -> None:
    audio = b"\r\n--x\r\n--xy--\r\n-" * 20
    form = (
        b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'
        + audio
        + b'\r\n--xyz\r\ncontent-disposition: form-data; name="model"\r\n\r\nears\r\n--xyz--\r\n'
    )

    async def bytewise() -> AsyncIterator[bytes]:
        for number in range(len(form)):
            yield form[number : number + 1]

    answer = await site.http.post("/v1/audio/transcriptions", content=bytewise(), headers=FORM)
    assert answer.json()["text"] == heard("a.mp3", audio)


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, {"file": ("a.wav", b"x")}, "model"),
        ({"model": "ears"}, {}, "file"),
        ({"model": "ears", "file": "no file"}, {"other": ("a.wav", b"x")}, "file"),
        ({"model": "ears"}, {"file": ("a.wav", b"")}, "file"),
        ({"model": "ears", "prompt": "x" * 70_000}, {"file": ("a.wav", b"x")}, "prompt"),
        ({"model": "voice"}, {"file": ("a.wav", b"x")}, "model"),
    ],
)
async def test_a_form_that_lacks_something_names_the_field(site: Site, fields: Any, files: Any, param: str) -> None:
    files = files or {"nothing": ("a", b"a")}
    answer = await site.http.post("/v1/audio/transcriptions", data=fields, files=files)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"{}", "multipart/form-data", 415),
        (b"no form", "multipart/form-data; boundary=xyz", 400),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nears',
            "multipart/form-data; boundary=xyz",
            400,
        ),
        (b"", "multipart/form-data; boundary=xyz", 400),
        (b"--xyz\r\n" + b"a: b\r\n\r\nc\r\n--xyz\r\n" * 200, "multipart/form-data; boundary=xyz", 400),
    ],
)
async def test_a_body_that_is_no_form_is_refused(site: Site, body: bytes, kind: str, status: int) -> None:
    answer = await site.http.post("/v1/audio/transcriptions", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


async def test_a_file_larger_than_the_limit_is_refused(site: Site, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.audio.transcriptions.create(model="ears", file=spoken(bytes(LIMIT + 1)))
    assert (refused.value.status_code, refused.value.code) == (413, "payload_too_large")

    answer = await site.http.post("/v1/audio/transcriptions", content=long_form(), headers=FORM)
    assert answer.status_code == 413


async def test_what_the_engine_says_of_a_file_reaches_the_client(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the file is no audio"):
        await client.audio.transcriptions.create(model="ears", file=spoken(b"noise"))


# --- text to speech, images, ranking ------------------------------------------------------------------------------


async def test_speech_is_streamed_as_the_engine_makes_it(client: AsyncOpenAI) -> None:
    asked = client.audio.speech.with_streaming_response
    async with asked.create(model="voice", voice="alloy", input="hi", response_format="wav") as speech:
        assert (speech.headers["content-type"], speech.status_code) == ("audio/wav", 200)
        audio = b"".join([block async for block in speech.iter_bytes()])
    assert audio == wav(b"alloy: hi" * 1000)
    whole = await client.audio.speech.create(model="voice", voice="echo", input="hello")
    assert whole.response.headers["content-type"] == "audio/mpeg"
    assert whole.content == b"echo: hello" * 1000
    with pytest.raises(openai.BadRequestError, match="there is no format flac"):
        await client.audio.speech.create(model="voice", voice="echo", input="hello", response_format="flac")


async def test_images_come_as_data_or_as_addresses(client: AsyncOpenAI) -> None:
    images = await client.images.generate(model="brush", prompt="a lighthouse", size="512x512", n=2)
    assert [base64.b64decode(image.b64_json or "") for image in images.data or ()] == [
        PNG + b"a lighthouse, 512x512"
    ] * 2
    (image,) = (await client.images.generate(model="brush", prompt="a cat", response_format="url")).data or ()
    assert image.url
    assert image.url.endswith(".png")


DOCUMENTS = ["bread is made of flour", "paris is the capital of france", {"text": "the capital of spain is madrid"}]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_documents_are_ranked_best_first(site: Site, path: str) -> None:
    asked = {"model": "judge", "query": "capital of France", "documents": DOCUMENTS}
    ranking = (await site.post(path, asked)).json()
    assert (ranking["model"], ranking["usage"]) == ("judge", {"prompt_tokens": 17, "total_tokens": 17})
    ranked = [(found["index"], round(found["relevance_score"], 2)) for found in ranking["results"]]
    assert ranked == [(1, 1.0), (2, 0.67), (0, 0.33)]
    few = (await site.post(path, asked | {"top_n": 1, "return_documents": True})).json()
    assert few["results"] == [
        {"index": 1, "relevance_score": 1.0, "document": {"text": "paris is the capital of france"}}
    ]
    wrong = await site.post(path, asked | {"documents": []})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "documents")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/audio/speech", {"model": "voice"}, "input"),
        ("/v1/audio/speech", {"model": "voice", "input": "x", "speed": 9}, "speed"),
        ("/v1/images/generations", {"model": "brush", "prompt": "x", "n": 11}, "n"),
        ("/v1/images/generations", {"model": "brush", "prompt": "x", "size": "large"}, "size"),
        ("/v1/images/generations", {"model": "judge", "prompt": "x"}, "model"),
        ("/v1/rerank", {"model": "judge", "query": "x", "documents": [7]}, "documents[0]"),
    ],
)
async def test_a_bad_field_is_named(site: Site, path: str, body: dict[str, Any], param: str) -> None:
    answer = await site.post(path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


async def test_what_was_asked_is_recorded_as_a_request(site: Site, client: AsyncOpenAI) -> None:
    async def total() -> int:
        metrics = await site.ask("inference.metrics", service_id="svc-voice-service")
        number: int = metrics["total_requests"]
        return number

    before = await total()
    await client.audio.speech.create(model="voice", voice="echo", input="hello")

    async def recorded() -> bool:
        return await total() == before + 1

    await until(recorded)


# --- where there is no engine -------------------------------------------------------------------------------------


@pytest.fixture
async def bare(tmp_path: Path, nats: Any, free_port: Callable[[], int]) -> AsyncIterator[Place]:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": f"admin:{ADMIN}"}
    async with place(tmp_path / "data", nats, free_port(), **environ) as found:
        yield found


@pytest.mark.asyncio(loop_scope="function")
async def test_a_model_that_no_engine_serves_is_told_from_one_that_is_not_there(bare: Place) -> None:
    async with client_of(bare.site, ADMIN) as client:
        for model, status, code in (("{}", 503, "no_service"), ("nothing", 404, "model_not_found")):
            for ask_for in (
                lambda name: client.audio.transcriptions.create(model=name.format("ears"), file=spoken()),
                lambda name: client.audio.speech.create(model=name.format("voice"), voice="x", input="x"),
                lambda name: client.images.generate(model=name.format("brush"), prompt="x"),
                lambda name: client.post(
                    "/rerank", cast_to=object, body={"model": name.format("judge"), "query": "x", "documents": ["y"]}
                ),
            ):
                with pytest.raises(openai.APIStatusError) as refused:
                    await ask_for(model)
                assert (refused.value.status_code, refused.value.code) == (status, code)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_file_is_not_read_from_somebody_who_may_not_send_it(bare: Place) -> None:
    answer = await bare.site.http.post("/v1/audio/transcriptions", content=long_form(), headers=FORM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
