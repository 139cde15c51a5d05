"""What is made from the log again: state in memory, snapshots of it, read tables. Everything here can be thrown away.

What was made by other code is made anew: snapshot and tables carry a fingerprint of the module that derived them.
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

_ROWS = 10_000  # rows per hop: bounds memory, makes the hop itself free


@dataclass(frozen=True)
class Folded(Generic[S]):
    """The log in memory. `versions` also has streams without a state; `snapshot` is where the snapshot stands."""

    world: dict[str, S]
    versions: dict[str, int]
    position: int
    snapshot: int


async def load(domain: Domain[S], log: Log) -> Folded[S]:
    """Fold the log: the snapshot, if this code may use it, and all events behind it."""
    decode = msgspec.json.Decoder(domain.state).decode
    snapshot, rows = await log.snapshot(_of_fold(domain))
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
    """Replace the snapshot. A stream without a state keeps its version: it may begin again."""
    encode = msgspec.json.encode
    rows = [
        (stream, version, encode(world[stream]) if stream in world else b"") for stream, version in versions.items()
    ]
    await log.save_snapshot(_of_fold(domain), position, rows)


async def build_tables(domain: Domain[Any], log: Log, *, anew: bool = False) -> None:
    """Make the read tables from the log, unless they are there and were made by this code."""
    fingerprint = _fingerprint(domain.project, repr(sorted(domain.tables.items())))
    names = await log.file.read(_tables)
    if not anew and await log.fact("tables") == fingerprint and names >= set(domain.tables):
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
    set_fact(connection, "tables", "")  # until they are filled


def _execute(statements: Sequence[Statement], connection: sqlite3.Connection) -> None:
    for statement in statements:
        connection.execute(*statement)


def _of_fold(domain: Domain[Any]) -> str:
    return _fingerprint(domain.evolve, repr(msgspec.json.schema(domain.state)))


def _fingerprint(function: Callable[..., Any], *more: str) -> str:
    module = inspect.getmodule(function)
    source = inspect.getsource(module) if module else repr(function)
    return hashlib.sha256("\0".join((source, *more)).encode()).hexdigest()[:32]
