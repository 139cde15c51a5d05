"""Decides the commands on keys and their quotas. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import Conflict, NotFound, RateLimited
from aima_core.units import Event, Success, View
from services.gateway import internal as i
from services.gateway import units as u
from services.gateway import views
from services.gateway.state import DAY, Key

Prepared = i.RecordKey | u.RevokeKey
"""The commands of callers, as `prepare` returns them."""


def decide(world: World[Key], command: Prepared | i.Commands, call: Call) -> list[Event]:
    """Return the events of a command, or no event if the command changes nothing.

    Raises Conflict (NAME_TAKEN), NotFound (KEY_NOT_FOUND) and RateLimited (QUOTA_EXCEEDED).
    """
    match command:
        case i.RecordKey():
            return _create(world, command, call)
        case u.RevokeKey(key_id=ident):
            _key(world, ident)
            return [u.KeyRevoked(key_id=ident)]
        case i.ReserveTokens():
            return _reserve(_key(world, command.key_id), command, call)
        case i.SettleTokens():
            key = world.get(f"gateway/{command.key_id}")
            if key is None or command.request_id not in key.reserved:
                return []
            return [u.TokensSettled(key_id=key.id, request_id=command.request_id, tokens=command.tokens)]
        case _:
            assert_never(command)


def reply(world: World[Key], command: Prepared, events: Sequence[Event]) -> View | None:  # noqa: ARG001 (the core's)
    """Return the answer of a command. Never returns None, because every command here is complete once it is decided."""
    match command:
        case i.RecordKey():
            created = events[0]
            assert isinstance(created, u.KeyCreated)
            return u.NewKey(key_id=created.key_id, key="", expires_at=views.time_of(created.expires_at))
        case u.RevokeKey():
            return Success()
        case _:
            assert_never(command)


def _create(world: World[Key], command: i.RecordKey, call: Call) -> list[Event]:
    if any(key.name == command.name for key in world.values()):
        raise Conflict(
            f"there is already a key named {command.name}; choose another name, or revoke the existing key first",
            reason="NAME_TAKEN",
        )
    return [
        u.KeyCreated(
            key_id=command.key_id,
            name=command.name,
            hash=command.hash,
            scopes=command.scopes,
            models=command.models,
            created_at=call.at,
            expires_at=call.at + command.expires_in if command.expires_in else 0.0,
            requests_per_minute=command.requests_per_minute,
            tokens_per_day=command.tokens_per_day,
        )
    ]


def _reserve(key: Key, command: i.ReserveTokens, call: Call) -> list[Event]:
    if not key.tokens_per_day or command.request_id in key.reserved:
        return []
    spent = key.spent(call.at)
    if spent + command.tokens > key.tokens_per_day:
        raise RateLimited(
            f"the key {key.name} has {max(key.tokens_per_day - spent, 0)} of its {key.tokens_per_day} tokens per day"
            f" left, and this request may need {command.tokens}; send a smaller max_tokens, or wait until midnight UTC",
            reason="QUOTA_EXCEEDED",
            limit=key.tokens_per_day,
            spent=spent,
            needed=command.tokens,
            retry_after=int(DAY - call.at % DAY) + 1,
        )
    return [u.TokensReserved(key_id=key.id, request_id=command.request_id, tokens=command.tokens, at=call.at)]


def _key(world: World[Key], ident: str) -> Key:
    key = world.get(f"gateway/{ident}")
    if key is None:
        raise NotFound(f"there is no key {ident}", reason="KEY_NOT_FOUND", key_id=ident)
    return key
