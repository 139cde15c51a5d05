"""What each kind of request asks of an engine. A kind whose `run` is None is served by no engine of ours yet."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx2

from aima_core.domain import Parts
from aima_core.errors import ExecutionFailed
from aima_core.units import Command, View
from services.inference import units as u
from services.inference.outside import openai_dialect
from services.inference.rules.state import Route

_LOCAL = {"model", "stream", "wait"}  # fields that are ours to fill in


class Send:
    """Passes the parts of an answer on, if they are wanted.

    `heard`: the engine has said something; `first`: seconds until there was a part.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._begun = time.monotonic()
        self.heard = False
        self.first: float | None = None

    async def __call__(self, part: dict[str, Any]) -> None:
        """Send a part."""
        if self.first is None:
            self.first = round(time.monotonic() - self._begun, 6)
        if self._parts.requested:
            await self._parts.send(part)


Run = Callable[[httpx2.AsyncClient, Route, Any, u.RequestStarted, Send], Awaitable[tuple[View, dict[str, int]]]]


@dataclass(frozen=True)
class RequestKind:
    """A kind of request: the types of model that serve it, and how an engine is asked."""

    types: tuple[str, ...]
    run: Run | None = None


async def _chat(
    http: httpx2.AsyncClient, route: Route, command: u.Chat, lease: u.RequestStarted, send: Send
) -> tuple[View, dict[str, int]]:
    text, calls, finish, tokens = "", list[dict[str, Any]](), "", openai_dialect.TokenCounts()
    async with aclosing(_stream(http, route, "/v1/chat/completions", command, send)) as chunks:
        async for chunk in chunks:
            tokens = chunk.usage or tokens
            for choice in chunk.choices[:1]:
                delta = choice.delta or choice.message or openai_dialect.Delta()
                finish = choice.finish_reason or finish
                if delta.tool_calls:
                    openai_dialect.merge_tool_calls(calls, delta.tool_calls)
                    await send({"tool_calls": delta.tool_calls})
                if delta.content:
                    text += delta.content
                    await send({"content": delta.content})
    usage = _usage(tokens)
    view = u.ChatResult(
        content=text,
        finish_reason=finish,
        tool_calls=calls or None,
        usage=u.Usage(**usage),
        model=lease.model,
        id=lease.request_id,
    )
    return view, usage


async def _complete(
    http: httpx2.AsyncClient, route: Route, command: u.Complete, _: u.RequestStarted, send: Send
) -> tuple[View, dict[str, int]]:
    text, finish, tokens = "", "", openai_dialect.TokenCounts()
    async with aclosing(_stream(http, route, "/v1/completions", command, send)) as chunks:
        async for chunk in chunks:
            tokens = chunk.usage or tokens
            for choice in chunk.choices[:1]:
                finish = choice.finish_reason or finish
                if choice.text:
                    text += choice.text
                    await send({"text": choice.text})
    usage = _usage(tokens)
    return u.Completion(text=text, finish_reason=finish, usage=u.Usage(**usage)), usage


async def _embed(
    http: httpx2.AsyncClient, route: Route, command: u.Embed, _: u.RequestStarted, __: Send
) -> tuple[View, dict[str, int]]:
    answer = await openai_dialect.ask(http, f"{route.endpoint}/v1/embeddings", _body(route, command))
    usage = _usage(answer.usage or openai_dialect.TokenCounts())
    vectors = sorted(answer.data, key=lambda vector: vector.index)
    return u.Embeddings(embeddings=[vector.embedding for vector in vectors], usage=u.Usage(**usage)), usage


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


async def _stream(
    http: httpx2.AsyncClient, route: Route, path: str, command: Command[Any], send: Send
) -> AsyncGenerator[openai_dialect.EngineAnswer]:
    """Yield an engine's answer as it comes, also for a caller who wants it whole.

    Only so does every engine stop for one who leaves: llama.cpp goes on with an answer in one piece.
    """
    answered = False
    async with aclosing(
        openai_dialect.stream(http, f"{route.endpoint}{path}", _body(route, command) | _STREAMED)
    ) as chunks:
        async for chunk in chunks:
            send.heard = True
            answered = answered or bool(chunk.choices)
            yield chunk
    if not answered:
        raise ExecutionFailed("the engine answered without a choice", reason="BAD_ANSWER")


def _body(route: Route, command: Command[Any]) -> dict[str, Any]:
    """Return the request under the name by which the engine knows its model, with what the caller set and no more."""
    given = command.model_dump(exclude_unset=True, exclude_none=True, exclude=_LOCAL)
    return {**given, "model": route.served_model}


def _usage(tokens: openai_dialect.TokenCounts) -> dict[str, int]:
    total = tokens.total_tokens or tokens.prompt_tokens + tokens.completion_tokens
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": total,
    }


TASKS: Mapping[type[Command[Any]], RequestKind] = {
    u.Chat: RequestKind(("llm", "vlm"), _chat),
    u.Complete: RequestKind(("llm", "vlm"), _complete),
    u.Embed: RequestKind(("embedding",), _embed),
    u.Transcribe: RequestKind(("asr",)),
    u.Synthesize: RequestKind(("tts",)),
    u.GenerateImage: RequestKind(("diffusion",)),
    u.GenerateVideo: RequestKind(("video_gen",)),
    u.Rerank: RequestKind(("rerank",)),
    u.Detect: RequestKind(("detection",)),
}
