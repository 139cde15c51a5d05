"""Reads a domain's read tables and log for the domain's queries. Each call is one hop to SQLite's thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from aima_core.call import unix
from aima_core.errors import ValidationFailed
from aima_core.store.log import Log
from aima_core.store.records import Recorded
from aima_core.units import LARGEST

S = TypeVar("S")
Row = dict[str, Any]


class Reader(Generic[S]):
    """Gives one domain read access to its read tables and its log."""

    def __init__(self, log: Log, evolve: Callable[[S | None, Any], S | None]) -> None:
        self.log = log
        self._evolve = evolve

    async def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[Row]:
        """Return all rows of a SELECT as dicts."""

        def select(connection: sqlite3.Connection) -> list[Row]:
            cursor = connection.execute(sql, values)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

        return await self.log.file.read(select)

    async def page(
        self, table: str, *, where: dict[str, Any], limit: int, offset: int, order: str = "rowid"
    ) -> tuple[list[Row], int]:
        """Return one page of a read table, and the number of matching rows on all pages.

        `where` maps columns to the values that rows must have. A value of None does not filter.
        """
        filters = {column: value for column, value in where.items() if value is not None}
        condition = f"WHERE {' AND '.join(f'{column} = ?' for column in filters)}" if filters else ""
        values = tuple(filters.values())

        def select(connection: sqlite3.Connection) -> tuple[list[Row], int]:
            # no SQL injection: callers choose only values; table, columns and order come from the domain's code
            cursor = connection.execute(
                f"SELECT * FROM {table} {condition} ORDER BY {order} LIMIT ? OFFSET ?",  # noqa: S608
                (*values, limit, offset),
            )
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
            total = connection.execute(f"SELECT count(*) FROM {table} {condition}", values).fetchone()  # noqa: S608
            return rows, int(total[0])

        return await self.log.file.read(select)

    async def history(self, stream: str, *, after: int | None = None, limit: int = 1000) -> list[Recorded]:
        """Return the events of a stream, oldest first: those after a position, or, without `after`, the newest."""
        if after is None:
            return await self.log.newest(stream, limit=limit)
        return await self.log.events(after, stream=stream, limit=limit)

    async def state_at(self, stream: str, as_of: str) -> tuple[S | None, int]:
        """Return the state and the version that a stream had at an earlier moment. The state is None if it had none.

        `as_of` is a log position in digits or an RFC 3339 time. Raises ValidationFailed for any other text, and for a
        moment that has not come yet.
        """
        try:
            at = int(as_of) if as_of.isdecimal() else unix(as_of)
            until = min(int(at), LARGEST) if as_of.isdecimal() else await self.log.position_at(at)
        except (ValueError, OverflowError):
            raise _no_moment("a log position or an RFC 3339 time, such as 42 or 2026-01-31T12:00:00Z") from None
        last = await self.log.last_position()
        if at > (last if as_of.isdecimal() else time.time()):
            raise _no_moment(f"a moment in the past; the log ends at position {last}")
        state: S | None = None
        after = version = 0
        while page := await self.log.events(after, stream=stream, until=until):
            for record in page:
                state = self._evolve(state, record.event)
            after, version = page[-1].position, page[-1].version
        return state, version


def _no_moment(expected: str) -> ValidationFailed:
    return ValidationFailed(f"as_of: expected {expected}", fields=[{"field": "as_of", "expected": expected}])
