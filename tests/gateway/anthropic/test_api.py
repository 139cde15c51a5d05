"""Anthropic's API with its own client: the real model, stand-ins where it cannot, and the translation as tables."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import msgspec
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from hypothesis import given

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import AimaError, ValidationFailed
from aima_core.testing import until
from aima_engines.chat_deltas import ChatAnswer, ChatDelta, Function, ToolCall, ToolCallDelta
from aima_engines.engine_answer import TokenUsage
from services.gateway.anthropic import answers as answers
from services.gateway.anthropic import requests as requests
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.translation import Timings
from services.gateway.entrance import bodies
from tests.gateway.conftest import ADMIN
from tests.gateway.model_fixtures import LONG, MODEL, NUMBERS, TOY, Real, bodies_of, real, stage
from tests.gateway.scripted_engines import Line, chunk, place

ASKED: Any = [{"role": "user", "content": "Tell me a long story about the sea."}]
SURE = {"temperature": 0}
TOOL: Any = {"name": "look_up", "description": "Look it up.", "input_schema": {"type": "object", "properties": {}}}
PNG = "iVBORw0KGgo="


def client(url: str, key: str = "any") -> AsyncAnthropic:
    return AsyncAnthropic(base_url=url, api_key=key, max_retries=0, timeout=60)


# --- the real model -----------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    async with real(tmp_path_factory.mktemp("anthropic") / "data") as found:
        yield found


in_one_loop = pytest.mark.asyncio(loop_scope="module")


@in_one_loop
async def test_a_message_is_answered_and_its_tokens_are_those_that_were_counted(served: Real) -> None:
    async with client(served.url) as claude:
        asked: Any = {"model": MODEL, "messages": ASKED, "system": "You are a sailor."}
        said = await claude.messages.create(**asked, max_tokens=8, extra_body=SURE)
        assert (said.type, said.role, said.model, said.stop_reason) == ("message", "assistant", MODEL, "max_tokens")
        assert said.id.startswith("msg_")
        assert said.content[0].type == "text"
        assert said.content[0].text
        assert said.usage.output_tokens == 8
        counted = await claude.messages.count_tokens(**asked)
        assert counted.input_tokens == said.usage.input_tokens > 5


@in_one_loop
async def test_a_stream_tells_its_events_in_order_and_comes_to_the_whole_message(served: Real) -> None:
    async with client(served.url) as claude:
        async with claude.messages.stream(model=MODEL, max_tokens=6, messages=ASKED, extra_body=SURE) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        told = [kind for kind in kinds if kind != "text"]
        assert told[:2] == ["message_start", "content_block_start"]
        assert set(told[2:-3]) == {"content_block_delta"}
        assert told[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert final.content[0].type == "text"
        assert final.content[0].text
        assert final.stop_reason == "max_tokens"
        assert (final.usage.output_tokens, final.usage.input_tokens > 5) == (6, True)


@in_one_loop
async def test_models_are_listed_in_the_shape_of_who_asks(served: Real) -> None:
    async with client(served.url) as claude:
        listed = await claude.models.list()
        (one,) = [model async for model in listed]
        assert (one.type, one.id, one.display_name) == ("model", MODEL, MODEL)
        assert one.created_at.year >= 2025
        assert (listed.first_id, listed.last_id, listed.has_more) == (MODEL, MODEL, False)
        assert (await claude.models.retrieve(MODEL)).id == MODEL


@in_one_loop
async def test_an_answer_fits_the_schema_that_it_has_to(served: Real) -> None:
    schema = {"type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"]}
    async with client(served.url) as claude:
        said = await claude.messages.create(
            model=MODEL,
            max_tokens=60,
            messages=[{"role": "user", "content": "Is Paris big?"}],
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
        assert said.content[0].type == "text"
        assert isinstance(msgspec.json.decode(said.content[0].text)["big"], bool)


@in_one_loop
async def test_a_client_who_goes_away_in_mid_stream_frees_the_engines_slot(served: Real) -> None:
    async with client(served.url) as claude:
        long: Any = {"output_config": {"format": {"type": "json_schema", "schema": NUMBERS}}}
        async with claude.messages.stream(model=MODEL, max_tokens=2000, messages=ASKED, **long) as stream:
            await anext(stream.text_stream)
            assert await served.busy() == 1
        await until(served.idle)


@in_one_loop
async def test_what_is_wrong_is_told_as_the_client_knows_it(served: Real) -> None:
    async with client(served.url) as claude:
        with pytest.raises(anthropic.NotFoundError, match="there is no model nope") as missing:
            await claude.messages.create(model="nope", max_tokens=1, messages=ASKED)
        body: Any = missing.value.body
        assert body["type"] == "error"
        assert body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.NotFoundError):
            await claude.messages.create(model="nope", max_tokens=1, messages=ASKED, stream=True)
        with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.role"):
            await claude.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "nobody", "content": "x"}])  # type: ignore[typeddict-item]
        with pytest.raises(anthropic.BadRequestError, match="does not support tools"):
            await claude.messages.create(model=MODEL, max_tokens=1, messages=ASKED, tools=[TOOL])
        search: Any = {"type": "web_search_20250305", "name": "web_search"}
        with pytest.raises(anthropic.BadRequestError, match="web_search"):
            await claude.messages.create(model=MODEL, max_tokens=1, messages=ASKED, tools=[search])
        with pytest.raises(anthropic.APIStatusError) as large:
            await claude.messages.create(
                model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "x" * (9 * 2**20)}]
            )
        assert large.value.status_code == 413
        huge: Any = large.value.body
        assert huge["error"]["type"] == "request_too_large"


# --- stand-ins for what the small model cannot --------------------------------------------------------------------


async def test_a_tool_is_called_and_its_result_is_answered(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.engine()
        asked: Any = {"model": TOY, "max_tokens": 100, "tools": [TOOL, {**TOOL, "name": "other"}]}
        turn: Any = {"role": "user", "content": "what is it"}
        said = await claude.messages.create(**asked, messages=[turn], tool_choice={"type": "tool", "name": "other"})
        (call,) = said.content
        assert said.stop_reason == "tool_use"
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("other", {"asked": "what is it"})

        async with claude.messages.stream(**asked, messages=[turn]) as stream:
            deltas = [e.partial_json async for e in stream if e.type == "input_json"]
            streamed = await stream.get_final_message()
        assert "".join(deltas) == '{"asked": "what is it"}'
        (call,) = streamed.content
        assert call.type == "tool_use"
        assert (call.name, call.input, streamed.stop_reason) == ("look_up", {"asked": "what is it"}, "tool_use")

        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "a box"}]}
        history: Any = [turn, {"role": "assistant", "content": streamed.content}, {"role": "user", "content": [result]}]
        answered = await claude.messages.create(**asked, messages=history)
        assert answered.content[0].type == "text"
        assert answered.content[0].text.startswith("echo: a box")


async def test_an_image_reaches_the_engine(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.engine(model_type="vlm")
        image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
        content = [image, {"type": "text", "text": "look"}]
        said = await claude.messages.create(model=TOY, max_tokens=3, messages=[{"role": "user", "content": content}])
        assert said.content[0].type == "text"
        assert said.content[0].text == "echo: look data:image/png;base64"


async def test_a_model_that_does_not_see_is_given_no_image(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.engine()
        image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
        turn: Any = {"role": "user", "content": [image]}
        with pytest.raises(anthropic.BadRequestError, match="toy is of type llm; this request needs vlm"):
            await claude.messages.create(model=TOY, max_tokens=3, messages=[turn])
        with pytest.raises(anthropic.BadRequestError, match="toy is of type llm; this request needs vlm"):
            await claude.messages.count_tokens(model=TOY, messages=[turn])


@pytest.mark.parametrize("field", ["stop_reason", "matched_stop"], ids=["vllm", "sglang"])
async def test_which_text_ended_an_answer_is_told_where_the_engine_tells_it(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], field: str
) -> None:
    async def stop(line: Line) -> None:
        last = chunk("one ", "stop")
        last["choices"][0][field] = "two"
        await line.stream()
        await line.event(last)
        await line.done()

    async with place(tmp_path / "data", nats, free_port()) as here, client(here.site.url) as claude:
        await here.engine(stop)
        asked: Any = {"model": TOY, "max_tokens": 9, "messages": ASKED, "stop_sequences": ["two"]}
        said = await claude.messages.create(**asked)
        async with claude.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        for message in (said, streamed):
            assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")
        other = await claude.messages.create(**asked | {"stop_sequences": ["three"]})
        async with claude.messages.stream(**asked | {"stop_sequences": []}) as stream:
            none = await stream.get_final_message()
        for message in (other, none):  # the model's own
            assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)


async def test_an_engine_that_does_not_count_is_not_counted_for(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.engine()
        with pytest.raises(anthropic.BadRequestError, match="cannot count tokens") as refused:
            await claude.messages.count_tokens(model=TOY, messages=ASKED)
        body: Any = refused.value.body
        assert body["error"]["details"]["details"]["reason"] == "NOT_SUPPORTED"


async def test_an_engine_that_dies_in_mid_stream_is_an_error_in_the_stream(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        engine = await found.engine(*LONG)
        async with claude.messages.stream(model=TOY, max_tokens=9000, messages=ASKED) as stream:
            await anext(stream.text_stream)
            engine.kill()
            with pytest.raises(anthropic.APIStatusError) as broken:
                await stream.until_done()
        body: Any = broken.value.body
        assert body["error"]["type"] == "overloaded_error"
        assert body["error"]["details"]["details"]["reason"] == "ENGINE_GONE"
        await until(found.at_rest)


async def test_a_client_who_gives_up_a_stream_ends_the_request(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.engine(*LONG)
        async with claude.messages.stream(model=TOY, max_tokens=9000, messages=ASKED) as stream:
            await anext(stream.text_stream)
            assert await found.under_way() == 1
        await until(found.at_rest)
        waiting = asyncio.create_task(claude.messages.create(model=TOY, max_tokens=9000, messages=ASKED))
        await until(found.under_way)
        waiting.cancel()
        await until(found.at_rest)


async def test_a_request_waits_for_a_loading_model_unless_its_client_does_not_want_to(
    tmp_path: Path, nats: NatsServer
) -> None:
    async with stage(tmp_path, nats) as found, client(found.site.url) as claude:
        await found.loading()
        with pytest.raises(anthropic.APIStatusError) as refused:
            await claude.messages.create(model=TOY, max_tokens=3, messages=ASKED, extra_headers={"Prefer": "wait=0"})
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) >= 1
        asked = claude.messages.create(model=TOY, max_tokens=3, messages=ASKED)
        waiting = asyncio.create_task(asked)
        await found.engine()
        assert (await waiting).content


async def test_keys_decide_who_may_ask_which_model(tmp_path: Path, nats: NatsServer) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": f"admin:{ADMIN}"}
    asked: Any = {"model": TOY, "max_tokens": 3, "messages": ASKED}
    async with stage(tmp_path, nats, **environ) as found:
        await found.engine()
        keys = {
            name: (await found.site.ask("gateway.create_key", name=name, scopes=scopes, models=models))["key"]
            for name, scopes, models in (
                ("may", ["inference:medium"], []),
                ("other", ["device:high"], []),
                ("elsewhere", ["inference:medium"], ["another"]),
            )
        }
        for key, refusal in (
            (ADMIN, None),
            (keys["may"], None),
            ("wrong", anthropic.AuthenticationError),
            (keys["other"], anthropic.PermissionDeniedError),
            (keys["elsewhere"], anthropic.NotFoundError),
        ):
            async with client(found.site.url, key) as claude:
                if refusal is None:
                    assert (await claude.messages.create(**asked)).content
                    continue
                with pytest.raises(refusal):
                    await claude.messages.create(**asked)


# --- the translation ----------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
CALLED = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def _body(**fields: Any) -> dict[str, Any]:
    given = {"model": "m", "max_tokens": 5, "messages": [USER], **fields}
    return requests.completion(msgspec.convert(given, requests.MessagesRequest))


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([USER], [USER]),
        ([USER, {"role": "user", "content": "you"}], [{"role": "user", "content": "hi\nyou"}]),
        ([USER, {"role": "assistant", "content": "The"}], [USER, {"role": "assistant", "content": "The"}]),
        ([USER, {"role": "system", "content": "now"}], [USER, {"role": "system", "content": "now"}]),
        (
            [{"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, CALL]}],
            [{"role": "assistant", "content": None, "tool_calls": [CALLED]}],
        ),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "I look"}, CALL]}],
            [{"role": "assistant", "content": "I look", "tool_calls": [CALLED]}],
        ),
        (
            [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "2"}]}],
            [{"role": "tool", "tool_call_id": "t1", "content": "2"}],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1"},
                        {
                            "type": "tool_result",
                            "tool_use_id": "t2",
                            "is_error": True,
                            "content": [
                                {"type": "text", "text": "no"},
                                {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}},
                            ],
                        },
                        {"type": "text", "text": "and?"},
                    ],
                }
            ],
            [
                {"role": "tool", "tool_call_id": "t1", "content": ""},
                {"role": "tool", "tool_call_id": "t2", "content": "no"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "and?"},
                        {"type": "image_url", "image_url": {"url": "http://a/b.png"}},
                    ],
                },
            ],
        ),
    ],
)
def test_turns_become_those_of_a_chat_completion(turns: Any, messages: Any) -> None:
    assert _body(messages=turns) == {"messages": messages, "max_tokens": 5}


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOLS = {"tools": [{"name": "f", "input_schema": {"type": "object"}}]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"system": "S"}, {"messages": [{"role": "system", "content": "S"}, USER]}),
        ({"system": [{"type": "text", "text": "S"}]}, {"messages": [{"role": "system", "content": "S"}, USER]}),
        ({"stop_sequences": ["a"], "stream": True}, {"stop": ["a"]}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, {"temperature": 0, "top_p": 0.5, "top_k": 3}),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", "stream": False, "stop_sequences": []}, {}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        (TOOLS, {"tools": [FUNCTION]}),
        (TOOLS | {"tool_choice": {"type": "auto"}}, {"tools": [FUNCTION], "tool_choice": "auto"}),
        (TOOLS | {"tool_choice": {"type": "any"}}, {"tools": [FUNCTION], "tool_choice": "required"}),
        (TOOLS | {"tool_choice": {"type": "none"}}, {"tools": [FUNCTION], "tool_choice": "none"}),
        (
            TOOLS | {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}},
            {
                "tools": [FUNCTION],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
    ],
)
def test_fields_become_those_of_a_chat_completion(fields: Any, expected: Any) -> None:
    assert _body(**fields) == {"messages": [USER], "max_tokens": 5} | expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"name": "f", "type": "bash_20250124"}]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0]"),
        (TOOLS | {"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_what_a_model_cannot_be_given_is_refused(fields: Any, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        _body(**fields)
    assert refused.value.details["fields"][0]["field"] == field


@given(bodies_of(requests.MessagesRequest, {"model": "m", "max_tokens": 5, "messages": [USER]}))
def test_whatever_is_asked_becomes_a_chat_completion_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(AimaError):
        asked = bodies.decode(body, requests.MessagesRequest)
        assert chat_request(asked.model, requests.completion(asked), whole=True).make("m")


@pytest.mark.parametrize(
    ("finish", "calls", "reason"),
    [
        ("stop", False, "end_turn"),
        ("length", False, "max_tokens"),
        ("content_filter", False, "refusal"),
        ("tool_calls", True, "tool_use"),
        ("stop", True, "tool_use"),
        ("length", True, "max_tokens"),
    ],
)
def test_why_an_answer_ends_is_told_in_anthropics_words(finish: str, calls: bool, reason: str) -> None:
    called = [ToolCall("c", "f", '{"a": 1}')] if calls else []
    told = answers.message("m", ChatAnswer("text", calls=called, finish=finish, usage=TokenUsage(3, 4)))
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, None)
    assert told["usage"] == {"input_tokens": 3, "output_tokens": 4}
    assert told["content"] == [{"type": "text", "text": "text"}] + (
        [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}] if calls else []
    )


def test_blocks_of_a_stream_come_one_after_another() -> None:
    events = answers.MessageEvents("m")
    pieces = (
        ChatDelta("I "),
        ChatDelta("look"),
        ChatDelta(calls=[ToolCallDelta(0, "c0", Function("f", ""))]),
        ChatDelta(calls=[ToolCallDelta(0, None, Function(None, "{}"))]),
        ChatDelta(calls=[ToolCallDelta(1, "c1", Function("g", '{"a":1}'))]),
        ChatDelta(finish="tool_calls"),
    )
    told = events.begin() + b"".join(map(events.feed, pieces)) + events.end(TokenUsage(3, 4), Timings())
    lines = [line.removeprefix(b"data: ") for line in told.split(b"\n") if line.startswith(b"data: ")]
    shown = [_brief(msgspec.json.decode(line)) for line in lines]
    assert shown == [
        "message_start",
        "ping",
        "content_block_start 0 text",
        "content_block_delta 0 text_delta",
        "content_block_delta 0 text_delta",
        "content_block_stop 0",
        "content_block_start 1 tool_use",
        "content_block_delta 1 input_json_delta",
        "content_block_stop 1",
        "content_block_start 2 tool_use",
        "content_block_delta 2 input_json_delta",
        "content_block_stop 2",
        "message_delta tool_use 3 4",
        "message_stop",
    ]


def test_an_answer_of_nothing_is_a_block_of_no_text() -> None:
    events = answers.MessageEvents("m")
    told = events.feed(ChatDelta(finish="stop")) + events.end(TokenUsage(), Timings())
    assert told.count(b"event: content_block_start") == told.count(b"event: content_block_stop") == 1
    assert answers.message("m", ChatAnswer())["content"] == [{"type": "text", "text": ""}]


def _brief(event: dict[str, Any]) -> str:
    block = event.get("content_block") or event.get("delta") or {}
    usage = event.get("usage") or {}
    words = [event["type"], event.get("index"), block.get("type") or block.get("stop_reason"), *usage.values()]
    return " ".join(str(word) for word in words if word is not None)
