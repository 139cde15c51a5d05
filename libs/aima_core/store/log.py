"""The event log of a domain: the domain's only source of truth. This file has all SQL for the core's own tables.

Each log is one append-only SQLite file. An exclusive lock ensures that only one process uses the file. Each row's hash
covers the hash of the previous row. Positions number all events of the log, and versions number the events of one
stream. Both have no gaps.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aima_core.errors import Conflict, Unavailable
from aima_core.store.records import Batch, Codec, Recorded, Statement, StoredReply, decode_meta
from aima_core.store.sqlite import Sqlite
from aima_core.system import file_locks

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
_REPLY_LIFETIME = 7 * 86_400.0  # seconds in which a repeated idempotency key gets the reply of the first request


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
        """Open or create `<folder>/log.db`.

        Raises Unavailable if that fails, Conflict if another process has the log open.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "log.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_writable(folder, error) from error
        try:
            _acquire(lock, folder)
            file = await Sqlite.open(folder / "log.db")
            try:
                log = await cls.over(file, domain, codec, lock)
            except BaseException:
                await file.close()
                raise
        except BaseException:
            _release(lock)
            raise
        return log

    @classmethod
    async def over(cls, file: Sqlite, domain: str, codec: Codec, lock: int) -> Log:
        """Return the log in an open file. Creates the log in an empty file. `lock` is the lock's file descriptor."""
        log = cls(file, codec, lock, await file.write(_create), domain)
        log._hash = await file.read(_last_hash)
        return log

    async def close(self) -> None:
        """Close the file and release the lock."""
        try:
            await self.file.close()
        finally:
            _release(self._lock)

    def event_id(self, position: int) -> str:
        """Return the id of the event at a position. The id is unique across all logs and never changes."""
        return f"{self.ident}-{position}"

    async def append(self, batch: Batch) -> None:
        """Write the batch in one transaction.

        Inserts the events first. If their versions conflict, raises Conflict, and writes nothing.
        """
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
            for sql, rows_of_values in _grouped(batch.statements):
                connection.executemany(sql, rows_of_values)
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
            if "events." not in str(error):
                raise  # a constraint of a read table failed, which is a bug in the domain and no conflict in the log
            raise Conflict(
                f"the log holds events that this process did not write: {error}", reason="VERSION_CONFLICT"
            ) from error

    async def events(
        self, after: int = 0, *, limit: int = 1000, stream: str | None = None, until: int | None = None
    ) -> list[Recorded]:
        """Return the events of one stream or of all streams after a position, up to `until`, oldest first."""
        conditions = ["position > ?"]
        values: list[Any] = [after]
        if stream is not None:
            conditions.append("stream = ?")
            values.append(stream)
        if until is not None:
            conditions.append("position <= ?")
            values.append(until)
        where = " AND ".join(conditions)
        sql = f"SELECT * FROM events WHERE {where} ORDER BY position LIMIT ?"  # noqa: S608 (no input)
        rows = await self.file.read(lambda c: c.execute(sql, (*values, limit)).fetchall())
        return [self._record(row) for row in rows]

    async def newest(self, stream: str, *, limit: int) -> list[Recorded]:
        """Return the newest events of a stream, oldest first."""
        sql = "SELECT * FROM events WHERE stream = ? ORDER BY position DESC LIMIT ?"
        rows = await self.file.read(lambda c: c.execute(sql, (stream, limit)).fetchall())
        return [self._record(row) for row in reversed(rows)]

    async def last_position(self) -> int:
        """Return the position of the last event, or 0 if the log is empty."""
        sql = "SELECT coalesce(max(position), 0) FROM events"
        row = await self.file.read(lambda c: c.execute(sql).fetchone())
        return int(row[0])

    async def position_at(self, recorded_at: float) -> int:
        """Return the position of the last event recorded at or before a time, or 0 if there is none.

        `recorded_at` is in Unix seconds.
        """
        sql = "SELECT coalesce(max(position), 0) FROM events WHERE recorded_at < ?"
        # callers see times rounded to microseconds, so an event may be up to 1 µs later than its shown time
        row = await self.file.read(lambda c: c.execute(sql, (recorded_at + 1e-6,)).fetchone())
        return int(row[0])

    async def reply(self, key: str) -> StoredReply | None:
        """Return the stored reply of the request with this idempotency key, or None."""
        sql = "SELECT key, request, first, last, reply FROM replies WHERE key = ?"
        row = await self.file.read(lambda c: c.execute(sql, (key,)).fetchone())
        return StoredReply(*row) if row else None

    async def cursors(self) -> dict[str, int]:
        """Return the position up to which each followed log was handled."""
        return dict(await self.file.read(lambda c: c.execute("SELECT source, position FROM cursors").fetchall()))

    async def fact(self, name: str) -> str | None:
        """Return a small value that is stored with the log, such as the fingerprint of the read tables, or None."""
        row = await self.file.read(lambda c: c.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone())
        return row[0] if row else None

    async def save_snapshot(self, fingerprint: str, position: int, states: Iterable[tuple[str, int, bytes]]) -> None:
        """Replace the snapshot: the states of all streams at a position. `fingerprint` identifies the `evolve` code."""
        rows = list(states)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM snapshot")
            connection.executemany("INSERT INTO snapshot VALUES (?,?,?)", rows)
            set_fact(connection, "snapshot", f"{fingerprint} {position}")

        await self.file.write(write)

    async def snapshot(self, fingerprint: str) -> tuple[int, list[tuple[str, int, bytes]]]:
        """Return the snapshot's position and states, or (0, []) if there is no snapshot with this fingerprint."""
        saved_fingerprint, _, position = (await self.fact("snapshot") or "").partition(" ")
        if saved_fingerprint != fingerprint:
            return 0, []
        rows = await self.file.read(lambda c: c.execute("SELECT stream, version, state FROM snapshot").fetchall())
        return int(position), rows

    async def verify(self) -> int | None:
        """Check the chain of hashes. Returns the position of the first damaged or missing event, or None."""

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
        return Recorded(position, stream, version, recorded_at, decode_meta(meta), event, self.event_id(position))


