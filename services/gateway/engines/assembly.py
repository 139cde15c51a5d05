"""A whole answer put together from its stream, field by field as engines tell them: nothing is dropped. Pure.

Source: the OpenAI API reference. What comes in pieces is texts and lists: their pieces are joined, those of lists
that are numbered (`tool_calls`) each to its own number. Of anything else the last that is told counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.gateway.engines.engine_errors import bad_answer, failed, gone
from services.gateway.engines.sse_parser import DONE, MOST_CALLS, Splitter, data_of, decoded

_ONCE = ("id", "role", "type", "name", "finish_reason", "stop_reason")  # some engines tell them again with each piece
_PIECES = "tool_calls"  # the list whose things are told in pieces
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Assembly:
    """An answer whose stream comes in blocks."""

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._whole: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._ended = False

    def feed(self, block: bytes) -> None:
        """Take a block. Raises ExecutionFailed when the engine says that it failed, or cannot be understood."""
        for data in map(data_of, self._splitter.feed(block)):
            if data == DONE:
                self._ended = True
            if not data or self._ended:
                continue
            try:
                _take(data, self._whole, self._choices)
            except (AttributeError, TypeError, LookupError):  # something has another shape than it should
                raise bad_answer() from None

    def answer(self) -> dict[str, Any]:
        """Return all of it. Raises Unavailable when the stream broke off, ExecutionFailed when there was nothing."""
        if not self._ended:
            raise gone(begun=True)
        if not self._choices:
            raise bad_answer()
        choices = [self._choices[index] for index in sorted(self._choices)]
        kind = str(self._whole.get("object", "")).removesuffix(".chunk")
        return {**self._whole, "object": kind, "choices": choices}


def _take(data: bytes, whole: dict[str, Any], choices: dict[int, dict[str, Any]]) -> None:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.get("error") is not None:
        raise failed(chunk["error"])
    for choice in chunk.pop("choices", None) or ():
        index = choice.get("index") or 0
        if not isinstance(index, int):
            raise bad_answer()
        _add(choices.setdefault(index, {"index": index}), _as_message(choice))
    for name, value in chunk.items():
        if value is not None or name not in whole:
            whole[name] = value


def _as_message(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice of a chunk with its delta as what it is a piece of."""
    if "delta" not in choice:
        return choice
    delta = choice.pop("delta") or {}
    return {"index": choice.pop("index", 0), "message": {"role": "assistant", "content": None, **delta}, **choice}


def _add(whole: dict[str, Any], news: Mapping[str, Any]) -> None:
    """Add what a piece tells to what is known."""
    for name, value in news.items():
        known = whole.get(name)
        match known, value:
            case _, None:
                whole.setdefault(name, None)
            case str(), str():
                whole[name] = (known or value) if name in _ONCE else known + value
            case None | dict(), dict():
                whole[name] = known or {}
                _add(whole[name], value)
            case None | list(), list() if name == _PIECES:
                whole[name] = _joined(known or [], value)
            case list(), list():
                known.extend(value)
            case _:
                whole[name] = value


def _joined(known: list[dict[str, Any]], news: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return numbered things with their pieces added, without the numbers, by which only pieces are told apart."""
    for piece in news:
        index = piece.pop("index", 0)
        if not 0 <= index < MOST_CALLS:
            raise bad_answer()
        while len(known) <= index:
            known.append({})
        _add(known[index], piece)
    return known
