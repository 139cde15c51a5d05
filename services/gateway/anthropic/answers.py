"""Converts answers to the formats of Anthropic's API: messages, the events of a stream, and lists of models.

Source: the Anthropic API reference: Messages, Streaming Messages, Models. `stop_sequence` is set if the engine reports
the text that ended the answer. llama.cpp does not report the text, so its answers end with `end_turn`. The model's
reasoning is omitted, because clients expect signed thinking blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aima_core.call import timestamp, token
from aima_engines.chat_deltas import ChatAnswer, ChatDelta, ToolCallDelta
from aima_engines.decoding import decoded
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.translation import Timings
from services.gateway.events import sse

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
Json = dict[str, Any]
_decode = msgspec.json.Decoder(Json).decode


def message(model: str, answer: ChatAnswer, stops: Collection[str] = ()) -> Json:
    """Return the whole message. `stops` are the client's `stop_sequences`."""
    content: list[Json] = []
    if answer.text or not answer.calls:
        content.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        fields = {"id": call.id or _new_id("toolu"), "name": call.name, "input": _arguments(call.arguments)}
        content.append({"type": "tool_use", **fields})
    stopped_by = answer.stopped_by if answer.stopped_by in stops else ""
    stop_fields = _stop_fields(answer.finish, stopped_by, called=bool(answer.calls))
    return _message(model, content, answer.usage, stop_fields)


def event(kind: str, **data: Any) -> bytes:
    """Return one event of a stream."""
    return sse.event({"type": kind, **data}, kind=kind)


class MessageEvents:
    """Translates an answer's deltas into a stream of content blocks, each with its start, deltas and stop."""

    media = "text/event-stream; charset=utf-8"

    def __init__(self, model: str, stops: Collection[str] = ()) -> None:
        """`stops` are the client's `stop_sequences`."""
        self._model = model
        self._stops = stops
        self._index = -1
        self._open = ""  # the block under way: "text", "call <index>", or "" for none
        self._called = False
        self._finish = ""
        self._stopped_by = ""

    def begin(self) -> bytes:
        """Return the first events. Their usage is 0, because the engine reports the usage at the end."""
        return event("message_start", message=_message(self._model, [], TokenUsage())) + event("ping")

    def feed(self, delta: ChatDelta) -> bytes:
        self._finish = delta.finish or self._finish
        if delta.stopped_by in self._stops:  # an engine may also report the model's own stop texts
            self._stopped_by = delta.stopped_by
        frames = list(self._text(delta.text)) if delta.text else []
        for call in delta.calls:
            frames += self._call(call)
        return b"".join(frames)

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:  # noqa: ARG002 (the protocol's)
        """Return the last events. An answer with neither text nor tool calls gets one empty text block."""
        empty_block = self._next("text", {"type": "text", "text": ""}) if self._index < 0 else ()
        stop_fields = _stop_fields(self._finish, self._stopped_by, called=self._called)
        end_event = event("message_delta", delta=stop_fields, usage=_usage(usage))
        return b"".join((*empty_block, *self._close(), end_event, event("message_stop")))

    def failed(self, error_body: Mapping[str, Any]) -> bytes:
        return sse.event(error_body, kind="error")

    def _text(self, text: str) -> Iterator[bytes]:
        if self._open != "text":
            yield from self._next("text", {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def _call(self, call: ToolCallDelta) -> Iterator[bytes]:
        if self._open != f"call {call.index}":
            self._called = True
            fields = {"id": call.id or _new_id("toolu"), "name": call.function.name or "", "input": {}}
            yield from self._next(f"call {call.index}", {"type": "tool_use", **fields})
        if call.function.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.function.arguments})

    def _next(self, name: str, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._open = name
        self._index += 1
        yield self._start(block)

    def _close(self) -> Iterator[bytes]:
        if self._open:
            yield event("content_block_stop", index=self._index)
        self._open = ""

    def _start(self, block: Json) -> bytes:
        return event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: Json) -> bytes:
        return event("content_block_delta", index=self._index, delta=delta)


def model(openai_model: Mapping[str, Any]) -> Json:
    """Convert a model from the format of OpenAI's API to the format of Anthropic's."""
    created = timestamp(openai_model["created"]) if openai_model["created"] else "1970-01-01T00:00:00Z"
    return {
        "type": "model",
        "id": openai_model["id"],
        "display_name": openai_model["id"],
        "created_at": created,
        "lifecycle": "active",
    }


def models(openai_models: Sequence[Mapping[str, Any]]) -> Json:
    """Return all models as one page."""
    data = [model(each) for each in openai_models]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}


def _message(model: str, content: list[Json], usage: TokenUsage, stop_fields: Json | None = None) -> Json:
    return {
        "id": _new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **(stop_fields or {"stop_reason": None, "stop_sequence": None}),
        "usage": _usage(usage),
    }


def _usage(usage: TokenUsage) -> Json:
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def _stop_fields(finish: str, stopped_by: str, *, called: bool) -> Json:
    """Return the fields that say why an answer ended."""
    if called and finish in ("", "stop"):  # some engines report "stop" for an answer with tool calls
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finish == "stop" and stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
    return {"stop_reason": _REASONS.get(finish, "end_turn"), "stop_sequence": None}


def _new_id(kind: str) -> str:
    return f"{kind}_{token(12)}"


def _arguments(text: str) -> Json:
    """Return the arguments of a tool call as an object. Invalid JSON becomes a text in the field `arguments`."""
    arguments = decoded(_decode, text or "{}")
    return {"arguments": text} if arguments is None else arguments
