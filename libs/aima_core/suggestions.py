"""What somebody may have meant who has mistyped a name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return which of these names may have been meant, the likeliest first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def did_you_mean(near: Iterable[str]) -> str:
    """Return how the refusal of a name ends."""
    told = " or ".join(near)
    return f"; did you mean {told}?" if told else ""
