"""Finds things by the names that callers use, and suggests the nearest names for a mistyped name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from aima_core.errors import ValidationFailed

_LATEST = ":latest"  # the tag that clients of Ollama add to a name without a tag


def find_named(text: str, names: Mapping[str, Collection[str]], field: str) -> str | None:
    """Return the id of the thing that a caller means by `text`, or None. `names` has the names of each thing by id.

    An id precedes a name, and an exact name precedes a name in another letter case, with or without the tag `:latest`.
    Raises ValidationFailed (AMBIGUOUS) if `text` matches several things; `field` is the caller's field.
    """
    if text in names:
        return text
    matches = [ident for ident, own in names.items() if text in own]
    if not matches:
        folded = plain_name(text)
        matches = [ident for ident, own in names.items() if folded in map(plain_name, (ident, *own))]
    if len(matches) > 1:
        candidates = ", ".join(sorted(matches))
        raise ValidationFailed(
            f"{field}: {text} is ambiguous; it may be {candidates}",
            reason="AMBIGUOUS",
            fields=[{"field": field, "expected": f"one of {candidates}"}],
        )
    return matches[0] if matches else None


def plain_name(name: str) -> str:
    """Return a name as it is compared: in lower case, and without the tag `:latest`."""
    return name.casefold().removesuffix(_LATEST)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three known names that are similar to `name`, with the most similar name first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: `; did you mean a or b?`. Empty without suggestions."""
    choices = " or ".join(names)
    return f"; did you mean {choices}?" if choices else ""
