"""One SQLite file in WAL mode off the event loop: a writer connection, a reader connection, one hop per call.

A round trip to aiosqlite's thread costs far more than the SQL in it, so callers hand over whole functions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite

from aima_core.errors import ExecutionFailed, Unavailable

T = TypeVar("T")


class Sqlite:
    """The file. `write` runs a function in one transaction, `read` runs one on a connection that cannot write."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path) -> Sqlite:
        """Open or create the file; raise Unavailable naming it when it cannot be read or written."""
        try:
            writer = await aiosqlite.connect(path, isolation_level=None)
            await _hop(writer, _prepare_writer)
            reader = await aiosqlite.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise refusal(error, path) from error
        return cls(path, writer, reader)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` between BEGIN and COMMIT; on any failure nothing of it remains."""

        def transaction(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = function(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        try:
            return await _hop(self._writer, transaction)
        except sqlite3.OperationalError as error:
            raise refusal(error, self.path) from error

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the reading connection; it sees what has been committed."""
        try:
            return await _hop(self._reader, function)
        except sqlite3.OperationalError as error:
            raise refusal(error, self.path) from error

    async def close(self) -> None:
        """Close both connections; the write-ahead log is folded into the file."""
        await self._reader.close()
        await self._writer.close()


async def _hop(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    # aiosqlite's public calls are one hop each; its own primitive runs any function on the connection's thread.
    result: T = await connection._execute(function, connection._conn)  # type: ignore[no-untyped-call]
    return result


def _prepare_writer(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # grouped commits make it nearly free, power loss makes it needed
    connection.execute("PRAGMA foreign_keys=ON")


def refusal(error: sqlite3.Error, path: Path) -> Unavailable | ExecutionFailed:
    """Return what SQLite said as an error that names the file and what a person can do."""
    text = str(error)
    if "full" in text:
        return Unavailable(f"no space left on the device that holds {path}", reason="DISK_FULL", file=str(path))
    if "readonly" in text or "unable to open" in text or "disk I/O" in text:
        return Unavailable(f"cannot write {path}: {text}", reason="NOT_WRITABLE", file=str(path))
    return ExecutionFailed(f"the log {path} refused: {text}", reason="LOG_FAILED", file=str(path))
