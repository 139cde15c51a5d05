"""What the answers of Anthropic's API look like: messages, the events of a stream, lists of models.

Source: the Anthropic API reference: Messages, Streaming Messages, Models. Which of the `stop_sequences` ended an answer
is told where the engine says it (llama.cpp does not: then it ends with `end_turn`); what the model thought is not,
because clients expect that to be signed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aima_core.call import timestamp, token
from services.gateway.engines.chat_completion import ChatAnswer, ChatDelta, ToolCallDelta
from services.gateway.engines.proxying import TokenUsage
from services.gateway.engines.sse_parser import decoded
from services.gateway.engines.translation import Timings
from services.gateway.events import sse

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
Json = dict[str, Any]
_decode = msgspec.json.Decoder(Json).decode


def message(model: str, answer: ChatAnswer, stops: Collection[str] = ()) -> Json:
    """Return a whole answer; `stops` are the client's `stop_sequences`."""
    content: list[Json] = []
    if answer.text or not answer.calls:
        content.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        given = {"id": call.id or _ident("toolu"), "name": call.name, "input": _arguments(call.arguments)}
        content.append({"type": "tool_use", **given})
    ended = _ended(answer.finish, answer.stopped_by if answer.stopped_by in stops else "", called=bool(answer.calls))
    return _message(model, content, answer.usage, ended)


def event(kind: str, **data: Any) -> bytes:
    """Return one event of a stream."""
    return sse.event({"type": kind, **data}, kind=kind)


class MessageEvents:
    """Tells an answer as it comes: one block after another, each begun, filled and ended."""

    media = "text/event-stream; charset=utf-8"

    def __init__(self, model: str, stops: Collection[str] = ()) -> None:
        """`stops` are the client's `stop_sequences`."""
        self._model = model
        self._stops = stops
        self._index = -1
        self._open = ""  # what the block under way is: text, or which call
        self._called = False
        self._finish = ""
        self._stopped_by = ""

    def begin(self) -> bytes:
        """Return the begin of the message; what it used is not known yet."""
        return event("message_start", message=_message(self._model, [], TokenUsage())) + event("ping")

    def feed(self, piece: ChatDelta) -> bytes:
        """Return what a piece of the answer comes to."""
        self._finish = piece.finish or self._finish
        if piece.stopped_by in self._stops:  # an engine may tell of the model's own as well
            self._stopped_by = piece.stopped_by
        told = list(self._text(piece.text)) if piece.text else []
        for call in piece.calls:
            told += self._call(call)
        return b"".join(told)

    def end(self, usage: TokenUsage, took: Timings) -> bytes:  # noqa: ARG002 (others tell the times)
        """Return the end of the message, of which at least one block is told."""
        begun = self._next("text", {"type": "text", "text": ""}) if self._index < 0 else ()
        delta = _ended(self._finish, self._stopped_by, called=self._called)
        ended = event("message_delta", delta=delta, usage=_usage(usage))
        return b"".join((*begun, *self._close(), ended, event("message_stop")))

    def failed(self, said: Mapping[str, Any]) -> bytes:
        """Return the end of a message that broke off."""
        return sse.event(said, kind="error")

    def _text(self, text: str) -> Iterator[bytes]:
        if self._open != "text":
            yield from self._next("text", {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def _call(self, call: ToolCallDelta) -> Iterator[bytes]:
        if self._open != f"call {call.index}":
            self._called = True
            given = {"id": call.id or _ident("toolu"), "name": call.function.name or "", "input": {}}
            yield from self._next(f"call {call.index}", {"type": "tool_use", **given})
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


def model(found: Mapping[str, Any]) -> Json:
    """Return a model as Anthropic's API shows it, from how OpenAI's does."""
    created = timestamp(found["created"]) if found["created"] else "1970-01-01T00:00:00Z"
    return {
        "type": "model",
        "id": found["id"],
        "display_name": found["id"],
        "created_at": created,
        "lifecycle": "active",
    }


def models(found: Sequence[Mapping[str, Any]]) -> Json:
    """Return all models as one page."""
    data = [model(each) for each in found]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}


def _message(model: str, content: list[Json], usage: TokenUsage, ended: Json | None = None) -> Json:
    return {
        "id": _ident("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **(ended or {"stop_reason": None, "stop_sequence": None}),
        "usage": _usage(usage),
    }


def _usage(usage: TokenUsage) -> Json:
    return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


def _ended(finish: str, stopped_by: str, *, called: bool) -> Json:
    """Return why an answer has ended."""
    if called and finish in ("", "stop"):  # some engines end a call like any other answer
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finish == "stop" and stopped_by:
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
    return {"stop_reason": _REASONS.get(finish, "end_turn"), "stop_sequence": None}


def _ident(kind: str) -> str:
    return f"{kind}_{token(12)}"


def _arguments(text: str) -> Json:
    """Return what a tool is called with; what a model has left unfinished goes on as the text that it is."""
    called = decoded(_decode, text or "{}")
    return {"arguments": text} if called is None else called
