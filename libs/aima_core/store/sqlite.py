"""One SQLite file in WAL mode off the event loop: a writer connection, a reader connection, one hop per call.

A round trip to aiosqlite's thread costs far more than the SQL in it, so callers hand over whole functions.
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
    """The file. `write` runs a function in one transaction, `read` runs one on a connection that cannot write."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path) -> Sqlite:
        """Open or create the file; raise Unavailable naming it when it cannot be read or written."""
        async with contextlib.AsyncExitStack() as opened:  # a connection left open keeps its thread, and the process
            try:
                writer = await _connect(path)
                opened.push_async_callback(writer.close)
                await cls._hop(writer, _prepare_writer)
                address = f"{path.absolute().as_uri()}?mode=ro"  # quoted: a folder's name may hold a # or a ?
                reader = await _connect(address, uri=True)
            except sqlite3.Error as error:
                raise refusal(error, path) from error
            opened.pop_all()
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
            return await self._hop(self._writer, transaction)
        except sqlite3.Error as error:
            if _code(error) in _BUGS:
                raise
            raise refusal(error, self.path) from error

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function` on the reading connection; it sees what has been committed."""
        try:
            return await self._hop(self._reader, function)
        except sqlite3.Error as error:
            if _code(error) in _BUGS:
                raise
            raise refusal(error, self.path) from error

    async def close(self) -> None:
        """Close both connections; the write-ahead log is folded into the file."""
        try:
            await self._reader.close()
        finally:
            await self._writer.close()

    @staticmethod
    async def _hop(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        # aiosqlite's public calls are one hop each; its own primitive runs any function on the connection's thread.
        result: T = await connection._execute(function, connection._conn)  # type: ignore[no-untyped-call]
        return result


async def _connect(where: str | Path, *, uri: bool = False) -> aiosqlite.Connection:
    connection = aiosqlite.connect(where, uri=uri, isolation_level=None)
    try:
        return await connection
    except sqlite3.Error:
        await asyncio.to_thread(connection._thread.join)  # or it would speak to a loop that may be closed by then
        raise


def _prepare_writer(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # grouped commits make it nearly free, power loss makes it needed
    connection.execute("PRAGMA foreign_keys=ON")


_BUGS = {None, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
"""What lies in the SQL or in the values, not in the file: raised as it is, for whoever wrote it."""
_NOT_WRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}


def _code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code; None for what its Python module found by itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def refusal(error: sqlite3.Error, path: Path) -> Unavailable | ExecutionFailed:
    """Return what SQLite said as an error that names the file and what a person can do."""
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return Unavailable(f"no space left on the device that holds {path}", reason="DISK_FULL", file=str(path))
    if code in _NOT_WRITABLE:
        return Unavailable(f"cannot write {path}: {error}", reason="NOT_WRITABLE", file=str(path))
    return ExecutionFailed(f"the log {path} refused: {error}", reason="LOG_FAILED", file=str(path))
