"""The kinds of requests: which types of models serve each, and how an engine is called for it.

A kind whose `run` is None is not implemented for any engine yet.
"""

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

_NOT_PASSED_ON = {"model", "stream", "wait"}  # fields of a unit that the request to the engine does not copy


class PartSender:
    """Sends the parts of an answer to the caller, if it asked for parts.

    `engine_answered`: the engine has sent something; `first`: seconds from the request to its first part.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._started_at = time.monotonic()
        self.engine_answered = False
        self.first: float | None = None

    async def __call__(self, part: dict[str, Any]) -> None:
        if self.first is None:
            self.first = round(time.monotonic() - self._started_at, 6)
        if self._parts.requested:
            await self._parts.send(part)


Run = Callable[[httpx2.AsyncClient, Route, Any, u.RequestStarted, PartSender], Awaitable[tuple[View, dict[str, int]]]]


@dataclass(frozen=True)
class RequestKind:
    """A kind of request: the types of models that serve it, and the function that calls an engine."""

    types: tuple[str, ...]
    run: Run | None = None


async def _chat(
    http: httpx2.AsyncClient, route: Route, command: u.Chat, lease: u.RequestStarted, send: PartSender
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
    http: httpx2.AsyncClient, route: Route, command: u.Complete, _: u.RequestStarted, send: PartSender
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
    http: httpx2.AsyncClient, route: Route, command: u.Embed, _: u.RequestStarted, __: PartSender
) -> tuple[View, dict[str, int]]:
    answer = await openai_dialect.ask(http, f"{route.endpoint}/v1/embeddings", _body(route, command))
    usage = _usage(answer.usage or openai_dialect.TokenCounts())
    vectors = sorted(answer.data, key=lambda vector: vector.index)
    return u.Embeddings(embeddings=[vector.embedding for vector in vectors], usage=u.Usage(**usage)), usage


_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


async def _stream(
    http: httpx2.AsyncClient, route: Route, path: str, command: Command[Any], send: PartSender
) -> AsyncGenerator[openai_dialect.EngineAnswer]:
    """Yield the chunks of an engine's answer; streams also for a caller who did not ask for parts.

    Only a streamed request is cancelled by every engine when the caller leaves: llama.cpp finishes a whole answer.
    """
    has_choices = False
    async with aclosing(
        openai_dialect.stream(http, f"{route.endpoint}{path}", _body(route, command) | _STREAMED)
    ) as chunks:
        async for chunk in chunks:
            send.engine_answered = True
            has_choices = has_choices or bool(chunk.choices)
            yield chunk
    if not has_choices:
        raise ExecutionFailed("the engine's answer has no choices", reason="BAD_ANSWER")


def _body(route: Route, command: Command[Any]) -> dict[str, Any]:
    """Return the engine's request: only the fields that the caller set, and the model's name at the engine."""
    fields = command.model_dump(exclude_unset=True, exclude_none=True, exclude=_NOT_PASSED_ON)
    return {**fields, "model": route.served_model}


def _usage(tokens: openai_dialect.TokenCounts) -> dict[str, int]:
    total = tokens.total_tokens or tokens.prompt_tokens + tokens.completion_tokens
    return {
        "prompt_tokens": tokens.prompt_tokens,
        "completion_tokens": tokens.completion_tokens,
        "total_tokens": total,
    }


REQUEST_KINDS: Mapping[type[Command[Any]], RequestKind] = {
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
