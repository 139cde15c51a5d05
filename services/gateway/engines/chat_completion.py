"""A chat with an engine in the terms that all APIs share: text, tool calls, why it ended, what it used.

For the doors that say it in words of their own; OpenAI's passes on the engine's bytes instead. Source: the OpenAI API
reference (chat completions), as llama.cpp, vLLM and SGLang serve it; `reasoning_content` is theirs, and so are vLLM's
`stop_reason` and SGLang's `matched_stop`: which of the texts that end an answer did.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.gateway.engines.engine_errors import bad_answer, failed, gone
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, TokenUsage
from services.gateway.engines.sse_parser import DONE, MOST_CALLS, Splitter, data_of, decoded
from services.gateway.entrance.quotas import estimate

TEXT = ("llm", "vlm")  # the types of model that chat
VISION = ("vlm",)  # those of them that see
PATH = "/v1/chat/completions"
_encode = msgspec.json.encode


class Function(msgspec.Struct, frozen=True):
    """Which function is called; in a stream, what is new of that."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """What is new of a tool call: `id` and name come once, at its begin; its arguments, JSON text, in pieces."""

    index: int = 0
    id: str | None = None
    function: Function = Function()


@dataclass(frozen=True)
class ChatDelta:
    """What is new of an answer. `finish`: stop, length, tool_calls or content_filter, once it has ended.

    `stopped_by`: the text that ended it, if the engine tells; it may be one of the model's own.
    """

    text: str = ""
    reasoning: str = ""
    calls: Sequence[ToolCallDelta] = ()
    finish: str = ""
    stopped_by: str = ""


@dataclass
class ToolCall:
    """A call of a function; `arguments` is the JSON text that the model wrote."""

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


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Said = _Said()
    message: _Said | None = None  # all of it, of an engine that knows no streams
    text: str = ""  # of a completion, which has neither
    finish_reason: str | None = None
    stop_reason: Any = None  # a text, or the number of a token
    matched_stop: Any = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: TokenUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def chat_request(model: str, body: Mapping[str, Any], *, whole: bool, wait: float = 0.0) -> EngineRequest:
    """Return the request for a chat; `body` is that of a chat completion but for the model's name.

    A `whole` one is read from a stream, too: only so every engine stops for a client who leaves.
    """
    return EngineRequest(
        "inference.chat",
        model,
        types_for(turn.get("content") for turn in body["messages"]),
        PATH,
        streaming_body(body),
        tokens=estimate(_encode(body), body.get("max_tokens")),
        tools=bool(body.get("tools")),
        wait=wait,
        whole=whole,
    )


def types_for(contents: Iterable[Any]) -> tuple[str, ...]:
    """Return the types of model that can take such messages: one that shows images needs one that sees."""
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return VISION if any(part.get("type") == "image_url" for part in parts) else TEXT


async def deltas(carried: ProxiedAnswer) -> AsyncGenerator[ChatDelta]:
    """Yield a streamed answer piece by piece; `carried.usage` is right at the end. A whole one is one piece.

    Raises Unavailable when it breaks off, ExecutionFailed when the engine says that it failed.
    """
    if not carried.streams:
        if piece := _piece(carried, await carried.whole()):
            yield piece
        return
    splitter = Splitter()
    while block := await carried.read():
        for event in splitter.feed(block):
            data = data_of(event)
            if data == DONE:
                return
            if data and (piece := _piece(carried, data)):
                yield piece
    raise gone(begun=True)


async def joined(carried: ProxiedAnswer) -> ChatAnswer:
    """Return all of a streamed answer. Raises as `pieces` does, and ExecutionFailed when there is none."""
    gathered = ChatJoiner()
    async with aclosing(deltas(carried)) as told:
        async for piece in told:
            gathered.add(piece)
    if not gathered.begun:
        raise bad_answer()
    gathered.answer.usage = carried.usage
    return gathered.answer


class ChatJoiner:
    """An answer whose pieces are being put together. `begun`: there was a piece."""

    def __init__(self) -> None:
        self.answer = ChatAnswer()
        self.begun = False

    def add(self, piece: ChatDelta) -> None:
        """Take a piece."""
        self.begun = True
        answer = self.answer
        answer.text += piece.text
        answer.reasoning += piece.reasoning
        answer.finish = piece.finish or answer.finish
        answer.stopped_by = piece.stopped_by or answer.stopped_by
        for call in piece.calls:
            if not 0 <= call.index < MOST_CALLS:
                raise bad_answer()
            while len(answer.calls) <= call.index:
                answer.calls.append(ToolCall("", ""))
            known = answer.calls[call.index]
            known.id = known.id or call.id or ""
            known.name = known.name or call.function.name or ""
            known.arguments += call.function.arguments or ""


def streaming_body(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return what makes a body that asks for a stream, and for the usage at its end."""
    return body_for_model({**body, "stream": True, "stream_options": {"include_usage": True}})


def body_for_model(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return what makes a body for an engine that knows the model by some name."""

    def make(name: str) -> bytes:
        return _encode({**body, "model": name})

    return make


def _piece(carried: ProxiedAnswer, data: bytes) -> ChatDelta | None:
    chunk = _read(data)
    carried.usage = chunk.usage or carried.usage
    if not chunk.choices:
        return None
    choice = chunk.choices[0]
    said = choice.delta
    if choice.message:
        said = _numbered(choice.message)
    text = said.content or choice.text
    return ChatDelta(
        text, said.reasoning_content or "", said.tool_calls or (), choice.finish_reason or "", _stopped_by(choice)
    )


def _stopped_by(choice: _Choice) -> str:
    return next((told for told in (choice.stop_reason, choice.matched_stop) if isinstance(told, str)), "")


def _numbered(said: _Said) -> _Said:
    """Return a whole message with its tool calls numbered, as pieces of them are."""
    calls = [msgspec.structs.replace(call, index=number) for number, call in enumerate(said.tool_calls or ())]
    return msgspec.structs.replace(said, tool_calls=calls)


def _read(data: bytes) -> _Chunk:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.error is not None:
        raise failed(chunk.error)
    return chunk
