"""The state of a key and of its token quota, computed from the key's events. Pure."""

from __future__ import annotations

from typing import assert_never

import msgspec

from services.gateway import units as u

DAY = 86_400.0  # seconds; quotas restart at midnight UTC, when a day of Unix time starts


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key. `used` counts the tokens settled on UTC day number `day`.

    `reserved` has the tokens of requests under way, by request id.
    """

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    created_at: float
    expires_at: float
    requests_per_minute: int
    tokens_per_day: int
    day: int = 0
    used: int = 0
    reserved: dict[str, int] = {}

    def spent(self, at: float) -> int:
        """Return the tokens used or reserved on the UTC day of `at` (Unix seconds)."""
        return (self.used if self.day == int(at // DAY) else 0) + sum(self.reserved.values())

    def expired(self, at: float) -> bool:
        """Whether the key has expired at `at` (Unix seconds). A key with `expires_at` 0 never expires."""
        return 0 < self.expires_at <= at


def evolve(key: Key | None, event: u.Events) -> Key | None:
    """Return the key after the event, or None if the key is revoked. Never raises."""
    match event:
        case u.KeyCreated():
            return Key(
                id=event.key_id,
                name=event.name,
                hash=event.hash,
                scopes=event.scopes,
                models=event.models,
                created_at=event.created_at,
                expires_at=event.expires_at,
                requests_per_minute=event.requests_per_minute,
                tokens_per_day=event.tokens_per_day,
            )
        case u.KeyRevoked():
            return None
        case u.TokensReserved():
            if key is None:
                return None
            day = int(event.at // DAY)
            used = key.used if day == key.day else 0
            reserved = key.reserved | {event.request_id: event.tokens}
            return msgspec.structs.replace(key, day=day, used=used, reserved=reserved)
        case u.TokensSettled():
            if key is None:
                return None
            reserved = {ident: tokens for ident, tokens in key.reserved.items() if ident != event.request_id}
            return msgspec.structs.replace(key, used=key.used + event.tokens, reserved=reserved)
        case _:
            assert_never(event)
