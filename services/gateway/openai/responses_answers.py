"""Converts a chat answer to the format of OpenAI's Responses API: a whole response, or the events of a stream.

Source: the OpenAI API reference, Responses and Streaming events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aima_core.call import token
from aima_engines.chat_deltas import ChatAnswer, ChatDelta, Function, ToolCallDelta
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.translation import Timings
from services.gateway.events import sse
from services.gateway.openai.responses_requests import Format, Json, ResponsesRequest

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def whole(request: ResponsesRequest, answer: ChatAnswer) -> Json:
    """Return the whole response."""
    state = ResponseState(request)
    calls = [
        ToolCallDelta(index, call.id, Function(call.name, call.arguments)) for index, call in enumerate(answer.calls)
    ]
    for _ in state.feed(ChatDelta(answer.text, answer.reasoning, calls, answer.finish)):
        pass
    for _ in state.end(answer.usage):
        pass
    return state.response


class ResponseEvents:
    """Converts the deltas of an answer to the events of a Responses stream."""

    media = "text/event-stream; charset=utf-8"

    def __init__(self, request: ResponsesRequest) -> None:
        self._state = ResponseState(request)
        self._sequence = 0

    def begin(self) -> bytes:
        return self._events(self._state.begin())

    def feed(self, delta: ChatDelta) -> bytes:
        return self._events(self._state.feed(delta))

    def end(self, usage: TokenUsage, timings: Timings) -> bytes:  # noqa: ARG002 (the protocol's)
        return self._events(self._state.end(usage))

    def failed(self, error_body: Mapping[str, Any]) -> bytes:
        return self._events(self._state.failed(error_body["error"]["message"]))

    def _events(self, events: Iterator[Json]) -> bytes:
        frames = []
        for event in events:
            frames.append(sse.event(event | {"sequence_number": self._sequence}, kind=event["type"]))
            self._sequence += 1
        return b"".join(frames)


class ResponseState:
    """A response under way. Yields the events that build the response, without sequence numbers."""

    def __init__(self, request: ResponsesRequest) -> None:
        self.response = _response(request)
        self._output: list[Json] = self.response["output"]
        self._open = ""  # the type of the text item under way: "message", "reasoning", or "" for none
        self._calls: dict[int, int] = {}  # places in the output, by the call's index; calls stay open until the end
        self._finish = ""

    def begin(self) -> Iterator[Json]:
        """Yield the first events."""
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self.response}

    def feed(self, delta: ChatDelta) -> Iterator[Json]:
        """Yield the events of one delta."""
        self._finish = delta.finish or self._finish
        if delta.reasoning:
            yield from self._text("reasoning", delta.reasoning)
        if delta.text:
            yield from self._text("message", delta.text)
        for call in delta.calls:
            yield from self._call(call)

    def end(self, usage: TokenUsage) -> Iterator[Json]:
        """Yield the last events."""
        reason = _INCOMPLETE.get(self._finish)
        status = "incomplete" if reason else "completed"
        if not self._output:
            yield from self._text("message", "")
        yield from self._close_text(status)
        for place in self._calls.values():
            item = self._output[place]
            yield self._at(place, "function_call_arguments.done", arguments=item["arguments"], name=item["name"])
            yield from self._done(place, status)
        self.response["status"] = status
        self.response["incomplete_details"] = {"reason": reason} if reason else None
        self.response["usage"] = _usage(usage)
        yield {"type": f"response.{status}", "response": self.response}

    def failed(self, message: str) -> Iterator[Json]:
        """Yield the last event of a response that failed."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": message}
        for item in self._output:
            item["status"] = "incomplete" if item["status"] == "in_progress" else item["status"]
        yield {"type": "response.failed", "response": self.response}

    def _text(self, kind: str, text: str) -> Iterator[Json]:
        if self._open != kind:
            yield from self._close_text("completed")
            yield from self._begin_text(kind)
        place = len(self._output) - 1
        self._output[place]["content"][0]["text"] += text
        if text:
            yield self._at(place, f"{_PART[kind]}.delta", content_index=0, delta=text, **_LOGPROBS[kind])

    def _begin_text(self, kind: str) -> Iterator[Json]:
        self._open = kind
        fields: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
        ident = f"{'msg' if kind == 'message' else 'rs'}_{token(12)}"
        item = {"type": kind, "id": ident, "status": "in_progress", "content": [], **fields}
        yield from self._added(item)
        extra: Json = {"annotations": [], "logprobs": []} if kind == "message" else {}
        part = {"type": _PART[kind], "text": "", **extra}
        item["content"].append(part)
        yield self._at(len(self._output) - 1, "content_part.added", content_index=0, part=part)

    def _close_text(self, status: str) -> Iterator[Json]:
        kind, self._open = self._open, ""
        if not kind:
            return
        place = next(n for n in reversed(range(len(self._output))) if self._output[n]["type"] == kind)
        part = self._output[place]["content"][0]
        yield self._at(place, f"{_PART[kind]}.done", content_index=0, text=part["text"], **_LOGPROBS[kind])
        yield self._at(place, "content_part.done", content_index=0, part=part)
        yield from self._done(place, status)

    def _call(self, call: ToolCallDelta) -> Iterator[Json]:
        if call.index not in self._calls:
            yield from self._close_text("completed")
            self._calls[call.index] = len(self._output)
            fields = {"call_id": call.id or f"call_{token(12)}", "name": call.function.name or "", "arguments": ""}
            item = {"type": "function_call", "id": f"fc_{token(12)}", "status": "in_progress", **fields}
            yield from self._added(item)
        place = self._calls[call.index]
        if call.function.arguments:
            self._output[place]["arguments"] += call.function.arguments
            yield self._at(place, "function_call_arguments.delta", delta=call.function.arguments)

    def _added(self, item: Json) -> Iterator[Json]:
        self._output.append(item)
        yield {"type": "response.output_item.added", "output_index": len(self._output) - 1, "item": item}

    def _done(self, place: int, status: str) -> Iterator[Json]:
        item = self._output[place]
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": place, "item": item}

    def _at(self, place: int, kind: str, **fields: Any) -> Json:
        return {"type": f"response.{kind}", "output_index": place, "item_id": self._output[place]["id"], **fields}


_PART = {"message": "output_text", "reasoning": "reasoning_text"}
_LOGPROBS: Mapping[str, Json] = {"message": {"logprobs": []}, "reasoning": {}}


def _response(request: ResponsesRequest) -> Json:
    """Return a new response with the request's fields and without output."""
    return {
        "id": f"resp_{token(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": _format(request.text.format)},
        "tool_choice": msgspec.to_builtins(request.tool_choice),
        "tools": msgspec.to_builtins(request.tools),
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _format(format_: Format) -> Json:
    return {"type": format_.type} if format_.type != "json_schema" else dict(msgspec.to_builtins(format_))


def _usage(usage: TokenUsage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
