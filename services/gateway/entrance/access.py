"""Decides which units a caller may call, and which fields of events the caller sees. Pure.

A unit's domain publishes the unit's risk on the bus. A client cannot set the risk. A caller may call

    unit                        without a key                   with a key
    a query                     if queries are open             if a scope covers it
    a command                   if keys are not required        if a scope covers it
    any unit of high risk       never                           if a scope covers it

An event contains the caller that caused it. Not every reader may see this caller:

    reader sees                 without a key                   with a key
    the whole event             if keys are not required        its own events; all, if a scope covers high risk
    the event without caller    if keys are required            all other events

The field `owner` of a view also names a caller. A reader that sees all events of a domain whole also sees every owner
in the domain's views. Any other reader sees an owner only if it is the reader's own name.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aima_core.bus.directory import UnitInfo
from aima_core.errors import Forbidden, NotFound, Unauthorized, ValidationFailed
from aima_core.suggestions import did_you_mean, nearest
from services.gateway.state import Key

PREFIX = "aima_"  # a key is aima_<id without "key-">_<secret>
_STATIC = "static-"  # prefix of the id of a key from the settings
_RISKS = ("low", "medium", "high")
_CALLER_FIELDS = ("principal", "request_id", "correlation_id", "causation_id", "trace")  # fields of an event's envelope
_OWNER = "owner"  # the principal of a request, in an event's data or in a view
_CALLER_FIELDS_IN_DATA = (_OWNER, "request_id")  # fields of an event's data


@dataclass(frozen=True)
class Principal:
    """The holder of a key. Events record `name`. Without a key, `name` and `key_id` are empty."""

    name: str = ""
    key_id: str = ""
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_day: int = 0

    @property
    def known(self) -> bool:
        """Whether the caller has a valid key."""
        return bool(self.name)

    def reaches(self, domain: str, risk: str) -> bool:
        """Whether a scope covers the domain's units of this risk. An unknown risk counts as high."""
        rank = _RISKS.index(risk if risk in _RISKS else "high")
        for scope in self.scopes:
            scope_domain, _, highest = scope.partition(":")
            if scope_domain in ("*", domain) and rank <= _RISKS.index(highest):
                return True
        return False

    def may_use(self, *names: str) -> bool:
        """Whether the key may use a model that has any of these names."""
        return not self.models or any(name in self.models for name in names)


NOBODY = Principal()


