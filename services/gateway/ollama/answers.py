"""Turns answers into the shapes of Ollama's API: one JSON object, or lines of a stream, the last with all durations.

Source: the Ollama API reference. Durations are nanoseconds. `load_duration` is how long the request waited for a
replica, which includes loading the model; `prompt_eval_duration` lasts from then until the first token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from aima_core.call import timestamp
from aima_engines.chat_deltas import ChatAnswer, ChatDelta, ChatJoiner
from aima_engines.decoding import decoded
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.translation import Timings

NDJSON = "application/x-ndjson"
Json = dict[str, Any]
_decode = msgspec.json.Decoder(Json).decode
Kind = Literal["chat", "generate"]


def line(data: Mapping[str, Any]) -> bytes:
    """Return one line of a stream."""
    return msgspec.json.encode(data) + b"\n"


class Lines:
    """Translates an answer's deltas into lines. Tool calls are sent whole at the end, as Ollama's clients expect."""

    media = NDJSON

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind = kind
        self._model = model
        self._joiner = ChatJoiner()

    def begin(self) -> bytes:
        """Return nothing: the first line carries the first delta."""
        return b""

    def feed(self, delta: ChatDelta) -> bytes:
        """Return the line for one delta; empty if it has no text, such as a piece of a tool call."""
        self._joiner.add(delta)
        if not delta.text and not delta.reasoning:
            return b""
        content = _content(self._kind, ChatAnswer(delta.text, delta.reasoning))
        return line({**_head(self._model), **content, "done": False})

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:
        """Return the last line, after a line with the tool calls if there are any."""
        answer = self._joiner.answer
        calls_content = _content(self._kind, ChatAnswer(calls=answer.calls))
        calls_line = line({**_head(self._model), **calls_content, "done": False}) if answer.calls else b""
        return calls_line + line(final(self._kind, self._model, ChatAnswer(finish=answer.finish), usage, timings))

    def failed(self, error_body: Mapping[str, Any]) -> bytes:
        return line(error_body)


def final(kind: Kind, model: str, answer: ChatAnswer, usage: TokenUsage, timings: Timings) -> Json:
    """Return the last line of a stream, or the whole answer."""
    return {
        **_head(model),
        **_content(kind, answer),
        "done": True,
        "done_reason": "length" if answer.finish == "length" else "stop",
        "total_duration": _nanoseconds(timings.total),
        "load_duration": _nanoseconds(timings.waiting),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.first),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.rest),
    }


def loaded(kind: Kind, model: str, seconds: float) -> Json:
    """Return the answer to a request that only loads a model; `seconds`: how long that took."""
    durations = {"total_duration": _nanoseconds(seconds), "load_duration": _nanoseconds(seconds)}
    return {**_head(model), **_content(kind, ChatAnswer()), "done": True, "done_reason": "load", **durations}


def embedded(model: str, vectors: list[msgspec.Raw], usage: TokenUsage, timings: Timings) -> Json:
    """Return the answer to a request for embeddings."""
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": _nanoseconds(timings.total),
        "load_duration": _nanoseconds(timings.waiting),
        "prompt_eval_count": usage.prompt_tokens,
    }


def _head(model: str) -> Json:
    return {"model": model, "created_at": timestamp(time.time())}


def _content(kind: Kind, answer: ChatAnswer) -> Json:
    reasoning = {"thinking": answer.reasoning} if answer.reasoning else {}
    if kind == "generate":
        return {"response": answer.text, **reasoning}
    calls = [{"function": {"name": call.name, "arguments": _arguments(call.arguments)}} for call in answer.calls]
    message = {"role": "assistant", "content": answer.text, **reasoning}
    return {"message": {**message, "tool_calls": calls} if calls else message}


def _arguments(text: str) -> Json:
    """Return a tool call's arguments as an object; JSON that the model left incomplete is passed on as text."""
    arguments = decoded(_decode, text or "{}")
    return {"arguments": text} if arguments is None else arguments


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
