"""Converts answers to the formats of Ollama's API: one JSON object, or the lines of a stream.

Source: the Ollama API reference. The last line of a stream has all durations, in nanoseconds. `load_duration` is the
wait for a replica, which includes the loading of the model. `prompt_eval_duration` is the time from the end of this
wait to the first token.
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
    """Converts an answer's deltas to lines. Sends each tool call whole, at the end, as Ollama's clients expect."""

    media = NDJSON

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind = kind
        self._model = model
        self._joiner = ChatJoiner()

    def begin(self) -> bytes:
        """Return no bytes, because the first line contains the first delta."""
        return b""

    def feed(self, delta: ChatDelta) -> bytes:
        """Return the line for one delta. Empty if the delta has no text, such as a piece of a tool call."""
        self._joiner.add(delta)
        if not delta.text and not delta.reasoning:
            return b""
        content = _content(self._kind, ChatAnswer(delta.text, delta.reasoning))
        return line({**_head(self._model), **content, "done": False})

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:
        """Return the last line. If the answer has tool calls, a line with the tool calls comes first."""
        answer = self._joiner.answer
        calls_content = _content(self._kind, ChatAnswer(calls=answer.calls))
        calls_line = line({**_head(self._model), **calls_content, "done": False}) if answer.calls else b""
        return calls_line + line(final(self._kind, self._model, ChatAnswer(finish=answer.finish), usage, timings))

    def failed(self, error_body: Mapping[str, Any]) -> bytes:
        return line(error_body)


def final(kind: Kind, model: str, answer: ChatAnswer, usage: TokenUsage, timings: Timings) -> Json:
    """Return the last line of a stream, or the whole answer if it is not streamed."""
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
    """Return the answer to a request that only loads a model. `seconds` is the time that loading took."""
    durations = {"total_duration": _nanoseconds(seconds), "load_duration": _nanoseconds(seconds)}
    return {**_head(model), **_content(kind, ChatAnswer()), "done": True, "done_reason": "load", **durations}


def unloaded(kind: Kind, model: str) -> Json:
    """Return the answer to a request that unloads a model."""
    return {**_head(model), **_content(kind, ChatAnswer()), "done": True, "done_reason": "unload"}


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
    """Return the arguments of a tool call as an object. Invalid JSON becomes a text in the field `arguments`."""
    arguments = decoded(_decode, text or "{}")
    return {"arguments": text} if arguments is None else arguments


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
