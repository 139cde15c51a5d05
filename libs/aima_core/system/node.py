"""Derives the default name of this machine on the bus."""

from __future__ import annotations

import platform
import re

_NODE = re.compile(r"[^A-Za-z0-9-]+")


def default_node() -> str:
    """Return the host's name, with a dash for characters that a node's name must not have."""
    return _NODE.sub("-", platform.node().partition(".")[0]).strip("-") or "local"
