"""What a peer remembers that remembers nothing."""

from __future__ import annotations

import msgspec


class Nothing(msgspec.Struct, frozen=True):
    """What a peer remembers that remembers nothing."""
