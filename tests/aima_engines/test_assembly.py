"""Whole answers out of streams: field by field what an engine would have said in one piece."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aima_core.errors import ExecutionFailed, Unavailable
from aima_engines.assembly import Assembly

HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def assembled(told: bytes) -> Any:
    """Return the answer of a stream that comes in small blocks."""
    assembly = Assembly()
    for begin in range(0, len(told), 7):
        assembly.feed(told[begin : begin + 7])
    return assembly.answer()


def stream(*chunks: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def delta(index: int = 0, finish: str | None = None, **said: Any) -> dict[str, Any]:
    return HEAD | {"choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def messages(*chunks: Any) -> list[Any]:
    return [choice["message"] for choice in assembled(stream(*chunks))["choices"]]


def test_a_text_is_joined_and_what_is_told_once_stays() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    told = stream(
        delta(role="assistant", content=None),
        delta(role="assistant", content="hi"),
        delta(content=" there"),
        delta(finish="stop"),
        HEAD | {"choices": [], "usage": usage, "timings": {"predicted_n": 2}, "system_fingerprint": None},
    )
    message = {"role": "assistant", "content": "hi there"}
    assert assembled(told) == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
        "timings": {"predicted_n": 2},
        "system_fingerprint": None,
    }


def test_fields_that_are_new_to_us_are_joined_as_the_others() -> None:
    (message,) = messages(delta(reasoning_content="h", odd=[1]), delta(reasoning_content="m", odd=[2]))
    assert message == {"role": "assistant", "content": None, "reasoning_content": "hm", "odd": [1, 2]}


def test_tool_calls_are_joined_by_their_number() -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
        return {"index": index, "function": function, **more}

    (message,) = messages(
        delta(tool_calls=[call(0, "", id="a", type="function", name="f")]),
        delta(tool_calls=[call(0, '{"x"', id="a", type="function")]),
        delta(tool_calls=[call(1, "{}", id="b", type="function", name="g"), call(0, ":1}")]),
        delta(finish="tool_calls"),
    )
    assert message["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_what_is_told_again_counts_once() -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    again = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "}"}}
    told = stream(delta(tool_calls=[call], finish="stop"), delta(tool_calls=[again], finish="stop"))
    (choice,) = assembled(told)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_what_comes_after_the_end_is_nothing() -> None:
    assert assembled(stream(delta(content="a")) + stream(delta(content="b")))["choices"][0]["message"]["content"] == "a"


def test_answers_are_told_apart_by_their_index() -> None:
    assert [m["content"] for m in messages(delta(1, content="b"), delta(content="a"), delta(1, content="B"))] == [
        "a",
        "bB",
    ]


def test_log_probabilities_are_listed_token_by_token() -> None:
    def piece(*tokens: str) -> dict[str, Any]:
        told = {"content": [{"index": 5, "token": token} for token in tokens], "refusal": None}
        return HEAD | {"choices": [{"index": 0, "delta": {"content": "".join(tokens)}, "logprobs": told}]}

    last = HEAD | {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]}
    (choice,) = assembled(stream(piece("a"), piece("b", "c"), last))["choices"]
    assert choice["logprobs"] == {"content": [{"index": 5, "token": token} for token in "abc"], "refusal": None}
    assert choice["message"]["content"] == "abc"


def test_a_text_that_is_continued_has_no_message() -> None:
    def piece(text: str, finish: str | None = None) -> dict[str, Any]:
        return HEAD | {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish}]}

    whole = assembled(stream(None, piece("a"), piece("b", "length")))  # llama.cpp says `null` in between
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [{"index": 0, "text": "ab", "finish_reason": "length"}]


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (b"", Unavailable),
        (stream(delta(content="a")).removesuffix(b"data: [DONE]\n\n"), Unavailable),
        (stream(delta(content="a"), {"error": {"message": "broken"}}), ExecutionFailed),
        (stream(HEAD | {"choices": []}), ExecutionFailed),
        (stream("x"), ExecutionFailed),
        (stream({"choices": [1]}), ExecutionFailed),
        (stream({"choices": [{"index": [], "delta": 1}]}), ExecutionFailed),
        (b"data: {\n\ndata: [DONE]\n\n", ExecutionFailed),
        (stream(delta(index="0", content="a")), ExecutionFailed),  # type: ignore[arg-type]
        (stream(delta(tool_calls=[{"index": -1}])), ExecutionFailed),
        (stream(delta(tool_calls=[{"index": 10**9}])), ExecutionFailed),
        (stream(delta(tool_calls=[{"index": None}])), ExecutionFailed),
    ],
)
def test_what_is_no_answer_is_refused(told: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        assembled(told)
