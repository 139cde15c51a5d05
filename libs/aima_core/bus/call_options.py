"""The options of a request: the headers that a caller may set. Pure.

A misspelt option must not be ignored, because the caller relies on it: a misspelt dry run would be executed. So the
names of headers have no case, and a name that looks like an option and is unknown is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

from aima_core import call as calls
from aima_core.call import Call
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
_SIMILAR = 0.8  # similarity from which a name without AIMA's prefix counts as a misspelt option; `dry-rnu` has 0.83
_SIMILAR_PREFIX = 0.75  # the same for the prefix: `amia` has 0.75
_DISTINCT = ("dryrun", "expectedversion", "idempotencykey")  # no other system uses these words: refused in every name
_SYNONYMS = {"dry": calls.DRY_RUN, "expectversion": calls.EXPECTED_VERSION, "deadline": calls.TIMEOUT}
_NOT_A_LETTER = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 100  # characters that are compared and that a refusal repeats
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
            raise set_twice(exact)
        result[exact] = value
    return result


def set_twice(header: str) -> InvalidRequest:
    """Return the error for an option with two different values."""
    return InvalidRequest(
        f"{header} is set twice, with different values; set it once", reason="SET_TWICE", header=header
    )


def set_twice_in(raw: bytes) -> str | None:
    """Return the option that the bytes of a message's headers set twice with different values; None without one."""
    values: dict[str, bytes] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        exact = _BY_KEY.get(name.decode("latin-1").strip().lower())
        if exact and values.setdefault(exact, value.strip()) != value.strip():
            return exact
    return None


def check(kind: str, unit: str, call: Call) -> None:
    """Raise InvalidRequest for an idempotency key of a query. A dry run of a query is the query."""
    if kind == "query" and call.idempotency_key:
        raise InvalidRequest(
            f"{unit} is a query, which changes nothing; omit {calls.IDEMPOTENCY_KEY}",
            reason="NOT_HONOURED",
            option=calls.IDEMPOTENCY_KEY,
            unit=unit,
        )


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
    letters = _letters(_SYNONYMS.get(_letters(name), name[:_LONGEST_NAME]))
    similar = [by_letters[near] for near in nearest(letters, by_letters)[:1]]
    return InvalidRequest(
        f"{what[:_LONGEST_NAME]} is not an option of AIMA{did_you_mean(similar)}",
        reason="UNKNOWN_OPTION",
        option=name[:_LONGEST_NAME],
        options=list(by_letters.values()),
    )


def looks_like_option(name: str, guarded: tuple[str, ...] = GUARDED) -> bool:
    """Whether a name is meant as an option: it has AIMA's prefix, or nearly the letters of a guarded option.

    Case and separators do not count, so `AimaDryRun`, `x_dry.run` and `Amia-Dry-Run` look like options.
    """
    return _looks_like_option(name[:_LONGEST_NAME], guarded)


@lru_cache(maxsize=4096)
def _looks_like_option(name: str, guarded: tuple[str, ...]) -> bool:
    words, letters = _words(name), _letters(name)
    if "".join(words).startswith(("aima", "xaima")):
        return True
    known = [_letters(option) for option in guarded]
    if _SYNONYMS.get(letters) in guarded or any(each in letters for each in _DISTINCT if each in known):
        return True
    if words and SequenceMatcher(None, words[0], "aima").ratio() >= _SIMILAR_PREFIX:
        known += [_letters(option) for option in GUARDED]
        letters = "".join(words[1:])
    return bool(get_close_matches(letters, known, 1, _SIMILAR))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without the prefix `x` of headers."""
    words = [word for word in _NOT_A_LETTER.split(name.lower()) if word]
    while len(words) > 1 and words[0] == "x":
        del words[0]
    return words


def _letters(name: str) -> str:
    """Return the letters of a name in lower case, without a prefix."""
    return "".join(_words(name)).removeprefix("xaima").removeprefix("aima")
