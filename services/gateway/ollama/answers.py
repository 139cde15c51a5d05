"""What the answers of Ollama's API look like: lines of a stream, the last of which says how long everything took.

Source: the Ollama API reference. Durations are nanoseconds. `load_duration` is how long the request waited for a
replica, which is what loading comes to; `prompt_eval_duration` ends with the first word.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from aima_core.call import timestamp
from services.gateway.engines.chat_completion import ChatAnswer, ChatDelta, ChatJoiner
from services.gateway.engines.proxying import TokenUsage
from services.gateway.engines.sse_parser import decoded
from services.gateway.engines.translation import Timings

NDJSON = "application/x-ndjson"
Json = dict[str, Any]
_decode = msgspec.json.Decoder(Json).decode
Kind = Literal["chat", "generate"]


def line(data: Mapping[str, Any]) -> bytes:
    """Return one line of a stream."""
    return msgspec.json.encode(data) + b"\n"


class Lines:
    """Tells an answer as it comes. Tool calls are told at the end: Ollama's clients know no pieces of them."""

    media = NDJSON

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind = kind
        self._model = model
        self._whole = ChatJoiner()

    def begin(self) -> bytes:
        """Return nothing: the first line is the first piece."""
        return b""

    def feed(self, piece: ChatDelta) -> bytes:
        """Return the line that a piece is."""
        self._whole.add(piece)
        if not piece.text and not piece.reasoning:
            return b""
        return line({**_head(self._model), **_said(self._kind, ChatAnswer(piece.text, piece.reasoning)), "done": False})

    def end(self, usage: TokenUsage, took: Timings) -> bytes:
        """Return the last line, and before it the tools that are called."""
        answer = self._whole.answer
        called = _said(self._kind, ChatAnswer(calls=answer.calls))
        told = line({**_head(self._model), **called, "done": False}) if answer.calls else b""
        return told + line(final(self._kind, self._model, ChatAnswer(finish=answer.finish), usage, took))

    def failed(self, said: Mapping[str, Any]) -> bytes:
        """Return the last line of an answer that broke off."""
        return line(said)


def final(kind: Kind, model: str, answer: ChatAnswer, usage: TokenUsage, took: Timings) -> Json:
    """Return the answer that ends a stream, or is all of it."""
    return {
        **_head(model),
        **_said(kind, answer),
        "done": True,
        "done_reason": "length" if answer.finish == "length" else "stop",
        "total_duration": _nanoseconds(took.total),
        "load_duration": _nanoseconds(took.waiting),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(took.first),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(took.rest),
    }


def loaded(kind: Kind, model: str, seconds: float) -> Json:
    """Return the answer to a request that only loads a model, which took so long."""
    durations = {"total_duration": _nanoseconds(seconds), "load_duration": _nanoseconds(seconds)}
    return {**_head(model), **_said(kind, ChatAnswer()), "done": True, "done_reason": "load", **durations}


def embedded(model: str, vectors: list[msgspec.Raw], usage: TokenUsage, took: Timings) -> Json:
    """Return texts as vectors."""
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": _nanoseconds(took.total),
        "load_duration": _nanoseconds(took.waiting),
        "prompt_eval_count": usage.prompt_tokens,
    }


def _head(model: str) -> Json:
    return {"model": model, "created_at": timestamp(time.time())}


def _said(kind: Kind, answer: ChatAnswer) -> Json:
    thought = {"thinking": answer.reasoning} if answer.reasoning else {}
    if kind == "generate":
        return {"response": answer.text, **thought}
    calls = [{"function": {"name": call.name, "arguments": _arguments(call.arguments)}} for call in answer.calls]
    message = {"role": "assistant", "content": answer.text, **thought}
    return {"message": {**message, "tool_calls": calls} if calls else message}


def _arguments(text: str) -> Json:
    """Return what a tool is called with; what a model has left unfinished goes on as the text that it is."""
    called = decoded(_decode, text or "{}")
    return {"arguments": text} if called is None else called


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
