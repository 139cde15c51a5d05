"""Internal commands of the gateway."""

from __future__ import annotations

from typing import Any

from aima_core.units import Command, Success
from services.gateway.units import NewKey


class RecordKey(Command[NewKey], unit="gateway.record_key"):
    """Record a new key with the hash of its secret. The command must not contain the secret itself."""

    key_id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    expires_in: float | None
    requests_per_minute: int
    tokens_per_day: int


class ReserveTokens(Command[Success], unit="gateway.reserve_tokens", stream="key_id"):
    """Reserve tokens of a key's daily quota for a request."""

    key_id: str
    request_id: str
    tokens: int


class SettleTokens(Command[Success], unit="gateway.settle_tokens", stream="key_id"):
    """Replace a request's reservation of tokens by the tokens that the request used."""

    key_id: str
    request_id: str
    tokens: int


Commands = RecordKey | ReserveTokens | SettleTokens
COMMANDS: tuple[type[Command[Any]], ...] = Commands.__args__
