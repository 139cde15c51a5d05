"""Fields of OpenAI's API keep their meaning: what the engine gets, what is refused, and what the client is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import ValidationFailed
from aima_engines.engine_answer import TokenUsage
from aima_engines.engine_errors import refusal
from aima_engines.kinds.tool_choice import choice_of_tool, without_nulls
from services.gateway.engines.usage import UsageReader, summed
from services.gateway.entrance import bodies
from services.gateway.openai.completions import in_completions_shape
from services.gateway.openai.fields import for_engine
from tests.gateway.scripted_engines import HELLO, Line, Place, completion, place

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
ASKED = {"model": "toy", "messages": HELLO}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
OTHER = {"type": "function", "function": {"name": "other"}}
BY_NAME = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture
async def here(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Place]:
    async with place(tmp_path, nats, free_port()) as found:
        yield found


async def repeat(line: Line) -> None:
    """Answer a chat with the request itself."""
    await line.answer(completion(json.dumps(line.asked)))


async def sent(here: Place, body: dict[str, Any] | bytes, **more: Any) -> tuple[dict[str, Any], Any]:
    """Return what the engine gets for a chat, and the headers of the response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await here.site.http.post(CHAT, content=content, **more)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.json()["choices"][0]["message"]["content"]), answer.headers


async def fault(here: Place, body: dict[str, Any], path: str = CHAT) -> tuple[int, str | None, str]:
    """Return status, `param` and message of a refusal."""
    answer = await here.site.http.post(path, json=body)
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


# --- what the engine gets -----------------------------------------------------------------------------------------


async def test_names_that_only_the_engine_knows_get_round_nothing(here: Place) -> None:
    await here.engine(repeat)
    extra = {"n_predict": 60, "id_slot": 1, "n_probs": 5, "ignore_eos": True, "cache_prompt": False, "made_up": 1}
    got, headers = await sent(here, {**ASKED, "max_tokens": 1, **extra})
    assert got == {"model": "served", "messages": HELLO, "max_tokens": 1}
    assert headers["aima-ignored"] == "cache_prompt, id_slot, ignore_eos, made_up, n_predict, n_probs"


async def test_fields_of_openais_service_without_effect_are_accepted_and_null_is_absent(here: Place) -> None:
    await here.engine(repeat)
    harmless = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low"}
    got, headers = await sent(here, {**ASKED, **harmless, "max_tokens": None, "top_k": 5, "seed": None})
    assert got == {"model": "served", "messages": HELLO, "top_k": 5}
    assert "aima-ignored" not in headers


async def test_a_whole_number_may_be_a_float_and_half_a_character_becomes_the_replacement(here: Place) -> None:
    await here.engine(repeat)
    got, _ = await sent(here, {**ASKED, "max_tokens": 6.0, "temperature": 1.0})
    assert (got["max_tokens"], type(got["max_tokens"]), got["temperature"]) == (6, int, 1.0)
    half = b'\xef\xbb\xbf{"model":"toy","messages":[{"role":"user","content":"a\\ud83d b\\ud83d\\ude00 c\\\\ud83d"}]}'
    got, _ = await sent(here, half)
    assert got["messages"][0]["content"] == "a\ufffd b\U0001f600 c\\ud83d"


async def test_a_tool_without_a_description_is_sent_without_it_and_a_named_choice_is_required(here: Place) -> None:
    await here.engine(repeat, tools=True)
    empty = {"type": "function", "function": {**WEATHER["function"], "description": None, "strict": None}}
    got, _ = await sent(here, {**ASKED, "tools": [empty, OTHER], "tool_choice": BY_NAME})
    assert (got["tools"], got["tool_choice"]) == ([WEATHER], "required")


# --- refusals -----------------------------------------------------------------------------------------------------

CUT = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"text": "a'}}]}
AUDIO = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown reasoning format": ({"reasoning_format": "x"}, "reasoning_format"),
    "probabilities of everything": ({"n_probs": 49152}, "n_probs"),
    "more tokens than an engine can count": ({"max_tokens": 2**31}, "max_tokens"),
    "more stops than OpenAI allows": ({"stop": ["x"] * 17}, "stop"),
    "audio": ({"messages": [AUDIO]}, "messages.0.content.0"),
    "arguments that are cut off": (
        {"messages": [*HELLO, CUT]},
        "messages.1.tool_calls.0.function.arguments",
    ),
    "a tool choice that is no tool": ({"tools": [OTHER], "tool_choice": BY_NAME}, "tool_choice"),
    "a required tool without tools": ({"tool_choice": "required"}, "tool_choice"),
    "a tool choice that is no choice": ({"tools": [OTHER], "tool_choice": "sometimes"}, "tool_choice"),
}


async def test_what_an_engine_would_answer_with_an_error_is_refused_before(here: Place) -> None:
    engine = await here.engine(repeat, tools=True)
    for name, (fields, param) in REFUSED.items():
        assert (await fault(here, {**ASKED, **fields}))[:2] == (400, param), name
    for field in ({"echo": True}, {"suffix": "x"}, {"logprobs": 1, "stream": True}):
        status, param, _ = await fault(here, {"model": "toy", "prompt": "x", **field}, COMPLETE)
        assert (status, param) == (400, next(iter(field)))
    assert engine.lines == []


