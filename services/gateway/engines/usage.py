"""Reads the token usage of an engine's answer: of a stream as it passes, or of a whole answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aima_engines.assembly import MOST_CALLS, Assembly
from aima_engines.decoding import decoded
from aima_engines.engine_answer import TokenUsage
from aima_engines.engine_errors import bad_answer, error_in
from aima_engines.sse_parser import DONE, NOTHING, Splitter, data_of
from services.gateway.engines.proxying import ProxiedAnswer


class _Chunk(msgspec.Struct):
    usage: TokenUsage | None = None
    choices: list[msgspec.Raw] | None = None
    error: Any = None


class _Piece(msgspec.Struct):
    index: Annotated[int, Meta(ge=0, lt=MOST_CALLS)] = 0


class _Delta(msgspec.Struct):
    tool_calls: list[_Piece] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _ToolCalls(msgspec.Struct):
    choices: list[_Choice] | None = None


_SLICE = 64 * 1024  # bytes of a stream that are joined at a time; other tasks run in between
_read = msgspec.json.Decoder(_Chunk).decode
_read_tool_calls = msgspec.json.Decoder(_ToolCalls).decode
_encode = msgspec.json.Encoder(enc_hook=str).encode


class UsageReader:
    """Reads usage, error and end from a stream of events, and returns the events to pass on.

    Only events that may contain usage, an error or tool calls are decoded. The index of a tool call is checked, because
    a client may create a list of that length. At the end of a stream, the event with the usage has no choices, and a
    client may fail on an event without choices. So this event is passed on only if the client requested the usage
    (`usage_told`). If the client requested `several` answers, some engines send the usage of each. Then the client gets
    one event with the sum, before the end of the stream. `each`: the number of answers to each prompt.
    """

    def __init__(self, usage_told: bool, *, several: bool = False, each: int = 1) -> None:
        self._usage_told = usage_told
        self._several = several
        self._each = each
        self._usages: list[TokenUsage] = []
        self._last: dict[str, Any] = {}  # the last chunk with a usage, without its choices
        self._splitter = Splitter()
        self.usage = TokenUsage()
        self.ended = False
        self.error: Any = None

    def feed(self, block: bytes) -> bytes:
        """Add a block. Returns the completed events that the client gets.

        Raises ExecutionFailed if a tool call has an index that `join_numbered` refuses.
        """
        events = b""
        for event in self._splitter.feed(block):
            if passed := self._passed(event):
                events += (self._sum() if self.ended else b"") + passed + b"\n\n"
        return events

    def _sum(self) -> bytes:
        """Return the event with the sum of the usages, if the client gets one."""
        if not (self._usage_told and self._last):
            return b""
        prompt, completion = self.usage.prompt_tokens, self.usage.completion_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        chunk, self._last = {**self._last, "usage": usage}, {}
        return b"data: %b\n\n" % _encode(chunk)

    def _passed(self, event: bytes) -> bytes:
        """Return an event as the client gets it; b"" if the client does not get it."""
        if event.endswith(DONE) and data_of(event) == DONE:
            self.ended = True
        if event.endswith(NOTHING) and not data_of(event):
            return b""  # clients fail on a chunk that is null
        if b'"tool_calls"' in event and decoded(_read_tool_calls, data_of(event)) is None:
            raise bad_answer()
        if b'"usage"' not in event and b'"error"' not in event:
            return event
        chunk = decoded(_read, data_of(event))
        if chunk is None:
            return event
        self.error = self.error or chunk.error
        if chunk.usage is None:
            return event
        if self._several:
            return self._counted(event, chunk)
        self.usage = chunk.usage
        return event if self._usage_told or chunk.choices else b""

    def _counted(self, event: bytes, chunk: _Chunk) -> bytes:
        """Add the usage of one of several answers, and return the event without it.

        llama.cpp sends the usage of an answer to a prompt with the end of that answer, without a chunk of its own.
        """
        document = msgspec.json.decode(data_of(event))
        ends = not chunk.choices or any(choice.get("finish_reason") for choice in document["choices"])
        if ends and chunk.usage:
            self._usages.append(chunk.usage)
            self.usage = summed(self._usages, self._each)
            self._last = {**document, "choices": []}
        if not chunk.choices:
            return b""
        del document["usage"]
        return b"data: %b" % _encode(document)


def usage_of(body: bytes) -> TokenUsage:
    """Return the usage in a whole answer; zeros if the answer has no usage.

    Raises ExecutionFailed if the body is an error object or invalid JSON, although the status is 2xx.
    """
    answer = decoded(_read, body)
    if answer is None or answer.error is not None:
        raise error_in(body)
    return answer.usage or TokenUsage()


def summed(usages: Sequence[TokenUsage], each: int) -> TokenUsage:
    """Return the usage of several answers. `each`: the number of answers to each prompt, whose tokens count once.

    An engine that sends one usage has summed it up itself.
    """
    if len(usages) == 1:
        return usages[0]
    prompt = sum(usage.prompt_tokens for usage in usages) // max(each, 1)
    return TokenUsage(prompt, sum(usage.completion_tokens for usage in usages))


async def whole_answer(answer: ProxiedAnswer, each: int = 1) -> dict[str, Any]:
    """Return an engine's whole answer, joined if it is a stream. Sets `answer.usage`.

    `each`: the number of answers to each prompt. Other tasks run after each slice, because the join can take a second.
    """
    data = await answer.whole()
    if not answer.streams:
        answer.usage = usage_of(data)
        whole: dict[str, Any] = msgspec.json.decode(data)
        return whole
    assembly, reader = Assembly(), UsageReader(usage_told=False, several=True, each=each)
    for start in range(0, len(data), _SLICE):
        assembly.feed(data[start : start + _SLICE])
        reader.feed(data[start : start + _SLICE])
        await asyncio.sleep(0)
    joined = assembly.answer()
    answer.usage = reader.usage
    if "usage" in joined:
        prompt, completion = reader.usage.prompt_tokens, reader.usage.completion_tokens
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        joined["usage"] = {**(joined["usage"] or {}), **counts}
    return joined
