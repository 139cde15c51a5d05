"""What comes from an engine: server-sent events cut out of the blocks in which they travel, and their JSON. Pure.

Source: the HTML Standard on server-sent events; of it, what engines send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
DONE = b"[DONE]"  # the data of the event that ends a stream of OpenAI's dialect
MOST_CALLS = 1000  # of tools in an answer; one with a number beyond is none
NOTHING = b"null"  # what llama.cpp says in between when it continues several texts


class Splitter:
    """Cuts blocks into events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> list[bytes]:
        """Take what has come; return the events that are complete by now, without the empty line after each."""
        if b"\r" in block:  # some frameworks end lines like that; between a CR and its LF a block may be cut
            block = block.replace(b"\r", b"")
        *events, self._rest = (self._rest + block).split(b"\n\n")
        return events


def decoded(decode: Callable[[Any], T], said: bytes | str) -> T | None:
    """Return what JSON of an engine's, or of its model's, says; None for what nobody can read."""
    try:
        return decode(said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def data_of(event: bytes) -> bytes:
    """Return the data of an event, empty if it has none: a comment that keeps the connection alive, or NOTHING."""
    if event.startswith(b"data:") and b"\n" not in event:
        data = event[5:].strip()
    else:
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"" if data == NOTHING else data