def test_a_prompt_that_exceeds_the_context_has_the_code_that_clients_act_on() -> None:
    llamacpp = {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 512}}
    vllm = {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"}
    for body, limit in ((llamacpp, 512), (vllm, 4096)):
        error = refusal(400, json.dumps(body).encode())
        assert (error.reason, error.details["limit"]) == ("CONTEXT_LENGTH_EXCEEDED", limit)
        assert f"context of {limit} tokens" in error.message
    assert refusal(400, b'{"error": {"message": "bad"}}').reason == "ENGINE_REFUSED"


# --- usage --------------------------------------------------------------------------------------------------------


async def several(line: Line) -> None:
    """Stream two answers, with the usage of each, as llama.cpp does."""
    await line.stream()
    for index, count in ((0, 3), (1, 5)):
        choice = {"index": index, "delta": {"content": "x"}, "finish_reason": "stop"}
        await line.event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        await line.event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    await line.event(b"[DONE]")
    await line.raw(b"0\r\n\r\n")


async def test_the_usage_of_several_answers_is_their_sum_and_sent_once(here: Place) -> None:
    await here.engine(several)
    whole = (await here.site.post(CHAT, {**ASKED, "n": 2})).json()
    assert len(whole["choices"]) == 2
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
    asked = {**ASKED, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    text = (await here.site.post(CHAT, asked)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [event["usage"] for event in events if event.get("usage")] == [whole["usage"]]
    assert text.endswith("data: [DONE]\n\n")
    silent = (await here.site.post(CHAT, {**ASKED, "n": 2, "stream": True})).text
    assert '"usage"' not in silent
    assert [ended["completion_tokens"] for ended in await here.outcomes(3)] == [8, 8, 8]


def test_an_engine_that_sums_up_itself_is_believed() -> None:
    assert summed([TokenUsage(7, 8)], 2) == TokenUsage(7, 8)
    assert summed([TokenUsage(2, 3), TokenUsage(4, 5)], 1) == TokenUsage(6, 8)  # two prompts
    assert summed([TokenUsage(7, 3), TokenUsage(7, 5)], 2) == TokenUsage(7, 8)  # two answers to one prompt
    reader = UsageReader(True, several=True)
    assert reader.feed(b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n') == b""
    assert reader.feed(b"data: [DONE]\n\n").count(b"usage") == 1


def test_the_usage_of_several_prompts_is_in_the_ends_of_their_answers() -> None:
    reader = UsageReader(True, several=True)
    for index in (1, 0):
        used = {"prompt_tokens": 1 + index, "completion_tokens": 2, "total_tokens": 3}
        chunk = {"choices": [{"index": index, "text": "", "finish_reason": "length"}], "usage": used}
        passed = reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())
        assert json.loads(passed[6:]) == {"choices": chunk["choices"]}
    (end,) = (json.loads(line[6:]) for line in reader.feed(b"data: [DONE]\n\n").split(b"\n\n")[:1])
    assert end == {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}


# --- pure ---------------------------------------------------------------------------------------------------------


def test_the_log_probabilities_of_a_completion_have_their_own_shape() -> None:
    entry = {"token": "ab", "logprob": -0.5, "top_logprobs": [{"token": "ab", "logprob": -0.5}]}
    answer = {"choices": [{"text": "abab", "logprobs": {"content": [entry, entry]}}, {"text": "x", "logprobs": None}]}
    first, second = in_completions_shape(answer)["choices"]
    assert first["logprobs"] == {
        "tokens": ["ab", "ab"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"ab": -0.5}, {"ab": -0.5}],
        "text_offset": [0, 2],
    }
    assert second["logprobs"] is None


def test_choices_that_engines_know_are_passed_on() -> None:
    for choice in (None, "auto", "none"):
        assert choice_of_tool([], choice) == ([], choice)
    assert choice_of_tool([WEATHER], "required") == ([WEATHER], "required")
    assert without_nulls([{"type": "function", "function": {"name": "f", "description": None}, "x": None}]) == [
        {"type": "function", "function": {"name": "f"}}
    ]
    with pytest.raises(ValidationFailed, match="a function of tools: other"):
        choice_of_tool([OTHER], BY_NAME)


def test_ignored_fields_are_named_in_order() -> None:
    kept, ignored = for_engine({"b": Raw(b"1"), "a": Raw(b"1"), "user": Raw(b'"u"'), "model": Raw(b'"m"')})
    assert (set(kept), ignored) == ({"model"}, ["a", "b"])


@pytest.mark.parametrize(
    ("data", "repaired"),
    [
        (b'"\\ud83d"', b'"\\ufffd"'),
        (b'"\\uDE00\\ud83d"', b'"\\ufffd\\ufffd"'),
        (b'"\\ud83d\\ude00"', b'"\\ud83d\\ude00"'),
        (b'"\\\\ud83d"', b'"\\\\ud83d"'),
        (b"\xef\xbb\xbf{}", b"{}"),
        (b'"plain"', b'"plain"'),
    ],
)
def test_text_that_some_clients_send_is_repaired(data: bytes, repaired: bytes) -> None:
    assert bodies.repaired(data) == repaired
