"""Decoding of JSON that an engine or its model wrote: invalid JSON is a value, not an exception. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decoded(decode: Callable[[Any], T], text: bytes | str) -> T | None:
    """Return the decoded JSON; None if it is invalid or of another type than `decode` expects."""
    try:
        return decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
