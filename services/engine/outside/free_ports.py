"""Finds ports of this machine that no program listens on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

_LIMIT = 128  # a start needs one; the others may be held by instances that do not listen yet


def free(host: str, candidates: Iterable[int]) -> list[int]:
    """Return the first 128 candidates on which a program can listen, in order. Blocks for microseconds per port."""
    ports: list[int] = []
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            # engines set it too: lingering connections of an earlier run do not block a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
            ports.append(port)
        if len(ports) == _LIMIT:
            break
    return ports
