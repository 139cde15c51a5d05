"""Names and ids of models. Pure."""

from __future__ import annotations

import hashlib
import re

LONGEST = 120  # characters of a name or an id
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9 ._:/-]+")
_NOT_IN_AN_ID = re.compile(r"[^a-z0-9_]+")


def tidy(text: str) -> str:
    """Return the text as a name that `units.ModelName` allows; empty if no allowed character remains."""
    return _NOT_IN_A_NAME.sub("-", text).strip(" ._:/-")[:LONGEST].rstrip(" ._:/-")


def slug(*parts: str) -> str:
    """Return an id of lower-case letters, digits, dashes and underscores, valid as a token of a bus subject."""
    text = _NOT_IN_AN_ID.sub("-", "-".join(parts).lower()).strip("-_")
    return text[:LONGEST].rstrip("-_") or f"model-{_digest(parts)}"


def distinct(*parts: str) -> str:
    """Return the id from `slug` with a digest of the parts appended, for use if the id from `slug` is already taken."""
    return f"{slug(*parts)[: LONGEST - 9]}-{_digest(parts)}"


def _digest(parts: tuple[str, ...]) -> str:
    return hashlib.blake2s("\0".join(parts).encode(), digest_size=4).hexdigest()
