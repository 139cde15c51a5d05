"""The Responses API with OpenAI's own client: what an engine is asked, and how its answer is told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from hypothesis import given

from aima_core.errors import AimaError
from services.gateway.engines.chat_requests import chat_request
from services.gateway.entrance import bodies
from services.gateway.openai import responses_requests as requests
from tests.gateway.conftest import Site
from tests.gateway.model_fixtures import bodies_of
from tests.gateway.scripted_engines import Line, Place, Script, chunk, greet, shared_place, visit_place

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells it.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
OTHER: Any = {"type": "function", "name": "time", "parameters": None, "strict": None}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_place(tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture
async def here(shared: Site) -> AsyncIterator[Place]:
    async with visit_place(shared) as found:
        yield found


def saying(*chunks: dict[str, Any]) -> Script:
    """Return the script of an engine that streams these."""

    async def script(line: Line) -> None:
        await line.stream()
        for one in chunks:
            await line.event(one)
        await line.done(prompt=4, completion=6)

    return script


def call(index: int, ident: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"tool_calls": [{"index": index, "function": function} | ({"id": ident} if ident else {})]}


async def told(here: Place, **asked: Any) -> list[Any]:
    """Return the events of a stream, whose numbers are in order."""
    stream = await here.openai.responses.create(**({"model": "toy", "input": "good day"} | asked), stream=True)
    events: list[Any] = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def kinds(events: list[Any]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


# --- answers ------------------------------------------------------------------------------------------------------


async def test_a_text_is_answered_with_a_message(here: Place) -> None:
    engine = await here.engine()
    response = await here.openai.responses.create(
        model="toy",
        input="good day",
        instructions="Be brief.",
        temperature=0.5,
        max_output_tokens=50,
        metadata={"who": "me"},
        store=True,
    )
    assert (response.status, response.output_text, response.object) == ("completed", "hi there!", "response")
    assert (response.model, response.instructions, response.temperature) == ("toy", "Be brief.", 0.5)
    assert (response.metadata, response.previous_response_id, response.error) == ({"who": "me"}, None, None)
    (message,) = response.output
    assert (message.type, message.status, message.role) == ("message", "completed", "assistant")
    assert response.usage
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (2, 3, 5)
    assert engine.lines[0].asked == {
        "model": "served",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "good day"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_stream_tells_a_message_step_by_step(here: Place) -> None:
    await here.engine()
    events = await told(here)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert (events[0].response.status, events[0].response.output) == ("in_progress", [])
    assert (events[2].item.status, events[2].item.content, events[3].part.text) == ("in_progress", [], "")
    assert [events[4].delta, events[5].delta, events[6].text] == ["hi", " there!", "hi there!"]
    assert {event.item_id for event in events[3:8]} == {events[2].item.id}
    last = events[-1].response
    assert (last.id, last.status, last.output_text) == (events[0].response.id, "completed", "hi there!")
    assert (last.usage.input_tokens, last.usage.output_tokens) == (2, 3)


async def test_the_clients_own_accumulator_understands_the_stream(here: Place) -> None:
    await here.engine()
    async with here.openai.responses.stream(model="toy", input="good day") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "hi there!"


async def test_tool_calls_are_items_whose_arguments_come_in_pieces(here: Place) -> None:
    chunks = (
        chunk("let me see"),
        chunk(None, **call(0, "c1", "weather", "")),
        chunk(None, **call(0, None, None, '{"city":')),
        chunk(None, **call(0, None, None, ' "Paris"}')),
        chunk(None, **call(1, "c2", "time", "{}")),
        chunk(None, "tool_calls"),
    )
    await here.engine(saying(*chunks))
    events = await told(here, tools=[TOOL, OTHER])
    assert kinds(events)[6:] == [
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    message, first, second = events[-1].response.output
    assert message.content[0].text == "let me see"
    assert (first.type, first.call_id, first.name, first.arguments) == (
        "function_call",
        "c1",
        "weather",
        '{"city": "Paris"}',
    )
    assert (second.call_id, second.name, second.arguments, second.status) == ("c2", "time", "{}", "completed")
    assert [event.output_index for event in events if event.type == "response.output_item.added"] == [0, 1, 2]


async def test_what_a_model_thinks_is_an_item_of_its_own(here: Place) -> None:
    await here.engine(saying(chunk(None, reasoning_content="hm"), chunk("yes", "stop")))
    events = await told(here)
    assert kinds(events)[2:8] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    thought, message = events[-1].response.output
    assert (thought.type, thought.content[0].text, message.content[0].text) == ("reasoning", "hm", "yes")


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_is_cut_is_incomplete(here: Place, finish: str, reason: str) -> None:
    await here.engine(saying(chunk("so"), chunk(None, finish)))
    events = await told(here)
    whole = await here.openai.responses.create(model="toy", input="x")
    assert kinds(events)[-1] == "incomplete"
    for response in (events[-1].response, whole):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)
        assert response.output[0].status == "incomplete"


async def test_an_answer_that_breaks_off_has_failed(here: Place) -> None:
    async def half(line: Line) -> None:
        await line.stream()
        await line.said("half an")

    await here.engine(half)
    events = await told(here)
    assert kinds(events)[-2:] == ["output_text.delta", "failed"]
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert failed.error.message == "the engine closed the connection in the middle of the request"
    (ended,) = await here.outcomes(1)
    assert ended["error_code"] == "ENGINE_GONE"


async def test_an_answer_of_nothing_is_an_empty_message(here: Place) -> None:
    await here.engine(saying(chunk(None, "stop")))
    response = await here.openai.responses.create(model="toy", input="x")
    assert (response.output_text, len(response.output)) == ("", 1)


# --- requests -----------------------------------------------------------------------------------------------------


async def test_a_conversation_is_told_as_the_engine_knows_it(here: Place) -> None:
    engine = await here.engine(model_type="vlm")
    picture = "data:image/png;base64,iVBORw0KGgo="
    conversation: Any = [
        {"role": "developer", "content": "Be kind."},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "what is"}, {"type": "input_text", "text": "this?"}],
        },
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": picture, "detail": "low"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "a moment", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    await here.openai.responses.create(model="toy", input=conversation, tools=[TOOL], parallel_tool_calls=False)
    asked = engine.lines[0].asked
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    image = {"type": "image_url", "image_url": {"url": picture, "detail": "low"}}
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "what is\nthis?"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": "a moment", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
    ]
    function = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("auto", False)


async def test_a_function_that_has_to_be_called_is_the_only_one_that_is_offered(here: Place) -> None:
    engine = await here.engine()
    choice: Any = {"type": "function", "name": "time"}
    response = await here.openai.responses.create(model="toy", input="x", tools=[TOOL, OTHER], tool_choice=choice)
    asked = engine.lines[0].asked
    assert (asked["tools"], asked["tool_choice"]) == ([{"type": "function", "function": {"name": "time"}}], "required")
    assert len(response.tools) == 2
    assert not isinstance(response.tool_choice, str)


async def test_a_schema_is_passed_on(here: Place) -> None:
    engine = await here.engine()
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form: Any = {"format": {"type": "json_schema", "name": "place", "schema": schema, "strict": True}}
    response = await here.openai.responses.create(model="toy", input="x", text=form)
    await here.openai.responses.create(model="toy", input="x", text={"format": {"type": "json_object"}})
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    assert [line.asked["response_format"] for line in engine.lines] == [wanted, {"type": "json_object"}]
    assert response.text
    assert response.text.format
    assert response.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(here: Place, asked: dict[str, Any], param: str) -> None:
    engine = await here.engine()
    answer = await here.site.post("/v1/responses", {"model": "toy", "input": "x"} | asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert engine.lines == []


@given(bodies_of(requests.ResponsesRequest, {"model": "m", "input": [{"role": "user", "content": "x"}]}))
def test_whatever_is_asked_becomes_a_chat_completion_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(AimaError):
        asked = bodies.decode(body, requests.ResponsesRequest)
        requests.check(asked)
        assert chat_request(asked.model, requests.completion(asked), whole=True).make("m")


async def test_a_refusal_before_the_first_word_has_its_own_status(here: Place) -> None:
    async def refuse(line: Line) -> None:
        await line.answer({"error": {"message": "no such template"}}, 400)

    await here.engine(refuse)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="no such template"):
            await here.openai.responses.create(model="toy", input="x", stream=stream)
    with pytest.raises(openai.NotFoundError):
        await here.openai.responses.create(model="nothing", input="x", stream=True)


async def test_events_name_their_type_twice(here: Place) -> None:
    await here.engine(greet)
    answer = await here.site.post("/v1/responses", {"model": "toy", "input": "x", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    for event in answer.text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
