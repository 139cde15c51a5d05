"""Who may do what at a door. Pure: a table of who asks, what is asked, and how the doors are set.

The risk is the unit's own, as its domain tells it on the bus, never anything that a client sends:

    asked                       nobody known                    a key
    a query                     when queries are open           when a scope reaches it
    a command                   when keys are not required      when a scope reaches it
    whatever is of high risk    never                           when a scope reaches it

Events tell who led to them, which is not for everybody whom the events are for:

    an event is seen            by nobody known                 with a key
    whole                       when keys are not required      its own; any, where a scope reaches high risk
    without who led to it       when they are                   any other

Views that tell owners are seen by the same rule: whoever does not see whole events of a domain finds there no owner's
name but its own.
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
_STATIC = "static-"  # begins the id of a key from the settings
_RISKS = ("low", "medium", "high")
_OF_THE_CALLER = ("principal", "request_id", "correlation_id", "causation_id", "trace")  # in an event's envelope
_OWNER = "owner"  # who asked for something, in an event's data or in a view
_OF_THE_CALLER_IN_DATA = (_OWNER, "request_id")  # and what its data may say of them


@dataclass(frozen=True)
class Principal:
    """Who asks. `name` stands in the events; `key_id` is empty for somebody without a key of ours."""

    name: str = ""
    key_id: str = ""
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_day: int = 0

    @property
    def known(self) -> bool:
        """Whether a key was shown."""
        return bool(self.name)

    def reaches(self, domain: str, risk: str) -> bool:
        """Whether a scope reaches units of a domain that have this risk."""
        for scope in self.scopes:
            where, _, highest = scope.partition(":")
            if where in ("*", domain) and _RISKS.index(risk if risk in _RISKS else "high") <= _RISKS.index(highest):
                return True
        return False

    def may_use(self, *names: str) -> bool:
        """Whether a model that goes by any of these names is one that the key may use."""
        return not self.models or any(name in self.models for name in names)


NOBODY = Principal()


@dataclass(frozen=True)
class Policy:
    """How the doors are set. `required`: commands need a key. `static`: names of keys from the settings, by hash."""

    required: bool
    open_queries: bool = True
    static: Mapping[str, str] = field(default_factory=dict)

    def permit(self, who: Principal, unit: UnitInfo) -> None:
        """Return when somebody may ask a unit; raise Unauthorized without a key, Forbidden with one."""
        if who.known:
            if not who.reaches(unit.domain, unit.risk):
                raise Forbidden(
                    f"the key {who.name} does not reach {unit.name}; that needs the scope {unit.domain}:{unit.risk}",
                    reason="SCOPE",
                    unit=unit.name,
                    needed=f"{unit.domain}:{unit.risk}",
                )
            return
        open_ = unit.risk != "high" and (not self.required or (unit.kind == "query" and self.open_queries))
        if not open_:
            why = " has high risk and" if unit.risk == "high" else ""
            make = f"aima keys create NAME --scope {unit.domain}:{unit.risk}"
            raise Unauthorized(
                f"{unit.name}{why} needs a key: {make}; send it as Authorization: Bearer KEY",
                reason="KEY_NEEDED",
                unit=unit.name,
            )

    def permit_model(self, who: Principal, *names: str) -> None:
        """Return when somebody may use a model; to others it is not there."""
        if not who.may_use(*names):
            raise NotFound(f"there is no model {names[0]}", reason="MODEL_NOT_FOUND", model=names[0])

    def sees_whole(self, who: Principal, domain: str, principal: str = "") -> bool:
        """Whether somebody sees whole events of a domain: all of them, or those that `principal` led to."""
        if not who.known:
            return not self.required  # one user's own machine
        return principal == who.name or who.reaches(domain, "high")

    def valid(self, who: Principal, keys: Mapping[str, Key], at: float) -> bool:
        """Whether somebody who was identified once would still be: keys are revoked, and expire."""
        if not who.key_id or who.key_id.startswith(_STATIC):
            return True
        key = keys.get(f"gateway/{who.key_id}")
        return key is not None and not key.expired(at)

    def identify(self, token: str, keys: Mapping[str, Key], at: float) -> Principal:
        """Return who shows a token; somebody unknown may pass as nobody unless keys are required.

        Raises Unauthorized for a key of ours that is not, or no longer, good: that is never meant.
        """
        if not token:
            return NOBODY
        digest = hash_of(token)
        for known, name in self.static.items():
            if hmac.compare_digest(known, digest):
                return Principal(name=name, key_id=f"{_STATIC}{known[:8]}", scopes=("*:high",))
        if token.startswith(PREFIX):
            ident, _, secret = token.removeprefix(PREFIX).partition("_")
            key = keys.get(f"gateway/key-{ident}")
            # compared even if there is no such key, so that the time it takes tells nothing of it
            good = hmac.compare_digest(key.hash if key else "", hash_of(secret))
            if not key or not good:
                raise Unauthorized("the key is not one of ours, or has been revoked", reason="KEY_UNKNOWN")
            if key.expired(at):
                raise Unauthorized(f"the key {key.name} has expired", reason="KEY_EXPIRED")
            return Principal(
                name=key.name,
                key_id=key.id,
                scopes=key.scopes,
                models=key.models,
                requests_per_minute=key.requests_per_minute,
                tokens_per_day=key.tokens_per_day,
            )
        if self.required:
            raise Unauthorized("the key is not one of ours", reason="KEY_UNKNOWN")
        return NOBODY  # clients of other APIs always send something


def without_caller(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event in which nothing tells who led to it, nor by which request; it has the same fields."""
    data = event.get("data")
    return {
        **_emptied(event, _OF_THE_CALLER),
        **({"data": _emptied(data, _OF_THE_CALLER_IN_DATA)} if isinstance(data, Mapping) else {}),
    }


def without_owners(value: Any, name: str) -> Any:
    """Return what a view tells, in which no `owner` is anybody but `name`; it has the same fields."""
    match value:
        case dict():
            own = _OWNER not in value or value[_OWNER] == name
            told = value if own else _emptied(value, (_OWNER,))
            return {field: without_owners(one, name) for field, one in told.items()}
        case list():
            return [without_owners(one, name) for one in value]
    return value


def _emptied(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the fields, these of them empty: a text of no characters, and null where there is no text."""
    return {**given, **{name: "" if isinstance(given[name], str) else None for name in names if name in given}}


def hash_of(secret: str) -> str:
    """Return what is kept of a secret of 256 random bits: SHA-256 in hex, which at that length needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


def static_keys(given: Iterable[str]) -> dict[str, str]:
    """Return names by hash of keys in the settings, each a `name:secret` or just a secret."""
    found = {}
    for number, entry in enumerate(given, 1):
        name, colon, secret = entry.partition(":")
        found[hash_of(secret if colon else entry)] = name if colon else f"settings-{number}"
    return found


def check_scopes(scopes: Iterable[str], domains: Iterable[str]) -> None:
    """Raise ValidationFailed, with the nearest names, when a scope is of none of these domains."""
    known = {*domains, "*"}
    strange = {
        f"scopes.{number}": name
        for number, name in enumerate(scope.partition(":")[0] for scope in scopes)
        if name not in known
    }
    if strange:
        told = (
            f"{field}: there is no domain {name}{did_you_mean(nearest(name, known))}" for field, name in strange.items()
        )
        expected = f"a scope of one of {', '.join(sorted(known))}"
        raise ValidationFailed("; ".join(told), fields=[{"field": field, "expected": expected} for field in strange])