@dataclass(frozen=True)
class Policy:
    """The access settings.

    If `required`, commands need a key; queries also need one unless `open_queries` is True. `static` maps the
    hash of each key in the settings to the key's name.
    """

    required: bool
    open_queries: bool = True
    static: Mapping[str, str] = field(default_factory=dict)

    def permit(self, who: Principal, unit: UnitInfo) -> None:
        """Check that the caller may call the unit.

        Raises Unauthorized if the unit needs a key, and Forbidden if no scope of the key covers the unit.
        """
        if who.known:
            if not who.reaches(unit.domain, unit.risk):
                raise Forbidden(
                    f"the key {who.name} may not use {unit.name}, which needs the scope {unit.domain}:{unit.risk}",
                    reason="SCOPE",
                    unit=unit.name,
                    needed=f"{unit.domain}:{unit.risk}",
                )
            return
        open_ = unit.risk != "high" and (not self.required or (unit.kind == "query" and self.open_queries))
        if not open_:
            why = " has high risk and" if unit.risk == "high" else ""
            create = f"aima keys create NAME --scope {unit.domain}:{unit.risk}"
            raise Unauthorized(
                f"{unit.name}{why} needs a key; create one with: {create}; send it as Authorization: Bearer KEY",
                reason="KEY_NEEDED",
                unit=unit.name,
            )

    def permit_model(self, who: Principal, *names: str) -> None:
        """Raise NotFound if the key may not use the model. The error does not reveal whether the model exists."""
        if not who.may_use(*names):
            raise NotFound(f"there is no model {names[0]}", reason="MODEL_NOT_FOUND", model=names[0])

    def sees_whole(self, who: Principal, domain: str, principal: str = "") -> bool:
        """Whether the caller sees all fields of the events that `principal` caused in a domain.

        With an empty `principal`: whether the caller sees all fields of all events in the domain.
        """
        if not who.known:
            return not self.required  # if no keys are required, the machine belongs to one user
        return principal == who.name or who.reaches(domain, "high")

    def valid(self, who: Principal, keys: Mapping[str, Key], at: float) -> bool:
        """Whether an identified caller's key is still valid. A revoked or expired key is not valid."""
        if not who.key_id or who.key_id.startswith(_STATIC):
            return True
        key = keys.get(f"gateway/{who.key_id}")
        return key is not None and not key.expired(at)

    def identify(self, token: str, keys: Mapping[str, Key], at: float, *, dummies: bool = False) -> Principal:
        """Return the principal of a token. An empty token returns NOBODY.

        Raises Unauthorized for a key that is unknown, revoked or expired. This also applies if no key is required,
        because the client relies on its key. With `dummies`, a token that does not look like a key of AIMA returns
        NOBODY if no key is required.
        """
        if not token:
            return NOBODY
        digest = hash_of(token)
        for static_hash, name in self.static.items():
            if hmac.compare_digest(static_hash, digest):
                return Principal(name=name, key_id=f"{_STATIC}{static_hash[:8]}", scopes=("*:high",))
        if token.startswith(PREFIX):
            ident, _, secret = token.removeprefix(PREFIX).partition("_")
            key = keys.get(f"gateway/key-{ident}")
            # the comparison also runs for a missing key, so the response time does not reveal which keys exist
            matches = hmac.compare_digest(key.hash if key else "", hash_of(secret))
            if not key or not matches:
                raise Unauthorized(
                    "the key is unknown or was revoked; create one with: aima keys create NAME", reason="KEY_UNKNOWN"
                )
            if key.expired(at):
                raise Unauthorized(
                    f"the key {key.name} has expired; create another with: aima keys create NAME", reason="KEY_EXPIRED"
                )
            return Principal(
                name=key.name,
                key_id=key.id,
                scopes=key.scopes,
                models=key.models,
                requests_per_minute=key.requests_per_minute,
                tokens_per_day=key.tokens_per_day,
            )
        if self.required or not dummies or looks_like_a_key(token):
            raise Unauthorized(
                "the key is unknown; omit it if you need none, or create one with: aima keys create NAME",
                reason="KEY_UNKNOWN",
            )
        return NOBODY


def without_caller(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the event in which all fields about the caller and the request are empty."""
    data = event.get("data")
    return {
        **_emptied(event, _CALLER_FIELDS),
        **({"data": _emptied(data, _CALLER_FIELDS_IN_DATA)} if isinstance(data, Mapping) else {}),
    }


def without_owners(value: Any, name: str) -> Any:
    """Return a copy of a view's data in which every `owner` other than `name` is empty."""
    match value:
        case dict():
            own = _OWNER not in value or value[_OWNER] == name
            fields = value if own else _emptied(value, (_OWNER,))
            return {field: without_owners(item, name) for field, item in fields.items()}
        case list():
            return [without_owners(item, name) for item in value]
    return value


def _emptied(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a copy of the fields in which the named fields are empty: texts become "", other values None."""
    return {**fields, **{name: "" if isinstance(fields[name], str) else None for name in names if name in fields}}


def looks_like_a_key(token: str) -> bool:
    """Whether a text looks like a key of AIMA, perhaps with a wrong case or in quotes."""
    return token.strip("'\" ").lower().startswith(PREFIX.rstrip("_"))


def hash_of(secret: str) -> str:
    """Return the SHA-256 of a secret, in hex. The secret needs no salt, because it has 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def static_keys(entries: Iterable[str]) -> dict[str, str]:
    """Return the name of each key in the settings, by the hash of its secret. An entry is `name:secret` or a secret."""
    names = {}
    for number, entry in enumerate(entries, 1):
        name, colon, secret = entry.partition(":")
        names[hash_of(secret if colon else entry)] = name if colon else f"settings-{number}"
    return names


def check_scopes(scopes: Iterable[str], domains: Iterable[str]) -> None:
    """Raise ValidationFailed if a scope's domain is not in `domains`. The message suggests the nearest names."""
    known = {*domains, "*"}
    unknown = {
        f"scopes.{number}": name
        for number, name in enumerate(scope.partition(":")[0] for scope in scopes)
        if name not in known
    }
    if unknown:
        messages = (
            f"{field}: there is no domain {name}{did_you_mean(nearest(name, known))}" for field, name in unknown.items()
        )
        expected = f"a scope with one of the domains {', '.join(sorted(known))}"
        fields = [{"field": field, "expected": expected} for field in unknown]
        raise ValidationFailed("; ".join(messages), fields=fields)
