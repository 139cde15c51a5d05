"""Reads the key in the headers of a request, and identifies its principal. Pure.

At AIMA's own doors, a key that the client sends must be valid, even if no key is required: the client relies on it.
Clients of other APIs always send some key, such as `ollama`. At the doors of these APIs, a key that does not look like
one of AIMA counts as no key if no key is required.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aima_core.errors import Unauthorized
from services.gateway.entrance.access import NOBODY, Policy, Principal, looks_like_a_key
from services.gateway.state import Key

_KEY_HEADERS = ("x-api-key", "api-key")  # sent by the clients of Anthropic and of Azure
_OTHER_SCHEMES = ("basic", "digest", "negotiate")  # a proxy before the gateway may check these and pass them on


def principal_of(
    pairs: Iterable[tuple[str, str]], policy: Policy, keys: Mapping[str, Key], at: float, *, dummies: bool = False
) -> Principal:
    """Return the principal of a request with these headers, whose names are in lower case.

    `dummies`: accept keys of other systems as no key, as the policy permits. Raises Unauthorized for an invalid key, a
    key in the wrong place, and keys of two principals.
    """
    found = [policy.identify(token, keys, at, dummies=dummies) for token in _tokens(list(pairs), dummies=dummies)]
    principals = {principal.key_id: principal for principal in found if principal.known}
    if len(principals) > 1:
        raise Unauthorized("the request has the keys of two principals; send one key", reason="TWO_KEYS")
    return next(iter(principals.values()), NOBODY)


def _tokens(pairs: list[tuple[str, str]], *, dummies: bool) -> list[str]:
    tokens = [value.strip() for name, value in pairs if name in _KEY_HEADERS]
    for value in (value.strip() for name, value in pairs if name == "authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            tokens.append(token.strip())
            continue
        other = dummies or not value or scheme.lower() in _OTHER_SCHEMES
        if not other or looks_like_a_key(scheme) or looks_like_a_key(token):
            raise _wrong_place()
    return list(dict.fromkeys(token for token in tokens if token))


def _wrong_place() -> Unauthorized:
    return Unauthorized(
        "the header Authorization has no key in the form that AIMA reads; send it as Authorization: Bearer KEY",
        reason="KEY_NEEDED",
    )
