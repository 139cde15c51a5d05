"""Decodes JSON that an engine or its model wrote: returns None for invalid JSON instead of raising. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decoded(decode: Callable[[Any], T], text: bytes | str) -> T | None:
    """Return the decoded JSON. Returns None if the text is not JSON or does not have the type that `decode` expects."""
    try:
        return decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
