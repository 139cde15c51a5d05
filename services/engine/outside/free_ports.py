"""Which ports are free on this machine, whoever holds the others."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

_ENOUGH = 128  # a start needs one; the rest is for those that our own instances hold without listening yet


def free(host: str, candidates: Iterable[int]) -> list[int]:
    """Return the first candidates that can be listened on, in order. Blocks for microseconds each."""
    found: list[int] = []
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            # as engines do it: connections of an earlier run that still linger do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
            found.append(port)
        if len(found) == _ENOUGH:
            break
    return found
