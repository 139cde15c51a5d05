"""Joins the chunks of a streamed answer into a whole answer, with every field that the engine sent. Pure.

Texts and lists arrive in pieces. `Assembly` joins the pieces of a text or a list. The pieces of `tool_calls` have an
index: pieces with the same index belong to the same tool call. Any other field keeps the last value that arrives.
Source: the OpenAI API reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aima_engines.decoding import decoded
from aima_engines.engine_errors import bad_answer, engine_failed, engine_gone
from aima_engines.sse_parser import DONE, Splitter, data_of

MOST_CALLS = 1000  # tool calls in an answer; a higher index makes the answer invalid
_ONCE = ("id", "role", "type", "name", "finish_reason", "stop_reason")  # texts that some engines repeat in each piece
_NUMBERED = "tool_calls"  # the list whose pieces have an index
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Assembly:
    """Collects the blocks of a stream and joins them into an answer."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._ended = False

    def feed(self, block: bytes) -> None:
        """Add a block. Raises ExecutionFailed if the engine reports an error, or if the block is invalid."""
        for data in map(data_of, self._splitter.feed(block)):
            if data == DONE:
                self._ended = True
            if not data or self._ended:
                continue
            try:
                _add_chunk(data, self._fields, self._choices)
            except (AttributeError, TypeError, LookupError):  # a field has an unexpected type
                raise bad_answer() from None

    def answer(self) -> dict[str, Any]:
        """Return the whole answer. Raises Unavailable if the stream broke off, ExecutionFailed if it has no choices."""
        if not self._ended:
            raise engine_gone(begun=True)
        if not self._choices:
            raise bad_answer()
        choices = [self._choices[index] for index in sorted(self._choices)]
        kind = str(self._fields.get("object", "")).removesuffix(".chunk")
        return {**self._fields, "object": kind, "choices": choices}


def _add_chunk(data: bytes, fields: dict[str, Any], choices: dict[int, dict[str, Any]]) -> None:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.get("error") is not None:
        raise engine_failed(chunk["error"])
    for choice in chunk.pop("choices", None) or ():
        index = choice.get("index") or 0
        if not isinstance(index, int):
            raise bad_answer()
        _add(choices.setdefault(index, {"index": index}), _as_message(choice))
    for name, value in chunk.items():
        if value is not None or name not in fields:
            fields[name] = value


def _as_message(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice of a chunk with its `delta` turned into a `message`."""
    if "delta" not in choice:
        return choice
    delta = choice.pop("delta") or {}
    return {"index": choice.pop("index", 0), "message": {"role": "assistant", "content": None, **delta}, **choice}


def _add(fields: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add the fields of a piece to the joined fields."""
    for name, value in piece.items():
        joined = fields.get(name)
        match joined, value:
            case _, None:
                fields.setdefault(name, None)
            case str(), str():
                fields[name] = (joined or value) if name in _ONCE else joined + value
            case None | dict(), dict():
                fields[name] = joined or {}
                _add(fields[name], value)
            case None | list(), list() if name == _NUMBERED:
                fields[name] = join_numbered(joined or [], value)
            case list(), list():
                joined.extend(value)
            case _:
                fields[name] = value


def join_numbered(items: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add pieces of tool calls to `items`: each piece to the item at the piece's `index`. Return `items`.

    The joined items have no field `index`. Raises ExecutionFailed if an index is not an integer from 0 to 999. No other
    function joins tool calls.
    """
    for piece in pieces:
        index = piece.pop("index", 0)
        if type(index) is not int or not 0 <= index < MOST_CALLS:  # type(), because isinstance counts a bool as an int
            raise bad_answer()
        while len(items) <= index:
            items.append({})
        _add(items[index], piece)
    return items
