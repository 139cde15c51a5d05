"""Commands of the gateway to itself."""

from __future__ import annotations

from aima_core.units import Command, Success
from services.gateway.units import NewKey


class RecordKey(Command[NewKey], unit="gateway.record_key"):
    """A key has been made; only the hash of its secret comes this far. `id` is in the key itself."""

    key_id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    expires_in: float | None
    requests_per_minute: int
    tokens_per_day: int


class ReserveTokens(Command[Success], unit="gateway.reserve_tokens", stream="key_id"):
    """A request wants so many tokens of its key's day."""

    key_id: str
    request_id: str
    tokens: int


class SettleTokens(Command[Success], unit="gateway.settle_tokens", stream="key_id"):
    """A request has used so many tokens."""

    key_id: str
    request_id: str
    tokens: int
