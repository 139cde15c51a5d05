"""Derives states, snapshots and read tables from the log. All of them can be deleted and derived again.

The snapshot and the read tables store a fingerprint of the code that derived them. If the code has changed, they are
derived again.
"""

from __future__ import annotations

import hashlib
import inspect
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import msgspec

from aima_core.domain import Domain, S
from aima_core.store.log import Log, set_fact
from aima_core.store.records import Statement

_ROWS = 10_000  # rows per hop to SQLite's thread; more rows need more memory, and fewer rows make the hops expensive


@dataclass(frozen=True)
class Folded(Generic[S]):
    """The states after all events of the log. `versions` includes streams that no longer have a state.

    `snapshot` is the position of the snapshot from which loading started, or 0 without a snapshot.
    """

    world: dict[str, S]
    versions: dict[str, int]
    position: int
    snapshot: int


async def load(domain: Domain[S], log: Log) -> Folded[S]:
    """Compute the states: start from the snapshot if its fingerprint matches, and apply all later events."""
    decode = msgspec.json.Decoder(domain.state).decode
    snapshot, rows = await log.snapshot(_state_fingerprint(domain))
    world = {stream: decode(state) for stream, _, state in rows if state}
    versions = {stream: version for stream, version, _ in rows}
    evolve, decode_event, position = domain.evolve, log.codec.decode, snapshot
    while page := await log.file.read(partial(_page, position)):
        for stream, version, unit, data in page:
            state = evolve(world.get(stream), decode_event(unit, data))
            if state is None:
                world.pop(stream, None)
            else:
                world[stream] = state
            versions[stream] = version
        position += len(page)
    return Folded(world, versions, position, snapshot)


async def save(domain: Domain[S], log: Log, world: Mapping[str, S], versions: Mapping[str, int], position: int) -> None:
    """Replace the snapshot. Also stores versions of streams without a state, because they may get new events."""
    encode = msgspec.json.encode
    rows = [
        (stream, version, encode(world[stream]) if stream in world else b"") for stream, version in versions.items()
    ]
    await log.save_snapshot(_state_fingerprint(domain), position, rows)


async def build_tables(domain: Domain[Any], log: Log, *, force: bool = False) -> None:
    """Build the read tables from the log. Does nothing if they exist and their fingerprint matches.

    With `force`, builds the tables in any case.
    """
    fingerprint = _fingerprint(domain.project, repr(sorted(domain.tables.items())))
    names = await log.file.read(_tables)
    if not force and await log.fact("tables") == fingerprint and names >= set(domain.tables):
        return
    await log.file.write(partial(_create, domain.tables))
    after = 0
    while page := await log.events(after, limit=_ROWS):
        statements = [statement for record in page for statement in domain.project(record)]
        await log.file.write(partial(_execute, statements))
        after = page[-1].position
    await log.file.write(lambda connection: set_fact(connection, "tables", fingerprint))


def _page(after: int, connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    sql = "SELECT stream, version, type, data FROM events WHERE position > ? ORDER BY position LIMIT ?"
    return connection.execute(sql, (after, _ROWS)).fetchall()


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _create(tables: Mapping[str, str], connection: sqlite3.Connection) -> None:
    for name, statement in tables.items():
        connection.execute(f"DROP TABLE IF EXISTS {name}")
        connection.execute(statement)
    set_fact(connection, "tables", "")  # no fingerprint until the tables are full: a crash builds them again


def _execute(statements: Sequence[Statement], connection: sqlite3.Connection) -> None:
    for statement in statements:
        connection.execute(*statement)


def _state_fingerprint(domain: Domain[Any]) -> str:
    return _fingerprint(domain.evolve, repr(msgspec.json.schema(domain.state)))


def _fingerprint(function: Callable[..., Any], *more: str) -> str:
    module = inspect.getmodule(function)
    source = inspect.getsource(module) if module else repr(function)
    return hashlib.sha256("\0".join((source, *more)).encode()).hexdigest()[:32]
