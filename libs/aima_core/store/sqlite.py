"""Uses one SQLite file in WAL mode, outside the event loop. One connection writes, and one reads.

A switch to aiosqlite's thread (a hop) costs far more than an SQL statement. So callers pass whole functions, and each
call is one hop.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite

from aima_core.errors import ExecutionFailed, Unavailable

T = TypeVar("T")


class Sqlite:
    """An open SQLite file. `write` runs a function in a transaction, `read` on a read-only connection."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path) -> Sqlite:
        """Open or create the file. Raises Unavailable or ExecutionFailed if that fails. The error names the file."""
        async with contextlib.AsyncExitStack() as stack:  # an open connection's thread would keep the process alive
            try:
                writer = await _connect(path)
                stack.push_async_callback(writer.close)
                await cls._hop(writer, _prepare_writer)
                address = f"{path.absolute().as_uri()}?mode=ro"  # as_uri quotes # and ? in the path
                reader = await _connect(address, uri=True)
            except sqlite3.Error as error:
                raise refusal(error, path) from error
            stack.pop_all()
        return cls(path, writer, reader)

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` in a transaction and return its result. A failure rolls the transaction back."""

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
            return await self._hop(self._writer, transaction)
        except sqlite3.Error as error:
            if _code(error) in _BUGS:
                raise
            raise refusal(error, self.path) from error

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the read-only connection. The function sees only committed data."""
        try:
            return await self._hop(self._reader, function)
        except sqlite3.Error as error:
            if _code(error) in _BUGS:
                raise
            raise refusal(error, self.path) from error

    async def close(self) -> None:
        try:
            await self._reader.close()
        finally:
            await self._writer.close()  # closes last, because the last connection merges the write-ahead log

    @staticmethod
    async def _hop(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        # each public method of aiosqlite costs a hop; its internal `_execute` runs a whole function in one hop
        result: T = await connection._execute(function, connection._conn)  # type: ignore[no-untyped-call]
        return result


async def _connect(path: str | Path, *, uri: bool = False) -> aiosqlite.Connection:
    connection = aiosqlite.connect(path, uri=uri, isolation_level=None)
    try:
        return await connection
    except sqlite3.Error:
        await asyncio.to_thread(connection._thread.join)  # otherwise, the thread calls a loop that may be closed
        raise


def _prepare_writer(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # protects against power failures; cheap, because commits are grouped
    connection.execute("PRAGMA foreign_keys=ON")


_BUGS = {None, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
"""Errors in an SQL statement or its values, not in the file. They are bugs in AIMA, so they are raised unchanged."""
_NOT_WRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}


def _code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code, or None for an error of Python's sqlite3 module."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def refusal(error: sqlite3.Error, path: Path) -> Unavailable | ExecutionFailed:
    """Convert an error of SQLite to an AimaError that names the file."""
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(f"no space left on the device that holds {path}", reason="DISK_FULL", file=str(path))
    if code in _NOT_WRITABLE:
        return Unavailable(f"cannot write {path}: {error}", reason="NOT_WRITABLE", file=str(path))
    return ExecutionFailed(f"SQLite failed on {path}: {error}", reason="LOG_FAILED", file=str(path))
