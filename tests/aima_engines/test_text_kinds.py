"""Requests for text: against an engine that serves them, and against answers that are invalid."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable, ValidationFailed
from aima_engines.assembly import join_numbered
from aima_engines.chat_deltas import deltas
from aima_engines.engine_answer import Engine, EngineBody, TokenUsage
from aima_engines.engine_client import EngineClient
from aima_engines.engine_http import EngineGone
from aima_engines.kinds.request_kinds import CHAT, COMPLETE, EMBED, RequestKind
from tests.aima_engines.conftest import Parts
from tests.inference.conftest import DONE, Saying, Start, chunk, said

ASKED = {"messages": [{"role": "user", "content": "good day"}], "max_tokens": 3}


async def run(
    client: EngineClient, endpoint: str, kind: RequestKind, fields: Any, *, parts: bool = False
) -> tuple[Any, TokenUsage, list[Any]]:
    """Send one request; return its answer, its usage, its parts."""
    sent = Parts()
    answer, engine_answer = await kind.run(Engine(client, endpoint, "served", whole=not parts), fields, sent)
    return answer, engine_answer.usage, sent.all


async def texts_of(client: EngineClient, endpoint: str) -> tuple[list[str], BaseException | None]:
    """Return the texts of a streamed answer, and the error that ended it."""
    texts: list[str] = []
    try:
        async with Engine(client, endpoint, "served", whole=False).ask("/", EngineBody()) as answer:
            async for delta in deltas(answer):
                texts.append(delta.text)
    except (EngineGone, AimaError) as error:
        return texts, error
    return texts, None


# --- an engine that answers ---------------------------------------------------------------------------------------


async def test_a_chat_is_answered_whole_or_in_parts(client: EngineClient, stand_in: Start) -> None:
    engine = await stand_in()
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    answer = {"content": "echo: good day", "finish_reason": "stop", "tool_calls": None, "usage": usage}
    assert await run(client, engine.endpoint, CHAT, ASKED) == (answer, TokenUsage(2, 3), [{"content": "echo:"}, *REST])
    parts = await run(client, engine.endpoint, CHAT, ASKED, parts=True)
    assert parts == (answer, TokenUsage(2, 3), [{"content": "echo:"}, *REST])


REST = [{"content": " good"}, {"content": " day"}]


async def test_a_text_is_continued(client: EngineClient, stand_in: Start) -> None:
    engine = await stand_in("--tokens", "2")
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    answer = {"text": "echo: one", "finish_reason": "stop", "usage": usage}
    parts = [{"text": "echo:"}, {"text": " one"}]
    assert await run(client, engine.endpoint, COMPLETE, {"prompt": "one two"}) == (answer, TokenUsage(2, 2), parts)


@pytest.mark.parametrize(
    ("texts", "vectors", "tokens"),
    [("two words", [[9.0, 0.0, 1.0]], 2), (["ab", "c"], [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]], 2), ([], [], 0)],
)
async def test_texts_are_embedded_in_order(
    client: EngineClient, stand_in: Start, texts: Any, vectors: Any, tokens: int
) -> None:
    engine = await stand_in()
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    answer, used, parts = await run(client, engine.endpoint, EMBED, {"input": texts})
    assert (answer, used, parts) == ({"embeddings": vectors, "usage": usage}, TokenUsage(tokens), [])


async def test_vectors_are_returned_in_the_order_of_the_texts(client: EngineClient, saying: Saying) -> None:
    mixed = {"data": [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]}
    answer, used, _ = await run(client, await saying(json.dumps(mixed).encode()), EMBED, {"input": ["a", "b"]})
    assert (answer["embeddings"], used) == ([[0.0], [1.0]], TokenUsage())


@pytest.mark.parametrize("kind", [CHAT, COMPLETE])
def test_an_engine_gets_its_own_name_of_the_model_the_fields_and_the_wish_for_a_stream(kind: RequestKind) -> None:
    assert json.loads(bytes(kind.body(ASKED, "served").content)) == {  # type: ignore[arg-type]  # JSON is one block
        **ASKED,
        "model": "served",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("content", "types"),
    [
        ("text", ("llm", "vlm")),
        (None, ("llm", "vlm")),
        ([{"type": "text", "text": "a"}], ("llm", "vlm")),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}], ("vlm",)),
    ],
)
def test_a_chat_with_an_image_needs_a_vision_model(content: Any, types: tuple[str, ...]) -> None:
    assert CHAT.types_for({"messages": [{"role": "user", "content": content}]}) == types


# --- tools --------------------------------------------------------------------------------------------------------


async def test_tool_calls_are_joined_from_their_pieces(client: EngineClient, saying: Saying) -> None:
    pieces: list[Any] = [
        [{"index": 0, "id": "c0", "type": "function", "function": {"name": "add", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 1, "id": "c1", "type": "function", "function": {"name": "sub", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": " 1}"}}],
    ]
    body = b"".join(chunk(delta={"tool_calls": piece}) for piece in pieces)
    end = chunk(delta={}, finish_reason="tool_calls")
    answer, _, parts = await run(client, await saying(body + end + DONE), CHAT, ASKED, parts=True)
    assert answer["tool_calls"] == [
        {"type": "function", "id": "c0", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"type": "function", "id": "c1", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assert (answer["content"], answer["finish_reason"]) == ("", "tool_calls")
    assert parts == [{"tool_calls": piece} for piece in pieces]


async def test_pieces_without_an_index_or_a_function_are_accepted(client: EngineClient, saying: Saying) -> None:
    pieces = [{"id": "c", "function": {"name": "f"}}, {}, {"function": None}]
    answer, _, _ = await run(client, await saying(chunk(delta={"tool_calls": pieces}) + DONE), CHAT, ASKED)
    assert answer["tool_calls"] == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": ""}}]


BAD_INDICES = (-1, 1000, 2_000_000, 2**70, "0", 0.5, True)


@pytest.mark.parametrize("index", BAD_INDICES, ids=str)
async def test_a_tool_call_with_an_index_out_of_range_is_refused(
    client: EngineClient, saying: Saying, index: Any
) -> None:
    piece = {"index": index, "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(ExecutionFailed) as refused:
        await run(client, await saying(chunk(delta={"tool_calls": [piece]}) + DONE), CHAT, ASKED)
    assert refused.value.reason == "BAD_ANSWER"
    with pytest.raises(ExecutionFailed):
        join_numbered([], [piece])


# --- invalid answers ----------------------------------------------------------------------------------------------

HELLO = chunk(delta={"content": "hello"})
STREAMS: dict[str, tuple[bytes, list[str], Any]] = {
    "whole": (HELLO + DONE, ["hello"], None),
    "after the end": (HELLO + DONE + HELLO, ["hello"], None),
    "lines that are no data": (b": ping\n\nevent: x\n" + HELLO + DONE, ["hello"], None),
    "with carriage returns": (HELLO.replace(b"\n", b"\r\n") + DONE, ["hello"], None),
    "without a blank": (HELLO.replace(b"data: ", b"data:") + DONE, ["hello"], None),
    "a null chunk": (HELLO + b"data: null\n\n" + DONE, ["hello"], None),
    "null fields": (HELLO + chunk(delta=None, text=None) + DONE, ["hello", ""], None),
    "cut off": (HELLO, ["hello"], (EngineGone, True)),
    "cut off in a line": (HELLO + b"data: {", ["hello"], (EngineGone, True)),
    "empty": (b"", [], (EngineGone, True)),
    "invalid JSON": (HELLO + b"data: what\n\n", ["hello"], (ExecutionFailed, "BAD_ANSWER")),
    "negative usage": (said({"usage": {"prompt_tokens": -1}}), [], (ExecutionFailed, "BAD_ANSWER")),
    "an error": (
        HELLO + b'data: {"error": {"message": "out of memory"}}\n\n',
        ["hello"],
        (ExecutionFailed, "ENGINE_FAILED"),
    ),
}


@pytest.mark.parametrize(("body", "texts", "outcome"), STREAMS.values(), ids=STREAMS)
async def test_a_stream_ends(client: EngineClient, saying: Saying, body: bytes, texts: list[str], outcome: Any) -> None:
    received, error = await texts_of(client, await saying(body))
    assert received == texts
    if outcome is None:
        assert error is None
        return
    kind, detail = outcome
    assert type(error) is kind
    assert (error.begun if isinstance(error, EngineGone) else error.reason) == detail  # type: ignore[union-attr]


async def test_a_stream_shorter_than_its_length_is_cut_off(client: EngineClient, saying: Saying) -> None:
    texts, error = await texts_of(client, await saying(HELLO, length=1000))
    assert texts == ["hello"]
    assert isinstance(error, EngineGone)
    assert error.begun


async def test_a_whole_answer_that_is_cut_off_may_be_asked_of_another_replica(
    client: EngineClient, saying: Saying
) -> None:
    with pytest.raises(EngineGone) as gone:
        await run(client, await saying(HELLO, length=1000), CHAT, ASKED)
    assert not gone.value.begun


async def test_an_unreachable_engine_is_gone_before_it_begins(
    client: EngineClient, free_port: Callable[[], int]
) -> None:
    _, error = await texts_of(client, f"http://127.0.0.1:{free_port()}")
    assert isinstance(error, EngineGone)
    assert not error.begun


REFUSALS: dict[str, tuple[str, bytes, type[AimaError], str, str]] = {
    "bad request": (
        *("400 Bad Request", b'{"error": {"message": "too long"}}'),
        *(ValidationFailed, "ENGINE_REFUSED", "the engine refused the request: too long"),
    ),
    "unknown model": (
        *("404 Not Found", b'{"error": "no such model"}'),
        *(ValidationFailed, "ENGINE_REFUSED", "the engine refused the request: no such model"),
    ),
    "not implemented": (
        *("501 Not Implemented", b'{"error": {"message": "start it with --embeddings"}}'),
        *(ValidationFailed, "ENGINE_REFUSED", "the engine does not support this: start it with --embeddings"),
    ),
    "busy": ("429 Too Many", b"", RateLimited, "ENGINE_BUSY", "the engine is busy"),
    "unauthorized": ("401 Unauthorized", b"", ExecutionFailed, "ENGINE_FAILED", "the engine failed"),
    "loading": ("503 Unavailable", b"[]", Unavailable, "ENGINE_LOADING", "the engine is not ready"),
    "broken": ("500 Broken", b"<html>", ExecutionFailed, "ENGINE_FAILED", "the engine failed"),
    "long words": (
        *("500 Broken", b'{"message": "' + b"x" * 600 + b'"}'),
        *(ExecutionFailed, "ENGINE_FAILED", "the engine failed: " + "x" * 500),
    ),
}


@pytest.mark.parametrize(("status", "body", "kind", "reason", "message"), REFUSALS.values(), ids=REFUSALS)
async def test_an_engines_status_becomes_an_error(
    client: EngineClient,
    saying: Saying,
    status: str,
    body: bytes,
    kind: type[AimaError],
    reason: str,
    message: str,
) -> None:
    _, error = await texts_of(client, await saying(body, status=status))
    assert isinstance(error, AimaError)
    assert (type(error), error.reason, error.message) == (kind, reason, message)


@pytest.mark.parametrize("answer", [b"", b"data: []\n\n", said({"choices": 1}), said({"choices": []}), said({})])
@pytest.mark.parametrize("kind", [CHAT, COMPLETE])
async def test_an_answer_without_a_choice_is_invalid(
    client: EngineClient, saying: Saying, kind: RequestKind, answer: bytes
) -> None:
    with pytest.raises(ExecutionFailed) as refused:
        await run(client, await saying(answer + DONE), kind, ASKED)
    assert refused.value.reason == "BAD_ANSWER"


async def test_an_engine_that_does_not_stream_answers_in_one_piece(client: EngineClient, saying: Saying) -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    message = {"role": "assistant", "content": "hi", "tool_calls": calls}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    engine = await saying(json.dumps(whole).encode(), kind="application/json")
    answer, used, parts = await run(client, engine, CHAT, ASKED, parts=True)
    assert (answer["content"], answer["finish_reason"], answer["usage"], used) == (
        "hi",
        "stop",
        usage,
        TokenUsage(1, 2),
    )
    assert [call["id"] for call in answer["tool_calls"]] == ["c0", "c1"]
    assert {"content": "hi"} in parts


async def test_an_error_under_the_status_200_is_an_error(client: EngineClient, saying: Saying) -> None:
    with pytest.raises(ExecutionFailed) as refused:
        await run(client, await saying(b'{"error": {"message": "no"}}', kind="application/json"), CHAT, ASKED)
    assert refused.value.reason == "ENGINE_FAILED"
