"""A whole answer put together from its stream, field by field as engines tell them: nothing is dropped. Pure.

Source: the OpenAI API reference. What comes in pieces is texts and lists: their pieces are joined, those of lists
that are numbered (`tool_calls`) each to its own number. Of anything else the last that is told counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.gateway.engine_errors import bad_answer, failed, gone
from services.gateway.engine_events import DONE, Splitter, data_of, decoded

_ONCE = ("id", "role", "type")  # told at the begin, by some engines again with each piece
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def assembled(stream: bytes) -> dict[str, Any]:
    """Return the answer that a stream of chunks tells.

    Raises Unavailable when the stream breaks off, ExecutionFailed when the engine says that it failed or cannot be
    read.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for data in map(data_of, Splitter().feed(stream)):
        if data == DONE:
            break
        if data:
            try:
                _take(data, whole, choices)
            except (AttributeError, TypeError):  # something has another shape than it should
                raise bad_answer() from None
    else:
        raise gone(begun=True)
    if not choices:
        raise bad_answer()
    whole["object"] = str(whole.get("object", "")).removesuffix(".chunk")
    whole["choices"] = [choices[index] for index in sorted(choices)]
    return whole


def _take(data: bytes, whole: dict[str, Any], choices: dict[int, dict[str, Any]]) -> None:
    chunk = decoded(_decode, data)
    if chunk is None:
        raise bad_answer()
    if chunk.get("error") is not None:
        raise failed(chunk["error"])
    for choice in chunk.pop("choices", None) or ():
        index = choice.get("index", 0)
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
            case str(), str() if name not in _ONCE:
                whole[name] = known + value
            case None | dict(), dict():
                whole[name] = known or {}
                _add(whole[name], value)
            case None | list(), [{"index": int()}, *_]:
                whole[name] = _joined(known or [], value)
            case list(), list():
                known.extend(value)
            case _:
                whole[name] = value


def _joined(known: list[dict[str, Any]], news: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return numbered things with their pieces added, without the numbers, by which only pieces are told apart."""
    for piece in news:
        index = piece.pop("index")
        while len(known) <= index:
            known.append({})
        _add(known[index], piece)
    return known
