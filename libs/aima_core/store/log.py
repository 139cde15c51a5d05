"""The event log: the only truth of a domain. All the SQL of the core's own tables is here.

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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aima_core.errors import Conflict, Unavailable
from aima_core.store.records import Batch, Codec, Recorded, Statement, StoredReply, decode_meta
from aima_core.store.sqlite import Sqlite

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
_REPLIES_KEPT = 7 * 86_400.0  # seconds in which a repeated idempotency key gets the reply of the first request


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
                log = await cls.over(file, domain, codec, lock)
            except BaseException:
                await file.close()
                raise
        except BaseException:
            _let_go(lock)
            raise
        return log

    @classmethod
    async def over(cls, file: Sqlite, domain: str, codec: Codec, lock: int) -> Log:
        """Return the log that an open file holds, a new one in an empty file; `lock` is the descriptor of its lock."""
        log = cls(file, codec, lock, await file.write(_create), domain)
        log._hash = await file.read(_last_hash)
        return log

    async def close(self) -> None:
        """Close the file and let go of the lock."""
        try:
            await self.file.close()
        finally:
            _let_go(self._lock)

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
            if "events." not in str(error):
                raise  # a read table's own rule: a bug of its domain, not a log that moved
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
        sql = "SELECT coalesce(max(position), 0) FROM events WHERE recorded_at < ?"
        # times are shown in whole microseconds: the one that is shown has to find its event
        row = await self.file.read(lambda c: c.execute(sql, (recorded_at + 1e-6,)).fetchone())
        return int(row[0])

    async def reply(self, key: str) -> StoredReply | None:
        """Return what is kept of the request with that idempotency key."""
        sql = "SELECT key, request, first, last, reply FROM replies WHERE key = ?"
        row = await self.file.read(lambda c: c.execute(sql, (key,)).fetchone())
        return StoredReply(*row) if row else None

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
        return Recorded(position, stream, version, recorded_at, decode_meta(meta), event, self.event_id(position))


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
    connection.execute("DELETE FROM replies WHERE recorded_at < ?", (time.time() - _REPLIES_KEPT,))
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


def _let_go(lock: int) -> None:
    """Unlock, then close: the lock would outlive it in a child that was forked and has not run its program yet."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _not_writable(folder: Path, error: OSError) -> Unavailable:
    reason = "DISK_FULL" if error.errno == errno.ENOSPC else "NOT_WRITABLE"
    return Unavailable(f"cannot write {folder}: {error.strerror}", reason=reason, file=str(folder))
