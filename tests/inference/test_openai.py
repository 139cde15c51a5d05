"""The OpenAI dialect: against an engine that speaks it, and against answers that are none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Unavailable, ValidationFailed
from services.inference import units as u
from services.inference.outside import openai_dialect
from services.inference.outside.request_kinds import REQUEST_KINDS, PartSender
from services.inference.rules.state import Route
from tests.inference.conftest import DONE, Saying, Start, chunk, said
from tests.inference.test_decider import begun


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with openai_dialect.client() as client:
        yield client


class Kept:
    """A caller who keeps the parts that it is sent."""

    def __init__(self, requested: bool) -> None:
        self.requested = requested
        self.sent: list[dict[str, Any]] = []

    async def send(self, part: dict[str, Any]) -> None:
        self.sent.append(part)


async def heard(http: httpx2.AsyncClient, url: str) -> tuple[list[openai_dialect.EngineAnswer], BaseException | None]:
    """Return the chunks of a stream, and what it broke with."""
    chunks: list[openai_dialect.EngineAnswer] = []
    try:
        async with aclosing(openai_dialect.stream(http, url, {})) as stream:
            async for answer in stream:
                chunks.append(answer)
    except (openai_dialect.BrokenAnswer, AimaError) as error:
        return chunks, error
    return chunks, None


async def run(http: httpx2.AsyncClient, endpoint: str, command: Any, *, parts: bool = False) -> tuple[Any, Any, Any]:
    """Carry one request: its view, its usage, its parts."""
    route = Route("p0", endpoint, "served", "openai", tools=True)
    kept = Kept(parts)
    carry = REQUEST_KINDS[type(command)].run
    assert carry
    view, usage = await carry(http, route, command, begun(), PartSender(kept))
    return view, usage, kept.sent


CHAT = u.Chat.model_validate({"model": "M", "messages": [{"role": "user", "content": "good day"}], "max_tokens": 3})


# --- an engine that speaks it -------------------------------------------------------------------------------------


async def test_a_chat_is_answered_whole_or_in_parts(http: httpx2.AsyncClient, stand_in: Start) -> None:
    engine = await stand_in()
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    answer = u.ChatResult(content="echo: good day", finish_reason="stop", usage=u.Usage(**usage), model="m", id="req-1")
    assert await run(http, engine.endpoint, CHAT) == (answer, usage, [])
    parts = [{"content": "echo:"}, {"content": " good"}, {"content": " day"}]
    assert await run(http, engine.endpoint, CHAT, parts=True) == (answer, usage, parts)


async def test_a_text_is_continued_whole_or_in_parts(http: httpx2.AsyncClient, stand_in: Start) -> None:
    engine = await stand_in("--tokens", "2")
    command = u.Complete(model="M", prompt="one two")
    usage = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    answer = u.Completion(text="echo: one", finish_reason="stop", usage=u.Usage(**usage))
    assert await run(http, engine.endpoint, command) == (answer, usage, [])
    assert await run(http, engine.endpoint, command, parts=True) == (
        answer,
        usage,
        [{"text": "echo:"}, {"text": " one"}],
    )


@pytest.mark.parametrize(
    ("texts", "vectors", "tokens"),
    [("two words", [[9.0, 0.0, 1.0]], 2), (["ab", "c"], [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]], 2), ([], [], 0)],
)
async def test_texts_are_embedded_in_order(
    http: httpx2.AsyncClient, stand_in: Start, texts: Any, vectors: Any, tokens: int
) -> None:
    engine = await stand_in()
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    expected = u.Embeddings(embeddings=vectors, usage=u.Usage(**usage))
    assert await run(http, engine.endpoint, u.Embed(model="M", input=texts)) == (expected, usage, [])


async def test_vectors_come_back_in_the_order_of_the_texts(http: httpx2.AsyncClient, saying: Saying) -> None:
    mixed = {"data": [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]}
    view, usage, _ = await run(http, await saying(json.dumps(mixed).encode()), u.Embed(model="M", input=["a", "b"]))
    assert view.embeddings == [[0.0], [1.0]]
    assert usage == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def test_an_engine_is_asked_for_its_own_name_of_the_model_with_what_was_set_and_for_a_stream() -> None:
    seen: list[bytes] = []

    async def stream() -> AsyncIterator[bytes]:
        yield chunk(delta={"content": "x"}) + DONE

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.content)
        return httpx2.Response(200, content=stream())

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as recording:
        view, usage, _ = await run(recording, "http://engine", CHAT)
    assert [json.loads(body) for body in seen] == [
        {
            "model": "served",
            "messages": [{"role": "user", "content": "good day"}],
            "max_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
    assert (view.content, view.finish_reason, view.tool_calls, usage["total_tokens"]) == ("x", "", None, 0)


# --- tools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [False, True])
async def test_tool_calls_are_merged_from_their_pieces(http: httpx2.AsyncClient, saying: Saying, wanted: bool) -> None:
    pieces: list[Any] = [
        [{"index": 0, "id": "c0", "type": "function", "function": {"name": "add", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 1, "id": "c1", "function": {"name": "sub", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": " 1}"}}],
    ]
    body = b"".join(chunk(delta={"tool_calls": piece}) for piece in pieces)
    end = chunk(delta={}, finish_reason="tool_calls")
    view, _, parts = await run(http, await saying(body + end + DONE), CHAT, parts=wanted)
    assert view.tool_calls == [
        {"type": "function", "id": "c0", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"type": "function", "id": "c1", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assert (view.content, view.finish_reason) == ("", "tool_calls")
    assert parts == ([{"tool_calls": piece} for piece in pieces] if wanted else [])


def test_pieces_without_an_index_or_a_function_do_no_harm() -> None:
    calls: list[dict[str, Any]] = []
    openai_dialect.merge_tool_calls(calls, [{"id": "c", "function": {"name": "f"}}, {}, {"function": None}])
    assert calls == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": ""}}]


# --- answers that are none ----------------------------------------------------------------------------------------

HELLO = chunk(delta={"content": "hello"})
STREAMS: dict[str, tuple[bytes, list[str], Any]] = {
    "whole": (HELLO + DONE, ["hello"], None),
    "after the end": (HELLO + DONE + HELLO, ["hello"], None),
    "lines that are no data": (b": ping\n\nevent: x\n" + HELLO + DONE, ["hello"], None),
    "with carriage returns": (HELLO.replace(b"\n", b"\r\n") + DONE, ["hello"], None),
    "without a blank": (HELLO.replace(b"data: ", b"data:") + DONE, ["hello"], None),
    "broken off": (HELLO, ["hello"], (openai_dialect.BrokenAnswer, True)),
    "broken off in a line": (HELLO + b"data: {", ["hello"], (openai_dialect.BrokenAnswer, True)),
    "nothing at all": (b"", [], (openai_dialect.BrokenAnswer, False)),
    "no JSON": (HELLO + b"data: what\n\n", ["hello"], (ExecutionFailed, "BAD_ANSWER")),
    "an error": (
        HELLO + b'data: {"error": {"message": "out of memory"}}\n\n',
        ["hello"],
        (ExecutionFailed, "ENGINE_FAILED"),
    ),
}


@pytest.mark.parametrize(("body", "texts", "outcome"), STREAMS.values(), ids=STREAMS)
async def test_a_stream_ends(
    http: httpx2.AsyncClient, saying: Saying, body: bytes, texts: list[str], outcome: Any
) -> None:
    chunks, error = await heard(http, await saying(body))
    assert [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta] == texts
    if outcome is None:
        assert error is None
        return
    kind, detail = outcome
    assert type(error) is kind
    assert (error.begun if isinstance(error, openai_dialect.BrokenAnswer) else error.reason) == detail  # type: ignore[union-attr]


async def test_a_stream_that_is_cut_off_short_of_its_length_is_broken(http: httpx2.AsyncClient, saying: Saying) -> None:
    chunks, error = await heard(http, await saying(HELLO, length=1000))
    assert len(chunks) == 1
    assert isinstance(error, openai_dialect.BrokenAnswer)
    assert error.begun


async def test_nobody_there_is_broken_before_it_began(http: httpx2.AsyncClient, free_port: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    _, error = await heard(http, url)
    assert isinstance(error, openai_dialect.BrokenAnswer)
    assert not error.begun
    with pytest.raises(openai_dialect.BrokenAnswer) as broken:
        await openai_dialect.ask(http, url, {})
    assert not broken.value.begun


REFUSALS: dict[str, tuple[str, bytes, type[AimaError], str, str]] = {
    "bad request": (
        *("400 Bad Request", b'{"error": {"message": "too long"}}'),
        *(ValidationFailed, "ENGINE_REFUSED", "the engine refused the request: too long"),
    ),
    "unknown model": (
        *("404 Not Found", b'{"error": "no such model"}'),
        *(ValidationFailed, "ENGINE_REFUSED", "the engine refused the request: no such model"),
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
async def test_an_engines_refusal_is_one_of_ours(
    http: httpx2.AsyncClient,
    saying: Saying,
    status: str,
    body: bytes,
    kind: type[AimaError],
    reason: str,
    message: str,
) -> None:
    url = await saying(body, status=status)
    with pytest.raises(AimaError) as refused:
        await openai_dialect.ask(http, url, {})
    assert (type(refused.value), refused.value.reason, refused.value.message) == (kind, reason, message)
    _, error = await heard(http, url)
    assert (type(error), str(error)) == (kind, message)


@pytest.mark.parametrize("answer", [b"", b"data: []\n\n", said({"choices": 1}), said({"choices": []}), said({})])
@pytest.mark.parametrize("command", [CHAT, u.Complete(model="M", prompt="one two")])
async def test_an_answer_without_a_choice_is_none(
    http: httpx2.AsyncClient, saying: Saying, command: Any, answer: bytes
) -> None:
    with pytest.raises(ExecutionFailed) as refused:
        await run(http, await saying(answer + DONE), command)
    assert refused.value.reason == "BAD_ANSWER"


async def test_an_engine_that_knows_no_streams_answers_in_one_piece(http: httpx2.AsyncClient, saying: Saying) -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    message = {"role": "assistant", "content": "hi", "tool_calls": calls}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    whole = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    engine = await saying(json.dumps(whole).encode(), kind="application/json")
    view, used, parts = await run(http, engine, CHAT, parts=True)
    assert (view.content, view.finish_reason, used) == ("hi", "stop", usage)
    assert [call["id"] for call in view.tool_calls] == ["c0", "c1"]
    assert {"content": "hi"} in parts


async def test_nothing_is_made_of_an_answer_that_breaks_off(http: httpx2.AsyncClient, saying: Saying) -> None:
    with pytest.raises(openai_dialect.BrokenAnswer) as broken:
        await run(http, await saying(HELLO), CHAT)
    assert broken.value.begun


async def test_an_error_in_an_answer_that_says_it_is_well_is_an_error(http: httpx2.AsyncClient, saying: Saying) -> None:
    with pytest.raises(ExecutionFailed) as refused:
        await openai_dialect.ask(http, await saying(b'{"error": {"message": "no"}}'), {})
    assert refused.value.reason == "ENGINE_FAILED"
