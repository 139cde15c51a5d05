"""A chat with an engine in terms that all APIs share: text, tool calls, finish reason, usage.

For doors that translate the answer; OpenAI's door passes on the engine's bytes instead. Source: the OpenAI API
reference (chat completions), as llama.cpp, vLLM and SGLang serve it. `reasoning_content` is an extension of all three;
vLLM's `stop_reason` and SGLang's `matched_stop` name the stop text that ended the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from services.gateway.engines.engine_errors import bad_answer, engine_failed, engine_gone
from services.gateway.engines.proxying import EngineRequest, ProxiedAnswer, TokenUsage
from services.gateway.engines.sse_parser import DONE, MOST_CALLS, Splitter, data_of, decoded
from services.gateway.entrance.quotas import estimate

TEXT = ("llm", "vlm")  # the types of models that chat
VISION = ("vlm",)  # the types of models that chat and accept images
PATH = "/v1/chat/completions"
_encode = msgspec.json.encode


class Function(msgspec.Struct, frozen=True):
    """The called function; in a stream, the new part of its name and arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The new part of a tool call: `id` and name come once, at its start; its arguments, JSON text, in parts."""

    index: int = 0
    id: str | None = None
    function: Function = Function()


@dataclass(frozen=True)
class ChatDelta:
    """The new part of an answer. `finish`: stop, length, tool_calls or content_filter, set at the end.

    `stopped_by`: the stop text that ended the answer, if the engine reports it; it may be one of the model's own.
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


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Message = _Message()
    message: _Message | None = None  # the whole message of an engine that does not stream
    text: str = ""  # of a completion, which has neither
    finish_reason: str | None = None
    stop_reason: Any = None  # a text, or the id of a token
    matched_stop: Any = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: TokenUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def chat_request(model: str, body: Mapping[str, Any], *, whole: bool, wait: float = 0.0) -> EngineRequest:
    """Return the engine request for a chat; `body` is that of a chat completion without the model's name.

    A `whole` answer is streamed by the engine too: only then does every engine stop when the client leaves.
    """
    return EngineRequest(
        "inference.chat",
        model,
        types_for(message.get("content") for message in body["messages"]),
        PATH,
        streaming_body(body),
        tokens=estimate(_encode(body), body.get("max_tokens")),
        tools=bool(body.get("tools")),
        wait=wait,
        whole=whole,
    )


def types_for(contents: Iterable[Any]) -> tuple[str, ...]:
    """Return the types of models that accept these message contents: images need a vision model."""
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return VISION if any(part.get("type") == "image_url" for part in parts) else TEXT


async def deltas(answer: ProxiedAnswer) -> AsyncGenerator[ChatDelta]:
    """Yield an answer delta by delta; a whole answer is one delta. `answer.usage` is complete at the end.

    Raises Unavailable if the answer breaks off, ExecutionFailed if the engine reports an error.
    """
    if not answer.streams:
        if delta := _delta(answer, await answer.whole()):
            yield delta
        return
    splitter = Splitter()
    while block := await answer.read():
        for event in splitter.feed(block):
            data = data_of(event)
            if data == DONE:
                return
            if data and (delta := _delta(answer, data)):
                yield delta
    raise engine_gone(begun=True)


async def joined(answer: ProxiedAnswer) -> ChatAnswer:
    """Return a streamed answer as a whole. Raises as `deltas` does, and ExecutionFailed if it has no delta."""
    joiner = ChatJoiner()
    async with aclosing(deltas(answer)) as stream:
        async for delta in stream:
            joiner.add(delta)
    if not joiner.begun:
        raise bad_answer()
    joiner.answer.usage = answer.usage
    return joiner.answer


class ChatJoiner:
    """Joins deltas into a whole answer. `begun`: a delta was added."""

    def __init__(self) -> None:
        self.answer = ChatAnswer()
        self.begun = False

    def add(self, delta: ChatDelta) -> None:
        """Add a delta. Raises ExecutionFailed if the index of a tool call is out of range."""
        self.begun = True
        answer = self.answer
        answer.text += delta.text
        answer.reasoning += delta.reasoning
        answer.finish = delta.finish or answer.finish
        answer.stopped_by = delta.stopped_by or answer.stopped_by
        for part in delta.calls:
            if not 0 <= part.index < MOST_CALLS:
                raise bad_answer()
            while len(answer.calls) <= part.index:
                answer.calls.append(ToolCall("", ""))
            call = answer.calls[part.index]
            call.id = call.id or part.id or ""
            call.name = call.name or part.function.name or ""
            call.arguments += part.function.arguments or ""


def streaming_body(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return `body_for_model` of a body that asks for a stream with the usage at the end."""
    return body_for_model({**body, "stream": True, "stream_options": {"include_usage": True}})


def body_for_model(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return a function that takes the model's name at the engine and returns the request's body with that name."""

    def make(name: str) -> bytes:
        return _encode({**body, "model": name})

    return make


def _delta(answer: ProxiedAnswer, data: bytes) -> ChatDelta | None:
    """Return the delta in a chunk, if it has one; store the chunk's usage in `answer`."""
    chunk = _read(data)
    answer.usage = chunk.usage or answer.usage
    if not chunk.choices:
        return None
    choice = chunk.choices[0]
    message = _numbered(choice.message) if choice.message else choice.delta
    text = message.content or choice.text
    return ChatDelta(
        text, message.reasoning_content or "", message.tool_calls or (), choice.finish_reason or "", _stopped_by(choice)
    )


def _stopped_by(choice: _Choice) -> str:
    return next((stop for stop in (choice.stop_reason, choice.matched_stop) if isinstance(stop, str)), "")


def _numbered(message: _Message) -> _Message:
    """Return a whole message with numbered tool calls, as deltas have them."""
    calls = [msgspec.structs.replace(call, index=number) for number, call in enumerate(message.tool_calls or ())]
    return msgspec.structs.replace(message, tool_calls=calls)


def _read(data: bytes) -> _Chunk:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.error is not None:
        raise engine_failed(chunk.error)
    return chunk
