"""Splits a stream into server-sent events: an engine's stream, and the gateway's stream at the command line. Pure.

Source: the HTML Standard on server-sent events. The parser covers only the part that engines and the gateway use.
"""

from __future__ import annotations

from aima_engines.engine_errors import answer_too_large

DONE = b"[DONE]"  # the data of the last event of a stream, in OpenAI's dialect
NOTHING = b"null"  # the data of the empty events that llama.cpp sends when it completes several texts
_LARGEST = 32 * 1024 * 1024  # bytes; the largest event: an image is one event


class Splitter:
    """Splits blocks into events; keeps an incomplete event until the next block."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, block: bytes) -> list[bytes]:
        """Add a block. Returns the events that the block completes, without the empty line after each event.

        Raises ExecutionFailed if an event exceeds 32 MiB.
        """
        if b"\r" in block:  # some frameworks end lines with CR LF; a block may end between CR and LF
            block = block.replace(b"\r", b"")
        # searches the new bytes only, and copies an event once: a large event comes in hundreds of blocks
        if b"\n\n" not in self._rest[-1:] + block:
            self._rest += block
            if len(self._rest) > _LARGEST:
                raise answer_too_large(_LARGEST)
            return []
        *events, rest = (bytes(self._rest + block) if self._rest else block).split(b"\n\n")
        self._rest = bytearray(rest)
        return events


def data_of(event: bytes) -> bytes:
    """Return the data of an event. Returns b"" if the event is a comment or has the data NOTHING."""
    if event.startswith(b"data:") and b"\n" not in event:
        data = event[5:].strip()
    else:
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"" if data == NOTHING else data


def type_of(event: bytes) -> str:
    """Return the type of an event: the text of its field `event`, or "message" if the event has no such field."""
    names = [line[6:].strip() for line in event.split(b"\n") if line.startswith(b"event:")]
    return names[-1].decode(errors="replace") if names else "message"