def set_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Store a fact within the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (name, value))


def link(before: bytes, row: Sequence[Any], data: bytes, meta: bytes) -> bytes:
    """Return the hash of a row, which is the SHA-256 of the previous row's hash and all columns of the row."""
    head = "\x1f".join(map(repr, row)).encode()
    return hashlib.sha256(b"\x1e".join((before, head, data, meta))).digest()


def _grouped(statements: Iterable[Statement]) -> Iterable[tuple[str, list[tuple[Any, ...]]]]:
    """Group consecutive statements with the same SQL, because executemany is several times faster than single calls."""
    group_sql = ""
    group: list[tuple[Any, ...]] = []
    for sql, values in statements:
        if sql != group_sql and group:
            yield group_sql, group
            group = []
        group_sql = sql
        group.append(values)
    if group:
        yield group_sql, group


def _create(connection: sqlite3.Connection) -> str:
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("DELETE FROM replies WHERE recorded_at < ?", (time.time() - _REPLY_LIFETIME,))
    row = connection.execute("SELECT value FROM facts WHERE name = 'log'").fetchone()
    if row:
        return str(row[0])
    ident = secrets.token_hex(5)
    set_fact(connection, "log", ident)
    return ident


def _last_hash(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
    return row[0] if row else _GENESIS


def _acquire(lock: int, folder: Path) -> None:
    try:
        file_locks.lock(lock)
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


def _release(lock: int) -> None:
    """Unlock the file before closing it, because a forked child that has not called exec yet also holds the lock."""
    file_locks.unlock(lock)
    os.close(lock)


def _not_writable(folder: Path, error: OSError) -> Unavailable:
    reason = "DISK_FULL" if error.errno == errno.ENOSPC else "NOT_WRITABLE"
    return Unavailable(f"cannot write {folder}: {error.strerror}", reason=reason, file=str(folder))
