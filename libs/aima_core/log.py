"""The event log: the only truth of a domain. All the SQL of the core is here.

One file, one owner (an exclusive lock), append only. Every row carries the hash of the row before it.
Positions have no gaps; versions count within a stream and have none either.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from aima_core.call import Call, timestamp
from aima_core.errors import Conflict, ExecutionFailed, Unavailable
from aima_core.sqlite import Sqlite
from aima_core.units import Event

Statement = tuple[str, tuple[Any, ...]]
Upcaster = Callable[[dict[str, Any]], Event]

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY, stream TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL,
    recorded_at REAL NOT NULL, data BLOB NOT NULL, meta BLOB NOT NULL, hash BLOB NOT NULL,
    UNIQUE (stream, version));
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, request BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    reply BLOB, recorded_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS cursors (source TEXT PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshot (stream TEXT PRIMARY KEY, version INTEGER NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_GENESIS = b"\0" * 32


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an event was recorded: stored once beside its data, never inside it."""

    request_id: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    principal: str = ""
    trace: str = ""
    node: str = ""

    @classmethod
    def of(cls, call: Call) -> Meta:
        """Return what an event remembers of the call that led to it."""
        return cls(call.request_id, call.correlation_id, call.causation_id, call.principal, call.trace, call.node)


class Recorded(NamedTuple):
    """An event as the log holds it. `recorded_at` in Unix seconds."""

    position: int
    stream: str
    version: int
    recorded_at: float
    meta: Meta
    event: Event
    id: str

    def wire(self) -> dict[str, Any]:
        """Return the event as the bus, the queries and the doors show it."""
        meta = self.meta
        return {
            "id": self.id,
            "type": self.event.unit,
            "stream": self.stream,
            "version": self.version,
            "position": self.position,
            "recorded_at": timestamp(self.recorded_at),
            "node": meta.node,
            "request_id": meta.request_id,
            "correlation_id": meta.correlation_id,
            "causation_id": meta.causation_id,
            "principal": meta.principal,
            "trace": meta.trace,
            "data": self.event,
        }


class Reply(msgspec.Struct, frozen=True):
    """What is kept of a keyed request: what was asked, which events it led to, and its answer once there is one."""

    key: str
    request: bytes
    first: int
    last: int
    reply: bytes | None = None


class Batch(msgspec.Struct):
    """What one transaction writes."""

    records: list[Recorded] = []
    statements: list[Statement] = []
    replies: list[Reply] = []
    cursors: dict[str, int] = {}


class Codec:
    """Turns events into bytes and back; an event type of an older release goes through its upcaster."""

    def __init__(self, events: Sequence[type[Event]], upcasters: Mapping[str, Upcaster] | None = None) -> None:
        self.encode = msgspec.json.Encoder().encode
        decoders: dict[str, Callable[[bytes], Event]] = {e.unit: msgspec.json.Decoder(e).decode for e in events}
        for unit, upcast in (upcasters or {}).items():
            decoders[unit] = partial(_upcast, upcast)
        self._decoders = decoders

    def decode(self, unit: str, data: bytes) -> Event:
        """Return the event; raise ExecutionFailed for a type that this release does not know, or for a damaged one."""
        if (decode := self._decoders.get(unit)) is None:
            raise ExecutionFailed(
                f"the log holds an event of type {unit}, which this release does not know", reason="UNKNOWN_EVENT"
            )
        try:
            return decode(data)
        except msgspec.MsgspecError as error:
            raise ExecutionFailed(f"an event of type {unit} is damaged: {error}", reason="BAD_EVENT") from error


def _upcast(upcast: Upcaster, data: bytes) -> Event:
    return upcast(msgspec.json.decode(data))


