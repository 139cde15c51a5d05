"""Parser of an engine's stream: splits blocks into server-sent events. Pure.

Source: the HTML Standard on server-sent events, limited to what engines send.
"""

from __future__ import annotations

from aima_engines.engine_errors import answer_too_large

DONE = b"[DONE]"  # the data of the event that ends a stream of OpenAI's dialect
NOTHING = b"null"  # data of empty events that llama.cpp sends when it completes several texts
_LARGEST = 32 * 1024 * 1024  # bytes of one event; images come as one event each


class Splitter:
    """Splits blocks into events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> list[bytes]:
        """Add a block; return the events that are complete now, without the empty line after each.

        Raises ExecutionFailed if an event exceeds 32 MiB.
        """
        if b"\r" in block:  # some frameworks end lines with CR LF; a block may end between the two
            block = block.replace(b"\r", b"")
        *events, self._rest = (self._rest + block).split(b"\n\n")
        if len(self._rest) > _LARGEST:
            raise answer_too_large(_LARGEST)
        return events


def data_of(event: bytes) -> bytes:
    """Return the data of an event; empty for a comment that keeps the connection alive, and for NOTHING."""
    if event.startswith(b"data:") and b"\n" not in event:
        data = event[5:].strip()
    else:
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"" if data == NOTHING else data
