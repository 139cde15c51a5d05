"""Reads a text answer delta by delta, in terms that all APIs share: text, tool calls, finish reason, usage.

The doors that translate answers use this module, for chat completions and completions. The OpenAI door passes on the
engine's bytes instead. Source: the OpenAI API reference, as llama.cpp, vLLM and SGLang serve it. All three engines add
the field `reasoning_content`. vLLM's `stop_reason` and SGLang's `matched_stop` name the stop text that ended the
answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aima_engines.assembly import MOST_CALLS, join_numbered
from aima_engines.decoding import decoded
from aima_engines.engine_answer import EngineAnswer, TokenUsage
from aima_engines.engine_errors import bad_answer, engine_failed
from aima_engines.sse_parser import DONE, Splitter, data_of


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """The function of a tool call; in a stream, the new part of the function's name and arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The new part of a tool call. The first part has `id` and name. The arguments, a JSON text, arrive in parts."""

    index: int = 0
    id: str | None = None
    function: Function = Function()


@dataclass(frozen=True)
class ChatDelta:
    """The new part of an answer. `finish`: stop, length, tool_calls or content_filter, in the last delta only.

    `stopped_by`: the stop text that ended the answer, if the engine reports the text. The client or the model defines
    the stop texts.
    """

    text: str = ""
    reasoning: str = ""
    calls: Sequence[ToolCallDelta] = ()
    finish: str = ""
    stopped_by: str = ""


@dataclass
class ToolCall:
    """A whole tool call; `arguments` is the JSON text that the model wrote."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class ChatAnswer:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish: str = "stop"
    stopped_by: str = ""
    usage: TokenUsage = field(default_factory=TokenUsage)


class _Piece(msgspec.Struct, frozen=True):
    index: Annotated[int, Meta(ge=0, lt=MOST_CALLS)] = 0
    id: str | None = None
    function: Function | None = None


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Piece] | None = None


_EMPTY = _Message()


class _Choice(msgspec.Struct, frozen=True):
    delta: _Message | None = None
    message: _Message | None = None  # the whole message of an engine that does not stream
    text: str | None = None  # the text of a completion, which has neither delta nor message
    finish_reason: str | None = None
    stop_reason: Any = None  # the stop text, or the id of a stop token
    matched_stop: Any = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: TokenUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


async def deltas(answer: EngineAnswer) -> AsyncGenerator[ChatDelta]:
    """Yield the deltas of an answer and set `answer.usage`. An answer that is not streamed is one delta.

    Raises `answer.broken()` if the answer breaks off, ExecutionFailed if the engine reports an error.
    """
    if not answer.streams:
        if delta := _delta(answer, await answer.whole()):
            yield delta
        return
    splitter = Splitter()
    async for block in answer.blocks():
        for event in splitter.feed(block):
            data = data_of(event)
            if data == DONE:
                return
            if data and (delta := _delta(answer, data)):
                yield delta
    raise answer.broken()


async def joined(answer: EngineAnswer) -> ChatAnswer:
    """Return the whole answer. Raises the errors of `deltas`, and ExecutionFailed if the answer has no delta."""
    joiner = ChatJoiner()
    async with aclosing(deltas(answer)) as stream:
        async for delta in stream:
            joiner.add(delta)
    if not joiner.begun:
        raise bad_answer()
    joiner.answer.usage = answer.usage
    return joiner.answer


class ChatJoiner:
    """Joins deltas into a whole answer. `begun` is true once a delta is added."""

    def __init__(self) -> None:
        self._answer = ChatAnswer()
        self._calls: list[dict[str, Any]] = []
        self.begun = False

    def add(self, delta: ChatDelta) -> None:
        """Add a delta. Raises ExecutionFailed if the index of a tool call is out of range."""
        self.begun = True
        answer = self._answer
        answer.text += delta.text
        answer.reasoning += delta.reasoning
        answer.finish = delta.finish or answer.finish
        answer.stopped_by = delta.stopped_by or answer.stopped_by
        join_numbered(self._calls, [msgspec.to_builtins(part) for part in delta.calls])

    @property
    def answer(self) -> ChatAnswer:
        """The answer, joined from the deltas so far."""
        self._answer.calls = [_tool_call(call) for call in self._calls]
        return self._answer


def _tool_call(call: dict[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    return ToolCall(call.get("id") or "", function.get("name") or "", function.get("arguments") or "")


def _delta(answer: EngineAnswer, data: bytes) -> ChatDelta | None:
    """Return the chunk's delta, or None if the chunk has no choices. Stores the chunk's usage in `answer`."""
    chunk = _read(data)
    answer.usage = chunk.usage or answer.usage
    if not chunk.choices:
        return None
    choice = chunk.choices[0]
    message = choice.message or choice.delta or _EMPTY
    pieces = enumerate(message.tool_calls or ())
    return ChatDelta(
        message.content or choice.text or "",
        message.reasoning_content or "",
        # the tool calls of a whole message have no index: their position in the list is the index
        [
            ToolCallDelta(number if choice.message else piece.index, piece.id, piece.function or Function())
            for number, piece in pieces
        ],
        choice.finish_reason or "",
        _stopped_by(choice),
    )


def _stopped_by(choice: _Choice) -> str:
    return next((stop for stop in (choice.stop_reason, choice.matched_stop) if isinstance(stop, str)), "")


def _read(data: bytes) -> _Chunk:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.error is not None:
        raise engine_failed(chunk.error)
    return chunk