class Log:
    """The log of one domain on one node."""

    def __init__(self, file: Sqlite, codec: Codec, lock: int, ident: str, domain: str) -> None:
        self.file = file
        self.codec = codec
        self.ident = ident
        self.domain = domain
        self._lock = lock
        self._hash = _GENESIS

    @classmethod
    async def open(cls, folder: Path, domain: str, codec: Codec) -> Log:
        """Open or create `<folder>/log.db`; raise Unavailable when it cannot be, Conflict when somebody has it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "log.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_writable(folder, error) from error
        try:
            _take(lock, folder)
            file = await Sqlite.open(folder / "log.db")
            try:
                log = cls(file, codec, lock, await file.write(_create), domain)
                log._hash = await file.read(_last_hash)
            except BaseException:
                await file.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return log

    async def close(self) -> None:
        """Close the file and let go of the lock."""
        try:
            await self.file.close()
        finally:
            os.close(self._lock)

    def event_id(self, position: int) -> str:
        """Return the id of the event at a position: unique over all logs, and the same on every reading."""
        return f"{self.ident}-{position}"

    async def append(self, batch: Batch) -> None:
        """Write the batch in one transaction: events first, so that the version check guards all the rest."""
        encode = self.codec.encode
        chain = self._hash

        def write(connection: sqlite3.Connection) -> bytes:
            tip = chain
            rows = []
            for record in batch.records:
                data, meta = encode(record.event), encode(record.meta)
                row = (record.position, record.stream, record.version, record.event.unit, record.recorded_at)
                tip = link(tip, row, data, meta)
                rows.append((*row, data, meta, tip))
            connection.executemany("INSERT INTO events VALUES (?,?,?,?,?,?,?,?)", rows)
            for sql, run in _runs(batch.statements):
                connection.executemany(sql, run)
            connection.executemany(
                "INSERT INTO replies VALUES (?,?,?,?,?,?) ON CONFLICT (key) DO UPDATE SET reply = excluded.reply",
                [(r.key, r.request, r.first, r.last, r.reply, time.time()) for r in batch.replies],
            )
            connection.executemany(
                "INSERT INTO cursors VALUES (?,?) ON CONFLICT (source) DO UPDATE SET position = excluded.position",
                batch.cursors.items(),
            )
            return tip

        try:
            self._hash = await self.file.write(write)
        except sqlite3.IntegrityError as error:
            raise Conflict(f"the log moved under its owner: {error}", reason="VERSION_CONFLICT") from error

    async def events(
        self, after: int = 0, *, limit: int = 1000, stream: str | None = None, until: int | None = None
    ) -> list[Recorded]:
        """Return the events behind a position in order, of one stream or of all, up to and with `until`."""
        wanted = ["position > ?"]
        values: list[Any] = [after]
        if stream is not None:
            wanted.append("stream = ?")
            values.append(stream)
        if until is not None:
            wanted.append("position <= ?")
            values.append(until)
        sql = f"SELECT * FROM events WHERE {' AND '.join(wanted)} ORDER BY position LIMIT ?"  # noqa: S608 (no input)
        rows = await self.file.read(lambda c: c.execute(sql, (*values, limit)).fetchall())
        return [self._record(row) for row in rows]

    async def position_at(self, recorded_at: float) -> int:
        """Return the position of the last event recorded at or before a time (Unix seconds); 0 before the first."""
        sql = "SELECT coalesce(max(position), 0) FROM events WHERE recorded_at <= ?"
        row = await self.file.read(lambda c: c.execute(sql, (recorded_at,)).fetchone())
        return int(row[0])

    async def reply(self, key: str) -> Reply | None:
        """Return what is kept of the request with that idempotency key."""
        sql = "SELECT key, request, first, last, reply FROM replies WHERE key = ?"
        row = await self.file.read(lambda c: c.execute(sql, (key,)).fetchone())
        return Reply(*row) if row else None

    async def cursors(self) -> dict[str, int]:
        """Return how far each source has been followed."""
        return dict(await self.file.read(lambda c: c.execute("SELECT source, position FROM cursors").fetchall()))

    async def fact(self, name: str) -> str | None:
        """Return a small durable value beside the log, such as the fingerprint of the read tables."""
        row = await self.file.read(lambda c: c.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone())
        return row[0] if row else None

    async def save_snapshot(self, fingerprint: str, position: int, states: Iterable[tuple[str, int, bytes]]) -> None:
        """Replace the snapshot: the state of every stream at a position, valid for one version of `evolve`."""
        rows = list(states)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM snapshot")
            connection.executemany("INSERT INTO snapshot VALUES (?,?,?)", rows)
            set_fact(connection, "snapshot", f"{fingerprint} {position}")

        await self.file.write(write)

    async def snapshot(self, fingerprint: str) -> tuple[int, list[tuple[str, int, bytes]]]:
        """Return the position and the states of the snapshot; (0, []) when there is none that this code may use."""
        known, _, position = (await self.fact("snapshot") or "").partition(" ")
        if known != fingerprint:
            return 0, []
        rows = await self.file.read(lambda c: c.execute("SELECT stream, version, state FROM snapshot").fetchall())
        return int(position), rows

    async def verify(self) -> int | None:
        """Walk the chain of hashes; return the first position that does not follow from what is before it."""

        def walk(connection: sqlite3.Connection) -> int | None:
            tip, expected = _GENESIS, 1
            for *row, data, meta, stored in connection.execute("SELECT * FROM events ORDER BY position"):
                if row[0] != expected or not (isinstance(data, bytes) and isinstance(meta, bytes)):
                    return expected
                tip = link(tip, row, data, meta)
                if tip != stored:
                    return expected
                expected += 1
            return None

        return await self.file.read(walk)

    def _record(self, row: tuple[Any, ...]) -> Recorded:
        position, stream, version, unit, recorded_at, data, meta, _ = row
        event = self.codec.decode(unit, data)
        return Recorded(position, stream, version, recorded_at, _decode_meta(meta), event, self.event_id(position))


_decode_meta = msgspec.json.Decoder(Meta).decode


def set_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Write a fact within the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (name, value))


def link(before: bytes, row: Sequence[Any], data: bytes, meta: bytes) -> bytes:
    """Return the hash of a row: SHA-256 over the hash before it and everything that the row says."""
    head = "\x1f".join(map(repr, row)).encode()
    return hashlib.sha256(b"\x1e".join((before, head, data, meta))).digest()


def _runs(statements: Iterable[Statement]) -> Iterable[tuple[str, list[tuple[Any, ...]]]]:
    """Group neighbours with the same SQL, which executemany runs several times faster than one by one."""
    sql = ""
    run: list[tuple[Any, ...]] = []
    for text, values in statements:
        if text != sql and run:
            yield sql, run
            run = []
        sql = text
        run.append(values)
    if run:
        yield sql, run


def _create(connection: sqlite3.Connection) -> str:
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    row = connection.execute("SELECT value FROM facts WHERE name = 'log'").fetchone()
    if row:
        return str(row[0])
    ident = secrets.token_hex(5)
    set_fact(connection, "log", ident)
    return ident


def _last_hash(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
    return row[0] if row else _GENESIS


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 100, 0).decode(errors="replace").strip() or "another process"
        raise Conflict(
            f"{folder} is in use by {holder}", reason="LOG_LOCKED", file=str(folder), holder=holder
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()}".encode(), 0)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> Unavailable:
    reason = "DISK_FULL" if error.errno == errno.ENOSPC else "NOT_WRITABLE"
    return Unavailable(f"cannot write {folder}: {error.strerror}", reason=reason, file=str(folder))
