"""Requests for text and vectors: chats, completions, embeddings. Source: the OpenAI API reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from aima_engines.chat_deltas import ChatAnswer, ChatJoiner, ToolCallDelta, deltas
from aima_engines.decoding import decoded
from aima_engines.engine_answer import TokenUsage
from aima_engines.engine_errors import bad_answer
from aima_engines.kinds.embeddings import vectors
from aima_engines.kinds.exchange import Exchange

TEXT = ("llm", "vlm")  # the model types that chat
VISION = ("vlm",)  # the model types that accept images in a chat
_numbers = msgspec.json.Decoder(list[float]).decode


def types_for_contents(contents: Iterable[Any]) -> tuple[str, ...]:
    """Return the model types that accept these message contents: images need a vision model."""
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return VISION if any(part.get("type") == "image_url" for part in parts) else TEXT


def types_for_chat(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the model types that can serve a chat with these fields."""
    return types_for_contents(message.get("content") for message in fields["messages"])


async def chat(exchange: Exchange) -> dict[str, Any]:
    """Return the answer to a chat; send texts and tool calls as parts. `tool_calls` is None if there are none."""
    answer = await _joined(exchange, "content")
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
    ]
    return {
        "content": answer.text,
        "finish_reason": answer.finish,
        "tool_calls": calls or None,
        "usage": _usage(exchange.answer.usage),
    }


async def completion(exchange: Exchange) -> dict[str, Any]:
    """Return the continuation of a text; send pieces of it as parts."""
    answer = await _joined(exchange, "text")
    return {"text": answer.text, "finish_reason": answer.finish, "usage": _usage(exchange.answer.usage)}


async def embeddings(exchange: Exchange) -> dict[str, Any]:
    """Return one vector for each text, in the order of the texts."""
    response, _ = await vectors(exchange.answer, exchange.engine.model)
    lists = [decoded(_numbers, vector.embedding) for vector in sorted(response.data, key=lambda vector: vector.index)]
    texts = exchange.fields["input"]
    if len(lists) != (1 if isinstance(texts, str) else len(texts)) or not all(lists):
        raise bad_answer()
    return {"embeddings": lists, "usage": _usage(exchange.answer.usage)}


async def _joined(exchange: Exchange, field: str) -> ChatAnswer:
    """Send each delta to the caller as a part, with the text in the part's `field`; return the whole answer."""
    joiner = ChatJoiner()
    async with aclosing(deltas(exchange.answer)) as stream:
        async for delta in stream:
            joiner.add(delta)
            if delta.calls:
                await exchange.send({"tool_calls": [_piece(call) for call in delta.calls]})
            if delta.text:
                await exchange.send({field: delta.text})
    if not joiner.begun:
        raise bad_answer()
    return joiner.answer


def _piece(call: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a tool call in OpenAI's format: only the first piece has id and type."""
    identity = {"id": call.id, "type": "function"} if call.id else {}
    return {"index": call.index, **identity, "function": msgspec.to_builtins(call.function)}


def _usage(usage: TokenUsage) -> dict[str, int]:
    return {**msgspec.to_builtins(usage), "total_tokens": usage.prompt_tokens + usage.completion_tokens}
