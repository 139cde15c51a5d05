"""Suggests the nearest names for a mistyped name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that are similar to `name`, with the most similar name first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: `; did you mean a or b?`. Empty without suggestions."""
    choices = " or ".join(names)
    return f"; did you mean {choices}?" if choices else ""
