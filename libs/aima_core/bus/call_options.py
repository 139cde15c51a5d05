"""The options of a request: the headers that a caller may set. Pure.

A misspelt option must not be ignored, because the caller relies on it: a misspelt dry run would be executed. So the
names of headers have no case, and a name that looks like an option and is unknown is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache

from aima_core import call as calls
from aima_core.errors import InvalidRequest
from aima_core.suggestions import did_you_mean, nearest

OPTIONS: Mapping[str, str] = {
    calls.DRY_RUN: "true: decide the command and return its plan, but change nothing.",
    calls.EXPECTED_VERSION: "A whole number: the command fails if its stream has another version.",
    calls.IDEMPOTENCY_KEY: "A text of at most 200 characters: a repeat with the same key gets the first reply.",
    calls.TIMEOUT: "Seconds until the request ends, at most 86400.",
    calls.PARTS: "true: send progress as parts before the reply.",
    calls.PRINCIPAL: "The caller's name, for events.",
    calls.REQUEST_ID: "The request's id, for logs and events.",
    calls.CORRELATION_ID: "The id of the operation that the request belongs to.",
    calls.CAUSATION_ID: "The id of the request or event that caused the request.",
}
"""The options of every unit, with the meaning of their values. A unit may not honour all of them."""
_OTHERS = (calls.BATCH, calls.MALFORMED, calls.TRACEPARENT, calls.CONTENT_TYPE)
_ALIASES = {"idempotency-key": calls.IDEMPOTENCY_KEY}  # the name of an IETF draft, which clients know from HTTP
_EXACT = frozenset({*OPTIONS, *_OTHERS})
_BY_KEY = {name.lower(): name for name in _EXACT} | _ALIASES
_PREFIXES = ("x-aima-", "aima-")
_SIMILAR = 0.85  # similarity from which a name without AIMA's prefix counts as a misspelt option
GUARDED = (calls.DRY_RUN, calls.EXPECTED_VERSION, calls.IDEMPOTENCY_KEY, calls.TIMEOUT, calls.PRINCIPAL)
"""The options that change what a request does. Their names are also guarded without AIMA's prefix."""


def honoured(kind: str, *, flow: bool = False, stream: bool = False) -> list[str]:
    """Return the options that a unit of this kind honours. `stream`: the unit names its stream."""
    common = [calls.TIMEOUT, calls.PRINCIPAL, calls.REQUEST_ID, calls.CORRELATION_ID, calls.CAUSATION_ID]
    if kind == "query":
        return common
    versions = [] if flow and not stream else [calls.EXPECTED_VERSION]
    return [calls.DRY_RUN, *versions, calls.IDEMPOTENCY_KEY, calls.PARTS, *common]


def canonical(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of a message with the exact names of the options. Other headers keep their names.

    Raises InvalidRequest (UNKNOWN_OPTION) if a name looks like an option and is unknown. Raises InvalidRequest if an
    option is set twice with different values.
    """
    if not headers:
        return {}
    if _EXACT.issuperset(headers):  # the usual case: a request of our own client
        return dict(headers)
    result: dict[str, str] = {}
    for name, value in headers.items():
        exact = exact_name(name) or name
        if result.get(exact, value) != value:
            raise InvalidRequest(f"the header {exact} is set twice, with different values", header=exact)
        result[exact] = value
    return result


def exact_name(name: str, guarded: Sequence[str] = GUARDED) -> str | None:
    """Return the exact name of an option; None if the header is no option and does not look like one.

    Raises InvalidRequest (UNKNOWN_OPTION) if the name looks like an option and is unknown.
    """
    if exact := _BY_KEY.get(name.lower()):
        return exact
    if looks_like_option(name, tuple(guarded)):
        raise unknown_option(f"the header {name}", name, OPTIONS)
    return None


def unknown_option(what: str, name: str, known: Iterable[str], place: str = "") -> InvalidRequest:
    """Return the error for an unknown option.

    `what` names the option for the caller. `known` are the names that are valid, and `place` is written before each.
    """
    by_letters = {_letters(option): f"{place}{option}" for option in known}
    similar = [by_letters[letters] for letters in nearest(_letters(name), by_letters)[:1]]
    return InvalidRequest(
        f"{what} is not an option of AIMA{did_you_mean(similar)}",
        reason="UNKNOWN_OPTION",
        option=name,
        options=list(by_letters.values()),
    )


@lru_cache(maxsize=4096)
def looks_like_option(name: str, guarded: tuple[str, ...] = GUARDED) -> bool:
    """Whether a name is meant as an option: it has AIMA's prefix, or nearly the letters of a guarded option."""
    if name.lower().replace("_", "-").startswith(_PREFIXES):
        return True
    return bool(get_close_matches(_letters(name), [_letters(option) for option in guarded], 1, _SIMILAR))


def _letters(name: str) -> str:
    """Return the letters of a name in lower case, without a prefix."""
    key = name.lower().replace("_", "-")
    prefix = next((prefix for prefix in (*_PREFIXES, "x-") if key.startswith(prefix)), "")
    return key.removeprefix(prefix).replace("-", "")
