"""Builds the views of keys. A view must not contain a key's secret or hash. Pure."""

from __future__ import annotations

from aima_core.call import timestamp
from aima_core.domain import World
from services.gateway import units as u
from services.gateway.state import Key


def keys(world: World[Key], query: u.ListKeys, at: float) -> u.Keys:
    """Return a page of the keys, with the oldest key first."""
    by_age = sorted(world.values(), key=lambda key: (key.created_at, key.id))
    page = by_age[query.offset : query.offset + query.limit]
    return u.Keys(keys=[view(key, at) for key in page], total=len(by_age))


def view(key: Key, at: float) -> u.KeyView:
    """Return the view of a key at the time `at` in Unix seconds."""
    return u.KeyView(
        id=key.id,
        name=key.name,
        scopes=list(key.scopes),
        models=list(key.models),
        created_at=timestamp(key.created_at),
        expires_at=time_of(key.expires_at),
        expired=key.expired(at),
        requests_per_minute=key.requests_per_minute,
        tokens_per_day=key.tokens_per_day,
        tokens_today=key.spent(at),
    )


def time_of(at: float) -> str | None:
    """Return a time in Unix seconds as RFC 3339 text. Returns None for 0, which means never."""
    return timestamp(at) if at else None
