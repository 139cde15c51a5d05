"""What the answers of OpenAI's Responses API look like: the response, and the events of a stream.

Source: the OpenAI API reference, Responses and Streaming events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aima_core.call import token
from services.gateway.engines.chat_completion import ChatAnswer, ChatDelta, Function, ToolCallDelta
from services.gateway.engines.proxying import TokenUsage
from services.gateway.engines.translation import Timings
from services.gateway.events import sse
from services.gateway.openai.responses_requests import Format, Json, ResponsesRequest

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def whole(asked: ResponsesRequest, answer: ChatAnswer) -> Json:
    """Return a whole answer."""
    told = ResponseState(asked)
    calls = [
        ToolCallDelta(index, call.id, Function(call.name, call.arguments)) for index, call in enumerate(answer.calls)
    ]
    for _ in told.feed(ChatDelta(answer.text, answer.reasoning, calls, answer.finish)):
        pass
    for _ in told.end(answer.usage):
        pass
    return told.response


class ResponseEvents:
    """Tells an answer as it comes."""

    media = "text/event-stream; charset=utf-8"

    def __init__(self, asked: ResponsesRequest) -> None:
        self._told = ResponseState(asked)
        self._number = 0

    def begin(self) -> bytes:
        """Return the begin of the response."""
        return self._events(self._told.begin())

    def feed(self, piece: ChatDelta) -> bytes:
        """Return what a piece of the answer comes to."""
        return self._events(self._told.feed(piece))

    def end(self, usage: TokenUsage, took: Timings) -> bytes:  # noqa: ARG002 (only others tell how long it took)
        """Return the end of the response."""
        return self._events(self._told.end(usage))

    def failed(self, said: Mapping[str, Any]) -> bytes:
        """Return the end of a response that has failed."""
        return self._events(self._told.failed(said["error"]["message"]))

    def _events(self, told: Iterator[Json]) -> bytes:
        events = []
        for event in told:
            events.append(sse.event(event | {"sequence_number": self._number}, kind=event["type"]))
            self._number += 1
        return b"".join(events)


class ResponseState:
    """A response as far as it has been told; what is new is told in events, each without its number."""

    def __init__(self, asked: ResponsesRequest) -> None:
        self.response = _response(asked)
        self._output: list[Json] = self.response["output"]
        self._open = ""  # the type of the item with text that is under way: message or reasoning
        self._calls: dict[int, int] = {}  # where in the output the calls are, by their index; open until the end
        self._finish = ""

    def begin(self) -> Iterator[Json]:
        """Yield the begin."""
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self.response}

    def feed(self, piece: ChatDelta) -> Iterator[Json]:
        """Yield what a piece of the answer comes to."""
        self._finish = piece.finish or self._finish
        if piece.reasoning:
            yield from self._text("reasoning", piece.reasoning)
        if piece.text:
            yield from self._text("message", piece.text)
        for call in piece.calls:
            yield from self._call(call)

    def end(self, usage: TokenUsage) -> Iterator[Json]:
        """Yield the end."""
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
        """Yield the end of one that has failed."""
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
        more: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
        ident = f"{'msg' if kind == 'message' else 'rs'}_{token(12)}"
        item = {"type": kind, "id": ident, "status": "in_progress", "content": [], **more}
        yield from self._added(item)
        annotated: Json = {"annotations": [], "logprobs": []} if kind == "message" else {}
        part = {"type": _PART[kind], "text": "", **annotated}
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
            named = {"call_id": call.id or f"call_{token(12)}", "name": call.function.name or "", "arguments": ""}
            yield from self._added({"type": "function_call", "id": f"fc_{token(12)}", "status": "in_progress", **named})
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

    def _at(self, place: int, kind: str, **more: Any) -> Json:
        return {"type": f"response.{kind}", "output_index": place, "item_id": self._output[place]["id"], **more}


_PART = {"message": "output_text", "reasoning": "reasoning_text"}
_LOGPROBS: Mapping[str, Json] = {"message": {"logprobs": []}, "reasoning": {}}


def _response(asked: ResponsesRequest) -> Json:
    """Return a response that has just begun: beside its output, what was asked."""
    return {
        "id": f"resp_{token(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
        "store": False,
        "temperature": asked.temperature,
        "text": {"format": _format(asked.text.format)},
        "tool_choice": msgspec.to_builtins(asked.tool_choice),
        "tools": msgspec.to_builtins(asked.tools),
        "top_p": asked.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _format(asked: Format) -> Json:
    return {"type": asked.type} if asked.type != "json_schema" else dict(msgspec.to_builtins(asked))


def _usage(usage: TokenUsage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
